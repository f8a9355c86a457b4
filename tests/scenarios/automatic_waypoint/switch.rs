//! One waypoint takes another's place: the user's own the automatic one's, and between two of the user's.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;
use tropis_tests::testkit::calls::Calls;
use tropis_tests::{Family, wait};

use super::gone;
use crate::shop::{CHANGE, Protocol, Shop, Way};

/// What everybody may POST to until a policy denies it.
const LATE: &str = "/late";

/// Waits until every node sends a service's traffic through a waypoint of that name.
pub(super) async fn through(shop: &Shop<'_>, service: &str, waypoint: &str) -> anyhow::Result<()> {
    let host = format!("{waypoint}.{}.svc", shop.namespace);
    for node in ["a", "b"] {
        let mut last = Value::Null;
        let found = wait::until(CHANGE, "the waypoint", async || {
            let dump = shop.lab.node_view(node).await.ok()?;
            let mut services = dump["services"].as_array()?.iter();
            let own = services.find(|entry| entry["namespace"] == shop.namespace && entry["name"] == service)?;
            last = own["waypoint"].clone();
            last.to_string().contains(&host).then_some(())
        });
        found.await.with_context(|| format!("on node {node} {service} goes through {last}, not {waypoint}"))?;
    }
    Ok(())
}

/// The user's own waypoint takes the automatic one's place, another takes that one's, and so back and forth.
pub(super) async fn switch(shop: &Shop<'_>) -> anyhow::Result<()> {
    let (lab, namespace) = (shop.lab, shop.namespace);
    let to = |waypoint| lab.label("Namespace", "", namespace, &[("istio.io/use-waypoint", Some(waypoint))]);
    // The user's own instead of the automatic one, which leaves meanwhile.
    lab.waypoint(namespace, "waypoint", &[]).await?;
    to("waypoint")?;
    for service in ["near", "far"] {
        through(shop, service, "waypoint").await?;
    }
    println!("through a waypoint of the user's, and no more through the automatic one");
    // One that is not there yet: what goes through the first goes on doing so.
    lab.waypoint(namespace, "second", &[]).await?;
    to("second")?;
    for service in ["near", "far"] {
        through(shop, service, "second").await?;
    }
    young_service(shop).await.context("a Service that is new")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    back_and_forth(shop).await.context("a policy that is new")?;
    // The loads go on for longer than waypoints know what has left them.
    gone(shop).await
}

/// A policy comes while traffic goes from one waypoint to the other and back: once it has denied something it denies, whoever carries it.
async fn back_and_forth(shop: &Shop<'_>) -> anyhow::Result<()> {
    let (lab, namespace) = (shop.lab, shop.namespace);
    let to = |waypoint| lab.label("Namespace", "", namespace, &[("istio.io/use-waypoint", Some(waypoint))]);
    let way = |family, service, protocol| Way { family, service, protocol };
    let ways = [way(Family::V4, "far", Protocol::Http1), way(Family::V6, "near", Protocol::Http2), way(Family::V6, "far", Protocol::Grpc)];
    let options = ["--for", "6", "--rate", "60", "-c", "3", "-X", "POST", "--fresh", "--timeline"];
    let load = try_join_all(ways.iter().map(|way| shop.call(&shop.client, *way, LATE, &options)));
    let change = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        lab.apply(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: no-late, namespace: {namespace}}}\nspec:\n  \
             targetRefs: [{{kind: Service, group: \"\", name: near}}, {{kind: Service, group: \"\", name: far}}]\n  action: DENY\n  rules:\n  \
             - to: [{{operation: {{paths: [{LATE}]}}}}]\n"
        ))?;
        // Without a pause: the one that was left may still know what it carried, or not.
        for (waypoint, pause) in [("waypoint", 50), ("second", 200), ("waypoint", 20), ("second", 100), ("waypoint", 0)] {
            to(waypoint)?;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        for service in ["near", "far"] {
            through(shop, service, "waypoint").await?;
        }
        Ok(())
    };
    let (loads, ()) = tokio::try_join!(load, change)?;
    for (way, calls) in ways.iter().zip(&loads) {
        ensure!(calls.errors.is_empty(), "{way}: requests failed: {:?}", calls.in_short());
        let first = calls.timeline.iter().find(|answer| !answer.served).with_context(|| format!("{way}: it never denied"))?;
        let late: Vec<f64> = calls
            .timeline
            .iter()
            .filter(|answer| answer.served && answer.sent > first.answered)
            .map(|answer| answer.sent - first.answered)
            .collect();
        println!("{way}: {} were served before the policy, {} denied after it", calls.served(), calls.failed());
        ensure!(late.is_empty(), "{way}: {} passed after the policy was in force, sent so many ms after it: {late:?}", late.len());
    }
    Ok(())
}

/// From its first moment a new Service behind a waypoint in use answers, and answers nobody whom a policy denies.
async fn young_service(shop: &Shop<'_>) -> anyhow::Result<()> {
    shop.lab.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: young, namespace: {}}}\nspec: {{selector: {{app: far}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n",
        shop.namespace
    ))?;
    let address = wait::until(CHANGE, "an address", async || shop.lab.service_address(shop.namespace, "young", Family::V4)).await?;
    // Kubernetes' part, service addresses on each node, has its own time: connections before it are refused by nobody of the mesh.
    let url = format!("http://{address}/");
    let (mut answered, mut begun) = (0, None);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let denied: Calls = shop.other.run(&["call", &url, "--fresh", "--authority", "young"]).await?;
        ensure!(denied.served() == 0, "a denied request passed: {denied:?}");
        let calls: Calls = shop.client.run(&["call", &url, "-n", "5", "--fresh", "--authority", "young"]).await?;
        if calls.served() == 5 {
            answered += 5;
            begun.get_or_insert_with(Instant::now);
        } else {
            ensure!(begun.is_none(), "it had answered already: {calls:?}");
        }
    }
    println!("{answered} requests to the new Service were answered");
    ensure!(answered > 0, "the new Service never answered");
    through(shop, "young", "second").await
}
