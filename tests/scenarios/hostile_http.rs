//! Hostile HTTP through node proxies and a waypoint: no spelling of a path and no second request within one gets past a policy, and a
//! flood costs the waypoint little memory and others nothing.

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use tropis_tests::Lab;
use tropis_tests::testkit::Exchange;
use tropis_tests::testkit::flood::Flood;

use crate::shop::{LOAD, Protocol, Shop, Way};
use crate::support::{Company, play};

/// A waypoint may grow by this under any of the floods: what 20 connections may have in windows and in heads, with room to spare.
const GROWTH_BYTES: u64 = 64 << 20;
/// Connections of a flood at once, and for how long.
const FLOOD: [&str; 4] = ["--connections", "20", "--duration", "3"];

/// Paths that some server reads as `/admin…`, and what is answered. `pathNormalization` is BASE.
const PATHS: [(&str, u16); 14] = [
    ("/admin", 403),
    ("/admin/", 403),
    ("/admin?x", 403),
    ("/admin;x", 403),
    ("/admin%2f", 403),
    ("/./admin", 403),
    ("/x/../admin", 403),
    ("/%61dmin", 403),
    ("/%2e%2e/admin", 403),
    (r"/x/..\\admin", 403),
    ("/x/..%2fadmin", 400),
    ("/x/..;/admin", 400),
    ("/admin%00", 400),
    ("/admin%", 400),
];

/// Heads, each with more behind it than their last reader may take for its body.
const SMUGGLERS: [(&str, &str); 6] = [
    ("a length and an encoding", r"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("an encoding and a length", r"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n"),
    ("two lengths", r"content-length: 0\r\ncontent-length: 50\r\n\r\n"),
    ("a folded encoding", r"x: 1\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("lines without CR", r"x: 1\ncontent-length: 0\n\n"),
    ("a chunk longer than it says", r"transfer-encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n"),
];

#[test]
fn hostile_http_gets_past_no_policy_and_takes_no_memory() {
    play(Company::Welcome, |lab| Box::pin(hostile(lab)));
}

async fn hostile(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::with_waypoint(lab, "hostile").await?;
    lab.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: admin, namespace: hostile}\nspec:\n  \
         targetRefs: [{kind: Service, group: \"\", name: near}, {kind: Service, group: \"\", name: far}]\n  action: DENY\n  rules:\n  \
         - to:\n    - operation: {paths: [/admin*]}\n",
    )?;
    let ways: Vec<Way> = Way::all().filter(|way| way.protocol == Protocol::Http1).collect();
    let denied = ways.iter().map(|way| shop.call_until(&shop.client, *way, "/admin", &[], |calls| calls.statuses.get(&403) == Some(&1)));
    try_join_all(denied).await.context("the policy to be in force")?;
    try_join_all(ways.iter().map(|way| tricks(&shop, *way))).await?;
    nothing_arrived(&shop).await?;
    let refused = [("stage", "identify"), ("reason", "bad_request")];
    let lines = lab.waypoint_access_log(shop.namespace, "waypoint");
    ensure!(lines.iter().any(|line| line.has(&refused)), "no refusal is told; the last line is {:?}", lines.last());
    let answered = shop.call(&shop.client, ways[0], "/other", &["--nonce", "other"]).await?;
    ensure!(answered.statuses.get(&200) == Some(&1), "what is not denied is answered: {answered:?}");
    for kind in ["reset", "continuation", "settings", "ping", "bomb", "data", "heads"] {
        flood(&shop, kind, &[]).await.with_context(|| format!("a flood of {kind}"))?;
    }
    for kind in ["settings", "ping"] {
        flood(&shop, kind, &["--unread"]).await.with_context(|| format!("a flood of {kind} whose answers nobody reads"))?;
    }
    shop.close(&[("AuthorizationPolicy", "admin"), ("Gateway", "waypoint")])
}

async fn tricks(shop: &Shop<'_>, way: Way) -> anyhow::Result<()> {
    for (path, status) in PATHS {
        let request = format!(r"GET {path} HTTP/1.1\r\nhost: near\r\nx-nonce: trick\r\nconnection: close\r\n\r\n");
        let answer = raw(shop, way, &request).await?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{way}: {path} is answered {answer}");
    }
    let smuggled = r"GET /admin HTTP/1.1\r\nhost: near\r\nx-nonce: smuggled\r\nconnection: close\r\n\r\n";
    for (what, head) in SMUGGLERS {
        let request = format!(r"POST / HTTP/1.1\r\nhost: near\r\nx-nonce: smuggler\r\n{head}{smuggled}");
        let answer = raw(shop, way, &request).await?;
        let answers = answer.matches("HTTP/1.1 ").count();
        ensure!(answers == 1 && answer.starts_with("HTTP/1.1 400 "), "{way}: {what} is answered {answer}");
    }
    Ok(())
}

async fn raw(shop: &Shop<'_>, way: Way, request: &str) -> anyhow::Result<String> {
    let url = shop.url(way, "")?;
    let said: Exchange = shop.client.run(&["raw", url.trim_start_matches("http://"), "--send", request]).await?;
    said.reply.clone().with_context(|| format!("{way}: no answer to {request}: {said:?}"))
}

/// No application saw what was denied or smuggled.
async fn nothing_arrived(shop: &Shop<'_>) -> anyhow::Result<()> {
    for service in ["near", "far"] {
        for version in ["v1", "v2", "v3"] {
            let seen = shop.seen(&shop.application(service, version).await?, &["trick", "smuggled"]).await?;
            ensure!(seen.known.is_empty(), "{service}-{version} saw {:?}", seen.known);
        }
    }
    Ok(())
}

/// One client floods, another is served, and the waypoint stays as small as it was.
async fn flood(shop: &Shop<'_>, kind: &str, how: &[&str]) -> anyhow::Result<()> {
    let protocol = if kind == "heads" { Protocol::Http1 } else { Protocol::Http2 };
    let way = Way { family: tropis_tests::Family::V4, service: "near", protocol };
    let waypoint = shop.lab.pod(shop.namespace, "waypoint").await?;
    shop.call_until(&shop.other, way, "/", &["-n", "10"], |calls| calls.ok).await?;
    let before = waypoint.resident_bytes()?;
    let url = shop.url(way, "")?;
    let target = url.trim_start_matches("http://");
    let arguments = [&["flood", target, "--kind", kind][..], &FLOOD, how].concat();
    let flooding = async { Ok::<_, anyhow::Error>(shop.client.run_for::<Flood>(&arguments, LOAD).await?) };
    let others = async { shop.call(&shop.other, way, "/", &["-n", "50", "--nonce", kind]).await };
    let mut highest = before;
    let (flooded, served) = tokio::select! {
        both = async { tokio::try_join!(flooding, others) } => both?,
        gone = waypoint.watch_memory(&mut highest) => return Err(gone).context("the waypoint"),
    };
    println!(
        "a flood of {kind} {how:?}: {} connections, {} ended by the mesh, {} KiB taken; the waypoint grew by {} KiB; others' requests took {:.0} ms in all",
        flooded.connections,
        flooded.ended,
        flooded.bytes >> 10,
        (highest - before) >> 10,
        served.milliseconds
    );
    ensure!(served.statuses.get(&200) == Some(&50), "others were not served: {served:?}");
    ensure!(flooded.ended > 0, "no connection was ended: {flooded:?}");
    ensure!(highest - before < GROWTH_BYTES, "the waypoint grew to {highest} bytes");
    Ok(())
}
