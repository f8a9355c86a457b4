//! A waypoint comes and goes under load: the one that tropisd makes by itself, for a namespace or for accounts, and one of the user's that
//! takes another's place. No request fails, no POST is lost or doubled, and callers whom a policy denies, by their name or by what they ask
//! for, who ask all the time, never get through.

mod accounts;
mod load;
mod switch;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use tropis_crds::Kind;
use tropis_tests::lab::waypoint::Addressed;
use tropis_tests::testkit::calls::Calls;
use tropis_tests::{Family, Lab, PodHandle, Program, wait};

use crate::shop::{Protocol, Shop, Way};
use crate::support::{Company, play};
use accounts::{none_is_left, there_and_back};
use load::{Denied, LET_IN, denied_by_name, under_load};
use switch::switch;

/// What tropisd calls the Gateway that it makes.
const AUTOMATIC: &str = "automatic-waypoint";
/// The label of a namespace that opts out of it.
const OPT_OUT: &str = "tropis.io/automatic-waypoint";
/// Ten times what it takes until a waypoint is on its way, or marked as leaving.
const BEGUN: Duration = Duration::from_secs(20);
/// Far more than an automatic waypoint needs to be detached, to drain and to be gone.
const GONE: Duration = Duration::from_secs(60);
/// What [`guarded`] makes.
const GUARD: [(&str, &str); 2] = [("AuthorizationPolicy", "guard"), ("PeerAuthentication", "guard")];
/// What [`need`] makes.
const NEED: [(&str, &str); 2] = [("VirtualService", "near"), ("VirtualService", "far")];

#[test]
fn an_automatic_waypoint_comes_and_goes_under_load() {
    play(Company::Welcome, |lab| {
        Box::pin(async move {
            let shop = guarded(lab, "autowp").await?;
            let denied = [denied_by_name(&shop), applications_may_not_post(&shop).await?].concat();
            under_load(&shop, &denied, 12, come(&shop)).await?;
            under_load(&shop, &denied, 50, go(&shop)).await?;
            shop.close(&[&GUARD[..], &NEED, &[("AuthorizationPolicy", "no-post")]].concat())
        })
    });
}

#[test]
fn an_automatic_waypoint_outlives_tropisd_and_comes_back_when_it_is_needed_again() {
    play(Company::Alone, |lab| {
        Box::pin(async move {
            let shop = guarded(lab, "autoback").await?;
            under_load(&shop, &denied_by_name(&shop), 85, killed_on_the_way(&shop)).await?;
            shop.close(&GUARD)
        })
    });
}

#[test]
fn a_users_waypoint_takes_anothers_place_under_load() {
    play(Company::Welcome, |lab| {
        Box::pin(async move {
            let shop = guarded(lab, "wpswitch").await?;
            let denied = [denied_by_name(&shop), client_may_not_do_everything(&shop).await?].concat();
            under_load(&shop, &denied, 60, switch(&shop)).await?;
            let policies = ["no-admin", "by-method", "no-late"].map(|name| ("AuthorizationPolicy", name));
            let made = [("Gateway", "waypoint"), ("Gateway", "second"), ("Service", "young")];
            shop.close(&[&GUARD[..], &NEED, &policies, &made].concat())
        })
    });
}

#[test]
fn automatic_waypoints_of_accounts_take_the_namespaces_place_under_load() {
    play(Company::Welcome, |lab| {
        Box::pin(async move {
            let shop = guarded(lab, "autoacct").await?;
            let denied = [denied_by_name(&shop), client_may_not_do_everything(&shop).await?].concat();
            under_load(&shop, &denied, 65, there_and_back(&shop)).await?;
            none_is_left(&shop, &["no-admin", "by-method"].map(|name| ("AuthorizationPolicy", name))).await?;
            shop.close(&GUARD)
        })
    });
}

/// A shop whose policies of layer 4 let `client` in and deny `other`. Who denies callers by name has to ask for names (STRICT): a Service is
/// new to node proxies for a moment, in which its address is any other's, and plain.
async fn guarded<'a>(lab: &'a Lab, namespace: &'static str) -> anyhow::Result<Shop<'a>> {
    let shop = Shop::open(lab, namespace).await?;
    shop.lab.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: guard, namespace: {namespace}}}\nspec:\n  action: DENY\n  rules:\n  \
         - from: [{{source: {{principals: [cluster.local/ns/{namespace}/sa/other]}}}}]\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: guard, namespace: {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
    ))?;
    for denied in denied_by_name(&shop) {
        denied.in_force(&shop).await.context("before anything else")?;
    }
    client_is_let_in(&shop).await?;
    Ok(shop)
}

async fn client_is_let_in(shop: &Shop<'_>) -> anyhow::Result<()> {
    for load in &LET_IN {
        shop.call_until(&shop.client, load.way, "/", &["-n", "5"], |calls| calls.served() == 5).await?;
    }
    Ok(())
}

/// A policy of layer 7 that stands while there is no waypoint, and node proxies deny all that these callers ask, and while there is one;
/// which is not made yet, though something needs it. Gives what is denied, in force.
async fn applications_may_not_post(shop: &Shop<'_>) -> anyhow::Result<Vec<Denied>> {
    let (lab, namespace) = (shop.lab, shop.namespace);
    lab.label("Namespace", "", namespace, &[(OPT_OUT, Some("false"))])?;
    need(shop)?;
    lab.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: no-post, namespace: {namespace}}}\nspec:\n  action: DENY\n  rules:\n  \
         - from: [{{source: {{principals: [cluster.local/ns/{namespace}/sa/near, cluster.local/ns/{namespace}/sa/far]}}}}]\n    to: [{{operation: {{methods: [POST]}}}}]\n"
    ))?;
    let [near, far] = [shop.application("near", "v1").await?, shop.application("far", "v1").await?];
    let way = |family, service, protocol| Way { family, service, protocol };
    let denied = vec![
        Denied::new(&far, way(Family::V4, "near", Protocol::Http1), true, "POST", "/"),
        Denied::new(&near, way(Family::V6, "far", Protocol::Grpc), false, "POST", "/shop.Echo/Say"),
        Denied::new(&near, way(Family::V4, "near", Protocol::Http2), false, "POST", "/"),
    ];
    for denied in &denied {
        denied.in_force(shop).await.context("at the node proxies")?;
    }
    ensure!(mark(shop).is_none(), "there is a waypoint already");
    Ok(denied)
}

