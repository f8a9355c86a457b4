//! Enrolment is live: the namespace's label turns the mesh on and off for running pods. Connections opened before stay, new ones are
//! captured, and no netfilter rule changes anywhere.

use std::time::Duration;

use anyhow::{Context, ensure};
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
        before.push((case, hold(&cast, case).await?));
    }
    ensure!(lines_of(&cast) == 0, "nothing of this namespace goes through the mesh yet");

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
        direct(&cast, case).await?;
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
    let counted = |node: &str, reporter: &'static str| {
        let (node, server) = (node.to_owned(), server.name().to_owned());
        async move {
            let labels = [("reporter", reporter), ("source_workload", "client"), ("destination_workload", server.as_str())];
            anyhow::Ok(cast.lab.metrics(&node).await?.sum("istio_tcp_connections_opened_total", &labels))
        }
    };
    let (out, inn) = (counted(cast.client.node(), "source").await?, counted(server.node(), "destination").await?);
    cast.wait_tunnelled(case).await?;
    ensure!(counted(cast.client.node(), "source").await? > out, "{case}: the client's side did not count the connection");
    ensure!(counted(server.node(), "destination").await? > inn, "{case}: the server's side did not count the connection");
    for (node, direction) in [(cast.client.node(), "outbound"), (server.node(), "inbound")] {
        let what = format!("{case}: the {direction} line");
        let ends = |line: &tropis_tests::observe::AccessLine| {
            line.has(&[("direction", direction), ("src.workload", cast.client.name()), ("dst.workload", server.name())])
        };
        cast.lab.wait_access_line(node, &what, ends).await?;
    }
    Ok(())
}

/// A new connection goes past the proxies: it works and nobody logs it.
async fn direct(cast: &Cast<'_>, case: Case) -> anyhow::Result<()> {
    let before = lines_of(cast);
    let said = cast.echo(&cast.client, &cast.server(case).socket(case.family, port::ECHO), "hello again").await?;
    ensure!(said.ok, "{case}: after the release: {said:?}");
    ensure!(lines_of(cast) == before, "{case}: a released pod's connection still goes through the mesh");
    Ok(())
}

fn lines_of(cast: &Cast<'_>) -> usize {
    let of =
        |line: &tropis_tests::observe::AccessLine| [line.field("src.namespace"), line.field("dst.namespace")].contains(&cast.namespace);
    ["a", "b"].iter().map(|node| cast.lab.access_log(node).iter().filter(|line| of(line)).count()).sum()
}

/// The rulesets of the nodes' and this cast's namespaces, but for the service rules that other scenarios' pods change meanwhile.
async fn rules_of(cast: &Cast<'_>) -> anyhow::Result<Vec<(String, String)>> {
    let rules = cast.lab.rulesets().await?;
    let own = |name: &String| cast.pods().iter().any(|pod| name.contains(pod.uid().split('-').next().unwrap_or_default()));
    let is_infrastructure = |name: &String| name.ends_with("-router") || name.ends_with("-control");
    let tables =
        |rules: &str| rules.lines().filter(|line| line.starts_with("table ") || line.contains(" hook ")).collect::<Vec<_>>().join("\n");
    Ok(rules
        .into_iter()
        .filter_map(|(name, rules)| match (own(&name) || is_infrastructure(&name), name.ends_with("-a") || name.ends_with("-b")) {
            (true, _) => Some((name, rules)),
            (false, true) => Some((name, tables(&rules))),
            (false, false) => None,
        })
        .collect())
}
