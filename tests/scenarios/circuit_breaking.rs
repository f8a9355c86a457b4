//! Circuit breaking: a replica that fails is ejected after its third error, gets nothing while it is out, and comes back healed; when
//! all are out the answer says so; requests beyond the pool's limits are answered at once, and counted.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use tropis_tests::testkit::calls::Behaviour;
use tropis_tests::{Family, Lab, wait};

use crate::shop::{CHANGE, Protocol, Shop, Way};
use crate::support::{Company, play};

/// `baseEjectionTime`.
const OUT: Duration = Duration::from_secs(5);
/// `consecutive5xxErrors`.
const ERRORS: u64 = 3;
/// Serial requests that surely reach each of three replicas three times.
const SERIAL: u64 = 90;
/// Requests at once, against the limits.
const BURST: u64 = 10;
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
    for service in ["near", "far"] {
        lab.apply(&one_replica(service))?;
    }
    // Of the second, one is under way and one waits; a connection of HTTP/2 takes one, or else it would take them all.
    for (limits, ask) in [
        ("http: {http2MaxRequests: 2}", "x-one: no"),
        ("tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxConcurrentStreams: 1}", "x-one: yes"),
    ] {
        apply_limits(lab, limits)?;
        try_join_all(["near", "far"].map(|service| overflows(&shop, service, ask))).await.context(limits)?;
    }
    let made = ["near", "far"].into_iter().flat_map(|service| [("DestinationRule", service), ("VirtualService", service)]);
    shop.close(&made.chain([("Gateway", "waypoint")]).collect::<Vec<_>>())
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
        ensure!(calls.all_served() && !calls.versions.contains_key("v1"), "{way}: an ejected replica gets requests: {calls:?}");
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
    let failed: Vec<_> = calls.timeline.iter().filter(|answer| answer.version == "v1" || !answer.served).collect();
    ensure!(failed.len() as u64 == ERRORS, "{way}: the failing replica was asked {} times: {failed:?}", failed.len());
    ensure!((calls.served(), calls.failed()) == (SERIAL - ERRORS, ERRORS), "{way}: {calls:?}");
    Ok(failed.last().map_or(0.0, |answer| answer.answered))
}

/// Asks until the replica answers again; gives when that was.
async fn returned(shop: &Shop<'_>, way: Way) -> anyhow::Result<f64> {
    let calls = shop.call(&shop.client, way, "/", &["--for", "14", "--rate", "20", "--timeline"]).await?;
    ensure!(calls.all_served(), "{way}: a healed replica still fails: {:?}", calls.in_short());
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
        let (path, before) = (told_path("UH", way, "all"), counted(shop, way, "UH").await?);
        let calls = shop.call(&shop.client, way, &path, &["-n", &count, "--timeline"]).await?;
        let reached = calls.timeline.iter().filter(|answer| !answer.pod.is_empty()).count() as u64;
        ensure!(reached == ERRORS * replicas.len() as u64, "{way}: {reached} requests reached failing replicas");
        let says = |text: &str| text.contains("no healthy upstream");
        let told = match way.protocol {
            Protocol::Grpc => {
                calls.grpc_statuses.contains_key(&14) && calls.last_headers.get("grpc-message").is_some_and(|text| says(text))
            }
            Protocol::Http1 | Protocol::Http2 => says(&calls.last_body) && calls.statuses.get(&503) == Some(&SERIAL),
        };
        ensure!(told && calls.served() == 0, "{way}: with every replica ejected: {calls:?}");
        flag_is_told(shop, way, "UH", &path, (SERIAL, SERIAL - reached), before).await?;
    }
    for replica in &replicas {
        shop.behave(replica, &Behaviour::default()).await?;
    }
    for way in ways(service, family) {
        let all =
            async || shop.call(&shop.client, way, "/", &["-n", "30"]).await.ok().filter(|calls| calls.versions.len() == REPLICAS.len());
        wait::until(OUT * 6, "every replica to be back", all).await.with_context(|| way.to_string())?;
    }
    Ok(())
}

