//! Circuit breaking: a replica that fails is ejected after its third error, gets nothing while it is out, and comes back healed; when
//! all are out the answer says so; requests beyond the pool's limits are answered at once, and counted.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use tropis_tests::testkit::calls::{Behaviour, Calls};
use tropis_tests::{Family, Lab};

use crate::shop::{CHANGE, Protocol, Shop, Way};
use crate::support::{Company, play};

/// `baseEjectionTime`.
const OUT: Duration = Duration::from_secs(5);
/// `consecutive5xxErrors`.
const ERRORS: u64 = 3;
/// Serial requests that surely reach each of three replicas three times.
const SERIAL: u64 = 90;
/// Replicas of each service.
const REPLICAS: [&str; 3] = ["v1", "v2", "v3"];

#[test]
fn replicas_that_fail_are_ejected_and_return_and_limits_hold() {
    play(Company::Welcome, |lab| Box::pin(circuit_breaking(lab)));
}

async fn circuit_breaking(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::with_waypoint(lab, "breaker").await?;
    for service in ["near", "far"] {
        lab.apply(&outlier_detection(service))?;
    }
    for family in Family::BOTH {
        try_join_all(["near", "far"].map(|service| ejections(&shop, service, family))).await?;
    }
    apply_limits(lab, "http: {http2MaxRequests: 2}")?;
    for family in Family::BOTH {
        // Both families reach the same pools, so one after the other.
        let of_family = Way::all().filter(|way| way.family == family);
        try_join_all(of_family.map(|way| overflow(&shop, way, 2))).await.context("http2MaxRequests: 2")?;
    }
    apply_limits(lab, "tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}")?;
    for family in Family::BOTH {
        // Of HTTP/1.1 alone: a connection of HTTP/2 takes them all.
        let of_family = Way::all().filter(|way| way.family == family && way.protocol == Protocol::Http1);
        try_join_all(of_family.map(|way| overflow(&shop, way, 2))).await.context("maxConnections: 1, http1MaxPendingRequests: 1")?;
    }
    flags_are_told(&shop).await?;
    shop.close(&[("DestinationRule", "near"), ("DestinationRule", "far"), ("Gateway", "waypoint")])
}

fn ways(service: &'static str, family: Family) -> impl Iterator<Item = Way> {
    Way::all().filter(move |way| way.service == service && way.family == family)
}

/// Each protocol's port is a pool of its own; all of them see the same failing replica.
async fn ejections(shop: &Shop<'_>, service: &'static str, family: Family) -> anyhow::Result<()> {
    let failing = shop.application(service, "v1").await?;
    for way in ways(service, family) {
        // Every replica is in: the last round's ejections are over.
        shop.call_until(&shop.client, way, "/", &["-n", "30"], |calls| calls.versions.len() == REPLICAS.len()).await?;
    }
    shop.behave(&failing, &Behaviour { status: Some(503), ..Behaviour::default() }).await?;
    let before = shop.seen(&failing, &[]).await?.requests;
    let ejected = try_join_all(ways(service, family).map(|way| third_error(shop, way))).await?;
    let got = shop.seen(&failing, &[]).await?.requests - before;
    let pools = ejected.len() as u64;
    ensure!(got == ERRORS * pools, "{service} by {family}: the failing replica got {got} requests in {pools} pools");
    shop.behave(&failing, &Behaviour::default()).await?;

    let quiet = ways(service, family).map(|way| async move {
        let calls = shop.call(&shop.client, way, "/", &["--for", "3", "--rate", "20"]).await?;
        ensure!(calls.ok && !calls.versions.contains_key("v1"), "{way}: an ejected replica gets requests: {:?}", calls.versions);
        Ok(())
    });
    try_join_all(quiet).await?;
    let back = ways(service, family).zip(ejected).map(|(way, ejected)| async move {
        let back = returned(shop, way).await?;
        let out = Duration::from_secs_f64((back - ejected) / 1000.0);
        println!("{way}: the replica was out for {:.1} s", out.as_secs_f64());
        ensure!(out >= OUT && out < OUT * 4, "{way}: out for {out:?}");
        Ok(())
    });
    try_join_all(back).await?;
    all_ejected(shop, service, family).await
}

/// Serial requests until after the third error of the failing replica; gives when that was.
async fn third_error(shop: &Shop<'_>, way: Way) -> anyhow::Result<f64> {
    let count = SERIAL.to_string();
    let calls = shop.call(&shop.client, way, "/", &["-n", &count, "--timeline"]).await?;
    let failed: Vec<_> = calls.timeline.iter().filter(|answer| answer.version == "v1" || answer.status != 200).collect();
    ensure!(failed.len() as u64 == ERRORS, "{way}: the failing replica was asked {} times: {failed:?}", failed.len());
    ensure!(calls.statuses.get(&200) == Some(&(SERIAL - ERRORS)), "{way}: {calls:?}");
    Ok(failed.last().map_or(0.0, |answer| answer.answered))
}