/// Whether node proxies alone decide, which deny these callers everything, or a waypoint does, which denies POST.
async fn applications_may_get(shop: &Shop<'_>, may: bool) -> anyhow::Result<()> {
    let caller = shop.application("far", "v1").await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let way = Way { family: Family::V4, service: "near", protocol };
        shop.call_until(&caller, way, "/", &[], |calls| calls.all_served() == may).await.with_context(|| format!("may GET: {may}"))?;
    }
    Ok(())
}

/// Policies of layer 7 of both kinds, one that the waypoint alone decides and one that lets nobody but the waypoint in at the destination;
/// they need one, and so there is an automatic one. Gives what is denied, in force.
async fn client_may_not_do_everything(shop: &Shop<'_>) -> anyhow::Result<Vec<Denied>> {
    let (lab, namespace) = (shop.lab, shop.namespace);
    need(shop)?;
    attached(shop, true).await?;
    lab.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: no-admin, namespace: {namespace}}}\nspec:\n  \
         targetRefs: [{{kind: Service, group: \"\", name: near}}, {{kind: Service, group: \"\", name: far}}]\n  action: DENY\n  rules:\n  \
         - to: [{{operation: {{paths: [/admin, /shop.Echo/Shout]}}}}]\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: by-method, namespace: {namespace}}}\nspec:\n  action: ALLOW\n  rules:\n  \
         - from: [{{source: {{principals: [cluster.local/ns/{namespace}/sa/client]}}}}]\n    to: [{{operation: {{methods: [GET, POST]}}}}]\n"
    ))?;
    let way = |family, service, protocol| Way { family, service, protocol };
    let denied = vec![
        Denied::new(&shop.client, way(Family::V6, "far", Protocol::Http1), true, "POST", "/admin"),
        Denied::new(&shop.client, way(Family::V4, "far", Protocol::Grpc), false, "POST", "/shop.Echo/Shout"),
        Denied::new(&shop.client, way(Family::V4, "near", Protocol::Http2), false, "PUT", "/"),
    ];
    for denied in &denied {
        denied.in_force(shop).await.context("at the waypoint")?;
    }
    client_is_let_in(shop).await?;
    Ok(denied)
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
    named_gone(shop, AUTOMATIC).await
}

async fn named_gone(shop: &Shop<'_>, name: &str) -> anyhow::Result<()> {
    let mark = || shop.lab.object(Kind::Gateway, shop.namespace, name).and_then(|own| own.label(OPT_OUT).map(str::to_owned));
    let there = || (mark(), shop.lab.pods(shop.namespace, name).len());
    let found = wait::until(GONE, "an automatic waypoint to be gone", async || (there() == (None, 0)).then_some(()));
    found.await.with_context(|| format!("{:?} of {name} is there", there()))?;
    Ok(())
}

async fn come(shop: &Shop<'_>) -> anyhow::Result<()> {
    let begun = Instant::now();
    shop.lab.label("Namespace", "", shop.namespace, &[(OPT_OUT, None)])?;
    shop.lab.wait_waypoint(shop.namespace, AUTOMATIC).await?;
    println!("the waypoint was ready after {:.1} s", begun.elapsed().as_secs_f64());
    attached(shop, true).await?;
    println!("and attached after {:.1} s", begun.elapsed().as_secs_f64());
    for load in &LET_IN {
        let by_waypoint = |calls: &Calls| calls.last_headers.get("x-by").is_some_and(|by| by == "waypoint");
        shop.call_until(&shop.client, load.way, "/", &[], by_waypoint).await.context("traffic moves onto it")?;
    }
    applications_may_get(shop, true).await
}

/// A policy of layer 7 comes, which node proxies alone could not carry out: it ends connections that are older than the waypoint, so this
/// load is one of connections that go through it. Then it goes, and the namespace opts out of its waypoint.
async fn go(shop: &Shop<'_>) -> anyhow::Result<()> {
    shop.lab.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: no-put, namespace: {}}}\nspec:\n  action: DENY\n  rules:\n  \
         - to: [{{operation: {{methods: [PUT]}}}}]\n",
        shop.namespace
    ))?;
    for load in LET_IN.iter().filter(|load| load.way.protocol != Protocol::Grpc) {
        shop.call_until(&shop.client, load.way, "/", &["-X", "PUT"], |calls| calls.statuses.get(&403) == Some(&1)).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let begun = Instant::now();
    shop.lab.delete("AuthorizationPolicy", shop.namespace, "no-put")?;
    shop.lab.label("Namespace", "", shop.namespace, &[(OPT_OUT, Some("false"))])?;
    attached(shop, false).await?;
    println!("detached after {:.1} s", begun.elapsed().as_secs_f64());
    gone(shop).await?;
    println!("gone after {:.1} s", begun.elapsed().as_secs_f64());
    // What was open through it has found its way.
    tokio::time::sleep(Duration::from_secs(2)).await;
    applications_may_get(shop, false).await
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
