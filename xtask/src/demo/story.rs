//! The story that the demo tells: enrolment, encryption, identity, and the bookstore. Each claim is observed from outside: on the wire, in
//! the kernel's rules, in the access log, and by the applications themselves.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::Context;
use tropis_tests::{
    Family, Lab, PodHandle,
    lab::PodProcess,
    observe::AccessLine,
    testkit::{Exchange, FailureKind},
    wait,
};

use super::claims::Claims;
use crate::front;

/// In the payload of every message: if it is ever seen on a wire, something was not encrypted.
const CANARY: &str = "canary-in-the-coal-mine";
const PORT: u16 = 7000;
const PAGE_PORT: u16 = 9080;
const BOOKSTORE: [&str; 6] = ["productpage-v1", "details-v1", "reviews-v1", "reviews-v2", "reviews-v3", "ratings-v1"];
/// Ten times what one change needs to be in force.
const IN_FORCE: Duration = Duration::from_secs(10);
const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: servers, namespace: demo}\nspec:\n  selector: {matchLabels: {app: far}}\n";

/// The pods of `story.yaml`.
struct Cast {
    near: PodHandle,
    far: PodHandle,
    friend: PodHandle,
    stranger: PodHandle,
    outsider: PodHandle,
}

impl Cast {
    fn members(&self) -> [&PodHandle; 4] {
        [&self.near, &self.far, &self.friend, &self.stranger]
    }
}

/// Tells the whole story.
pub(super) async fn tell(lab: &Lab, claims: &mut Claims) -> anyhow::Result<()> {
    lab.apply(include_str!("story.yaml"))?;
    let bookstore = front::root().join("deploy/samples/bookinfo/platform/kube/bookinfo.yaml");
    lab.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: bookstore}\n")?;
    let yaml = fs::read_to_string(&bookstore).with_context(|| bookstore.display().to_string())?;
    lab.apply(&in_namespace(&yaml, "bookstore"))?;
    let pod = async |namespace, name| lab.pod(namespace, name).await;
    let cast = Cast {
        near: pod("demo", "near").await?,
        far: pod("demo", "far").await?,
        friend: pod("demo", "friend").await?,
        stranger: pod("demo", "stranger").await?,
        outsider: pod("outside", "outsider").await?,
    };
    // Everything stands before rules are compared: what follows changes nothing that kube-proxy cares about.
    for deployment in BOOKSTORE {
        pod("bookstore", deployment).await?;
    }
    enrolment(lab, claims, &cast).await?;
    encryption(lab, claims, &cast).await?;
    identity(lab, claims, &cast).await?;
    books(lab, claims).await
}

/// What `kubectl apply -n NAMESPACE` does to documents that name no namespace.
fn in_namespace(yaml: &str, namespace: &str) -> String {
    let documents = yaml.split("\n---").map(|document| {
        if document.contains("\n  namespace:") {
            document.to_owned()
        } else {
            document.replacen("\nmetadata:\n", &format!("\nmetadata:\n  namespace: {namespace}\n"), 1)
        }
    });
    documents.collect::<Vec<_>>().join("\n---")
}

/// One echo of the canary; what the application saw.
async fn echo(from: &PodHandle, to: &PodHandle, family: Family) -> anyhow::Result<Exchange> {
    Ok(from.run(&["echo", &to.socket(family, PORT), CANARY]).await?)
}

/// A connection that stays, once it stands.
async fn hold(from: &PodHandle, to: &PodHandle, family: Family) -> anyhow::Result<PodProcess> {
    let mut held = from.spawn(&["hold", &to.socket(family, PORT)])?;
    let opened = held.hear(IN_FORCE).await?;
    anyhow::ensure!(opened["event"] == "open", "the connection to hold did not open: {opened}");
    Ok(held)
}

/// Whether a held connection still carries bytes.
async fn alive(held: &mut PodProcess) -> bool {
    held.tell("ping").await.is_ok() && held.hear(IN_FORCE).await.is_ok_and(|line| line["event"] == "pong")
}

async fn label(lab: &Lab, cast: &Cast, mode: Option<&str>) -> anyhow::Result<Duration> {
    lab.label("Namespace", "", "demo", &[("istio.io/dataplane-mode", mode)])?;
    let mut longest = Duration::ZERO;
    for pod in cast.members() {
        longest = longest.max(lab.wait_enrolled(pod, mode.is_some()).await?);
    }
    Ok(longest)
}

/// Process ids of the members.
fn processes(cast: &Cast) -> BTreeSet<u32> {
    cast.members().iter().flat_map(|pod| pod.processes()).collect()
}

