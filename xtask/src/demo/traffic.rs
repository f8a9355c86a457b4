//! The second half of the story: a waypoint routes by weight and by user, breaks circuits, serves one account alone, and decides by
//! method and by the caller's identity. What the applications got is what counts; the waypoint's log says whether it was passed.

use std::time::{Duration, Instant};

use tropis_tests::{
    Lab, PodHandle,
    lab::waypoint::Addressed,
    testkit::{
        FailureKind,
        calls::{Answer, Behaviour, Calls},
    },
    wait,
};

use super::claims::Claims;

/// Ten times what one change needs to be in force.
const IN_FORCE: Duration = Duration::from_secs(10);
pub(super) const REVIEWS: &str = "http://reviews:9080/reviews/0";
pub(super) const GLASS: &str = "http://glass.fragile/";
const NARROW: &str = "http://narrow.fragile/";
/// Logs are written within milliseconds of the answer; after this a line that is not there does not come any more.
const LATE: Duration = Duration::from_millis(200);
/// Requests under each split.
const REQUESTS: u64 = 1000;

/// Tells it.
pub(super) async fn tell(lab: &Lab, claims: &mut Claims) -> anyhow::Result<()> {
    lab.apply(include_str!("traffic.yaml"))?;
    let reader = lab.pod("bookstore", "reader").await?;
    lab.wait_enrolled(&reader, true).await?;
    canary(lab, claims, &reader).await?;
    circuit_breaking(lab, claims, &reader).await?;
    per_account(lab, claims, &reader).await?;
    policy(lab, claims, &reader).await
}

async fn call(pod: &PodHandle, url: &str, options: &[&str]) -> anyhow::Result<Calls> {
    let arguments: Vec<&str> = ["call", url].into_iter().chain(options.iter().copied()).collect();
    Ok(pod.run(&arguments).await?)
}

