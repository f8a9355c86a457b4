//! Large bodies flow through a waypoint at the reader's pace, without piling up in it.

use anyhow::{Context, ensure};
use tropis_tests::testkit::calls::{Calls, Transferred};
use tropis_tests::{Family, Lab};

use crate::shop::{LOAD, Protocol, Shop, Way};
use crate::support::{Company, play};

/// A waypoint may grow by this while a reader stalls.
const GROWTH_BYTES: u64 = 32_000_000;
/// How long the reader stalls.
const STALL: &str = "3";

#[test]
fn large_bodies_do_not_pile_up_in_the_waypoint() {
    play(Company::Welcome, |lab| Box::pin(large(lab)));
}

async fn large(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::with_waypoint(lab, "large").await?;
    for (direction, family, service, protocol) in [
        ("down", Family::V4, "far", Protocol::Http1),
        ("up", Family::V6, "far", Protocol::Http1),
        ("down", Family::V6, "far", Protocol::Http2),
        ("up", Family::V4, "near", Protocol::Http2),
    ] {
        transfer(&shop, Way { family, service, protocol }, direction).await.with_context(|| direction.to_owned())?;
    }
    shop.close(&[("Gateway", "waypoint")])
}

/// A gibibyte whose reader stalls a while after the first mebibyte.
async fn transfer(shop: &Shop<'_>, way: Way, direction: &str) -> anyhow::Result<()> {
    let url = shop.url(way, "/")?;
    let waypoint = shop.lab.pod(shop.namespace, "waypoint").await?;
    // What one request needs is there already.
    shop.call_until(&shop.client, way, "/", &["-n", "10"], Calls::all_served).await?;
    let before = waypoint.resident_bytes()?;
    let arguments = [
        "transfer",
        url.as_str(),
        "--direction",
        direction,
        "--protocol",
        way.protocol.flag(),
        "--bytes",
        "1G",
        "--pause",
        STALL,
        "--timeout",
        "60",
    ];
    let moving = shop.client.run_for::<Transferred>(&arguments, LOAD);
    let mut highest = before;
    let moved = tokio::select! {
        moved = moving => moved?,
        gone = waypoint.watch_memory(&mut highest) => return Err(gone).context("the waypoint"),
    };
    ensure!(moved.ok && moved.bytes == 1 << 30, "{way}: {moved:?}");
    let rate = moved.bytes as f64 / (1 << 20) as f64 / (moved.milliseconds / 1000.0);
    println!(
        "{way}: 1 GiB {direction} at {rate:.0} MiB/s with a stall of {STALL} s; the waypoint grew by {} KiB",
        (highest - before) >> 10
    );
    ensure!(highest - before < GROWTH_BYTES, "{way}: the waypoint grew to {highest} bytes");
    Ok(())
}