async fn enrolment(lab: &Lab, claims: &mut Claims, cast: &Cast) -> anyhow::Result<()> {
    claims.chapter("Enrolment is live");
    let rules_before = lab.rulesets().await?;
    let wire = lab.capture_link("b")?;
    let plain = echo(&cast.friend, &cast.far, Family::V4).await?;
    let seen = wire.finish()?;
    claims.observe(
        plain.ok && seen.contains(CANARY.as_bytes()),
        "before enrolment, traffic between the nodes is plain",
        format!("{} of {CANARY:?} by its bytes on the wire", if seen.contains(CANARY.as_bytes()) { "a capture" } else { "no capture" }),
    );
    let mut before = hold(&cast.friend, &cast.far, Family::V4).await?;
    let running = processes(cast);
    let took = label(lab, cast, Some("ambient")).await?;
    let (run, still) = (running.len(), running.intersection(&processes(cast)).count());
    claims.observe(
        run >= cast.members().len() && still == run,
        "a namespace label turns the mesh on for running pods",
        format!("{} pods enrolled after {} ms; {still} of their {run} processes run on", cast.members().len(), took.as_millis()),
    );
    let survived = alive(&mut before).await;
    claims.observe(survived, "a connection that was open before stays open", if survived { "it still echoes" } else { "it broke" });
    let tunnelled = wait_tunnelled(lab, &cast.friend, &cast.far, Family::V6).await?;
    claims.observe(tunnelled.is_some(), "a new connection is captured", described(tunnelled.as_ref()));
    let mut during = hold(&cast.friend, &cast.far, Family::V6).await?;
    let took = label(lab, cast, None).await?;
    let wire = lab.capture_link("b")?;
    let plain = wait_plain(&wire, cast).await?;
    claims.observe(
        plain,
        "taking the label away turns it off",
        format!("un-enrolled after {} ms; new connections are plain again", took.as_millis()),
    );
    let survived = alive(&mut during).await;
    claims.observe(survived, "a connection that was tunnelled meanwhile stays open", if survived { "it still echoes" } else { "it broke" });
    label(lab, cast, Some("ambient")).await?;
    let changed: Vec<String> = changed(&rules_before, &lab.rulesets().await?);
    claims.observe(
        changed.is_empty(),
        "no netfilter rule differs before and after, anywhere",
        if changed.is_empty() {
            format!("{} namespaces compared", rules_before.len())
        } else {
            format!("different in {}", changed.join(", "))
        },
    );
    Ok(())
}

/// Namespaces whose ruleset is another than before.
fn changed(before: &[(String, String)], after: &[(String, String)]) -> Vec<String> {
    before.iter().filter(|entry| !after.contains(entry)).map(|(name, _)| name.clone()).collect()
}

/// Echoes until the canary is on the wire; new connections of a pod that was just un-enrolled are plain at once.
async fn wait_plain(wire: &tropis_tests::capture::Capture, cast: &Cast) -> anyhow::Result<bool> {
    let plain = wait::until(IN_FORCE, "a plain connection", async || {
        let exchange = echo(&cast.friend, &cast.far, Family::V4).await.ok()?;
        let on_wire = wire.seen(|segment| segment.payload.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()));
        (exchange.ok && on_wire).then_some(())
    });
    Ok(plain.await.is_ok())
}

