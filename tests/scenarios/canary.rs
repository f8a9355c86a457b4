//! A canary: a VirtualService splits a service's traffic by weight and sends one user to the new version; changing the YAML moves the
//! split with no request failed.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use tropis_tests::observe::AccessLine;
use tropis_tests::testkit::calls::Calls;
use tropis_tests::{Family, Lab};

use crate::shop::{Shop, Way, now};
use crate::support::{Company, play};

/// Requests of each way.
const REQUESTS: u64 = 1000;
/// Their share for the new version, in percent.
const CANARY: u64 = 10;
/// Until when after a change nothing goes the old way any more; ten times what it needs.
const MOVED_MILLISECONDS: f64 = 1000.0;
/// A second of one load.
const RATE: &str = "50";

#[test]
fn traffic_is_split_by_weight_and_a_user_gets_the_new_version() {
    play(Company::Welcome, |lab| Box::pin(canary(lab)));
}

async fn canary(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::with_waypoint(lab, "canary").await?;
    for service in ["near", "far"] {
        lab.apply(&subsets(service))?;
        lab.apply(&split(service, &[("v1", 100 - CANARY), ("v2", CANARY)]))?;
    }
    for way in Way::all() {
        let in_force = |calls: &Calls| calls.versions.len() == 1 && calls.versions.contains_key("v2");
        shop.call_until(&shop.client, way, "/", &["-n", "10", "-H", "end-user: jason"], in_force).await?;
    }
    try_join_all(Way::all().map(|way| one_split(&shop, way))).await?;
    the_waypoint_tells(&shop).await?;
    let before = versions(&shop);
    try_join_all(["near", "far"].map(|service| one_move(&shop, service))).await?;
    let after: Vec<String> = versions(&shop).difference(&before).cloned().collect();
    ensure!(!after.is_empty(), "the move gave the configuration no new name: {before:?}");
    comes_and_goes(&shop).await.context("the canary comes and goes")?;
    shop.close(&[("DestinationRule", "near"), ("DestinationRule", "far"), ("Gateway", "waypoint")])
}

/// With its routes go the labels that their subsets select by, and come back with them: under load no request fails.
async fn comes_and_goes(shop: &Shop<'_>) -> anyhow::Result<()> {
    // One that names the same label would keep it told.
    shop.lab.delete("VirtualService", shop.namespace, "far")?;
    let ways: Vec<Way> = Way::all().filter(|way| way.service == "near").collect();
    let load = ways.iter().map(|way| async { shop.call(&shop.client, *way, "/", &["--for", "5", "--rate", "300", "-c", "4"]).await });
    let changes = async {
        for turn in 0..12 {
            tokio::time::sleep(std::time::Duration::from_millis(350)).await;
            match turn % 2 {
                0 => shop.lab.delete("VirtualService", shop.namespace, "near")?,
                _ => shop.lab.apply(&split("near", &[("v3", 100)]))?,
            }
        }
        Ok(())
    };
    let (load, ()) = tokio::try_join!(try_join_all(load), changes)?;
    for (way, calls) in ways.iter().zip(load) {
        println!("{way}: {} requests while the canary came and went, {} of them to v3", calls.answered, calls.versions["v3"]);
        ensure!(calls.all_served(), "{way}: requests failed as the canary came and went: {:?}", calls.in_short());
        ensure!(calls.versions.len() == 3, "{way}: without the canary every version is to answer: {:?}", calls.versions);
    }
    Ok(shop.lab.delete("VirtualService", shop.namespace, "near")?)
}

async fn one_split(shop: &Shop<'_>, way: Way) -> anyhow::Result<()> {
    let count = REQUESTS.to_string();
    let calls = shop.call(&shop.client, way, "/", &["-n", &count, "-c", "4"]).await?;
    ensure!(calls.served() == REQUESTS && calls.failed() == 0, "{way}: {calls:?}");
    let got = |version: &str| calls.versions.get(version).copied().unwrap_or(0);
    ensure!(got("v1") + got("v2") == REQUESTS, "{way}: all is to go to v1 and v2: {:?}", calls.versions);
    let (requests, share) = (REQUESTS as f64, CANARY as f64 / 100.0);
    let deviation = (requests * share * (1.0 - share)).sqrt();
    let off = (got("v2") as f64 - requests * share) / deviation;
    println!("{way}: {} of {REQUESTS} went to v2, {off:+.1} standard deviations from {CANARY} %", got("v2"));
    ensure!(off.abs() <= 5.0, "{way}: {:?} is no split of 90 to 10", calls.versions);
    let jason = shop.call(&shop.client, way, "/", &["-n", "100", "-c", "2", "-H", "end-user: jason"]).await?;
    ensure!(jason.versions.get("v2") == Some(&100) && jason.failed() == 0, "{way}: jason gets {jason:?}");
    Ok(())
}

