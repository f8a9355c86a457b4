//! What goes on while waypoints come and go: callers that are let in, idle connections, callers that a policy denies; and what has to have
//! become of every request of theirs.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::future::try_join_all;
use tropis_tests::testkit::calls::Calls;
use tropis_tests::{Family, PodHandle};

use crate::shop::{Protocol, Shop, Way};

/// Of each load of the caller that is let in; four make 200.
const RATE: &str = "50";
/// Of each load that is denied.
const DENIED_RATE: &str = "20";

/// A load: a way to the application, and whether each request opens a connection of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) way: Way,
    fresh: bool,
}

const fn load(family: Family, service: &'static str, protocol: Protocol, fresh: bool) -> Load {
    Load { way: Way { family, service, protocol }, fresh }
}

/// What account `client` POSTs.
pub(super) const LET_IN: [Load; 4] = [
    load(Family::V4, "near", Protocol::Http1, false),
    load(Family::V6, "far", Protocol::Http1, true),
    load(Family::V6, "near", Protocol::Http2, false),
    load(Family::V4, "far", Protocol::Grpc, false),
];

/// Ways on which somebody asks once and keeps the connection, idle for longer than a waypoint knows what has left it, to ask again.
const IDLE: [Way; 2] = [
    Way { family: Family::V4, service: "near", protocol: Protocol::Http1 },
    Way { family: Family::V6, service: "far", protocol: Protocol::Http2 },
];

/// Requests that a policy denies.
#[derive(Debug, Clone)]
pub(super) struct Denied {
    caller: PodHandle,
    load: Load,
    method: &'static str,
    path: &'static str,
}

impl Denied {
    /// Requests of this method for this path; with `fresh` each on a connection of its own.
    pub(super) fn new(caller: &PodHandle, way: Way, fresh: bool, method: &'static str, path: &'static str) -> Self {
        Self { caller: caller.clone(), load: Load { way, fresh }, method, path }
    }

    /// Asks until one of them is refused.
    pub(super) async fn in_force(&self, shop: &Shop<'_>) -> anyhow::Result<()> {
        shop.call_until(&self.caller, self.load.way, self.path, &["-X", self.method], |calls| calls.served() == 0).await?;
        Ok(())
    }

    fn name(&self) -> String {
        format!("{} {} {} by {}", self.caller.name(), self.method, self.path, self.load.way)
    }
}

/// Who is denied for its name alone: account `other`.
pub(super) fn denied_by_name(shop: &Shop<'_>) -> Vec<Denied> {
    let way = |family, service, protocol| Way { family, service, protocol };
    let ways = [way(Family::V4, "near", Protocol::Http1), way(Family::V6, "far", Protocol::Http2)];
    ways.map(|way| Denied::new(&shop.other, way, true, "POST", "/")).into()
}