fn identity_of(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

/// Echoes until the access log of the destination's node shows the connection as tunnelled.
async fn wait_tunnelled(lab: &Lab, from: &PodHandle, to: &PodHandle, family: Family) -> anyhow::Result<Option<AccessLine>> {
    let found = wait::until(IN_FORCE, "a tunnelled connection", async || {
        echo(from, to, family).await.ok().filter(|exchange| exchange.ok)?;
        let (caller, target) = (identity_of("demo", from.name()), to.socket(family, PORT));
        let wanted = [("direction", "inbound"), ("src.identity", &*caller), ("dst.hbone_addr", &*target)];
        lab.access_log(to.node()).into_iter().rev().find(|line| line.has(&wanted))
    });
    Ok(found.await.ok())
}

fn described(line: Option<&AccessLine>) -> String {
    match line {
        Some(line) => format!("{} → {}, {} bytes", line.field("src.identity"), line.field("dst.identity"), line.field("bytes_recv")),
        None => "no such line in the access log".to_owned(),
    }
}

async fn encryption(lab: &Lab, claims: &mut Claims, cast: &Cast) -> anyhow::Result<()> {
    claims.chapter("Encryption is real");
    for (to, family, way) in [(&cast.far, Family::V4, "IPv4 across nodes"), (&cast.near, Family::V6, "IPv6 on one node")] {
        let wires = [lab.capture_link("b")?, cast.friend.capture()?, to.capture()?];
        let exchange = echo(&cast.friend, to, family).await?;
        let ends = [cast.friend.address(family), to.address(family)];
        let mut problems = Vec::new();
        let (mut tunnels, mut bytes) = (0, 0);
        for wire in wires {
            let seen = wire.finish()?;
            problems.extend(seen.plaintext(|address| ends.contains(&address.ip())));
            if seen.contains(CANARY.as_bytes()) {
                problems.push("the canary was seen".to_owned());
            }
            tunnels += seen.flows().tunnels().count();
            bytes += seen.segments.iter().map(|segment| segment.payload.len()).sum::<usize>();
        }
        claims.observe(
            exchange.ok && problems.is_empty() && bytes > 0,
            format!("{way}: every byte between the pods belongs to a TLS record of port 15008, the canary is in none"),
            if problems.is_empty() {
                format!("{bytes} payload bytes in {tunnels} directions of tunnels looked at")
            } else {
                problems.join("; ")
            },
        );
        // The line of this very connection, told by the caller's address and port; and the one of the other end that is of the same trace.
        let opened_by = exchange.local.unwrap_or_default();
        let target = to.socket(family, PORT);
        let of_this = [("direction", "outbound"), ("src.addr", &*opened_by), ("dst.hbone_addr", &*target)];
        let outbound = lab.wait_access_line(cast.friend.node(), "the outbound line", |line| line.has(&of_this)).await?;
        let trace = outbound.field("traceparent");
        let of_this = [("direction", "inbound"), ("traceparent", &*trace), ("dst.hbone_addr", &*target)];
        let inbound = lab.wait_access_line(to.node(), "the inbound line", |line| line.has(&of_this)).await?;
        let [out, inn] = [&outbound, &inbound].map(|line| (line.field("src.identity"), line.field("dst.identity")));
        claims.observe(
            !trace.is_empty() && out == inn && out == (identity_of("demo", "friend"), identity_of("demo", "server")),
            format!("{way}: both ends log both identities"),
            format!("{} → {}", inn.0, inn.1),
        );
    }
    let (checked, roots) = certificates(lab)?;
    claims.observe(
        checked > 0,
        "the proxies' certificates chain to tropisd's CA",
        format!("{checked} certificates verified against {roots} root"),
    );
    Ok(())
}

/// Verifies every certificate that the node proxies hold against the root that tropisd published. Gives how many, and how many roots.
fn certificates(lab: &Lab) -> anyhow::Result<(usize, usize)> {
    let root = fs::read(lab.layout().root_certificate())?;
    let mut verified = 0;
    for node in lab.network.nodes.keys() {
        let (_, dump) = tropis_tests::observe::get_unix(&lab.layout().socket("ztunnel", node), "/config_dump")?;
        let dump: serde_json::Value = serde_json::from_str(&dump)?;
        for certificate in dump["certificates"].as_array().into_iter().flatten() {
            let chain = certificate["certChain"].as_array().cloned().unwrap_or_default();
            let pem = chain.iter().filter_map(|one| one["pem"].as_str());
            let pem = pem.map(tropis_tests::certificates::decoded).collect::<anyhow::Result<Vec<_>>>()?.concat();
            tropis_tests::certificates::chains_to(&pem, &root).with_context(|| format!("{} on {node}", certificate["identity"]))?;
            verified += 1;
        }
    }
    Ok((verified, tropis_tests::certificates::count(&root)))
}

async fn identity(lab: &Lab, claims: &mut Claims, cast: &Cast) -> anyhow::Result<()> {
    claims.chapter("Identity decides");
    let mut open = hold(&cast.stranger, &cast.far, Family::V4).await?;
    lab.apply(&format!("{POLICY}  rules: [{{from: [{{source: {{principals: [cluster.local/ns/demo/sa/friend]}}}}]}}]\n"))?;
    let ended = wait_end(&mut open).await;
    claims.observe(ended == Some(FailureKind::Reset), "a policy by principal takes effect on an open connection", told(ended));
    let friend = echo(&cast.friend, &cast.far, Family::V6).await?;
    let stranger = echo(&cast.stranger, &cast.far, Family::V6).await?;
    claims.observe(
        friend.ok && stranger.error == Some(FailureKind::Reset),
        "it admits one service account and resets another",
        format!("friend: {}, stranger: {}", told(friend.error), told(stranger.error)),
    );
    let line = lab.wait_access_line(cast.far.node(), "the denial", |line| line.field("policy").contains("demo/servers")).await;
    claims.observe(
        line.is_ok(),
        "the log line names the policy",
        line.map_or_else(|error| error.to_string(), |line| format!("policy={} reason={}", line.field("policy"), line.field("reason"))),
    );
    lab.apply(&format!("{POLICY}  rules: [{{from: [{{source: {{namespaces: [demo]}}}}]}}]\n"))?;
    let admitted = wait_for(&cast.stranger, &cast.far, Family::V4, true).await;
    claims.observe(
        admitted,
        "a policy by namespace admits the other one too, live",
        if admitted { "stranger: answered" } else { "stranger: refused" },
    );
    lab.delete("AuthorizationPolicy", "demo", "servers")?;
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: demo}\nspec: {mtls: {mode: STRICT}}\n";
    let permissive = wait_for(&cast.outsider, &cast.far, Family::V4, true).await;
    lab.apply(strict)?;
    let refused = wait_for(&cast.outsider, &cast.near, Family::V6, false).await;
    let exchange = echo(&cast.outsider, &cast.far, Family::V4).await?;
    claims.observe(
        refused && exchange.error == Some(FailureKind::Reset),
        "STRICT refuses a pod outside the mesh with a TCP reset",
        format!("outsider: {}", told(exchange.error)),
    );
    let member = echo(&cast.friend, &cast.near, Family::V6).await?;
    claims.observe(member.ok, "and still admits members", format!("friend: {}", told(member.error)));
    lab.apply(&strict.replace("STRICT", "PERMISSIVE"))?;
    let again = wait_for(&cast.outsider, &cast.near, Family::V6, true).await;
    claims.observe(permissive && again, "PERMISSIVE admits it", if again { "outsider: answered" } else { "outsider: refused" });
    Ok(())
}

