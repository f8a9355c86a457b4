//! Encryption is real: of connections opened after both ends were enrolled, every payload byte between the pods is TLS to or from
//! port 15008, on the link between nodes as at the pods' own interfaces; both ends know each other's identity.

use anyhow::{Context, ensure};
use serde_json::Value;
use tropis_tests::capture::Capture;
use tropis_tests::certificates::{chains_to, decoded};
use tropis_tests::observe::{self, AccessLine};
use tropis_tests::{Lab, Program};

use crate::support::{Case, Cast, Company, play, port};

#[test]
fn what_pods_say_to_each_other_is_never_seen_on_a_wire() {
    play(Company::Welcome, |lab| Box::pin(canary(lab)));
}

async fn canary(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "encryption", true).await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
        one_canary(&cast, case).await.with_context(|| case.to_string())?;
    }
    certificates_chain_to_the_mesh(&cast).await?;
    cast.leave()
}

async fn one_canary(cast: &Cast<'_>, case: Case) -> anyhow::Result<()> {
    let (lab, server) = (cast.lab, cast.server(case));
    let labels =
        [("reporter", "destination"), ("source_workload_namespace", cast.namespace.as_str()), ("connection_security_policy", "mutual_tls")];
    let counted = async || anyhow::Ok(lab.metrics(server.node()).await?.sum("istio_tcp_connections_opened_total", &labels));
    let before = counted().await?;
    let canary = format!("canary-{}-{}", case.family.flag(), if case.across_nodes { "across" } else { "near" });
    let mut captures: Vec<(&str, Capture)> =
        vec![("the client's interface", cast.client.capture()?), ("the server's interface", server.capture()?)];
    if case.across_nodes {
        captures.push(("the node link", lab.capture_link("a")?));
    }
    // A pool may already hold a tunnel of this pair, whose beginning is not in the capture; another client opens a new one.
    for pod in [&cast.client, &cast.other] {
        for target in [server.socket(case.family, port::ECHO), format!("{}:{}", server.name(), port::ECHO)] {
            let said = pod.run::<tropis_tests::testkit::Exchange>(&["echo", case.family.flag(), &target, &canary, "--count", "50"]).await?;
            ensure!(said.ok, "{target}: {said:?}");
        }
    }
    let ours: Vec<_> = cast.pods().iter().map(|pod| pod.address(case.family)).collect();
    for (place, capture) in captures {
        let captured = capture.finish()?;
        let plain = captured.plaintext(|socket| ours.contains(&socket.ip()));
        ensure!(plain.is_empty(), "plaintext at {place}: {plain:?}");
        ensure!(!captured.contains(canary.as_bytes()), "the canary was seen at {place}");
        let tunnelled =
            captured.segments.iter().filter(|segment| [segment.source.port(), segment.destination.port()].contains(&15008)).count();
        ensure!(tunnelled > 0, "nothing at all was seen at {place}");
    }
    let namespace = &cast.namespace;
    let identity = |account: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
    for (node, direction) in [("a", "outbound"), (server.node(), "inbound")] {
        let (from, to) = (identity("client"), identity("server"));
        // The target's address is of this case's family, so lines of earlier cases do not count.
        let target = server.socket(case.family, port::ECHO);
        let named = |line: &AccessLine| {
            line.has(&[("direction", direction), ("src.identity", &from), ("dst.identity", &to), ("dst.hbone_addr", &target)])
        };
        let line = lab.wait_access_line(node, &format!("an {direction} line with both identities"), named).await?;
        ensure!(!line.field("duration").is_empty(), "{direction}: {line:?}");
    }
    let opened = counted().await? - before;
    ensure!(opened >= 4.0, "4 connections with mutual TLS were made, {opened} are counted on {}", server.node());
    Ok(())
}

/// What ztunnel presents ends at the root that tropisd publishes.
async fn certificates_chain_to_the_mesh(cast: &Cast<'_>) -> anyhow::Result<()> {
    let socket = cast.lab.layout().socket(Program::Ztunnel.name(), "a");
    let (status, dump) = tokio::task::spawn_blocking(move || observe::get_unix(&socket, "/config_dump")).await??;
    ensure!(status == 200, "config_dump answers {status}");
    let dump: Value = serde_json::from_str(&dump)?;
    let wanted = format!("spiffe://cluster.local/ns/{}/sa/client", cast.namespace);
    let certificates = dump["certificates"].as_array().context("certificates in the dump")?;
    let certificate = certificates.iter().find(|certificate| certificate["identity"] == wanted.as_str());
    let certificate = certificate.with_context(|| format!("no certificate of {wanted} in {}", dump["certificates"]))?;
    let published = std::fs::read(cast.lab.layout().root_certificate())?;
    // The chain begins with the certificate itself.
    let chain = certificate["certChain"].as_array().context("a chain in the dump")?;
    let chain = chain.iter().map(|one| decoded(one["pem"].as_str().unwrap_or_default())).collect::<anyhow::Result<Vec<_>>>()?;
    chains_to(&chain.concat(), &published).with_context(|| format!("{wanted} to the root that tropisd publishes"))
}
