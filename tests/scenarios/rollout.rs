//! A waypoint is replaced under load: with a rolling restart no request fails; with SIGKILL only what was in flight on that replica does.
//! A POST is never sent twice.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use tropis_tests::testkit::calls::Calls;
use tropis_tests::{Family, Lab};

use crate::shop::{Protocol, Shop, Way, now};
use crate::support::{Company, play};

/// All loads together send 200 requests a second.
const WAYS: [Way; 4] = [
    Way { family: Family::V4, service: "near", protocol: Protocol::Http1 },
    Way { family: Family::V6, service: "far", protocol: Protocol::Http1 },
    Way { family: Family::V6, service: "near", protocol: Protocol::Http2 },
    Way { family: Family::V4, service: "far", protocol: Protocol::Grpc },
];
const RATE: &str = "50";
/// Requests of one load that can be in flight.
const CONCURRENCY: &str = "4";
/// Until a caller and the proxies on its way have heard that a process is gone; a request is written to its connection before that.
const HEARD_MILLISECONDS: f64 = 20.0;
/// A moment in which what was in flight at a SIGKILL is told to the callers.
const NOTICED_MILLISECONDS: f64 = 2000.0;

#[test]
fn a_rollout_loses_no_request_and_a_crash_only_what_was_in_flight() {
    play(Company::Welcome, |lab| Box::pin(rollout(lab)));
}

async fn rollout(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::with_waypoint(lab, "rollout").await?;
    lab.scale(shop.namespace, "waypoint", 2).await?;
    for way in WAYS {
        shop.call_until(&shop.client, way, "/", &["-n", "20"], |calls| calls.served() == 20).await?;
    }
    restarted(&shop).await?;
    crashed(&shop).await?;
    shop.close(&[("Gateway", "waypoint")])
}

async fn load(shop: &Shop<'_>, way: Way, seconds: &str, word: &str) -> anyhow::Result<Calls> {
    let nonce = format!("{word}-{}-{}-", way.service, way.protocol.flag());
    let options = ["--for", seconds, "--rate", RATE, "-c", CONCURRENCY, "-X", "POST", "--body", "200", "--nonce", &nonce, "--timeline"];
    shop.call(&shop.client, way, "/", &options).await
}

async fn restarted(shop: &Shop<'_>) -> anyhow::Result<()> {
    let (before, _) = shop.reached(&[]).await?;
    let loads = try_join_all(WAYS.map(|way| load(shop, way, "15", "restart")));
    let restart = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(shop.lab.rollout_restart(shop.namespace, "waypoint").await?)
    };
    let (loads, took) = tokio::try_join!(loads, restart)?;
    println!("both replicas were replaced in {:.1} s", took.as_secs_f64());
    ensure!(took < Duration::from_secs(13), "the load was over before the restart: {took:?}");
    for (way, calls) in WAYS.iter().zip(&loads) {
        println!("{way}: {} requests, {} of them on a second connection, none failed", calls.answered, calls.moved);
        ensure!(calls.all_served(), "{way}: the rollout lost requests: {:?}", calls.in_short());
    }
    shop.none_twice(before, &loads).await
}

async fn crashed(shop: &Shop<'_>) -> anyhow::Result<()> {
    let (before, _) = shop.reached(&[]).await?;
    let loads = try_join_all(WAYS.map(|way| load(shop, way, "10", "crash")));
    let crash = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let pods = shop.lab.pods(shop.namespace, "waypoint");
        let victim = pods.first().context("a waypoint")?;
        let processes = victim.processes();
        let killed = now();
        shop.lab.signal_pod(victim, Signal::SIGKILL)?;
        while !victim.processes().is_disjoint(&processes) {
            ensure!(now() - killed < NOTICED_MILLISECONDS, "the killed replica still runs");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok((killed, now()))
    };
    // The one that is killed has no time to write about what it had in flight; the others write about all that they lose.
    let lost = || {
        let lines = shop.lab.waypoint_access_log(shop.namespace, "waypoint");
        lines.iter().filter(|line| line.field("response_code") != "200").count()
    };
    let lost_before = lost();
    let (loads, (killed, gone)) = tokio::try_join!(loads, crash)?;
    println!("the killed replica was gone after {:.1} ms", gone - killed);
    for (way, calls) in WAYS.iter().zip(&loads) {
        let failed: Vec<_> = calls.timeline.iter().filter(|answer| !answer.served).collect();
        println!("{way}: {} requests, {} failed with the replica, {} on a second connection", calls.answered, failed.len(), calls.moved);
        let in_flight = CONCURRENCY.parse::<usize>()?;
        ensure!(failed.len() <= in_flight, "{way}: more failed than was in flight: {:?}", calls.in_short());
        for answer in failed {
            let (sent, told) = (answer.sent - gone, answer.answered - killed);
            ensure!(sent <= HEARD_MILLISECONDS, "{way}: a request failed that was sent {sent} ms after the replica was gone");
            ensure!((0.0..NOTICED_MILLISECONDS).contains(&told), "{way}: a request failed {told} ms after the kill");
        }
    }
    ensure!(lost() == lost_before, "{} requests failed at a replica that was not killed", lost() - lost_before);
    shop.none_twice(before, &loads).await
}
