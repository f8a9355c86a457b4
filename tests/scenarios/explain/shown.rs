//! What `tropis` shows of the running waypoint once all questions were asked: what it has in force, and what it and the node proxies
//! wrote about a pod.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use tropis_tests::{Family, Lab, PodHandle};

/// Routes, clusters and the log of a pod.
pub(super) async fn by_the_program(lab: &Lab, client: &PodHandle) -> anyhow::Result<()> {
    let routes = ask(lab, &["proxy-config", "routes", "waypoint.shop"]).await?;
    let routes: Vec<Value> = serde_json::from_str(&routes)?;
    let of_app = routes.iter().filter(|route| route["domains"] == "app.shop.svc.cluster.local");
    let whole =
        |route: &&Value| ["proxy", "match", "destination"].iter().all(|part| route[part].as_str().is_some_and(|text| !text.is_empty()));
    ensure!(of_app.clone().count() > 0 && of_app.clone().all(|route| whole(&route)), "routes in force: {routes:?}");
    ensure!(routes.iter().all(|route| route["proxy"].as_str().is_some_and(|proxy| proxy.starts_with("waypoint-"))), "{routes:?}");
    let clusters: Vec<Value> = serde_json::from_str(&ask(lab, &["proxy-config", "clusters", "waypoint.shop"]).await?)?;
    let known = |cluster: &Value| {
        cluster["service"].as_str().is_some_and(|host| host.ends_with(".shop.svc.cluster.local")) && cluster["type"] != ""
    };
    ensure!(!clusters.is_empty() && clusters.iter().all(known), "clusters in force: {clusters:?}");

    let log = ask(lab, &["logs", "client.shop"]).await?;
    let lines = log.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    let addresses = [client.address(Family::V4), client.address(Family::V6)];
    let own = |line: &Value, field: &str| {
        let address = line[field].as_str().and_then(|text| text.parse::<std::net::SocketAddr>().ok());
        address.is_some_and(|address| addresses.contains(&address.ip()))
    };
    let of_waypoint = lines.iter().filter(|line| line["start_time"].is_string());
    ensure!(of_waypoint.clone().all(|line| own(line, "downstream_remote_address") || own(line, "upstream_host")), "a line of another pod");
    for address in addresses {
        let wanted = address.to_string();
        let from = |line: &&Value| line["downstream_remote_address"].as_str().is_some_and(|text| text.contains(&wanted));
        ensure!(of_waypoint.clone().any(|line| from(&line)), "no request from {address} among {} lines", lines.len());
    }
    ensure!(lines.iter().any(|line| line["src.workload"] == "client"), "no line of a node proxy");
    // Milliseconds are enough to tell the order by: both forms of time are alike up to there.
    let times: Vec<&str> = lines.iter().filter_map(|line| line["time"].as_str().or(line["start_time"].as_str())?.get(..23)).collect();
    ensure!(times.is_sorted(), "not in the order of time");
    Ok(())
}

/// What the program says as JSON.
async fn ask(lab: &Lab, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(lab.programs().folder.join("tropis"));
    command.arg("--state").arg(lab.layout().state()).args(arguments).args(["-o", "json"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await?.context("running tropis; is it built?")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
