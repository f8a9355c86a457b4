//! A waypoint comes and goes under load: the one that tropisd makes by itself, and one of the user's that takes another's place. No request
//! fails, no POST is lost or doubled, and the caller whom a policy denies, who asks all the time, never gets through.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use serde_json::Value;
use tropis_crds::Kind;
use tropis_tests::lab::waypoint::Addressed;
use tropis_tests::testkit::calls::Calls;
use tropis_tests::{Family, Lab, PodHandle, Program, wait};

use crate::shop::{CHANGE, Protocol, Shop, Way};
use crate::support::{Company, play};

/// What tropisd calls the Gateway that it makes.
const AUTOMATIC: &str = "automatic-waypoint";
/// Ten times what it takes until a waypoint is on its way, or marked as leaving.
const BEGUN: Duration = Duration::from_secs(20);
/// Far more than an automatic waypoint needs to be detached, to drain and to be gone.
const GONE: Duration = Duration::from_secs(60);
/// Of each load of the caller that is let in; four make 200.
const RATE: &str = "50";
/// Of each load of the caller that is denied.
const DENIED_RATE: &str = "20";

/// A load: a way to the application, and whether each request opens a connection of its own.
struct Load {
    way: Way,
    fresh: bool,
}

const fn load(family: Family, service: &'static str, protocol: Protocol, fresh: bool) -> Load {
    Load { way: Way { family, service, protocol }, fresh }
}

const LET_IN: [Load; 4] = [
    load(Family::V4, "near", Protocol::Http1, false),
    load(Family::V6, "far", Protocol::Http1, true),
    load(Family::V6, "near", Protocol::Http2, false),
    load(Family::V4, "far", Protocol::Http1, false),
];
const DENIED: [Load; 2] = [load(Family::V4, "near", Protocol::Http1, true), load(Family::V6, "far", Protocol::Http2, true)];

/// Ways on which somebody asks once and keeps the connection, idle for longer than a waypoint knows what has left it, to ask again.
const IDLE: [Way; 2] = [
    Way { family: Family::V4, service: "near", protocol: Protocol::Http1 },
    Way { family: Family::V6, service: "far", protocol: Protocol::Http2 },
];

/// What [`guard`] makes.
const GUARD: [(&str, &str); 2] = [("AuthorizationPolicy", "guard"), ("PeerAuthentication", "guard")];

#[test]
fn an_automatic_waypoint_comes_and_goes_under_load() {
    play(Company::Welcome, |lab| {
        Box::pin(async move {
            let shop = guarded(lab, "autowp").await?;
            under_load(&shop, 12, come(&shop)).await?;
            under_load(&shop, 60, go(&shop)).await?;
            shop.close(&GUARD)
        })
    });
}

#[test]
fn an_automatic_waypoint_outlives_tropisd_and_comes_back_when_it_is_needed_again() {
    play(Company::Alone, |lab| {
        Box::pin(async move {
            let shop = guarded(lab, "autoback").await?;
            under_load(&shop, 100, killed_on_the_way(&shop)).await?;
            shop.close(&GUARD)
        })
    });
}

#[test]
fn a_users_waypoint_takes_anothers_place_under_load() {
    play(Company::Welcome, |lab| {
        Box::pin(async move {
            let shop = Shop::with_waypoint(lab, "wpswitch").await?;
            guard(&shop).await?;
            under_load(&shop, 60, switch(&shop)).await?;
            let made = [("Gateway", "waypoint"), ("Gateway", "second"), ("Service", "young")];
            shop.close(&[&GUARD[..], &made[..]].concat())
        })
    });
}

/// A shop whose policies of layer 4 let `client` in and deny `other`. Who denies callers by name has to ask for names (STRICT): a Service is
/// new to node proxies for a moment, in which its address is any other's, and plain.
async fn guarded<'a>(lab: &'a Lab, namespace: &'static str) -> anyhow::Result<Shop<'a>> {
    let shop = Shop::open(lab, namespace).await?;
    guard(&shop).await?;
    Ok(shop)
}

