//! The page of the live graph, seen by a browser: workloads, locks, rates and the ejected endpoint of traffic that really flows; and what
//! it shows when nobody answers, or when names are not what they should be.

use std::io;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tropis_tests::browser::{Browser, Picture, Scheme};
use tropis_tests::page::{Graph, PageForward};
use tropis_tests::testkit::calls::Behaviour;
use tropis_tests::{Family, Lab, wait};

use crate::shop::{APP, CHANGE, Protocol, Shop, Way, pod};
use crate::support::{Company, play};

const WINDOW: (u32, u32) = (1440, 1000);
/// The page itself, for what no lab would show in a test's time.
const PAGE: &str = include_str!("../../control/server/src/debug/page.html");

#[test]
fn a_browser_sees_workloads_locks_rates_and_the_ejected_endpoint() {
    play(Company::Welcome, |lab| Box::pin(seen_by_a_browser(lab)));
}

async fn seen_by_a_browser(lab: &Lab) -> anyhow::Result<()> {
    let Some(browser) = browser() else { return Ok(()) };
    let shop = Shop::with_waypoint(lab, "page").await?;
    lab.apply(&objects())?;
    let outsider = lab.pod("page-outside", "outsider").await?;
    let failing = shop.application("near", "v1").await?;
    shop.behave(&failing, &Behaviour { status: Some(503), ..Behaviour::default() }).await?;
    let way = Way { family: Family::V4, service: "near", protocol: Protocol::Http1 };
    let address = shop.application("near", "v2").await?.socket(Family::V4, APP);
    let url = format!("http://{address}/");
    let load = async {
        let inside = shop.call(&shop.client, way, "/", &["--for", "60", "--rate", "40"]);
        let outside = async { Ok(outsider.run_for::<Value>(&["call", &url, "--for", "60", "--rate", "5"], crate::shop::LOAD).await?) };
        tokio::try_join!(inside, outside).map(drop)
    };
    let forward = lab.page(0).await?;
    tokio::select! {
        looked = look(&forward, &browser) => looked?,
        ended = load => anyhow::bail!("the traffic ended before it was looked at: {ended:?}"),
    }
    refusals(&forward).await?;
    lab.delete("Pod", "page-outside", "outsider")?;
    lab.delete("Namespace", "", "page-outside")?;
    shop.close(&[("DestinationRule", "near"), ("Gateway", "waypoint")])
}

/// While traffic flows.
async fn look(forward: &PageForward, browser: &Browser) -> anyhow::Result<()> {
    let mut last = String::new();
    let whole = wait::until(CHANGE * 3, "the graph to show all of it", async || {
        let graph = forward.graph().await.ok()?;
        last = graph.0.to_string();
        is_whole(&graph).then_some(graph)
    });
    let graph = whole.await.with_context(|| last.clone())?;
    let (inward, onward) = (graph.edge("page/client", "page/waypoint"), graph.edge("page/waypoint", "page/near-v2"));
    println!("{} requests/s to the waypoint, {} on to near-v2", inward["requestsPerSecond"], onward["requestsPerSecond"]);
    ensure!(graph.0["proxies"]["silent"] == json!({}), "{}", graph.0["proxies"]);

    let document = made(&browser.document(&forward.url()).await?);
    for expected in ["page/client", "page/waypoint", "page/near-v1", "page/far-v3", "page-outside/outsider"] {
        ensure!(document.contains(&format!(">{expected}<")), "the tables have no {expected}: {document}");
    }
    for expected in [">mutual TLS<", ">plain<", "ejected · back in ", "class=\"lock\"", "rates over "] {
        ensure!(document.contains(expected), "the page does not show {expected:?}: {document}");
    }
    let shown: Vec<f64> = document.match_indices(" req/s").filter_map(|(at, _)| last_number(&document[..at])).collect();
    ensure!(shown.iter().any(|rate| *rate > 0.0), "no rate is above zero: {shown:?}");
    ensure!(document.contains("spiffe://cluster.local/ns/page/sa/client"), "no identity: {document}");

    let folder = tempfile::tempdir()?;
    let light = browser.picture(&forward.url(), WINDOW, Scheme::Light, &folder.path().join("light.png")).await?;
    let dark = browser.picture(&forward.url(), WINDOW, Scheme::Dark, &folder.path().join("dark.png")).await?;
    if let Some(kept) = std::env::var_os("TROPIS_KEEP_PICTURES") {
        for name in ["light.png", "dark.png"] {
            std::fs::copy(folder.path().join(name), std::path::Path::new(&kept).join(name))?;
        }
    }
    for (name, picture) in [("light", &light), ("dark", &dark)] {
        drawn(picture).with_context(|| format!("{name}: {:.2} bright", picture.brightness()))?;
    }
    ensure!(light.brightness() > 0.8 && dark.brightness() < 0.3, "light {:.2}, dark {:.2}", light.brightness(), dark.brightness());
    Ok(())
}

