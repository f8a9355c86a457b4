//! Applications notice nothing: true addresses, half-close both ways, server-first protocols, single bytes, long streams, many
//! connections at once, names by UDP and TCP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tropis_tests::testkit::{Exchange, Greeting, Resolved, Storm};
use tropis_tests::{Family, Lab};

use crate::support::{Case, Cast, Company, play, port};

/// A gibibyte takes some seconds here; ten times that.
const LONG_STREAM: Duration = Duration::from_secs(120);

#[test]
fn applications_see_each_others_true_addresses() {
    play(Company::Welcome, |lab| Box::pin(addresses(lab)));
}

#[test]
fn every_shape_of_conversation_passes() {
    play(Company::Welcome, |lab| Box::pin(conversations(lab)));
}

#[test]
fn names_resolve_through_the_mesh_and_foreign_names_through_the_pods_own_resolver() {
    play(Company::Welcome, |lab| Box::pin(names(lab)));
}

async fn addresses(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "addresses", true).await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
        let (server, family) = (cast.server(case), case.family);
        let by_service = SocketAddr::new(lab.service_address("addresses", server.name(), family).context("a service address")?, port::HTTP);
        for target in [server.socket(family, port::HTTP), by_service.to_string()] {
            let said: Exchange = cast.client.run(&["get", &format!("http://{target}/")]).await?;
            ensure!(said.ok, "{case}: {target}: {said:?}");
            ensure!(said.peer.as_deref() == Some(target.as_str()), "{case}: the client dialled {target} and sees {:?}", said.peer);
            let own: SocketAddr = said.local.clone().unwrap_or_default().parse().context("the client's own address")?;
            ensure!(own.ip() == cast.client.address(family), "{case}: the client's own address is shown as {own}");
            let seen: Greeting = serde_json::from_str(said.reply.as_deref().unwrap_or_default()).context("what the server saw")?;
            let peer: SocketAddr = seen.peer.parse().context("the peer that the server saw")?;
            ensure!(peer.ip() == cast.client.address(family), "{case}: the server sees {peer} instead of {}", cast.client.address(family));
            let local: SocketAddr = seen.local.parse().context("the server's own address")?;
            ensure!(local == server.socket(family, port::HTTP).parse()?, "{case}: the server's own address is shown as {local}");
        }
        if family == Family::V4 {
            let mapped: Exchange = cast.client.run(&["echo", &server.socket(family, port::ECHO), "mapped", "--mapped"]).await?;
            ensure!(mapped.ok && mapped.peer.as_deref() == Some(server.socket(family, port::ECHO).as_str()), "{case}: {mapped:?}");
        }
    }
    cast.leave()
}

async fn conversations(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "conversations", true).await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
        // Port 53 of a member is its traffic like any other, whatever is spoken there.
        let domain = cast.server(case).socket(case.family, port::DOMAIN);
        let said: Exchange = cast.client.run(&["echo", &domain, "not a question"]).await?;
        ensure!(said.ok, "{case}: port 53 of a member: {said:?}");
        let tunnelled = [("direction", "outbound"), ("dst.hbone_addr", domain.as_str())];
        lab.wait_access_line(cast.client.node(), "port 53 of a member in a tunnel", |line| line.has(&tunnelled)).await?;
        let server = cast.server(case);
        let at = |port| server.socket(case.family, port);
        let talks: [(&str, Vec<String>); 6] = [
            ("server-first", vec!["banner".into(), at(port::SERVER_FIRST)]),
            ("the client finishes first", vec!["half-close".into(), at(port::HALF_CLOSE)]),
            ("the server finishes first", vec!["half-close".into(), at(port::FAREWELL), "--first".into(), "server".into()]),
            ("single bytes", vec!["drip".into(), at(port::ECHO), "--one-by-one".into()]),
            ("single bytes without waiting", vec!["drip".into(), at(port::ECHO), "--pause".into(), "0.0005".into()]),
            (
                "both directions at once",
                vec!["stream".into(), at(port::ECHO), "--bytes".into(), "64M".into(), "--direction".into(), "both".into()],
            ),
        ];
        for (what, command) in talks {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let said: Exchange = cast.client.run(&command).await.with_context(|| format!("{case}: {what}"))?;
            ensure!(said.ok, "{case}: {what}: {said:?}");
        }
        let storm: Storm = cast.client.run(&["storm", &at(port::ECHO), "--connections", "500", "--timeout", "30"]).await?;
        ensure!(storm.ok && storm.open_at_once == 500, "{case}: {storm:?}");
        println!("{case}: 500 connections stood after {:.0} ms", storm.connect_milliseconds);
        let bytes: u64 = if case.across_nodes { 1 << 30 } else { 256 << 20 };
        let command = ["stream", &at(port::SINK), "--bytes", &bytes.to_string(), "--timeout", "60"];
        let said: Exchange = cast.client.run_for(&command, LONG_STREAM).await?;
        ensure!(said.ok && said.bytes == bytes && said.sha256.is_some(), "{case}: a long stream: {said:?}");
        println!("{case}: {} MiB in {:.1} s, digests match", bytes >> 20, said.milliseconds / 1000.0);
    }
    cast.leave()
}

async fn names(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "names", true).await?;
    cast.wait_tunnelled(Case { family: Family::V4, across_nodes: true }).await?;
    for (family, tcp) in Family::BOTH.into_iter().flat_map(|family| [(family, false), (family, true)]) {
        let how = format!("{family} by {}", if tcp { "TCP" } else { "UDP" });
        let kind = if family == Family::V4 { "A" } else { "AAAA" };
        let ask = |name: &'static str| {
            let mut command = vec!["resolve", name, "--type", kind, family.flag()];
            command.extend(tcp.then_some("--tcp"));
            let client = cast.client.clone();
            async move { client.run::<Resolved>(&command).await }
        };
        let service = lab.service_address("names", "server-b", family).context("a service address")?.to_string();
        let said = ask("server-b.names.svc.cluster.local").await?;
        ensure!(said.ok && said.answers == [service.clone()], "{how}: a name of the mesh: {said:?}");
        // The mesh answers with a life of 30 s, the cluster DNS with 5 s: this tells who answered.
        ensure!(said.ttl == Some(30), "{how}: not answered by the mesh: {said:?}");
        let resolver: SocketAddr = said.peer.clone().unwrap_or_default().parse().context("who answered")?;
        ensure!(lab.network.plan.dns().both().contains(&resolver.ip()), "{how}: the answer seems to come from {resolver}");
        // No name of the mesh: only the pod's own resolver knows that it does not exist.
        let foreign = ask("nothing.of.ours.example").await?;
        ensure!(foreign.rcode.as_deref() == Some("NXDOMAIN"), "{how}: a foreign name: {foreign:?}");
        let namespace = ask("names.svc.cluster.local").await?;
        ensure!(namespace.rcode.as_deref() == Some("NOERROR"), "{how}: a name that only the cluster DNS knows: {namespace:?}");
    }
    let unconnected: Resolved = cast.client.run(&["resolve", "server-b.names.svc.cluster.local", "--unconnected"]).await?;
    ensure!(unconnected.ok, "by sendto: {unconnected:?}");
    for family in Family::BOTH {
        let said: Exchange = cast.client.run(&["echo", family.flag(), &format!("server-b:{}", port::ECHO), "by short name"]).await?;
        ensure!(said.ok, "{family}: through the system's resolver and its search list: {said:?}");
    }
    cast.leave()
}
