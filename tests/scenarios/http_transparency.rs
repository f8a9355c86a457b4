//! HTTP through a waypoint is the HTTP that was sent: chunked bodies, trailers, `100-continue`, HEAD, answers without a body, headers of
//! traces, upgrades, streams of both directions.

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use tropis_tests::Lab;
use tropis_tests::testkit::Exchange;
use tropis_tests::testkit::calls::{Calls, Conversed, Told};

use crate::shop::{APP, Protocol, Shop, Way};
use crate::support::{Company, play};

/// By what traces are joined across services: of the W3C, of Zipkin in both forms, of OpenTracing.
const TRACE: [(&str, &str); 10] = [
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
    ("baggage", "userId=alice,serverNode=DF%2028;isProduction=false"),
    ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90"),
    ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
    ("x-b3-spanid", "e457b5a2e4d86bd1"),
    ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
    ("x-b3-sampled", "1"),
    ("x-b3-flags", "0"),
    ("x-ot-span-context", "80f198ee56343ba8;e457b5a2e4d86bd1;05e3ac9a4f6e3b90;cs"),
];

#[test]
fn what_http_can_say_arrives_as_it_was_said() {
    play(Company::Welcome, |lab| Box::pin(said(lab)));
}

async fn said(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::with_waypoint(lab, "transparent").await?;
    let over = |protocol| Way::all().filter(move |way| way.protocol == protocol);
    try_join_all(over(Protocol::Http1).map(|way| raw(&shop, way))).await?;
    try_join_all(over(Protocol::Http1).chain(over(Protocol::Http2)).map(|way| forms(&shop, way))).await?;
    try_join_all(over(Protocol::Http1).chain(over(Protocol::Http2)).map(|way| traces(&shop, way))).await?;
    try_join_all(over(Protocol::Http1).map(|way| converse(&shop, way, "websocket"))).await?;
    try_join_all(over(Protocol::Grpc).map(|way| converse(&shop, way, "grpc"))).await?;
    shop.close(&[("Gateway", "waypoint")])
}

/// A request that is written by hand, and its answer as it came.
async fn ask(shop: &Shop<'_>, way: Way, request: &str, more: &[&str]) -> anyhow::Result<String> {
    let url = shop.url(way, "")?;
    let target = url.trim_start_matches("http://");
    let mut arguments = vec!["raw", target, "--send", request];
    arguments.extend(more);
    let said: Exchange = shop.client.run(&arguments).await?;
    ensure!(said.ok, "{way}: {request}: {said:?}");
    said.reply.with_context(|| format!("{way}: no answer to {request}"))
}