/// Asks until the replica answers again; gives when that was.
async fn returned(shop: &Shop<'_>, way: Way) -> anyhow::Result<f64> {
    let calls = shop.call(&shop.client, way, "/", &["--for", "14", "--rate", "20", "--timeline"]).await?;
    ensure!(calls.statuses.len() == 1 && calls.statuses.contains_key(&200), "{way}: a healed replica still fails: {:?}", calls.statuses);
    let first = calls.timeline.iter().find(|answer| answer.version == "v1");
    Ok(first.with_context(|| format!("{way}: the healed replica never came back"))?.answered)
}

async fn all_ejected(shop: &Shop<'_>, service: &'static str, family: Family) -> anyhow::Result<()> {
    let replicas = try_join_all(REPLICAS.map(|version| shop.application(service, version))).await?;
    for replica in &replicas {
        shop.behave(replica, &Behaviour { status: Some(503), ..Behaviour::default() }).await?;
    }
    for way in ways(service, family) {
        let count = SERIAL.to_string();
        let calls = shop.call(&shop.client, way, "/", &["-n", &count, "--timeline"]).await?;
        let reached = calls.timeline.iter().filter(|answer| !answer.pod.is_empty()).count() as u64;
        ensure!(reached == ERRORS * replicas.len() as u64, "{way}: {reached} requests reached failing replicas");
        let says = |text: &str| text.contains("no healthy upstream");
        let told = match way.protocol {
            Protocol::Grpc => {
                calls.grpc_statuses.contains_key(&14) && calls.last_headers.get("grpc-message").is_some_and(|text| says(text))
            }
            Protocol::Http1 | Protocol::Http2 => says(&calls.last_body) && calls.statuses.get(&503) == Some(&SERIAL),
        };
        ensure!(told, "{way}: with every replica ejected: {calls:?}");
    }
    for replica in &replicas {
        shop.behave(replica, &Behaviour::default()).await?;
    }
    for way in ways(service, family) {
        let all = |calls: &Calls| calls.versions.len() == REPLICAS.len();
        let begun = std::time::Instant::now();
        while begun.elapsed() < OUT * 6 {
            if all(&shop.call(&shop.client, way, "/", &["-n", "30"]).await?) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}

/// Of ten requests at once that take a while, `served` are; the others are answered at once.
async fn overflow(shop: &Shop<'_>, way: Way, served: u64) -> anyhow::Result<()> {
    let options = ["-n", "10", "-c", "10", "-H", "x-ask: delay=700"];
    let answered = |calls: &Calls| calls.pods.values().sum::<u64>();
    let begun = std::time::Instant::now();
    let calls = loop {
        let calls = shop.call(&shop.client, way, "/", &options).await?;
        // The limits are new: connections from before may be too many still.
        if answered(&calls) == served || begun.elapsed() > CHANGE {
            break calls;
        }
    };
    ensure!(
        answered(&calls) == served && calls.answered == 10,
        "{way}: of 10 requests at once {} were served: {calls:?}",
        answered(&calls)
    );
    let refused = match way.protocol {
        Protocol::Grpc => calls.grpc_statuses.get(&14),
        Protocol::Http1 | Protocol::Http2 => calls.statuses.get(&503),
    };
    ensure!(refused == Some(&(10 - served)), "{way}: {calls:?}");
    Ok(())
}

/// The flags of what happened stand in the log and in the metrics.
async fn flags_are_told(shop: &Shop<'_>) -> anyhow::Result<()> {
    let lines = shop.lab.waypoint_access_log(shop.namespace, "waypoint");
    for flag in ["UH", "UO"] {
        let mut counted = 0.0;
        for pod in shop.lab.pods(shop.namespace, "waypoint") {
            counted += shop.lab.waypoint_metrics(&pod).await?.sum("istio_requests_total", &[("response_flags", flag)]);
        }
        let logged = lines.iter().filter(|line| line.field("response_flags") == flag).count();
        println!("flag {flag}: {logged} lines, {counted} counted");
        ensure!(logged > 0 && counted >= logged as f64, "flag {flag}: {logged} lines, {counted} counted");
    }
    Ok(())
}

fn rule(service: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {service}, namespace: breaker}}\nspec:\n  host: {service}\n  trafficPolicy: {{{policy}}}\n"
    )
}

fn outlier_detection(service: &str) -> String {
    rule(service, "outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 5s, maxEjectionPercent: 100}")
}

fn apply_limits(lab: &Lab, limits: &str) -> anyhow::Result<()> {
    for service in ["near", "far"] {
        lab.apply(&rule(service, &format!("connectionPool: {{{limits}}}")))?;
    }
    Ok(())
}