async fn guard(shop: &Shop<'_>) -> anyhow::Result<()> {
    let namespace = shop.namespace;
    shop.lab.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: guard, namespace: {namespace}}}\nspec:\n  action: DENY\n  rules:\n  \
         - from: [{{source: {{principals: [cluster.local/ns/{namespace}/sa/other]}}}}]\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: guard, namespace: {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
    ))?;
    for Load { way, .. } in DENIED {
        shop.call_until(&shop.other, way, "/", &[], |calls| !calls.statuses.contains_key(&200)).await.context("before anything else")?;
    }
    for Load { way, .. } in LET_IN {
        shop.call_until(&shop.client, way, "/", &["-n", "5"], |calls| calls.statuses.get(&200) == Some(&5)).await?;
    }
    Ok(())
}

/// Plays `change` while everybody calls for `seconds`, and looks at what became of every request.
async fn under_load(shop: &Shop<'_>, seconds: u64, change: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let before = arrived(shop).await?;
    let span = seconds.to_string();
    let calls = try_join_all(LET_IN.iter().map(|load| call(shop, &shop.client, load, &span, RATE)));
    let idle = try_join_all(IDLE.iter().map(|way| call_twice(shop, *way, seconds)));
    let refused = try_join_all(DENIED.iter().map(|load| call(shop, &shop.other, load, &span, DENIED_RATE)));
    let begun = Instant::now();
    let change = async {
        // What is open before the change is part of it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        change.await?;
        Ok(begun.elapsed())
    };
    let (calls, idle, refused, took) = tokio::try_join!(calls, idle, refused, change)?;
    println!("{}: all of it in {:.1} s of {seconds}", shop.namespace, took.as_secs_f64());
    ensure!(took < Duration::from_secs(seconds), "the load was over before the change: {took:?}");
    let mut failed = Vec::new();
    for (Load { way, fresh }, calls) in LET_IN.iter().zip(&calls) {
        println!("{way}, own connections {fresh}: {} requests, {} on a second connection", calls.answered, calls.moved);
        if !calls.ok || calls.statuses.get(&200) != Some(&calls.answered) {
            failed.push(told(*way, calls));
        }
    }
    for (way, calls) in IDLE.iter().zip(&idle) {
        println!("{way}, idle in between: {:?}, {} on a second connection", calls.statuses, calls.moved);
        if !calls.ok || calls.statuses.get(&200) != Some(&2) {
            failed.push(told(*way, calls));
        }
    }
    for (Load { way, .. }, calls) in DENIED.iter().zip(&refused) {
        println!("{way}, denied: {:?} {:?}", calls.statuses, calls.errors);
        ensure!(!calls.statuses.contains_key(&200), "{way}: a denied request passed: {}", told(*way, calls));
    }
    ensure!(failed.is_empty(), "requests failed: {failed:#?}");
    let reached = arrived(shop).await? - before;
    let answered: u64 = calls.iter().chain(&idle).map(|calls| calls.answered).sum();
    println!("{}: {answered} POSTs answered, {reached} reached the application, each once", shop.namespace);
    ensure!(reached == answered, "{reached} POSTs reached the application, {answered} were answered");
    Ok(())
}

async fn call(shop: &Shop<'_>, pod: &PodHandle, load: &Load, seconds: &str, rate: &str) -> anyhow::Result<Calls> {
    let nonce = format!("{}-{}-{}-{}-{seconds}-", pod.name(), load.way.service, load.way.protocol.flag(), load.fresh);
    let mut options = vec!["--for", seconds, "--rate", rate, "-c", "4", "-X", "POST", "--body", "200", "--nonce", &nonce, "--timeline"];
    options.extend(load.fresh.then_some("--fresh"));
    shop.call(pod, load.way, "/", &options).await
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
    let wrong = calls.timeline.iter().filter(|answer| answer.status != 200);
    let wrong: Vec<String> = wrong.take(20).map(|answer| format!("{} at {:.0}", answer.status, answer.sent - begun)).collect();
    let (statuses, errors, details) = (&calls.statuses, &calls.errors, &calls.details);
    format!("{way}: {statuses:?} {errors:?} {details:?} {wrong:?} last {}", calls.last_body)
}

/// How many different POSTs the application has seen; an error if one came twice.
async fn arrived(shop: &Shop<'_>) -> anyhow::Result<u64> {
    let mut all = 0;
    for (service, version) in ["near", "far"].into_iter().flat_map(|service| ["v1", "v2", "v3"].map(|version| (service, version))) {
        let seen = shop.seen(&shop.application(service, version).await?, &[]).await?;
        ensure!(seen.repeated.is_empty(), "{service}-{version} got requests twice: {:?}", seen.repeated);
        all += seen.nonces;
    }
    Ok(all)
}

