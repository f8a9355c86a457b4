//! What fails does not take traffic with it, and never lets it out in the clear: killed agents, a killed control plane, bad input.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tropis_tests::testkit::{Exchange, FailureKind};
use tropis_tests::{Family, Lab, PodProcess, Program, observe, wait};

use crate::support::{Case, Cast, Company, play, port};

/// Ten times what the mesh needs to hear of a change.
const CHANGE: Duration = Duration::from_secs(10);

#[test]
fn a_killed_ztunnel_never_means_plaintext_and_a_new_one_serves() {
    play(Company::Alone, |lab| Box::pin(ztunnel_killed(lab)));
}

#[test]
fn a_killed_redirector_or_control_plane_is_not_noticed() {
    play(Company::Alone, |lab| Box::pin(others_killed(lab)));
}

#[test]
fn bad_input_is_a_finding_each_and_changes_nothing_else() {
    play(Company::Welcome, |lab| Box::pin(bad_input(lab)));
}

async fn ztunnel_killed(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "killedztunnel", true).await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
    }
    let mut captures = vec![lab.capture_link("a")?, cast.client.capture()?];
    lab.kill(Program::Ztunnel, "a", Signal::SIGKILL).await?;
    for case in Case::all() {
        let target = cast.server(case).socket(case.family, port::ECHO);
        let said: Exchange = cast.client.run(&["echo", &target, "must not be seen", "--timeout", "1"]).await?;
        let refused = matches!(said.error, Some(FailureKind::Refused | FailureKind::Timeout | FailureKind::Reset));
        ensure!(!said.ok && refused, "{case}: without its ztunnel a pod must be refused or wait: {said:?}");
    }
    // Callers whose own ztunnel lives meet nobody at 15008 either.
    let serving = lab.start_program(Program::Ztunnel, "a");
    let begun = Instant::now();
    serving.await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await.with_context(|| format!("{case}: after the restart"))?;
    }
    println!("a new ztunnel serves every pod of its node {} ms after its start", begun.elapsed().as_millis());
    let ours: Vec<_> = cast.pods().iter().flat_map(|pod| Family::BOTH.map(|family| pod.address(family))).collect();
    for capture in captures.drain(..) {
        let captured = capture.finish()?;
        ensure!(!captured.contains(b"must not be seen"), "payload went out in the clear");
        let plain = captured.plaintext(|socket| ours.contains(&socket.ip()));
        ensure!(plain.is_empty(), "plaintext: {plain:?}");
    }
    cast.leave()
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

/// Open connections answer and new ones are carried.
async fn works(cast: &Cast<'_>, held: &mut [(Case, PodProcess)]) -> anyhow::Result<()> {
    for (case, process) in held {
        process.tell("ping").await?;
        let answer = process.hear(CHANGE).await.with_context(|| format!("{case}: an open connection"))?;
        ensure!(answer["event"] == "pong", "{case}: an open connection: {answer}");
        let said = cast.echo(&cast.client, &cast.server(*case).socket(case.family, port::ECHO), "still here").await?;
        ensure!(said.ok, "{case}: a new connection: {said:?}");
    }
    Ok(())
}

/// A bad document, and what its finding must name.
struct Bad {
    file: &'static str,
    text: &'static str,
    names: &'static [&'static str],
}

