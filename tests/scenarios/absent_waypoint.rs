//! A waypoint that is not there is not gone around: scaled to nothing or killed, requests to what it serves are refused, no application
//! gets one past it and nothing goes out in the clear; when it is back, it serves.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use tropis_tests::testkit::FailureKind;
use tropis_tests::testkit::calls::Calls;
use tropis_tests::{Family, Lab, wait};

use crate::shop::{CHANGE, Shop, Way, now};
use crate::support::{Company, play};

/// What nobody may read on a wire.
const CANARY: &str = "/must-not-be-seen";
/// The same, of the load while the waypoint is killed.
const UNDER_LOAD: &str = "/must-not-be-seen/either";
/// More than a waypoint that nobody uses needs to drain.
const GONE: Duration = Duration::from_secs(60);
/// Of the load of one way.
const RATE: &str = "10";
/// What of that load is under way at a time.
const CONCURRENCY: &str = "2";

/// What a waypoint may have answered and not yet written to its log.
const UNWRITTEN_MILLISECONDS: f64 = 500.0;

#[test]
fn a_waypoint_that_is_absent_is_not_gone_around() {
    play(Company::Welcome, |lab| Box::pin(absent(lab)));
}

async fn absent(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::with_waypoint(lab, "absent").await?;
    all_served(&shop).await?;
    let applications = shop.applications().await?;
    let mut captures = vec![lab.capture_link("a")?, lab.capture_link("b")?, shop.client.capture()?];
    for pod in &applications {
        captures.push(pod.capture()?);
    }
    scaled_to_nothing(&shop).await.context("scaled to nothing")?;
    killed(&shop).await.context("killed")?;
    let mut ours = Vec::new();
    for family in Family::BOTH {
        ours.extend(applications.iter().chain([&shop.client]).map(|pod| pod.address(family)));
        ours.extend(["near", "far"].iter().filter_map(|service| lab.service_address(shop.namespace, service, family)));
    }
    for capture in captures {
        let captured = capture.finish()?;
        ensure!(!captured.contains(CANARY.as_bytes()), "a request went out in the clear");
        let plain = captured.plaintext(|socket| ours.contains(&socket.ip()));
        ensure!(plain.is_empty(), "plaintext: {plain:?}");
    }
    shop.close(&[("Gateway", "waypoint")])
}

async fn all_served(shop: &Shop<'_>) -> anyhow::Result<()> {
    try_join_all(Way::all().map(|way| shop.call_until(&shop.client, way, CANARY, &["-n", "5"], |calls| calls.served() == 5))).await?;
    Ok(())
}

/// No replica: every request is refused, at once, and reaches nobody.
async fn scaled_to_nothing(shop: &Shop<'_>) -> anyhow::Result<()> {
    let lab = shop.lab;
    let pods = lab.pods(shop.namespace, "waypoint");
    lab.scale(shop.namespace, "waypoint", 0).await?;
    let gone = async || pods.iter().all(|pod| pod.processes().is_empty()).then_some(());
    wait::until(GONE, "the waypoint's processes to end", gone).await?;
    let (before, _) = shop.reached(&[]).await?;
    let refused = Way::all().map(|way| async move {
        let nonce = format!("none-{}-{}-{}-", way.service, way.family, way.protocol.flag());
        let calls = shop.call(&shop.client, way, CANARY, &["-n", "5", "--nonce", &nonce]).await?;
        let at_once = [FailureKind::Reset, FailureKind::Closed, FailureKind::Refused];
        let of_these = calls.errors.iter().filter(|(kind, _)| at_once.contains(kind)).map(|(_, count)| count).sum::<u64>();
        ensure!(calls.answered == 0 && of_these == 5, "{way}: without a waypoint: {calls:?}");
        Ok(())
    });
    try_join_all(refused).await?;
    let (reached, _) = shop.reached(&[]).await?;
    ensure!(reached == before, "{} requests reached the application past the waypoint", reached - before);
    let begun = Instant::now();
    lab.scale(shop.namespace, "waypoint", 1).await?;
    all_served(shop).await.context("with a replica again")?;
    println!("every way is served {:.1} s after there is to be a replica again", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The only replica dies and is started again: what fails in between fails, and what is served was served by it.
async fn killed(shop: &Shop<'_>) -> anyhow::Result<()> {
    let (before, _) = shop.reached(&[]).await?;
    let loads = try_join_all(Way::all().map(|way| async move {
        let nonce = format!("killed-{}-{}-{}-", way.service, way.family, way.protocol.flag());
        let options = ["--for", "6", "--rate", RATE, "-c", CONCURRENCY, "-X", "POST", "--nonce", &nonce, "--timeline"];
        shop.call(&shop.client, way, UNDER_LOAD, &options).await
    }));
    let kill = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let pods = shop.lab.pods(shop.namespace, "waypoint");
        let killed = now();
        shop.lab.signal_pod(pods.first().context("a waypoint")?, Signal::SIGKILL)?;
        Ok(killed)
    };
    let (loads, killed) = tokio::try_join!(loads, kill)?;
    let mut longest: f64 = 0.0;
    for (way, calls) in Way::all().zip(&loads) {
        let failed: Vec<_> = calls.timeline.iter().filter(|answer| !answer.served).collect();
        let (first, last) = failed.first().zip(failed.last()).with_context(|| format!("{way}: nothing failed without a waypoint"))?;
        ensure!(first.answered >= killed, "{way}: something failed before the kill: {:?}", calls.in_short());
        longest = longest.max(last.answered - killed);
        let back = calls.timeline.iter().rev().take_while(|answer| answer.served).count();
        ensure!(back >= RATE.parse()?, "{way}: only the last {back} requests were served: {:?}", calls.in_short());
    }
    println!("requests failed until {longest:.0} ms after the kill at the latest");
    none_went_around(shop, before, killed, &loads).await
}

/// What reached the application came by the waypoint: of what failed, only what was under way when that was killed; and what was served
/// stands in its log, but for the lines that it took along.
async fn none_went_around(shop: &Shop<'_>, before: u64, killed: f64, loads: &[Calls]) -> anyhow::Result<()> {
    shop.none_twice(before, loads).await?;
    let mut written = 0;
    for (way, calls) in Way::all().zip(loads) {
        let lost: Vec<&str> = calls.lost.iter().map(String::as_str).collect();
        let (_, late) = shop.reached(&lost).await?;
        let under_way = calls.timeline.iter().filter(|answer| !answer.served && answer.sent <= killed).count() as u64;
        ensure!(
            late <= under_way,
            "{way}: {late} requests that failed had reached the application, {under_way} were under way at the kill"
        );
        let surely = |sent: f64, answered: f64| sent > killed || answered < killed - UNWRITTEN_MILLISECONDS;
        written += calls.timeline.iter().filter(|answer| answer.served && surely(answer.sent, answer.answered)).count();
    }
    let logged = || {
        let lines = shop.lab.waypoint_access_log(shop.namespace, "waypoint");
        lines.iter().filter(|line| line.has(&[("method", "POST"), ("path", UNDER_LOAD), ("response_code", "200")])).count()
    };
    let posts = wait::until(CHANGE, "the lines of what was served", async || (logged() >= written).then_some(()));
    posts.await.with_context(|| format!("{written} requests were served, {} stand in the waypoint's log", logged()))
}