/// One way after the other: IPv4 and IPv6 reach the same pools, and what is counted says neither the family nor the version of HTTP.
async fn overflows(shop: &Shop<'_>, service: &'static str, ask: &str) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for way in ways(service, family) {
            overflow(shop, way, ask, 2).await?;
        }
    }
    Ok(())
}

/// Of ten requests at once that take a while, `served` are; the others are answered at once, logged and counted.
async fn overflow(shop: &Shop<'_>, way: Way, ask: &str, served: u64) -> anyhow::Result<()> {
    let count = BURST.to_string();
    let (begun, mut attempt) = (std::time::Instant::now(), 0);
    loop {
        attempt += 1;
        let path = told_path("UO", way, &format!("{}/{attempt}", ask.replace(": ", "-")));
        let before = counted(shop, way, "UO").await?;
        let calls = shop.call(&shop.client, way, &path, &["-n", &count, "-c", &count, "-H", "x-ask: delay=700", "-H", ask]).await?;
        let refused = match way.protocol {
            Protocol::Grpc => calls.grpc_statuses.get(&14),
            Protocol::Http1 | Protocol::Http2 => calls.statuses.get(&503),
        };
        let refused = refused.copied().unwrap_or(0);
        // As many as it was; how many it is to be may not be in force yet, and connections from before may be too many still.
        flag_is_told(shop, way, "UO", &path, (BURST, refused), before).await?;
        if calls.served() == served && refused == BURST - served {
            println!("{way}: of {BURST} at once {served} were served, {refused} refused, at attempt {attempt}");
            return Ok(());
        }
        ensure!(begun.elapsed() < CHANGE, "{way}: of {BURST} requests at once {} were served: {calls:?}", calls.served());
    }
}

/// A path that no other requests have.
fn told_path(flag: &str, way: Way, what: &str) -> String {
    format!("/{flag}/{}/{}/{}/{what}", way.service, way.family, way.protocol.flag())
}

/// Each of `(requests, flagged)` requests for `path` has its line, and so many of them the flag; as many were counted since `before`.
async fn flag_is_told(shop: &Shop<'_>, way: Way, flag: &str, path: &str, expected: (u64, u64), before: u64) -> anyhow::Result<()> {
    let mut last = (0, 0, 0);
    let told = wait::until(CHANGE, path, async || {
        let mut lines = shop.lab.waypoint_access_log(shop.namespace, "waypoint");
        lines.retain(|line| line.field("path") == path);
        let flagged = lines.iter().filter(|line| line.field("response_flags") == flag).count() as u64;
        last = (lines.len() as u64, flagged, counted(shop, way, flag).await.ok()?.saturating_sub(before));
        (last == (expected.0, expected.1, expected.1)).then_some(())
    });
    told.await.with_context(|| format!("{way}: of {expected:?} requests with and without {flag}, (lines, flagged, counted) are {last:?}"))
}

/// How many requests of the way's service and protocol have been counted with this flag.
async fn counted(shop: &Shop<'_>, way: Way, flag: &str) -> anyhow::Result<u64> {
    let protocol = if way.protocol == Protocol::Grpc { "grpc" } else { "http" };
    let labels = [("response_flags", flag), ("destination_service_name", way.service), ("request_protocol", protocol)];
    let mut counted = 0.0;
    for pod in shop.lab.pods(shop.namespace, "waypoint") {
        counted += shop.lab.waypoint_metrics(&pod).await?.sum("istio_requests_total", &labels);
    }
    Ok(counted as u64)
}

/// With a subset of one replica: [`one_replica`].
fn rule(service: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {service}, namespace: breaker}}\nspec:\n  host: {service}\n  trafficPolicy: {{{policy}}}\n  \
         subsets: [{{name: one, labels: {{version: v1}}}}]\n"
    )
}

/// Requests that ask for it by a header go to one replica: each of several would have a connection of HTTP/2 of its own, whatever the limit.
fn one_replica(service: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {service}, namespace: breaker}}\nspec:\n  hosts: [{service}]\n  http:\n  \
         - match: [{{headers: {{x-one: {{exact: \"yes\"}}}}}}]\n    route: [{{destination: {{host: {service}, subset: one}}}}]\n  - route: [{{destination: {{host: {service}}}}}]\n"
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