const BAD: &[Bad] = &[
    Bad {
        file: "bad-unknown-field.yaml",
        text: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: unknown-field, namespace: badinput}\nspec: {actoin: DENY}\n",
        names: &["unknown-field", "actoin"],
    },
    Bad {
        file: "bad-type.yaml",
        text: "apiVersion: v1\nkind: Service\nmetadata: {name: wrong-type, namespace: badinput}\nspec: {ports: [{port: eighty}]}\n",
        names: &["wrong-type", "port"],
    },
    Bad { file: "bad-half.yaml", text: "apiVersion: v1\nkind: Service\nmetadata: {name: half, namespace: [bad", names: &["bad-half.yaml"] },
    Bad {
        file: "bad-duplicate.yaml",
        text: "apiVersion: v1\nkind: Service\nmetadata: {name: server-a, namespace: badinput}\nspec: {selector: {app: server-a}, ports: [{name: tcp-echo, port: 7000}]}\n",
        names: &["server-a"],
    },
    Bad {
        file: "bad-selector.yaml",
        text: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: selects-nothing, namespace: badinput}\nspec: {selector: {matchLabels: {app: nobody}}, action: DENY, rules: [{}]}\n",
        names: &["selects-nothing"],
    },
    Bad {
        file: "bad-port.yaml",
        text: "apiVersion: v1\nkind: Service\nmetadata: {name: port-range, namespace: badinput}\nspec: {ports: [{port: 70000}]}\n",
        names: &["port-range", "70000"],
    },
    Bad {
        file: "bad-principal.yaml",
        text: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: odd-principal, namespace: badinput}\nspec: {selector: {matchLabels: {app: nobody}}, rules: [{from: [{source: {principals: [\"spiffe://cluster.local/ns/x/sa/y\"]}}]}]}\n",
        names: &["odd-principal", "spiffe://cluster.local/ns/x/sa/y"],
    },
];

async fn bad_input(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "badinput", true).await?;
    let case = Case { family: Family::V4, across_nodes: true };
    cast.wait_tunnelled(case).await?;
    for bad in BAD {
        lab.write(bad.file, bad.text)?;
        let what = format!("a finding about {}", bad.file);
        let found = wait::until(CHANGE, &what, async || {
            findings(lab).await.ok()?.into_iter().find(|finding| bad.names.iter().all(|name| finding.to_string().contains(name)))
        });
        let finding = match found.await {
            Ok(finding) => finding,
            Err(error) => anyhow::bail!("{error}; there are {:?}", findings(lab).await?),
        };
        for field in ["level", "code", "origin", "problem", "effect"] {
            ensure!(finding.get(field).is_some_and(|value| !value.is_null()), "{}: the finding has no {field}: {finding}", bad.file);
        }
        println!("{}: {finding}", bad.file);
        let said = cast.echo(&cast.client, &cast.server(case).socket(case.family, port::ECHO), "unharmed").await?;
        ensure!(said.ok, "{} harmed traffic: {said:?}", bad.file);
    }
    for bad in BAD {
        lab.remove(bad.file)?;
    }
    last_good_version_stays(&cast, case).await?;
    cast.leave()
}

/// A policy whose new version cannot be read goes on as it was.
async fn last_good_version_stays(cast: &Cast<'_>, case: Case) -> anyhow::Result<()> {
    const FILE: &str = "policy-then-nonsense.yaml";
    const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: badinput}\nspec: {action: DENY, rules: [{}]}\n";
    let target = cast.server(case).socket(case.family, port::ECHO);
    let refused = async || {
        let said: Exchange = cast.client.run(&["echo", &target, "may I"]).await.ok()?;
        (said.error == Some(FailureKind::Reset)).then_some(())
    };
    cast.lab.write(FILE, POLICY)?;
    wait::until(CHANGE, "the policy to be in force", refused).await?;
    cast.lab.write(FILE, &POLICY.replace("DENY", "DENNY"))?;
    let told = async || {
        findings(cast.lab).await.ok()?.into_iter().find(|finding| {
            let text = finding.to_string();
            text.contains("DENNY") && text.contains("last good version")
        })
    };
    wait::until(CHANGE, "a finding about the new version", told).await?;
    ensure!(refused().await.is_some(), "the last good version is no longer in force");
    cast.lab.remove(FILE)?;
    let admitted = async || cast.echo(&cast.client, &target, "may I").await.is_ok_and(|said| said.ok).then_some(());
    Ok(wait::until(CHANGE, "the policy to be gone", admitted).await?)
}

/// Every finding that tropisd has.
async fn findings(lab: &Lab) -> anyhow::Result<Vec<Value>> {
    let socket = lab.layout().socket(Program::Tropisd.name(), "control");
    let (_, text) = tokio::task::spawn_blocking(move || observe::get_unix(&socket, "/debug/findings")).await??;
    let mut found = Vec::new();
    collect(&serde_json::from_str(&text)?, &mut found);
    Ok(found)
}

/// Findings wherever they stand in the answer: each has a code.
fn collect(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(fields) if fields.contains_key("code") => found.push(value.clone()),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, found)),
        Value::Array(items) => items.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}
