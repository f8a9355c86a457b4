//! The waypoint's plain HTTP path beside other L7 proxies: client, proxies and servers are pods of one node, outside the mesh. The
//! waypoint is one that tropisd deployed and configured; its environment asks for plain listeners.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::envoy::{self, Servers};
use super::report::{L7, Way};
use super::{Course, HEADER, NAMESPACE, PODS, PORTS, Subject, THROUGH, WAYPOINT, measure};
use crate::bench::{Options, Peer, PeerKind};
use crate::lab::{Lab, LabOptions, PodHandle};
use crate::progress::Progress;
use crate::testkit::Exchange;
use crate::testkit::calls::Calls;
use crate::wait;

const NODE: &str = "a";
/// Ten times what a proxy takes to have its routes in force.
const ROUTES_DEADLINE: Duration = Duration::from_secs(30);
/// The log without a line a request: the setting that any user has.
pub(super) const NO_ACCESS_LOG: &str = "info,access=off";

/// Measures in a lab of its own; what a peer is missing for goes to `missing`.
pub(in crate::bench) async fn beside_peers(
    options: &Options,
    folder: &Path,
    missing: &mut Vec<String>,
    progress: &Progress,
) -> anyhow::Result<L7> {
    progress.step("lab for plain HTTP");
    let envoy = options.peers.iter().find(|peer| peer.kind == PeerKind::Envoy);
    let lab = Lab::start(lab_options(options, folder, envoy, progress)).await?;
    let measured = in_lab(&lab, options, envoy, missing, progress).await;
    lab.down().await?;
    measured
}

fn lab_options(options: &Options, folder: &Path, envoy: Option<&Peer>, progress: &Progress) -> LabOptions {
    let listeners = PORTS.map(|port| format!("[::]:{port}={THROUGH}.{NAMESPACE}.svc.cluster.local:{port}")).join(",");
    let environment =
        [("TROPIS_PLAIN_LISTENERS", listeners), ("TROPIS_WORKERS", options.workers.to_string()), ("RUST_LOG", NO_ACCESS_LOG.to_owned())];
    LabOptions {
        nodes: vec![NODE.to_owned()],
        programs: Some(folder.to_owned()),
        images: envoy.map(|peer| (envoy::IMAGE.to_owned(), peer.binary.clone())).into_iter().collect(),
        waypoint_environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        progress: progress.clone(),
        ..LabOptions::new(&format!("{}http", options.run))
    }
}

async fn in_lab(lab: &Lab, options: &Options, envoy: Option<&Peer>, missing: &mut Vec<String>, progress: &Progress) -> anyhow::Result<L7> {
    lab.apply(&PODS.replace("MODE", "none").replace("SERVERS", NODE))?;
    let waypoints = lab.waypoint(NAMESPACE, WAYPOINT, &[]).await?;
    let waypoint = waypoints.first().context("the waypoint has no pod")?;
    let (v1, v2) = (lab.pod(NAMESPACE, "server-v1").await?, lab.pod(NAMESPACE, HEADER.2).await?);
    let client = lab.pod(NAMESPACE, "client").await?;
    let mut subjects = Vec::new();
    if let Some(peer) = envoy {
        let servers = Servers { v1: v1.address(options.family()), v2: v2.address(options.family()) };
        match start_envoy(lab, options, peer, servers, &client).await {
            Ok(subject) => subjects.push(subject),
            Err(error) => missing.push(format!("{}: {error:#}", peer.kind.name())),
        }
    }
    subjects.push(subject("Tropis", waypoint, options, &client).await?);
    let course = Course { way: Way::Plain, client, subjects };
    let measured = measure(options, &course, progress).await?;
    let counted = lab.waypoint_metrics(waypoint).await?.sum("istio_requests_total", &[("response_code", "200")]);
    ensure!(counted > 0.0, "the waypoint counted nothing");
    let lines = lab.waypoint_access_log(NAMESPACE, WAYPOINT);
    ensure!(lines.is_empty(), "the waypoint's access log is on: {:?}", lines.last());
    if course.subjects.len() > 1 {
        envoy_counted(lab).await?;
    }
    Ok(measured)
}

async fn start_envoy(lab: &Lab, options: &Options, peer: &Peer, servers: Servers, client: &PodHandle) -> anyhow::Result<Subject> {
    ensure!(peer.binary.is_file(), "{} is no file", peer.binary.display());
    lab.apply(&envoy::pod(NODE, options.workers, servers).to_string())?;
    let pod = lab.pod(NAMESPACE, envoy::POD).await?;
    subject(peer.kind.name(), &pod, options, client).await
}

/// A proxy, once it has the routes in force for both versions of HTTP.
async fn subject(name: &str, pod: &PodHandle, options: &Options, client: &PodHandle) -> anyhow::Result<Subject> {
    let targets = PORTS.map(|port| pod.socket(options.family(), port));
    for (target, protocol) in targets.iter().zip(["h1", "h2"]) {
        routes_in_force(client, target, protocol).await.with_context(|| format!("the routes of {name}"))?;
    }
    let processes = pod.processes();
    ensure!(processes.len() == 1, "{name} has {} processes", processes.len());
    Ok(Subject { name: name.to_owned(), targets, l7: processes.first().copied(), proxies: processes.into_iter().collect() })
}

/// Waits until the user with a route of its own is led by it, and others are not.
pub(super) async fn routes_in_force(client: &PodHandle, target: &str, protocol: &str) -> anyhow::Result<()> {
    let (url, (name, value, pod)) = (format!("http://{target}/"), HEADER);
    let field = format!("{name}: {value}");
    let mut last = None;
    let asked = wait::until(ROUTES_DEADLINE, "the routes to be in force", async || {
        let calls: Calls = client.run(&["call", &url, "--protocol", protocol, "-H", &field, "-n", "10"]).await.ok()?;
        let led = calls.ok && calls.last_body.contains(&format!("\"pod\":\"{pod}\""));
        last = Some(calls);
        led.then_some(())
    });
    asked.await.with_context(|| format!("{url} by {protocol}: {last:?}"))
}

async fn envoy_counted(lab: &Lab) -> anyhow::Result<()> {
    let pod = lab.pod(NAMESPACE, envoy::POD).await?;
    let url = format!("http://{}/stats?filter=downstream_rq_2xx&usedonly", envoy::ADMIN);
    let answer: Exchange = pod.run(&["get", &url]).await?;
    ensure!(answer.reply.as_deref().is_some_and(|reply| reply.contains("downstream_rq_2xx")), "Envoy counted nothing: {answer:?}");
    Ok(())
}