/// The names of configurations in the waypoint's log.
fn versions(shop: &Shop<'_>) -> BTreeSet<String> {
    let lines = shop.lab.waypoint_access_log(shop.namespace, "waypoint");
    lines.iter().map(|line| line.field("config_version")).collect()
}

/// The waypoint logs and counts each request, with the caller's own identity.
async fn the_waypoint_tells(shop: &Shop<'_>) -> anyhow::Result<()> {
    let (lab, namespace) = (shop.lab, shop.namespace);
    let ways = Way::all().count() as u64;
    let principal = format!("spiffe://cluster.local/ns/{namespace}/sa/client");
    let caller = [("source_workload", "client"), ("source_app", "client"), ("source_principal", principal.as_str())];
    let labels = [&[("reporter", "waypoint"), ("response_code", "200"), ("destination_version", "v2")][..], &caller].concat();
    let mut counted = 0.0;
    for pod in lab.pods(namespace, "waypoint") {
        counted += lab.waypoint_metrics(&pod).await?.sum("istio_requests_total", &labels);
    }
    ensure!(counted >= (100 * ways) as f64, "{counted} requests to v2 are counted");
    let lines = lab.waypoint_access_log(namespace, "waypoint");
    let callers = Family::BOTH.map(|family| shop.client.address(family).to_string());
    let ours = |line: &&AccessLine| {
        let caller = line.field("downstream_remote_address");
        line.has(&[("response_code", "200"), ("response_flags", "-")]) && callers.iter().any(|address| caller.contains(address.as_str()))
    };
    let logged = lines.iter().filter(ours).count() as u64;
    let unnamed = lines.iter().filter(|line| line.field("config_version").is_empty()).count();
    ensure!(unnamed == 0, "{unnamed} lines do not name the configuration that decided");
    ensure!(logged >= REQUESTS * ways, "{logged} lines of {} are of our requests; the last one is {:?}", lines.len(), lines.last());
    Ok(())
}

/// Under load the split moves to another version: no request fails, and soon nothing goes the old way.
async fn one_move(shop: &Shop<'_>, service: &'static str) -> anyhow::Result<()> {
    let ways: Vec<Way> = Way::all().filter(|way| way.service == service).collect();
    let load =
        ways.iter().map(|way| async { shop.call(&shop.client, *way, "/", &["--for", "4", "--rate", RATE, "-c", "2", "--timeline"]).await });
    let change = async {
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        let changed = now();
        shop.lab.apply(&split(service, &[("v3", 100)]))?;
        Ok(changed)
    };
    let (load, changed) = tokio::try_join!(try_join_all(load), change)?;
    for (way, calls) in ways.iter().zip(load) {
        ensure!(calls.all_served(), "{way}: the move made requests fail: {calls:?}");
        let first = calls.timeline.iter().find(|answer| answer.version == "v3").with_context(|| format!("{way}: never v3"))?;
        let last = calls.timeline.iter().rfind(|answer| answer.version != "v3").with_context(|| format!("{way}: always v3"))?;
        let (began, ended) = (first.answered - changed, last.sent - changed);
        println!(
            "{way}: the first answer under the new split came {began:.0} ms after the change, the last request under the old one left {ended:.0} ms after it"
        );
        ensure!(began > 0.0 && ended < MOVED_MILLISECONDS, "{way}: the new way began at {began:.0} ms, the old one ended at {ended:.0} ms");
        let after: Vec<_> = calls.timeline.iter().filter(|answer| answer.sent - changed >= MOVED_MILLISECONDS).collect();
        let all_new = after.iter().all(|answer| answer.version == "v3");
        ensure!(after.len() as u64 >= RATE.parse()? && all_new, "{way}: of the last {} answers not all are of v3", after.len());
    }
    Ok(())
}

fn subsets(service: &str) -> String {
    let subsets: String =
        ["v1", "v2", "v3"].iter().map(|version| format!("  - {{name: {version}, labels: {{version: {version}}}}}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {service}, namespace: canary}}\nspec:\n  host: {service}\n  subsets:\n{subsets}"
    )
}

fn split(service: &str, weights: &[(&str, u64)]) -> String {
    let route: String = weights
        .iter()
        .map(|(version, weight)| format!("    - {{destination: {{host: {service}, subset: {version}}}, weight: {weight}}}\n"))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {service}, namespace: canary}}\nspec:\n  hosts: [{service}]\n  http:\n  \
         - match: [{{headers: {{end-user: {{exact: jason}}}}}}]\n    route: [{{destination: {{host: {service}, subset: v2}}}}]\n  - route:\n{route}"
    )
}