fn is_whole(graph: &Graph) -> bool {
    let locked = |from, to| graph.locked_requests(from, to).is_some();
    let plain = graph.edge("page-outside/outsider", "page/near-v2");
    locked("page/client", "page/waypoint")
        && locked("page/waypoint", "page/near-v2")
        && plain["security"] == "plain"
        && plain["bytesPerSecond"].as_f64().is_some_and(|rate| rate > 0.0)
        && graph.ejected("page/near-v1").is_some_and(|left| left > 1.0)
}

/// Something is on it: many colours, among them the green of locked edges and the red of what failed, and not everywhere.
fn drawn(picture: &Picture) -> anyhow::Result<()> {
    ensure!((picture.width, picture.height) == WINDOW, "{} by {}", picture.width, picture.height);
    ensure!(picture.blankness() < 0.9, "{:.3} of it has one colour", picture.blankness());
    let above = |one: u8, other: u8| i16::from(one) - i16::from(other) > 45;
    let green = picture.share(|red, green, blue| above(green, red) && green >= blue);
    let red = picture.share(|red, green, blue| above(red, green) && above(red, blue));
    ensure!(green > 0.0003 && green < 0.2 && red > 0.0003 && red < 0.2, "green {green:.5}, red {red:.5}");
    Ok(())
}

/// What the script made of the page: without the script itself, the style and the legend, which say the same words whatever it made.
fn made(document: &str) -> String {
    let mut rest = document.to_owned();
    for (begin, end) in [("<style>", "</style>"), ("<script>", "</script>"), ("<ul class=\"legend\"", "</ul>")] {
        let Some((before, after)) = rest.split_once(begin) else { continue };
        rest = before.to_owned() + after.split_once(end).map_or("", |(_, after)| after);
    }
    rest
}

/// The number that a text ends with.
fn last_number(text: &str) -> Option<f64> {
    let digits = text.rfind(|letter: char| !letter.is_ascii_digit() && letter != '.').map_or(0, |at| at + 1);
    text[digits..].parse().ok()
}

/// Nobody who comes by another name gets anything, and nothing but the page is there.
async fn refusals(forward: &PageForward) -> anyhow::Result<()> {
    for (path, host, expected) in [
        ("/", "localhost", 200),
        ("/", "evil.example", 403),
        ("/graph.json", "tropis.evil.example:80", 403),
        ("/debug/clients", "localhost", 404),
        ("/logging", "localhost", 404),
    ] {
        let (status, body) = forward.get(path, host).await?;
        ensure!(status == expected, "{path} as {host}: {status} {body}");
    }
    Ok(())
}

#[test]
fn a_control_plane_that_does_not_answer_is_said_so() {
    let document = shown(|path| (path == "/").then(|| PAGE.to_owned()));
    let Some(document) = document else { return };
    assert!(document.contains("the control plane does not answer") && document.contains("class=\"stale\""), "{document}");
    assert!(document.contains("Traffic goes on without it"), "{document}");
}

