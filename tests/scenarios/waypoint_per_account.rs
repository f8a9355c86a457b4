//! A waypoint per service account: what is addressed to the account's pods or to a service of only such pods passes it, other accounts'
//! traffic does not; a service over two accounts gets a finding.

use anyhow::{Context, ensure};
use tropis_tests::lab::waypoint::Addressed;
use tropis_tests::testkit::calls::Calls;
use tropis_tests::{Family, Lab, wait};

use crate::shop::{APP, CHANGE, Protocol, Shop, Way};
use crate::support::{Company, play};

const WAYPOINT: &str = "near-waypoint";

#[test]
fn an_accounts_traffic_passes_its_waypoint_and_no_other_does() {
    play(Company::Welcome, |lab| Box::pin(per_account(lab)));
}

async fn per_account(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::open(lab, "peraccount").await?;
    lab.waypoint(shop.namespace, WAYPOINT, &[("istio.io/for-service-account", "near")]).await?;
    lab.wait_attached(shop.namespace, Addressed::Service("near"), true).await?;
    for (service, attached) in [("near", true), ("far", false)] {
        for version in ["v1", "v2", "v3"] {
            lab.wait_attached(shop.namespace, Addressed::Workload(&format!("{service}-{version}")), attached).await?;
        }
    }
    lab.wait_attached(shop.namespace, Addressed::Service("far"), false).await?;
    for way in Way::all() {
        let path = format!("/service/{}/{}/{}", way.service, way.family, way.protocol.flag());
        let calls = shop.call(&shop.client, way, &path, &["-n", "20"]).await?;
        ensure!(calls.ok && calls.statuses.get(&200) == Some(&20), "{way}: {calls:?}");
        passes(&shop, &path, way.service == "near").await?;
    }
    for (service, version) in [("near", "v1"), ("far", "v1")] {
        let pod = shop.application(service, version).await?;
        for (family, protocol) in Family::BOTH.into_iter().flat_map(|family| Protocol::ALL.map(|protocol| (family, protocol))) {
            let path = format!("/workload/{service}/{family}/{}", protocol.flag());
            let url = format!("http://{}{path}", pod.socket(family, APP));
            let calls: Calls = shop.client.run(&["call", &url, "-n", "20", "--protocol", protocol.flag()]).await?;
            ensure!(calls.ok && calls.statuses.get(&200) == Some(&20), "{path}: {calls:?}");
            passes(&shop, &path, service == "near").await?;
        }
    }
    mixed_service_gets_a_finding(&shop).await?;
    shop.close(&[("Gateway", WAYPOINT), ("Service", "mixed")])
}

/// Whether requests for this path stand in the waypoint's log.
async fn passes(shop: &Shop<'_>, path: &str, expected: bool) -> anyhow::Result<()> {
    let logged = || {
        let lines = shop.lab.waypoint_access_log(shop.namespace, WAYPOINT);
        lines.iter().filter(|line| line.field("path") == path).count()
    };
    if expected {
        let found = wait::until(CHANGE, path, async || (logged() == 20).then_some(()));
        found.await.with_context(|| format!("{} of 20 requests for {path} passed the waypoint", logged()))?;
    } else {
        // Logs are written within milliseconds of the answer, which was there before we looked.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        ensure!(logged() == 0, "requests for {path} passed a waypoint that is not theirs");
    }
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