/// Calls until the answer is as wanted, or a change should long be in force; gives the last answers.
async fn call_until(pod: &PodHandle, url: &str, options: &[&str], wanted: impl Fn(&Calls) -> bool) -> anyhow::Result<Calls> {
    let begun = Instant::now();
    loop {
        let calls = call(pod, url, options).await?;
        if wanted(&calls) || begun.elapsed() > IN_FORCE {
            return Ok(calls);
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// How the first request was answered, for people.
fn answer(calls: &Calls) -> String {
    let failed = calls.errors.keys().next().map(|kind| format!("{kind:?}").to_lowercase());
    failed.or_else(|| calls.statuses.keys().next().map(|status| format!("status {status}"))).unwrap_or_else(|| "nothing".to_owned())
}

fn of(calls: &Calls, version: &str) -> u64 {
    calls.versions.get(version).copied().unwrap_or(0)
}

async fn canary(lab: &Lab, claims: &mut Claims, reader: &PodHandle) -> anyhow::Result<()> {
    claims.chapter("A canary");
    let begun = Instant::now();
    lab.waypoint("bookstore", "waypoint", &[]).await?;
    lab.label("Namespace", "", "bookstore", &[("istio.io/use-waypoint", Some("waypoint"))])?;
    lab.wait_attached("bookstore", Addressed::Service("reviews"), true).await?;
    claims.observe(
        true,
        "a Gateway and a label put a waypoint before the bookstore",
        format!("in force after {} ms", begun.elapsed().as_millis()),
    );
    lab.apply(&split(&[("v1", 90), ("v2", 10)]))?;
    let jason = ["-n", "50", "-H", "end-user: jason"];
    let jason = call_until(reader, REVIEWS, &jason, |calls| of(calls, "v2") == 50).await?;
    let split_calls = call(reader, REVIEWS, &["-n", &REQUESTS.to_string(), "-c", "4"]).await?;
    // A share of a tenth of n requests deviates by the root of n * 0.1 * 0.9.
    let off = (of(&split_calls, "v2") as f64 - REQUESTS as f64 * 0.1) / (REQUESTS as f64 * 0.09).sqrt();
    let whole = split_calls.all_served() && of(&split_calls, "v1") + of(&split_calls, "v2") == REQUESTS;
    claims.observe(
        whole && off.abs() <= 5.0,
        "90 to 10 between reviews v1 and v2",
        format!("{} and {} of {REQUESTS}: {off:+.1} standard deviations", of(&split_calls, "v1"), of(&split_calls, "v2")),
    );
    claims.observe(of(&jason, "v2") == 50, "header end-user: jason goes to v2", format!("{:?}", jason.versions));
    let load = call(reader, REVIEWS, &["--for", "3", "--rate", "100", "-c", "4", "--timeline"]);
    let change = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let changed = std::time::SystemTime::now();
        lab.apply(&split(&[("v3", 100)]))?;
        Ok(changed)
    };
    let (load, changed) = tokio::try_join!(load, change)?;
    let changed = changed.duration_since(std::time::UNIX_EPOCH)?.as_secs_f64() * 1000.0;
    let first = load.timeline.iter().find(|answer: &&Answer| answer.version == "v3").map(|answer| answer.answered - changed);
    claims.observe(
        load.all_served() && first.is_some(),
        "changing the YAML moves the split, with no request failed",
        format!(
            "{} requests, {} failed; the first under the new split {:.0} ms after the change",
            load.served(),
            load.failed(),
            first.unwrap_or(f64::NAN)
        ),
    );
    Ok(())
}

async fn circuit_breaking(lab: &Lab, claims: &mut Claims, reader: &PodHandle) -> anyhow::Result<()> {
    claims.chapter("Circuits break");
    lab.waypoint("fragile", "waypoint", &[]).await?;
    lab.wait_attached("fragile", Addressed::Service("glass"), true).await?;
    let (failing, other) = (lab.pod("fragile", "glass-1").await?, lab.pod("fragile", "glass-2").await?);
    call_until(reader, GLASS, &["-n", "20"], |calls| calls.versions.len() == 2).await?;
    behave(&failing, Some(503)).await?;
    let serial = call(reader, GLASS, &["-n", "60"]).await?;
    let failed = serial.statuses.get(&503).copied().unwrap_or(0);
    claims.observe(
        failed == 3,
        "a replica that fails is out after its third error",
        format!("{failed} of 60 requests, one after the other, failed"),
    );
    let begun = Instant::now();
    behave(&failing, None).await?;
    let quiet = call(reader, GLASS, &["--for", "3", "--rate", "20"]).await?;
    claims.observe(of(&quiet, "v1") == 0 && quiet.all_served(), "it gets nothing while it is out", format!("{:?} in 3 s", quiet.versions));
    let mut back = false;
    while !back && begun.elapsed() < IN_FORCE * 2 {
        back = of(&call(reader, GLASS, &["-n", "10"]).await?, "v1") > 0;
    }
    claims.observe(back, "healed, it comes back", format!("after {:.1} s", begun.elapsed().as_secs_f64()));
    let full = call(reader, GLASS, &["-n", "10", "-c", "10", "-H", "x-ask: delay=700"]).await?;
    let (served, refused) = (full.served(), full.statuses.get(&503).copied().unwrap_or(0));
    claims.observe(
        (served, refused) == (2, 8) && flagged(lab, "UO") >= 8,
        "what is above the limit of requests is answered at once",
        format!("http2MaxRequests: 2; of 10 at once {served} served, {refused} refused; {} with flag UO", flagged(lab, "UO")),
    );
    limit_connections(lab, claims, reader).await?;
    for pod in [&failing, &other] {
        behave(pod, Some(503)).await?;
    }
    let none = call(reader, GLASS, &["-n", "60"]).await?;
    claims.observe(
        none.last_body == "no healthy upstream" && flagged(lab, "UH") > 0,
        "all of them out: the answer says so",
        format!("{:?}, flag UH {} times", none.last_body, flagged(lab, "UH")),
    );
    for pod in [&failing, &other] {
        behave(pod, None).await?;
    }
    Ok(())
}

/// One connection of HTTP/1.1, and one request that waits for it.
async fn limit_connections(lab: &Lab, claims: &mut Claims, reader: &PodHandle) -> anyhow::Result<()> {
    let before = flagged(lab, "UO");
    let full = call_until(reader, NARROW, &["-n", "10", "-c", "10", "-H", "x-ask: delay=300"], |calls| calls.served() == 2).await?;
    let refused = full.statuses.get(&503).copied().unwrap_or(0);
    let mut counted = 0.0;
    for pod in lab.pods("fragile", "waypoint") {
        counted += lab.waypoint_metrics(&pod).await?.sum("istio_requests_total", &[("response_flags", "UO")]);
    }
    claims.observe(
        (full.served(), refused) == (2, 8) && flagged(lab, "UO") >= before + 8 && counted >= flagged(lab, "UO") as f64,
        "what would wait beyond the limit of connections and of waiting requests, too; all of it is counted",
        format!(
            "maxConnections: 1, http1MaxPendingRequests: 1; of 10 at once {} served, {refused} refused; istio_requests_total with flag UO: {counted}",
            full.served()
        ),
    );
    Ok(())
}

/// Tells a replica with what status to answer from now on; from inside, past the mesh.
pub(super) async fn behave(pod: &PodHandle, status: Option<u16>) -> anyhow::Result<()> {
    let behaviour = serde_json::to_string(&Behaviour { status, ..Behaviour::default() })?;
    let said = call(pod, "http://127.0.0.1:8080/-/behaviour", &["-X", "PUT", "--text", &behaviour]).await?;
    anyhow::ensure!(said.statuses.contains_key(&200), "{said:?}");
    Ok(())
}

fn flagged(lab: &Lab, flag: &str) -> usize {
    lab.waypoint_access_log("fragile", "waypoint").iter().filter(|line| line.field("response_flags") == flag).count()
}

async fn per_account(lab: &Lab, claims: &mut Claims, reader: &PodHandle) -> anyhow::Result<()> {
    claims.chapter("A waypoint for one service account");
    lab.waypoint("bookstore", "for-ratings", &[("istio.io/for-service-account", "bookinfo-ratings")]).await?;
    let ratings = lab.pod("bookstore", "ratings-v1").await?;
    lab.wait_attached("bookstore", Addressed::Workload(ratings.name()), true).await?;
    let details = lab.pod("bookstore", "details-v1").await?;
    let direct = |pod: &PodHandle, path: &str| format!("http://{}{path}", pod.socket(tropis_tests::Family::V4, 9080));
    let asked = [
        ("http://ratings:9080/ratings/1".to_owned(), "/ratings/1", true),
        (direct(&ratings, "/ratings/2"), "/ratings/2", true),
        ("http://details:9080/details/1".to_owned(), "/details/1", false),
        (direct(&details, "/details/2"), "/details/2", false),
    ];
    for (url, path, expected) in asked {
        let passed = || lab.waypoint_access_log("bookstore", "for-ratings").iter().filter(|line| line.field("path") == path).count();
        let calls = call_until(reader, &url, &[], |calls| calls.all_served() && (passed() > 0 || !expected)).await?;
        if !expected {
            tokio::time::sleep(LATE).await;
        }
        let passed = passed() > 0;
        let text = match expected {
            true => format!("{url} passes the waypoint of account bookinfo-ratings"),
            false => format!("{url} does not"),
        };
        claims.observe(
            calls.all_served() && passed == expected,
            text,
            format!("{}, {} in its log", answer(&calls), if passed { "it stands" } else { "it does not stand" }),
        );
    }
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: two-accounts, namespace: bookstore}\nspec: {selector: {version: v1}, ports: [{name: http, port: 9080}]}\n",
    )?;
    let finding = wait::until(IN_FORCE, "a finding about two accounts", async || {
        let found = lab.findings().await.ok()?;
        found.into_iter().find(|finding| finding["code"] == "TRP0017" && finding["name"] == "two-accounts")
    });
    let said =
        finding.await.map_or_else(|error| Err(error.to_string()), |finding| Ok(finding["message"].as_str().unwrap_or_default().to_owned()));
    claims.observe(said.is_ok(), "a Service over that account and others is told so", said.unwrap_or_else(|error| error));
    lab.delete("Service", "bookstore", "two-accounts")?;
    Ok(())
}