#[test]
fn an_empty_mesh_says_what_to_do_next() {
    let document = shown(|path| Some(if path == "/" { PAGE.to_owned() } else { graph(&json!([]), &json!([])).to_string() }));
    let Some(document) = document else { return };
    assert!(document.contains("Nothing runs here yet") && document.contains("tropis apply -f shop.yaml"), "{document}");
}

#[test]
fn names_are_only_ever_text() {
    let trap = "<img src=x onerror=\"document.title='caught'\"><b>bold</b>";
    let node = |name: &str| {
        json!({
            "id": format!("{trap}/{name}"), "namespace": trap, "name": name, "role": "workload", "pods": 1, "ready": 1, "enrolled": 1,
            "identities": [trap], "services": [trap], "runsOn": [trap],
        })
    };
    let edge = json!({
        "from": format!("{trap}/{trap}"), "to": format!("{trap}/b"), "security": "mutualTls", "active": true, "requestsPerSecond": 7.0,
        "failedShare": 0.0, "bytesPerSecond": 1.0, "connectionsPerSecond": 0.0, "brokenPerSecond": 0.0, "requests": 1, "bytes": 1,
    });
    let answer = graph(&json!([node(trap), node("b")]), &json!([edge])).to_string();
    let document = shown(move |path| Some(if path == "/" { PAGE.to_owned() } else { answer.clone() }));
    let Some(document) = document else { return };
    assert!(document.contains("7 req/s") && document.contains("&lt;img src=x"), "{document}");
    assert!(!document.contains("<img") && !document.contains("<b>bold") && !document.contains("<title>caught"), "{document}");
}

/// A whole graph of these.
fn graph(nodes: &Value, edges: &Value) -> Value {
    json!({
        "complete": true, "windowSeconds": 2.0, "nodes": nodes, "edges": edges, "ejected": [], "leftOut": 0,
        "proxies": {"known": true, "answered": 1, "silent": {}, "unasked": 0},
    })
}

/// The document that a browser makes of what `answer` gives for each path; 502 for `None`. `None` where there is no browser.
fn shown(answer: impl Fn(&str) -> Option<String> + Send + 'static) -> Option<String> {
    let browser = browser()?;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let document = runtime.block_on(async move {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let serving = tokio::spawn(serve(listener, answer));
        let document = browser.document(&url).await;
        serving.abort();
        document
    });
    Some(made(&document.unwrap()))
}

async fn serve(listener: TcpListener, answer: impl Fn(&str) -> Option<String>) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let mut request = vec![0; 16 << 10];
        // A browser's request is one segment here; one that opens a connection ahead of time and says nothing is let go.
        let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut request)).await;
        let Ok(Ok(length @ 1..)) = read else { continue };
        let asked = String::from_utf8_lossy(&request[..length]).into_owned();
        let path = asked.split(' ').nth(1).unwrap_or_default();
        let kind = if path == "/" { "text/html" } else { "application/json" };
        let (status, body) = answer(path).map_or(("502 Bad Gateway", String::new()), |body| ("200 OK", body));
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
    }
}

fn browser() -> Option<Browser> {
    let found = Browser::installed();
    if found.is_none() {
        let why = "there is no chromium: `cargo xtask setup browser` installs it";
        assert_ne!(std::env::var("TROPIS_E2E").as_deref(), Ok("require"), "the page cannot be seen here: {why}");
        eprintln!("SKIPPED, nothing was shown: {why}");
    }
    found
}

/// Who fails is out for longer than the look takes; and somebody outside the mesh.
fn objects() -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: near, namespace: page}}\nspec:\n  host: near\n  trafficPolicy:\n    \
         outlierDetection: {{consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 120s, maxEjectionPercent: 100}}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {{name: page-outside}}\n{}",
        pod("page-outside", "outsider", "default", "a", "v1", &[])
    )
}
