//! A waypoint within the mesh, HBONE in and out, beside the same path without it: client on one node, servers on the other.

use std::path::Path;

use anyhow::{Context, ensure};

use super::plain::{NO_ACCESS_LOG, routes_in_force};
use super::report::{L7, Way};
use super::{Course, DIRECT, HEADER, NAMESPACE, PODS, PORTS, Subject, THROUGH, WAYPOINT, measure};
use crate::bench::Options;
use crate::lab::waypoint::Addressed;
use crate::lab::{Lab, LabOptions};
use crate::programs::Program;
use crate::progress::Progress;

const NODES: [&str; 2] = ["a", "b"];

/// Measures in a lab of its own.
pub(in crate::bench) async fn through_the_mesh(options: &Options, folder: &Path, progress: &Progress) -> anyhow::Result<L7> {
    progress.step("lab for a waypoint within the mesh");
    let environment = [("TROPIS_WORKERS", options.workers.to_string()), ("RUST_LOG", NO_ACCESS_LOG.to_owned())];
    let lab_options = LabOptions {
        nodes: NODES.map(str::to_owned).to_vec(),
        programs: Some(folder.to_owned()),
        waypoint_environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        progress: progress.clone(),
        ..LabOptions::new(&format!("{}l7", options.run))
    };
    let lab = Lab::start(lab_options).await?;
    let measured = in_lab(&lab, options, progress).await;
    lab.down().await?;
    measured
}

async fn in_lab(lab: &Lab, options: &Options, progress: &Progress) -> anyhow::Result<L7> {
    lab.apply(&PODS.replace("MODE", "ambient").replace("SERVERS", NODES[1]))?;
    let waypoints = lab.waypoint(NAMESPACE, WAYPOINT, &[]).await?;
    let waypoint = waypoints.first().context("the waypoint has no pod")?;
    for name in ["client", "server-v1", HEADER.2] {
        lab.wait_enrolled(&lab.pod(NAMESPACE, name).await?, true).await?;
    }
    lab.wait_attached(NAMESPACE, Addressed::Service(THROUGH), true).await?;
    progress.step(format!("client on node {}, waypoint on {}, servers on {}", NODES[0], waypoint.node(), NODES[1]));
    let client = lab.pod(NAMESPACE, "client").await?;
    let target = |service: &str| PORTS.map(|port| format!("{service}:{port}"));
    for (target, protocol) in target(THROUGH).iter().zip(["h1", "h2"]) {
        routes_in_force(&client, target, protocol).await?;
    }
    let ztunnels: Vec<u32> = NODES.into_iter().filter_map(|node| lab.programs().process_id(Program::Ztunnel, node)).collect();
    let processes = waypoint.processes();
    ensure!(
        ztunnels.len() == NODES.len() && processes.len() == 1,
        "{} ztunnels, a waypoint of {} processes",
        ztunnels.len(),
        processes.len()
    );
    let l7 = processes.first().copied();
    let subjects = vec![
        Subject { name: "no waypoint".to_owned(), targets: target(DIRECT), proxies: ztunnels.clone(), l7: None },
        Subject { name: "waypoint".to_owned(), targets: target(THROUGH), proxies: ztunnels.into_iter().chain(l7).collect(), l7 },
    ];
    let course = Course { way: Way::Hbone, client, subjects };
    let before = counted(lab).await?;
    let measured = measure(options, &course, progress).await?;
    let after = counted(lab).await?;
    ensure!(after[0] > before[0], "the waypoint counted nothing for {THROUGH}");
    ensure!(after[1] == 0.0, "requests to {DIRECT} passed the waypoint");
    let lines = lab.waypoint_access_log(NAMESPACE, WAYPOINT);
    ensure!(lines.is_empty(), "the waypoint's access log is on: {:?}", lines.last());
    Ok(measured)
}

/// Requests that the waypoint counted for the service that is its own, and for the other.
async fn counted(lab: &Lab) -> anyhow::Result<[f64; 2]> {
    let mut counted = [0.0; 2];
    for pod in lab.pods(NAMESPACE, WAYPOINT) {
        let metrics = lab.waypoint_metrics(&pod).await?;
        for (sum, service) in counted.iter_mut().zip([THROUGH, DIRECT]) {
            *sum += metrics.sum("istio_requests_total", &[("destination_service_name", service)]);
        }
    }
    Ok(counted)
}
