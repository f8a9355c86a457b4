//! A waypoint per service account: what is addressed to the account's pods or to a service of only such pods passes it, other accounts'
//! traffic does not; a service over two accounts gets a finding.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use tropis_tests::lab::waypoint::Addressed;
use tropis_tests::testkit::calls::Calls;
use tropis_tests::{Lab, wait};

use crate::shop::{APP, CHANGE, Shop, Way};
use crate::support::{Company, play};

/// Requests of each way.
const REQUESTS: usize = 20;
/// Logs are written within milliseconds of the answer; after this a line that is not there does not come any more.
const LATE: Duration = Duration::from_millis(200);

#[test]
fn an_accounts_traffic_passes_its_waypoint_and_no_other_does() {
    play(Company::Welcome, |lab| Box::pin(per_account(lab)));
}

async fn per_account(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::open(lab, "peraccount").await?;
    // In turns, so that each side of the matrix has traffic of a node and traffic between nodes.
    for (account, other) in [("near", "far"), ("far", "near")] {
        only(&shop, account, other).await.with_context(|| format!("a waypoint for account {account}"))?;
    }
    mixed_service_gets_a_finding(&shop).await?;
    shop.close(&[("Gateway", "far-waypoint"), ("Service", "mixed")])
}

/// With a waypoint for one account and none for the other: that one's traffic passes it, by the service and by the pod's own address.
async fn only(shop: &Shop<'_>, account: &'static str, other: &'static str) -> anyhow::Result<()> {
    let (lab, namespace) = (shop.lab, shop.namespace);
    let waypoint = format!("{account}-waypoint");
    lab.waypoint(namespace, &waypoint, &[("istio.io/for-service-account", account)]).await?;
    if account == "far" {
        lab.delete("Gateway", namespace, "near-waypoint")?;
    }
    for (service, attached) in [(account, true), (other, false)] {
        lab.wait_attached(namespace, Addressed::Service(service), attached).await?;
        for version in ["v1", "v2", "v3"] {
            lab.wait_attached(namespace, Addressed::Workload(&format!("{service}-{version}")), attached).await?;
        }
    }
    let asked = try_join_all(Way::all().map(|way| async move {
        let what = format!("{}/{}/{}", way.service, way.family, way.protocol.flag());
        let (by_service, by_workload) = (format!("/service/{what}"), format!("/workload/{what}"));
        let count = REQUESTS.to_string();
        let calls = shop.call(&shop.client, way, &by_service, &["-n", &count]).await?;
        ensure!(calls.all_served() && calls.served() == REQUESTS as u64, "{way}: {calls:?}");
        let url = format!("http://{}{by_workload}", shop.application(way.service, "v1").await?.socket(way.family, APP));
        let calls: Calls = shop.client.run(&["call", &url, "-n", &count, "--protocol", way.protocol.flag()]).await?;
        ensure!(calls.all_served() && calls.served() == REQUESTS as u64, "{way}: {by_workload}: {calls:?}");
        Ok([(way, by_service), (way, by_workload)])
    }));
    let asked = asked.await?.concat();
    let logged = |path: &str| lab.waypoint_access_log(namespace, &waypoint).iter().filter(|line| line.field("path") == path).count();
    for (way, path) in asked.iter().filter(|(way, _)| way.service == account) {
        let passed = wait::until(CHANGE, path, async || (logged(path) == REQUESTS).then_some(()));
        passed.await.with_context(|| format!("{way}: {} of {REQUESTS} requests for {path} passed the waypoint", logged(path)))?;
    }
    tokio::time::sleep(LATE).await;
    for (way, path) in &asked {
        let expected = if way.service == account { REQUESTS } else { 0 };
        ensure!(logged(path) == expected, "{way}: {} requests for {path} passed the waypoint, not {expected}", logged(path));
    }
    println!("{} ways pass the waypoint of account {account} or do not, as they should", asked.len());
    Ok(())
}

async fn mixed_service_gets_a_finding(shop: &Shop<'_>) -> anyhow::Result<()> {
    shop.lab.apply("apiVersion: v1\nkind: Service\nmetadata: {name: mixed, namespace: peraccount}\nspec: {selector: {version: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}\n")?;
    let told = wait::until(CHANGE, "a finding about service mixed", async || {
        let found = shop.lab.findings().await.ok()?;
        found.into_iter().find(|finding| finding["code"] == "TRP0017" && finding["name"] == "mixed")
    });
    let finding = told.await?;
    ensure!(["near", "far"].iter().all(|account| finding["found"].as_str().is_some_and(|found| found.contains(account))), "{finding}");
    println!("{finding}");
    shop.lab.wait_attached(shop.namespace, Addressed::Service("mixed"), false).await?;
    Ok(())
}