/// Echoes until the outcome is as wanted.
async fn wait_for(from: &PodHandle, to: &PodHandle, family: Family, ok: bool) -> bool {
    let outcome = wait::until(IN_FORCE, "the outcome", async || echo(from, to, family).await.ok().filter(|exchange| exchange.ok == ok));
    outcome.await.is_ok()
}

/// How a held connection ended, if it did.
async fn wait_end(held: &mut PodProcess) -> Option<FailureKind> {
    loop {
        let line = held.hear(IN_FORCE).await.ok()?;
        if line["event"] == "ended" {
            return serde_json::from_value(line["how"].clone()).ok();
        }
    }
}

fn told(error: Option<FailureKind>) -> String {
    error.map_or_else(|| "answered".to_owned(), |error| format!("{error:?}").to_lowercase())
}

async fn books(lab: &Lab, claims: &mut Claims) -> anyhow::Result<()> {
    claims.chapter("The bookstore runs in it");
    lab.label("Namespace", "", "bookstore", &[("istio-injection", Some("enabled"))])?;
    let page = lab.pod("bookstore", "productpage-v1").await?;
    let ratings = lab.pod("bookstore", "ratings-v1").await?;
    for deployment in BOOKSTORE {
        lab.wait_enrolled(&lab.pod("bookstore", deployment).await?, true).await?;
    }
    let mut shown = Exchange::default();
    let titled = wait::until(IN_FORCE, "the page", async || {
        shown = ratings.run(&["get", "http://productpage:9080/productpage"]).await.ok()?;
        shown.reply.as_deref().is_some_and(|page| page.contains("<title>Simple Bookstore App</title>")).then_some(())
    });
    let titled = titled.await.is_ok();
    claims.observe(
        titled,
        "the sidecar label of the guides enrols it; productpage answers by its service name",
        format!("status {}, <title>Simple Bookstore App</title>", shown.status.unwrap_or_default()),
    );
    // Peers hear a moment after the pods that these are in the mesh; until then a call is plain.
    let tunnelled = wait::until(IN_FORCE, "a tunnelled call", async || {
        let _: Exchange = ratings.run(&["get", "http://productpage:9080/productpage"]).await.ok()?;
        let [caller, called] = ["ratings", "productpage"].map(|name| identity_of("bookstore", &format!("bookinfo-{name}")));
        let wanted = [("direction", "inbound"), ("src.identity", &*caller), ("dst.identity", &*called)];
        let targets = Family::BOTH.map(|family| page.socket(family, PAGE_PORT));
        let named = |line: &AccessLine| line.field("dst.service").starts_with("productpage.");
        let mut lines = lab.access_log(page.node()).into_iter().rev();
        lines.find(|line| line.has(&wanted) && targets.contains(&line.field("dst.hbone_addr")) && named(line))
    });
    let tunnelled = tunnelled.await;
    claims.observe(
        tunnelled.is_ok(),
        "its calls are tunnelled, by name",
        tunnelled.map_or_else(
            |error| error.to_string(),
            |line| format!("{} → {}, {}", line.field("src.identity"), line.field("dst.service"), line.field("dst.identity")),
        ),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::in_namespace;

    #[test]
    fn documents_without_a_namespace_get_one() {
        let yaml = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: b\n  namespace: own\n";
        let placed = in_namespace(yaml, "x");
        assert!(placed.contains("metadata:\n  namespace: x\n  name: a"));
        assert_eq!(placed.matches("namespace:").count(), 2);
    }
}