/// Something that needs a waypoint.
fn need(shop: &Shop<'_>) -> anyhow::Result<()> {
    let mut yaml = String::new();
    for service in ["near", "far"] {
        yaml += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {service}, namespace: {}}}\nspec:\n  hosts: [{service}]\n  \
             http: [{{headers: {{response: {{set: {{x-by: waypoint}}}}}}, route: [{{destination: {{host: {service}}}}}]}}]\n",
            shop.namespace
        );
    }
    Ok(shop.lab.apply(&yaml)?)
}

fn need_no_more(shop: &Shop<'_>) -> anyhow::Result<()> {
    for service in ["near", "far"] {
        shop.lab.delete("VirtualService", shop.namespace, service)?;
    }
    Ok(())
}

async fn attached(shop: &Shop<'_>, attached: bool) -> anyhow::Result<()> {
    for service in ["near", "far"] {
        shop.lab.wait_attached(shop.namespace, Addressed::Service(service), attached).await?;
    }
    Ok(())
}

/// The automatic waypoint's Gateway, by the value of its mark.
fn mark(shop: &Shop<'_>) -> Option<String> {
    let gateway = shop.lab.object(Kind::Gateway, shop.namespace, AUTOMATIC)?;
    Some(gateway.label("tropis.io/automatic-waypoint")?.to_owned())
}

async fn marked(shop: &Shop<'_>, wanted: &[&str]) -> anyhow::Result<()> {
    let what = format!("the automatic waypoint to be one of {wanted:?}");
    let found = wait::until(BEGUN, &what, async || mark(shop).filter(|mark| wanted.contains(&mark.as_str())));
    found.await.with_context(|| format!("it is {:?}", mark(shop)))?;
    Ok(())
}

async fn gone(shop: &Shop<'_>) -> anyhow::Result<()> {
    let there = || (mark(shop), shop.lab.pods(shop.namespace, AUTOMATIC).len());
    let found = wait::until(GONE, "the automatic waypoint to be gone", async || (there() == (None, 0)).then_some(()));
    found.await.with_context(|| format!("{:?} is there", there()))?;
    Ok(())
}

async fn come(shop: &Shop<'_>) -> anyhow::Result<()> {
    let begun = Instant::now();
    need(shop)?;
    shop.lab.wait_waypoint(shop.namespace, AUTOMATIC).await?;
    println!("the waypoint was ready after {:.1} s", begun.elapsed().as_secs_f64());
    attached(shop, true).await?;
    println!("and attached after {:.1} s", begun.elapsed().as_secs_f64());
    for Load { way, .. } in &LET_IN {
        let by_waypoint = |calls: &Calls| calls.last_headers.get("x-by").is_some_and(|by| by == "waypoint");
        shop.call_until(&shop.client, *way, "/", &[], by_waypoint).await.context("traffic moves onto it")?;
    }
    Ok(())
}

/// A policy of layer 7 comes, which node proxies alone could not carry out: it ends connections that are older than the waypoint, so this
/// load is one of connections that go through it. Then it goes, with all that needed the waypoint.
async fn go(shop: &Shop<'_>) -> anyhow::Result<()> {
    shop.lab.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: no-put, namespace: {}}}\nspec:\n  action: DENY\n  rules:\n  \
         - to: [{{operation: {{methods: [PUT]}}}}]\n",
        shop.namespace
    ))?;
    for Load { way, .. } in &LET_IN {
        shop.call_until(&shop.client, *way, "/", &["-X", "PUT"], |calls| calls.statuses.get(&403) == Some(&1)).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let begun = Instant::now();
    shop.lab.delete("AuthorizationPolicy", shop.namespace, "no-put")?;
    need_no_more(shop)?;
    attached(shop, false).await?;
    println!("detached after {:.1} s", begun.elapsed().as_secs_f64());
    gone(shop).await?;
    println!("gone after {:.1} s", begun.elapsed().as_secs_f64());
    // What was open through it has found its way.
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}

/// SIGKILL, and the next one at once, as a restarted container.
async fn another_tropisd(lab: &Lab) -> anyhow::Result<()> {
    lab.kill(Program::Tropisd, "control", Signal::SIGKILL).await?;
    lab.start_program(Program::Tropisd, "control").await?;
    Ok(())
}