/// Plays `change` while everybody calls for `seconds`, and looks at what became of every request: who is let in lost nothing, and who is
/// denied, from the first request on, never got through.
pub(super) async fn under_load(
    shop: &Shop<'_>,
    denied: &[Denied],
    seconds: u64,
    change: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let (before, _) = shop.reached(&[]).await?;
    let span = seconds.to_string();
    let calls =
        try_join_all(LET_IN.iter().map(|load| call(shop, &shop.client, load, &span, &["--rate", RATE, "-X", "POST"], path(load.way))));
    let idle = try_join_all(IDLE.iter().map(|way| call_twice(shop, *way, seconds)));
    let refused = denied.iter().map(|denied| {
        let Denied { caller, load, method, path } = denied;
        async { call(shop, caller, load, &span, &["--rate", DENIED_RATE, "-X", method], path).await }
    });
    let begun = Instant::now();
    let change = async {
        // What is open before the change is part of it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        change.await?;
        Ok(begun.elapsed())
    };
    let (calls, idle, refused, took) = tokio::try_join!(calls, idle, try_join_all(refused), change)?;
    println!("{}: all of it in {:.1} s of {seconds}", shop.namespace, took.as_secs_f64());
    ensure!(took < Duration::from_secs(seconds), "the load was over before the change: {took:?}");
    let mut failed = Vec::new();
    for (Load { way, fresh }, calls) in LET_IN.iter().zip(&calls) {
        println!("{way}, own connections {fresh}: {} requests, {} on a second connection", calls.served(), calls.moved);
        failed.extend((!calls.all_served()).then(|| told(*way, calls)));
    }
    for (way, calls) in IDLE.iter().zip(&idle) {
        println!("{way}, idle in between: {:?}, {} on a second connection", calls.statuses, calls.moved);
        failed.extend((!calls.all_served() || calls.served() != 2).then(|| told(*way, calls)));
    }
    for (denied, calls) in denied.iter().zip(&refused) {
        println!("{}, denied: {:?} {:?} {:?}", denied.name(), calls.statuses, calls.grpc_statuses, calls.errors);
        ensure!(calls.served() == 0 && calls.failed() > 0, "a denied request passed: {}: {}", denied.name(), when_served(calls));
    }
    ensure!(failed.is_empty(), "requests failed: {failed:#?}");
    let (reached, _) = shop.reached(&[]).await?;
    let served: u64 = calls.iter().chain(&idle).map(Calls::served).sum();
    println!("{}: {served} POSTs answered, {} reached the application, each once", shop.namespace, reached - before);
    ensure!(reached - before == served, "{} requests reached the application, {served} were let in and answered", reached - before);
    Ok(())
}

fn path(way: Way) -> &'static str {
    if way.protocol == Protocol::Grpc { "/shop.Echo/Say" } else { "/" }
}

async fn call(shop: &Shop<'_>, pod: &PodHandle, load: &Load, seconds: &str, more: &[&str], path: &str) -> anyhow::Result<Calls> {
    let nonce =
        format!("{}-{}-{}-{}{path}-{seconds}-{}-", pod.name(), load.way.service, load.way.protocol.flag(), load.fresh, more.concat());
    let mut options = vec!["--for", seconds, "-c", "4", "--body", "200", "--nonce", &nonce, "--timeline"];
    options.extend(more);
    options.extend(load.fresh.then_some("--fresh"));
    shop.call(pod, load.way, path, &options).await
}

/// Asks once, and again shortly before the load is over: on the same connection, if that is still open.
async fn call_twice(shop: &Shop<'_>, way: Way, seconds: u64) -> anyhow::Result<Calls> {
    let nonce = format!("idle-{}-{}-{seconds}-", way.service, way.protocol.flag());
    // The second of two is due when nearly all of the time is over.
    let rate = (1.0 / (seconds as f64 * 0.95)).to_string();
    let options = ["-n", "2", "--rate", &rate, "-X", "POST", "--body", "200", "--nonce", &nonce, "--timeline"];
    shop.call(&shop.client, way, "/", &options).await
}

/// What failed of a load, and when: milliseconds since its first answer.
fn told(way: Way, calls: &Calls) -> String {
    let begun = calls.timeline.first().map_or(0.0, |first| first.sent);
    let wrong = calls.timeline.iter().filter(|answer| !answer.served);
    let wrong: Vec<String> =
        wrong.take(20).map(|answer| format!("{} {:?} at {:.0}", answer.status, answer.grpc_status, answer.sent - begun)).collect();
    let (statuses, errors, details) = (&calls.statuses, &calls.errors, &calls.details);
    format!("{way}: {statuses:?} {errors:?} {details:?} {wrong:?} last {}", calls.last_body)
}

/// When requests that should have been denied were served: milliseconds since the load's first answer.
fn when_served(calls: &Calls) -> String {
    let begun = calls.timeline.first().map_or(0.0, |first| first.sent);
    let served: Vec<String> =
        calls.timeline.iter().filter(|answer| answer.served).map(|answer| format!("{:.0}", answer.sent - begun)).collect();
    format!("{} of {} at {:?}", served.len(), calls.timeline.len(), &served[..served.len().min(20)])
}
