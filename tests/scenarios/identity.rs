//! Identity decides: policies by principal and by namespace allow one caller and reset another, and say so by name; STRICT refuses
//! who has no identity, PERMISSIVE admits; a change takes effect at once, on open connections too.

use std::time::Duration;

use anyhow::{Context, ensure};
use tropis_tests::testkit::{Exchange, FailureKind};
use tropis_tests::{Lab, PodHandle};

use crate::support::{Case, Cast, Company, play, port};

/// Ten times what a change of policy needs to get everywhere.
const CHANGE: Duration = Duration::from_secs(10);

#[test]
fn policies_by_principal_and_namespace_decide_live() {
    play(Company::Welcome, |lab| Box::pin(by_principal(lab)));
}

#[test]
fn strict_refuses_who_has_no_identity_and_permissive_admits() {
    play(Company::Welcome, |lab| Box::pin(by_mode(lab)));
}

async fn by_principal(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "identity", true).await?;
    let guests = Cast::gather(lab, "identityguests", true).await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
        let target = cast.server(case).socket(case.family, port::ECHO);
        expect(&cast.other, &target, true).await.with_context(|| format!("{case}: without a policy everybody may"))?;
        let mut open = cast.other.spawn(&["hold", &target])?;
        ensure!(open.hear(CHANGE).await?["event"] == "open", "{case}: a connection that will be forbidden");

        lab.apply(&allow("identity", "only-the-client", &format!("principals: [\"cluster.local/ns/{}/sa/client\"]", cast.namespace)))?;
        let ended = open.hear(CHANGE).await.with_context(|| format!("{case}: an open connection that is no longer allowed"))?;
        ensure!(ended["event"] == "ended" && ended["how"] == "reset", "{case}: {ended}");
        expect(&cast.other, &target, false).await.with_context(|| format!("{case}: another account"))?;
        expect(&guests.client, &target, false).await.with_context(|| format!("{case}: the same account's name in another namespace"))?;
        expect(&cast.client, &target, true).await.with_context(|| format!("{case}: the account that is allowed"))?;
        let denied = |line: &tropis_tests::observe::AccessLine| {
            line.has(&[("direction", "inbound"), ("src.workload", cast.other.name()), ("stage", "authorize"), ("dst.hbone_addr", &target)])
                && line.field("src.namespace") == cast.namespace
                && line.0.to_string().contains("only-the-client")
        };
        lab.wait_access_line(cast.server(case).node(), &format!("{case}: a line that names the policy"), denied).await?;

        lab.apply(&allow("identity", "only-the-client", "namespaces: [identityguests]"))?;
        expect(&guests.client, &target, true).await.with_context(|| format!("{case}: a caller of the namespace that is allowed"))?;
        expect(&cast.client, &target, false).await.with_context(|| format!("{case}: a caller of another namespace"))?;
        lab.delete("AuthorizationPolicy", "identity", "only-the-client")?;
        expect(&cast.client, &target, true).await.with_context(|| format!("{case}: the policy is gone"))?;
    }
    cast.leave()?;
    guests.leave()
}

async fn by_mode(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "modes", true).await?;
    let strangers = Cast::gather(lab, "strangers", false).await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
        let target = cast.server(case).socket(case.family, port::ECHO);
        expect(&strangers.client, &target, true).await.with_context(|| format!("{case}: PERMISSIVE is the default"))?;
        lab.apply("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: modes}\nspec: {mtls: {mode: STRICT}}\n")?;
        expect(&strangers.client, &target, false).await.with_context(|| format!("{case}: STRICT and a caller without identity"))?;
        expect(&cast.client, &target, true).await.with_context(|| format!("{case}: STRICT and a caller with one"))?;
        lab.change("PeerAuthentication", "modes", "default", |object| object["spec"]["mtls"]["mode"] = "PERMISSIVE".into())?;
        expect(&strangers.client, &target, true).await.with_context(|| format!("{case}: PERMISSIVE again"))?;
        lab.delete("PeerAuthentication", "modes", "default")?;
    }
    cast.leave()?;
    strangers.leave()
}

/// Tries until the answer is as expected: an echo, or a reset.
async fn expect(pod: &PodHandle, target: &str, allowed: bool) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let said: Exchange = pod.run(&["echo", target, "may I", "--timeout", "3"]).await?;
        let as_expected = if allowed { said.ok } else { said.error == Some(FailureKind::Reset) };
        if as_expected {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < CHANGE,
            "{} to {target}: expected {}, got {said:?}",
            pod.key(),
            if allowed { "an echo" } else { "a reset" }
        );
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

fn allow(namespace: &str, name: &str, source: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  action: ALLOW\n  rules:\n  - from:\n    - source:\n        {source}\n"
    )
}
