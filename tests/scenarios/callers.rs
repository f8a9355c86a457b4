//! A waypoint asks who calls from outside of what it serves: it knows nobody else of them, names them in its metrics, and routes by the
//! labels that they have, on both families.

use anyhow::ensure;
use tropis_tests::Lab;
use tropis_tests::testkit::calls::Calls;

use crate::shop::{Shop, Way};
use crate::support::{Company, play};

const NAMESPACE: &str = "callers";

#[test]
fn a_waypoint_knows_who_calls_it_and_routes_by_the_labels_of_callers() {
    play(Company::Welcome, |lab| Box::pin(callers(lab)));
}

async fn callers(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::with_waypoint(lab, NAMESPACE).await?;
    lab.label("Pod", NAMESPACE, "client", &[("team", Some("sales"))])?;
    for service in ["near", "far"] {
        lab.apply(&by_team(service))?;
    }
    let all_from = |calls: &Calls, version: &str| calls.versions.len() == 1 && calls.versions.contains_key(version);
    for way in Way::all() {
        shop.call_until(&shop.client, way, "/", &["-n", "10"], |calls| all_from(calls, "v3")).await?;
        shop.call_until(&shop.other, way, "/", &["-n", "10"], |calls| all_from(calls, "v1")).await?;
    }
    let waypoint = lab.pods(NAMESPACE, "waypoint").into_iter().next().ok_or_else(|| anyhow::anyhow!("no waypoint"))?;
    let dump = lab.ask_waypoint(&waypoint, "/config_dump").await?;
    let known: Vec<&str> = dump["workloads"].as_array().into_iter().flatten().filter_map(|workload| workload["uid"].as_str()).collect();
    for caller in ["client", "other"] {
        ensure!(known.iter().any(|uid| uid.ends_with(&format!("/{NAMESPACE}/{caller}"))), "{caller} is not among {known:?}");
    }
    let strangers: Vec<&&str> = known.iter().filter(|uid| !uid.contains(&format!("/{NAMESPACE}/"))).collect();
    ensure!(strangers.is_empty(), "it is told of {strangers:?}, who never called");
    for caller in ["client", "other"] {
        let principal = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{caller}");
        let of_account = [("source_principal", principal.as_str())];
        let named = [("source_workload", caller), ("source_app", caller), ("source_canonical_service", caller), of_account[0]];
        let metrics = lab.waypoint_metrics(&waypoint).await?;
        let (all, named) = (metrics.sum("istio_requests_total", &of_account), metrics.sum("istio_requests_total", &named));
        println!("{named} of {all} requests of {caller} are counted as its");
        ensure!(named >= 10.0 * Way::all().count() as f64 && named >= all, "{named} of {all} requests of {caller} name it");
    }
    shop.close(&[
        ("VirtualService", "near"),
        ("VirtualService", "far"),
        ("DestinationRule", "near"),
        ("DestinationRule", "far"),
        ("Gateway", "waypoint"),
    ])
}

/// Callers of team sales get v3, all others v1.
fn by_team(service: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {service}, namespace: {NAMESPACE}}}\nspec:\n  host: {service}\n  subsets:\n  \
         - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v3, labels: {{version: v3}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {service}, namespace: {NAMESPACE}}}\nspec:\n  hosts: [{service}]\n  http:\n  \
         - match: [{{sourceLabels: {{team: sales}}}}]\n    route: [{{destination: {{host: {service}, subset: v3}}}}]\n  \
         - route: [{{destination: {{host: {service}, subset: v1}}}}]\n"
    )
}
