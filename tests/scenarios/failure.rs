//! What fails does not take traffic with it, and never lets it out in the clear: killed agents, a killed control plane.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use tropis_tests::testkit::{Exchange, FailureKind};
use tropis_tests::{Family, Lab, PodHandle, PodProcess, Program};

use crate::support::{Case, Cast, Company, play, port};

/// Ten times what the mesh needs to hear of a change.
const CHANGE: Duration = Duration::from_secs(10);
/// What nobody may read on a wire.
const CANARY: &str = "must not be seen";

#[test]
fn a_killed_ztunnel_never_means_plaintext_and_a_new_one_serves() {
    play(Company::Alone, |lab| Box::pin(ztunnel_killed(lab)));
}

#[test]
fn a_killed_redirector_or_control_plane_is_not_noticed() {
    play(Company::Alone, |lab| Box::pin(others_killed(lab)));
}

async fn ztunnel_killed(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "killedztunnel", true).await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
    }
    // Callers whose own ztunnel lives: they meet nobody at 15008 on the other node.
    let remote = cast.server(Case { family: Family::V4, across_nodes: true });
    let near = cast.server(Case { family: Family::V4, across_nodes: false });
    ensure!((remote.node(), near.node()) == ("b", "a"), "the cast stands elsewhere");
    for family in Family::BOTH {
        cast.wait_tunnelled_between(remote, near, family).await?;
    }
    let mut captures = vec![lab.capture_link("a")?, cast.client.capture()?, near.capture()?, remote.capture()?];
    lab.kill(Program::Ztunnel, "a", Signal::SIGKILL).await?;
    for case in Case::all() {
        let server = cast.server(case);
        refused(&cast, &cast.client, &server.socket(case.family, port::ECHO)).await.with_context(|| case.to_string())?;
        let service = cast.service(server.name(), case.family)?;
        refused(&cast, &cast.client, &format!("{service}:{}", port::ECHO)).await.with_context(|| format!("{case}: by service"))?;
    }
    for family in Family::BOTH {
        refused(&cast, remote, &near.socket(family, port::ECHO)).await.with_context(|| format!("{family} from the other node"))?;
        let service = cast.service(near.name(), family)?;
        let what = || format!("{family} from the other node, by service");
        refused(&cast, remote, &format!("{service}:{}", port::ECHO)).await.with_context(what)?;
    }
    let serving = lab.start_program(Program::Ztunnel, "a");
    let begun = Instant::now();
    serving.await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await.with_context(|| format!("{case}: after the restart"))?;
    }
    for family in Family::BOTH {
        cast.wait_tunnelled_between(remote, near, family)
            .await
            .with_context(|| format!("{family} from the other node, after the restart"))?;
    }
    println!("a new ztunnel serves every pod of its node {} ms after its start", begun.elapsed().as_millis());
    let ours: Vec<_> = cast.pods().iter().flat_map(|pod| Family::BOTH.map(|family| pod.address(family))).collect();
    for capture in captures.drain(..) {
        let captured = capture.finish()?;
        ensure!(!captured.contains(CANARY.as_bytes()), "payload went out in the clear");
        let plain = captured.plaintext(|socket| ours.contains(&socket.ip()));
        ensure!(plain.is_empty(), "plaintext: {plain:?}");
    }
    cast.leave()
}

/// One connection that must not come about: refused, reset, or waiting for as long as we do.
async fn refused(cast: &Cast<'_>, pod: &PodHandle, target: &str) -> anyhow::Result<()> {
    ensure!(!cast.lab.programs().runs(Program::Ztunnel, "a"), "the ztunnel of node a runs, so nothing is shown");
    let said: Exchange = pod.run(&["echo", target, CANARY, "--timeout", "1"]).await?;
    let refused = matches!(said.error, Some(FailureKind::Refused | FailureKind::Timeout | FailureKind::Reset));
    ensure!(!said.ok && refused, "{} to {target}: without ztunnel it must be refused or wait: {said:?}", pod.key());
    Ok(())
}

async fn others_killed(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "killedothers", true).await?;
    let mut held = Vec::new();
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
        let mut process = cast.client.spawn(&["hold", &cast.server(case).socket(case.family, port::ECHO)])?;
        ensure!(process.hear(CHANGE).await?["event"] == "open", "{case}");
        held.push((case, process));
    }
    for (program, node) in [(Program::Redirector, "a"), (Program::Redirector, "b"), (Program::Tropisd, "control")] {
        lab.kill(program, node, Signal::SIGKILL).await?;
        works(&cast, &mut held).await.with_context(|| format!("without {program} on {node}"))?;
        let took = lab.start_program(program, node).await?;
        println!("{program} on {node} is ready again after {} ms", took.as_millis());
        works(&cast, &mut held).await.with_context(|| format!("after {program} on {node} came back"))?;
    }
    // What came back works, too: a change reaches everybody.
    cast.enrol(false).await.context("released by agents that were started again")?;
    cast.enrol(true).await.context("enrolled by agents that were started again")?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
    }
    cast.leave()
}

/// Open connections answer and new ones are carried, in tunnels.
async fn works(cast: &Cast<'_>, held: &mut [(Case, PodProcess)]) -> anyhow::Result<()> {
    for (case, process) in held {
        process.tell("ping").await?;
        let answer = process.hear(CHANGE).await.with_context(|| format!("{case}: an open connection"))?;
        ensure!(answer["event"] == "pong", "{case}: an open connection: {answer}");
        cast.tunnelled(&cast.client, cast.server(*case), case.family).await.with_context(|| format!("{case}: a new connection"))?;
    }
    Ok(())
}
