//! The last chapter: the page that draws the live graph, over a port of this host's loopback as a browser sees it. What it shows is what
//! the run does at that moment, and did before.

use std::time::Duration;

use tropis_tests::{
    Lab, PodProcess,
    page::{Graph, PageForward},
    wait,
};

use super::{
    claims::Claims,
    traffic::{GLASS, REVIEWS, behave},
};

/// Requests in a second to each service while the page is looked at.
const RATE: u32 = 20;
/// Ten times what an ejection takes at that rate, and the rates need to show.
const SHOWN: Duration = Duration::from_secs(30);
/// Longer than anybody looks.
const LOAD_SECONDS: &str = "36000";

/// The reader calls the bookstore and the fragile service, until this is dropped.
pub(super) struct Load([PodProcess; 2]);

impl Load {
    /// Starts it, with so many requests in a second to each.
    pub(super) async fn start(lab: &Lab, rate: u32) -> anyhow::Result<Self> {
        let reader = lab.pod("bookstore", "reader").await?;
        let call = |url| reader.spawn(&["call", url, "--for", LOAD_SECONDS, "--rate", &rate.to_string()]);
        Ok(Self([call(REVIEWS)?, call(GLASS)?]))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for process in &self.0 {
            // One that has ended needs no end.
            let _ = process.kill();
        }
    }
}

/// Tells it.
pub(super) async fn tell(lab: &Lab, claims: &mut Claims) -> anyhow::Result<()> {
    claims.chapter("A page draws it, live");
    let forward = lab.page(0).await?;
    served(claims, &forward).await?;
    let failing = lab.pod("fragile", "glass-1").await?;
    behave(&failing, Some(503)).await?;
    let load = Load::start(lab, RATE).await?;
    let mut last = Err(std::io::Error::other("it was not asked"));
    let shown = wait::until(SHOWN, "the graph to show all of it", async || {
        last = forward.graph().await;
        last.as_ref().ok().filter(|graph| is_whole(graph)).map(|_| ())
    });
    // What it shows is said below, whole or not.
    let _ = shown.await;
    drawn(claims, &last?);
    behave(&failing, None).await?;
    drop(load);
    Ok(())
}

async fn served(claims: &mut Claims, forward: &PageForward) -> anyhow::Result<()> {
    let own = forward.get("/", &forward.address().to_string()).await?;
    let (foreign, _) = forward.get("/graph.json", "evil.example").await?;
    let (other, _) = forward.get("/debug/clients", "localhost").await?;
    claims.observe(
        own.0 == 200 && own.1.contains("<title>Tropis") && foreign == 403 && other == 404,
        "the control plane serves it, to this host's browsers and under this host's names only",
        format!("{} {}; as evil.example {foreign}; anything but the page {other} (to look yourself: --keep)", forward.url(), own.0),
    );
    Ok(())
}

const WAYPOINT: &str = "bookstore/waypoint";

fn is_whole(graph: &Graph) -> bool {
    let locked = |from, to| graph.locked_requests(from, to).is_some();
    locked("bookstore/reader", WAYPOINT)
        && locked(WAYPOINT, "bookstore/reviews-v3")
        && graph.ejected("fragile/glass-1").is_some_and(|left| left > 0.0)
}

fn drawn(claims: &mut Claims, graph: &Graph) {
    for (from, to) in [("bookstore/reader", WAYPOINT), (WAYPOINT, "bookstore/reviews-v3")] {
        let rate = graph.locked_requests(from, to);
        claims.observe(
            rate.is_some(),
            format!("it draws {from} → {to} with a closed lock and its rate"),
            rate.map_or_else(|| graph.edge(from, to).to_string(), |rate| format!("mutual TLS, {rate:.1} requests/s")),
        );
    }
    let plain = ["demo/near", "demo/far"].map(|to| graph.edge("outside/outsider", to)["security"].as_str() == Some("plain"));
    claims.observe(
        plain.contains(&true),
        "the pod outside the mesh has an open lock on its way in",
        graph.edge("outside/outsider", "demo/near").to_string(),
    );
    let left = graph.ejected("fragile/glass-1");
    claims.observe(
        left.is_some_and(|left| left > 0.0),
        "the replica that fails again is marked as ejected, with the time left",
        left.map_or_else(|| "it is not".to_owned(), |left| format!("fragile/glass-1, back in {left:.1} s")),
    );
}