async fn raw(shop: &Shop<'_>, way: Way) -> anyhow::Result<()> {
    let chunked = r"POST / HTTP/1.1\r\nhost: near\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\n\r\n";
    let answer = ask(shop, way, chunked, &[]).await?;
    ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(r#""body_bytes":12"#), "{way}: a chunked body: {answer}");

    let head = r"HEAD / HTTP/1.1\r\nhost: near\r\nconnection: close\r\n\r\n";
    let answer = ask(shop, way, head, &[]).await?;
    ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{way}: HEAD has no body: {answer}");
    let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|length| length.parse::<u64>().ok());
    ensure!(length.is_some_and(|length| length > 100), "{way}: HEAD tells the body's length: {answer}");

    let patient = r"POST / HTTP/1.1\r\nhost: near\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let answer = ask(shop, way, patient, &["--until", r"100 Continue\r\n\r\n", "--then", "hello"]).await?;
    ensure!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{way}: 100-continue: {answer}");
    ensure!(answer.contains(r#""body_bytes":5"#), "{way}: 100-continue: {answer}");

    for status in ["204 No Content", "304 Not Modified"] {
        let code = &status[..3];
        let request = format!(
            r"GET / HTTP/1.1\r\nhost: near\r\nx-ask: status={code}\r\n\r\nGET /after HTTP/1.1\r\nhost: near\r\nconnection: close\r\n\r\n"
        );
        let answer = ask(shop, way, &request, &[]).await?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{way}: {answer}");
        let (first, second) = answer.split_once("\r\n\r\n").context("a head")?;
        ensure!(second.starts_with("HTTP/1.1 200 OK\r\n") && second.contains("/after"), "{way}: {code} has no body: {answer}");
        ensure!(!first.contains("transfer-encoding"), "{way}: {code} has no body: {answer}");
    }

    let trailers = r"GET / HTTP/1.1\r\nhost: near\r\nconnection: close, te\r\nte: trailers\r\nx-ask: trailers\r\n\r\n";
    let answer = ask(shop, way, trailers, &[]).await?;
    ensure!(answer.contains("transfer-encoding: chunked\r\n"), "{way}: {answer}");
    ensure!(answer.ends_with("\r\n0\r\nx-trailer: yes\r\n\r\n"), "{way}: trailers: {answer}");
    Ok(())
}

async fn forms(shop: &Shop<'_>, way: Way) -> anyhow::Result<()> {
    let calls = shop
        .call(
            &shop.client,
            way,
            "/a%20b?c=%2f&d",
            &["-X", "PATCH", "--body", "100000", "-H", "x-ask: trailers", "-H", "x-two: 1", "-H", "x-two: 2"],
        )
        .await?;
    ensure!(calls.served() == 1, "{way}: {calls:?}");
    ensure!(calls.last_trailers.get("x-trailer").map(String::as_str) == Some("yes"), "{way}: trailers: {:?}", calls.last_trailers);
    let told: Told = serde_json::from_str(&calls.last_body).with_context(|| format!("{way}: {calls:?}"))?;
    ensure!(told.method == "PATCH" && told.path == "/a%20b?c=%2f&d" && told.body_bytes == 100_000, "{way}: {told:?}");
    ensure!(told.headers.get("x-two").map(String::as_str) == Some("1,2"), "{way}: {told:?}");
    ensure!(told.headers.contains_key("x-forwarded-for") && told.headers.contains_key("x-request-id"), "{way}: {told:?}");
    for status in [204, 304, 404, 500] {
        let ask = format!("x-ask: status={status}");
        let calls: Calls = shop.call(&shop.client, way, "/", &["-n", "3", "-H", &ask]).await?;
        ensure!(calls.ok && calls.statuses.get(&status) == Some(&3), "{way}: {status}: {calls:?}");
    }
    Ok(())
}

/// What joins traces arrives as it was sent: by the waypoint's hand, and by node proxies' past any.
async fn traces(shop: &Shop<'_>, way: Way) -> anyhow::Result<()> {
    let sent = TRACE.map(|(name, value)| format!("{name}: {value}"));
    let options: Vec<&str> = sent.iter().flat_map(|field| ["-H", field]).collect();
    let direct = format!("http://{}/", shop.application(way.service, "v1").await?.socket(way.family, APP));
    let past = [vec!["call", &direct, "--protocol", way.protocol.flag()], options.clone()].concat();
    for (calls, by_waypoint) in [(shop.call(&shop.client, way, "/", &options).await?, true), (shop.client.run(&past).await?, false)] {
        let told: Told = serde_json::from_str(&calls.last_body).with_context(|| format!("{way}: {calls:?}"))?;
        ensure!(told.headers.contains_key("x-forwarded-for") == by_waypoint, "{way}: by a waypoint: {by_waypoint}, and {told:?}");
        for (name, value) in TRACE {
            ensure!(told.headers.get(name).map(String::as_str) == Some(value), "{way}: {name} is {:?}", told.headers.get(name));
        }
    }
    Ok(())
}

async fn converse(shop: &Shop<'_>, way: Way, form: &str) -> anyhow::Result<()> {
    let url = shop.url(way, "/")?;
    let options = ["converse", form, url.as_str(), "-n", "40", "--bytes", "3000", "--pause", "0.25", "--timeout", "5"];
    let said: Conversed = shop.client.run(&options).await?;
    ensure!(said.ok && said.messages == 40, "{way}: {form}: {said:?}");
    println!(
        "{way}: a {form} of {:.0} s; the slowest of {} round trips took {:.1} ms",
        said.milliseconds / 1000.0,
        said.messages,
        said.longest_milliseconds
    );
    Ok(())
}