async fn killed_on_the_way(shop: &Shop<'_>) -> anyhow::Result<()> {
    need(shop)?;
    marked(shop, &["true"]).await?;
    another_tropisd(shop.lab).await.context("in the middle of coming")?;
    attached(shop, true).await?;
    let first = shop.lab.wait_waypoint(shop.namespace, AUTOMATIC).await?;
    need_no_more(shop)?;
    attached(shop, false).await?;
    // The need comes back while it leaves: it stays, and so do its pods.
    need(shop)?;
    marked(shop, &["true"]).await?;
    attached(shop, true).await?;
    let uids = |pods: &[PodHandle]| pods.iter().map(|pod| pod.uid().to_owned()).collect::<Vec<_>>();
    ensure!(uids(&first) == uids(&shop.lab.pods(shop.namespace, AUTOMATIC)), "its pods were replaced for nothing");
    // tropisd dies while the waypoint carries traffic, and while it leaves.
    another_tropisd(shop.lab).await.context("while it is in use")?;
    attached(shop, true).await?;
    need_no_more(shop)?;
    attached(shop, false).await?;
    another_tropisd(shop.lab).await.context("in the middle of going")?;
    marked(shop, &["leaving", "stopping"]).await?;
    gone(shop).await?;
    // And a new one comes, by the name of the one that is gone.
    need(shop)?;
    attached(shop, true).await?;
    need_no_more(shop)?;
    gone(shop).await
}

/// Waits until every node sends a service's traffic through a waypoint of that name.
async fn through(shop: &Shop<'_>, service: &str, waypoint: &str) -> anyhow::Result<()> {
    let host = format!("{waypoint}.{}.svc", shop.namespace);
    for node in ["a", "b"] {
        let mut last = Value::Null;
        let found = wait::until(CHANGE, "the waypoint", async || {
            let dump = shop.lab.node_view(node).await.ok()?;
            let mut services = dump["services"].as_array()?.iter();
            let own = services.find(|entry| entry["namespace"] == shop.namespace && entry["name"] == service)?;
            last = own["waypoint"].clone();
            last.to_string().contains(&host).then_some(())
        });
        found.await.with_context(|| format!("on node {node} {service} goes through {last}, not {waypoint}"))?;
    }
    Ok(())
}

async fn switch(shop: &Shop<'_>) -> anyhow::Result<()> {
    let (lab, namespace) = (shop.lab, shop.namespace);
    let to = |waypoint| lab.label("Namespace", "", namespace, &[("istio.io/use-waypoint", Some(waypoint))]);
    // One that is not there yet: what goes through the first goes on doing so.
    let gateway = lab.waypoint(namespace, "second", &[]);
    gateway.await?;
    to("second")?;
    for service in ["near", "far"] {
        through(shop, service, "second").await?;
    }
    young_service(shop).await.context("a Service that is new")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Back, without a pause: the first may still know what it carried, or not.
    to("waypoint")?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    to("second")?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    to("waypoint")?;
    for service in ["near", "far"] {
        through(shop, service, "waypoint").await?;
    }
    // Longer than the one that was left still knows them.
    tokio::time::sleep(Duration::from_secs(12)).await;
    Ok(())
}

/// From its first moment a new Service behind a waypoint in use answers, and answers nobody whom a policy denies.
async fn young_service(shop: &Shop<'_>) -> anyhow::Result<()> {
    shop.lab.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: young, namespace: {}}}\nspec: {{selector: {{app: far}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n",
        shop.namespace
    ))?;
    let address = wait::until(CHANGE, "an address", async || shop.lab.service_address(shop.namespace, "young", Family::V4)).await?;
    // Kubernetes' part, service addresses on each node, has its own time: connections before it are refused by nobody of the mesh.
    let url = format!("http://{address}/");
    let (mut answered, mut begun) = (0, None);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let denied: Calls = shop.other.run(&["call", &url, "--fresh", "--authority", "young"]).await?;
        ensure!(!denied.statuses.contains_key(&200), "a denied request passed: {denied:?}");
        let calls: Calls = shop.client.run(&["call", &url, "-n", "5", "--fresh", "--authority", "young"]).await?;
        if calls.ok && calls.statuses.get(&200) == Some(&5) {
            answered += 5;
            begun.get_or_insert_with(Instant::now);
        } else {
            ensure!(begun.is_none(), "it had answered already: {calls:?}");
        }
    }
    println!("{answered} requests to the new Service were answered");
    ensure!(answered > 0, "the new Service never answered");
    through(shop, "young", "second").await
}
