//! The namespace's automatic waypoint gives way to one of each account, and takes their place again, by the namespace's label.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tropis_tests::{Family, wait};

use super::switch::through;
use super::{AUTOMATIC, gone, named_gone, need_no_more};
use crate::shop::{CHANGE, Protocol, Shop, Way};

/// The label of a namespace that says whose Services its automatic waypoints carry.
const SCOPE: &str = "tropis.io/automatic-waypoint-scope";
/// The accounts, which are called as the Services whose pods run as them.
const ACCOUNTS: [&str; 2] = ["near", "far"];
/// Requests of each Service.
const REQUESTS: usize = 20;
/// Logs are written within milliseconds of the answer; after this a line that is not there does not come any more.
const LATE: Duration = Duration::from_millis(200);

fn waypoint_of(account: &str) -> String {
    format!("{AUTOMATIC}-{account}")
}

/// To accounts, and back while the namespace's is on its way out.
pub(super) async fn there_and_back(shop: &Shop<'_>) -> anyhow::Result<()> {
    let scope = |value| shop.lab.label("Namespace", "", shop.namespace, &[(SCOPE, value)]);
    let begun = Instant::now();
    scope(Some("service-account"))?;
    for account in ACCOUNTS {
        shop.lab.wait_waypoint(shop.namespace, &waypoint_of(account)).await?;
        through(shop, account, &waypoint_of(account)).await?;
    }
    println!("through the waypoints of accounts after {:.1} s", begun.elapsed().as_secs_f64());
    each_passes_its_own(shop).await?;
    let begun = Instant::now();
    scope(None)?;
    for account in ACCOUNTS {
        through(shop, account, AUTOMATIC).await?;
    }
    println!("through the namespace's again after {:.1} s", begun.elapsed().as_secs_f64());
    for account in ACCOUNTS {
        named_gone(shop, &waypoint_of(account)).await?;
    }
    println!("those of accounts are gone after {:.1} s", begun.elapsed().as_secs_f64());
    // What was open through them has found its way.
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}

/// Each Service's requests are in the log of its account's waypoint, and in no other's.
async fn each_passes_its_own(shop: &Shop<'_>) -> anyhow::Result<()> {
    let logged = |account: &str, path: &str| {
        let lines = shop.lab.waypoint_access_log(shop.namespace, &waypoint_of(account));
        lines.iter().filter(|line| line.field("path") == path).count()
    };
    for service in ACCOUNTS {
        let (way, path) = (Way { family: Family::V4, service, protocol: Protocol::Http1 }, format!("/by-account/{service}"));
        let calls = shop.call(&shop.client, way, &path, &["-n", &REQUESTS.to_string()]).await?;
        ensure!(calls.all_served() && calls.served() == REQUESTS as u64, "{way}: {calls:?}");
        let passed = wait::until(CHANGE, &path, async || (logged(service, &path) == REQUESTS).then_some(()));
        passed.await.with_context(|| format!("{} of {REQUESTS} requests passed the waypoint of {service}", logged(service, &path)))?;
    }
    tokio::time::sleep(LATE).await;
    for (account, other) in [("near", "far"), ("far", "near")] {
        let strange = logged(account, &format!("/by-account/{other}"));
        ensure!(strange == 0, "{strange} requests to {other} passed the waypoint of {account}");
    }
    println!("{REQUESTS} requests of each Service passed its account's waypoint and no other");
    Ok(())
}

/// Nothing needs a waypoint any more, and there is none.
pub(super) async fn none_is_left(shop: &Shop<'_>, policies: &[(&str, &str)]) -> anyhow::Result<()> {
    need_no_more(shop)?;
    for (kind, name) in policies {
        shop.lab.delete(kind, shop.namespace, name)?;
    }
    gone(shop).await
}