async fn policy(lab: &Lab, claims: &mut Claims, reader: &PodHandle) -> anyhow::Result<()> {
    claims.chapter("Policy knows methods");
    lab.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: reviews, namespace: bookstore}\nspec:\n  selector: {matchLabels: {app: reviews}}\n  \
         action: ALLOW\n  rules:\n  - from: [{source: {principals: [cluster.local/ns/bookstore/sa/reader, cluster.local/ns/bookstore/sa/bookinfo-productpage]}}]\n    to: [{operation: {methods: [GET]}}]\n",
    )?;
    let denied = call_until(reader, REVIEWS, &["-X", "POST"], |calls| calls.statuses.contains_key(&403)).await?;
    let allowed = call_until(reader, REVIEWS, &[], Calls::all_served).await?;
    claims.observe(
        allowed.all_served() && denied.statuses.contains_key(&403),
        "the reader may GET and not POST, through the waypoint",
        format!("GET: {}, POST: {} {:?}", answer(&allowed), answer(&denied), denied.last_body),
    );
    let pod = lab.pod("bookstore", "reviews-v1").await?;
    let url = format!("http://{}/reviews/0", pod.socket(tropis_tests::Family::V4, 9080));
    let mut last = Calls::default();
    let refused = wait::until(IN_FORCE, "a refusal", async || {
        last = call(reader, &url, &[]).await.ok()?;
        [FailureKind::Reset, FailureKind::Closed].iter().any(|kind| last.errors.contains_key(kind)).then_some(())
    });
    let refused = refused.await.is_ok();
    claims.observe(refused, "past the waypoint the destination refuses the same reader", format!("{url}: {}", answer(&last)));
    Ok(())
}

fn split(weights: &[(&str, u64)]) -> String {
    let subsets: String =
        ["v1", "v2", "v3"].iter().map(|version| format!("  - {{name: {version}, labels: {{version: {version}}}}}\n")).collect();
    let route: String = weights
        .iter()
        .map(|(version, weight)| format!("    - {{destination: {{host: reviews, subset: {version}}}, weight: {weight}}}\n"))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews, namespace: bookstore}}\nspec:\n  host: reviews\n  subsets:\n{subsets}---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews, namespace: bookstore}}\nspec:\n  hosts: [reviews]\n  http:\n  \
         - match: [{{headers: {{end-user: {{exact: jason}}}}}}]\n    route: [{{destination: {{host: reviews, subset: v2}}}}]\n  - route:\n{route}"
    )
}
