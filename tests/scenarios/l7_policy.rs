//! Policy at layer 7: one caller may GET and not POST, through the waypoint, by the original caller's principal; the destination
//! refuses the same caller when it comes past the waypoint.

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use tropis_tests::Lab;
use tropis_tests::testkit::FailureKind;
use tropis_tests::testkit::calls::Calls;

use crate::shop::{APP, Protocol, Shop, Way};
use crate::support::{Company, play};

const BY_LABEL: &str = "selector: {matchLabels: {app: SERVICE}}";
const BY_NAME: &str = "targetRefs: [{kind: Service, group: \"\", name: SERVICE}]";
/// gRPC's PERMISSION_DENIED, which is how a 403 is told to gRPC.
const PERMISSION_DENIED: u16 = 7;

#[test]
fn methods_are_allowed_by_principal_and_only_through_the_waypoint() {
    play(Company::Welcome, |lab| Box::pin(policy(lab)));
}

async fn policy(lab: &Lab) -> anyhow::Result<()> {
    let shop = Shop::with_waypoint(lab, "l7policy").await?;
    let everybody = Way::all().map(|way| shop.call_until(&shop.other, way, "/", &[], Calls::all_served));
    try_join_all(everybody).await.context("without a policy everybody may")?;
    for service in ["near", "far"] {
        lab.apply(&policy_of(service, BY_LABEL))?;
    }
    try_join_all(Way::all().map(|way| decides(&shop, way))).await.context("a policy with a selector")?;
    direct(&shop).await?;
    for service in ["near", "far"] {
        lab.apply(&policy_of(service, BY_NAME))?;
    }
    try_join_all(Way::all().map(|way| decides(&shop, way))).await.context("a policy with targetRefs")?;
    selects_otherwise(&shop).await.context("a policy that selects otherwise from time to time")?;
    denials_are_told(&shop)?;
    shop.close(&[("AuthorizationPolicy", "near"), ("AuthorizationPolicy", "far"), ("Gateway", "waypoint")])
}

async fn decides(shop: &Shop<'_>, way: Way) -> anyhow::Result<()> {
    let (client, other) = (&shop.client, &shop.other);
    if way.protocol == Protocol::Grpc {
        let denied = |calls: &Calls| calls.grpc_statuses.get(&PERMISSION_DENIED) == Some(&1);
        shop.call_until(other, way, "/shop.Echo/Say", &[], denied).await?;
        shop.call_until(client, way, "/shop.Echo/Say", &[], |calls| calls.grpc_statuses.get(&0) == Some(&1)).await?;
        shop.call_until(client, way, "/shop.Echo/Shout", &[], denied).await?;
        return Ok(());
    }
    let denied = |calls: &Calls| calls.statuses.get(&403) == Some(&1) && calls.last_body.contains("RBAC: access denied");
    shop.call_until(other, way, "/", &[], denied).await?;
    shop.call_until(client, way, "/", &[], Calls::all_served).await?;
    shop.call_until(client, way, "/", &["-X", "POST"], denied).await?;
    // On one connection, a request is decided for itself.
    let gets = shop.call(client, way, "/", &["-n", "50", "-c", "2"]).await?;
    ensure!(gets.served() == 50, "{way}: {gets:?}");
    Ok(())
}

/// A policy goes from selecting pods by a label to naming the Service, and back: in no moment is it not asked, nor is anybody denied whom
/// it allows.
async fn selects_otherwise(shop: &Shop<'_>) -> anyhow::Result<()> {
    let ways: Vec<Way> = Way::all().filter(|way| way.service == "near" && way.protocol != Protocol::Grpc).collect();
    let load = |pod, rate| {
        let options = ["--for", "6", "--rate", rate, "-c", "4"];
        try_join_all(ways.iter().map(move |way| async move { shop.call(pod, *way, "/", &options).await }))
    };
    let changes = async {
        for turn in 0..16 {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            shop.lab.apply(&policy_of("near", if turn % 2 == 0 { BY_LABEL } else { BY_NAME }))?;
        }
        Ok(())
    };
    let (allowed, denied, ()) = tokio::try_join!(load(&shop.client, "100"), load(&shop.other, "400"), changes)?;
    for (way, (allowed, denied)) in ways.iter().zip(allowed.iter().zip(&denied)) {
        println!(
            "{way}: {} requests were served and {} denied while the policy selected now this way, now that",
            allowed.answered, denied.answered
        );
        ensure!(allowed.all_served(), "{way}: whom the policy allows was denied: {:?}", allowed.in_short());
        let statuses: Vec<_> = denied.statuses.keys().collect();
        ensure!(statuses == [&403] && denied.errors.is_empty(), "{way}: whom the policy denies got {:?}", denied.in_short());
    }
    Ok(())
}

/// Past the waypoint, to a pod's own address, the caller is refused: layer 4 cannot see that it is a GET.
async fn direct(shop: &Shop<'_>) -> anyhow::Result<()> {
    for service in ["near", "far"] {
        let pod = shop.application(service, "v1").await?;
        for family in tropis_tests::Family::BOTH {
            let url = format!("http://{}/", pod.socket(family, APP));
            let what = format!("{url} to be refused");
            let mut last = Calls::default();
            let refused = tropis_tests::wait::until(crate::shop::CHANGE, &what, async || {
                last = shop.client.run(&["call", &url]).await.ok()?;
                [FailureKind::Reset, FailureKind::Closed].iter().any(|kind| last.errors.contains_key(kind)).then_some(())
            });
            refused.await.with_context(|| format!("{last:?}"))?;
        }
    }
    Ok(())
}

/// A denial names the policy that decided.
fn denials_are_told(shop: &Shop<'_>) -> anyhow::Result<()> {
    let lines = shop.lab.waypoint_access_log(shop.namespace, "waypoint");
    let told = |service: &str| {
        let of = |line: &&tropis_tests::observe::AccessLine| line.has(&[("stage", "authorize")]) && line.field("policy").contains(service);
        lines.iter().filter(of).count()
    };
    for service in ["near", "far"] {
        ensure!(told(service) > 0, "no denial names l7policy/{service}; the last line is {:?}", lines.last());
    }
    Ok(())
}

fn policy_of(service: &str, target: &str) -> String {
    let target = target.replace("SERVICE", service);
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {service}, namespace: l7policy}}\nspec:\n  {target}\n  action: ALLOW\n  rules:\n  \
         - from: [{{source: {{principals: [cluster.local/ns/l7policy/sa/client]}}}}]\n    to:\n    - operation: {{methods: [GET]}}\n    - operation: {{methods: [POST], paths: [/shop.Echo/Say]}}\n"
    )
}
