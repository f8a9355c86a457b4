//! Enrolment is live: the namespace's label turns the mesh on and off for running pods. Connections opened before stay, new ones are
//! captured, and no netfilter rule changes anywhere.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tropis_tests::observe::AccessLine;
use tropis_tests::{Lab, PodProcess};

use crate::support::{Case, Cast, Company, play, port};

/// Ten times what an echo needs.
const ANSWER: Duration = Duration::from_secs(5);

#[test]
fn a_live_pod_is_enrolled_captured_relayed_and_released() {
    play(Company::Welcome, |lab| Box::pin(enrol_and_release(lab)));
}

async fn enrol_and_release(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "enrolment", false).await?;
    let rules = rules_of(&cast).await?;
    let mut before = Vec::new();
    for case in Case::all() {
        before.push((case, direct(&cast, case).await?));
    }

    let begun = std::time::Instant::now();
    cast.enrol(true).await?;
    println!("enrolled {} running pods in {} ms", cast.pods().len(), begun.elapsed().as_millis());
    for (case, held) in &mut before {
        ping(held).await.with_context(|| format!("{case}: a connection from before enrolment"))?;
    }
    let mut during = Vec::new();
    for case in Case::all() {
        captured(&cast, case).await?;
        during.push((case, hold(&cast, case).await?));
    }
    ensure!(rules_of(&cast).await? == rules, "enrolment changed a netfilter ruleset");

    let begun = std::time::Instant::now();
    cast.enrol(false).await?;
    println!("released them in {} ms", begun.elapsed().as_millis());
    for (case, held) in before.iter_mut().chain(&mut during) {
        ping(held).await.with_context(|| format!("{case}: a connection from before the release"))?;
    }
    for case in Case::all() {
        direct(&cast, case).await.context("after the release")?;
    }
    ensure!(rules_of(&cast).await? == rules, "the release changed a netfilter ruleset");
    cast.leave()
}

/// Opens a connection that stays.
async fn hold(cast: &Cast<'_>, case: Case) -> anyhow::Result<PodProcess> {
    let mut held = cast.client.spawn(&["hold", &cast.server(case).socket(case.family, port::ECHO)])?;
    let opened = held.hear(ANSWER).await.with_context(|| format!("{case}: opening a connection"))?;
    ensure!(opened["event"] == "open", "{case}: {opened}");
    ping(&mut held).await?;
    Ok(held)
}

async fn ping(held: &mut PodProcess) -> anyhow::Result<()> {
    held.tell("ping").await?;
    let answer = held.hear(ANSWER).await?;
    ensure!(answer["event"] == "pong", "{answer}");
    Ok(())
}

/// A new connection goes through the proxies of both ends: both say so, both count it, and the application notices nothing.
async fn captured(cast: &Cast<'_>, case: Case) -> anyhow::Result<()> {
    let server = cast.server(case);
    let counted = async |node: &str, reporter: &str| {
        let labels = [
            ("reporter", reporter),
            ("source_workload", cast.client.name()),
            ("source_workload_namespace", cast.namespace.as_str()),
            ("destination_workload", server.name()),
            ("destination_workload_namespace", cast.namespace.as_str()),
            ("connection_security_policy", "mutual_tls"),
        ];
        anyhow::Ok(cast.lab.metrics(node).await?.sum("istio_tcp_connections_opened_total", &labels))
    };
    let (out, inn) = (counted(cast.client.node(), "source").await?, counted(server.node(), "destination").await?);
    let outbound = cast.wait_tunnelled(case).await?;
    ensure!(counted(cast.client.node(), "source").await? > out, "{case}: the client's side did not count the connection");
    ensure!(counted(server.node(), "destination").await? > inn, "{case}: the server's side did not count the connection");
    // The same connection, seen from the other end: one trace, for one address of one server.
    let shared =
        ["traceparent", "dst.hbone_addr", "src.workload", "src.namespace", "dst.workload", "dst.namespace", "src.identity", "dst.identity"];
    let shared = shared.map(|field| (field, outbound.field(field)));
    let ends = |line: &AccessLine| line.field("direction") == "inbound" && shared.iter().all(|(field, value)| line.field(field) == *value);
    let what = format!("{case}: the inbound line");
    cast.lab.wait_access_line(server.node(), &what, ends).await.with_context(|| format!("{case}: {}", outbound.0))?;
    Ok(())
}

/// A new connection goes past the proxies: each end has one socket more, with the other end's address, so nobody stands between.
async fn direct(cast: &Cast<'_>, case: Case) -> anyhow::Result<PodProcess> {
    let server = cast.server(case);
    let before = [cast.client.connections(), server.connections()];
    let held = hold(cast, case).await?;
    let after = [cast.client.connections(), server.connections()];
    let [client, served] = [0, 1].map(|end| after[end].difference(&before[end]).copied().collect::<Vec<_>>());
    let target: SocketAddr = server.socket(case.family, port::ECHO).parse()?;
    let one = matches!((&client[..], &served[..]), ([(own, to)], [(at, peer)]) if to == at && *to == target && own == peer);
    ensure!(one, "{case}: not one connection from end to end: the client has {client:?}, the server {served:?}");
    Ok(held)
}

/// The rulesets of the host, the nodes and this cast's namespaces, but for the service rules that other scenarios' pods change meanwhile.
async fn rules_of(cast: &Cast<'_>) -> anyhow::Result<Vec<(String, String)>> {
    let rules = cast.lab.rulesets().await?;
    let own = |name: &String| cast.pods().iter().any(|pod| name.contains(pod.uid().split('-').next().unwrap_or_default()));
    let is_infrastructure = |name: &String| name == "host" || name.ends_with("-router") || name.ends_with("-control");
    let tables =
        |rules: &str| rules.lines().filter(|line| line.starts_with("table ") || line.contains(" hook ")).collect::<Vec<_>>().join("\n");
    let compared: Vec<_> = rules
        .into_iter()
        .filter_map(|(name, rules)| match (own(&name) || is_infrastructure(&name), name.ends_with("-a") || name.ends_with("-b")) {
            (true, _) => Some((name, rules)),
            (false, true) => Some((name, tables(&rules))),
            (false, false) => None,
        })
        .collect();
    // Host, router and control namespace, two nodes, and the pods.
    ensure!(compared.len() == 5 + cast.pods().len(), "rulesets of {:?}", compared.iter().map(|(name, _)| name).collect::<Vec<_>>());
    Ok(compared)
}
