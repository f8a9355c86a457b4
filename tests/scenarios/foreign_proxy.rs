//! A node proxy that knows nothing of our maps works on our capture: ours, started as Istio's is started, with the redirector in its
//! foreign mode. Both families, on one node and across nodes, in and out of tunnels, by address and by service name.

use anyhow::{Context, ensure};
use tropis_tests::testkit::Exchange;
use tropis_tests::{Lab, LabOptions, Progress};

use crate::support::{Case, Cast, play_apart, port};

#[test]
fn a_proxy_that_knows_no_maps_carries_the_mesh() {
    play_apart(async {
        let options = LabOptions { foreign_proxy: true, progress: Progress::stderr(), ..LabOptions::new("scenariosforeign") };
        let lab = Lab::start(options).await?;
        let played = carries(&lab).await.with_context(|| format!("logs are in {}", lab.layout().logs().display()));
        lab.down().await?;
        played
    });
}

async fn carries(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "foreign", true).await?;
    for case in Case::all() {
        // The line that it waits for names the destination that the pod dialled, both identities, and the tunnel.
        cast.wait_tunnelled(case).await?;
        let server = cast.server(case);
        let target = format!("{}:{}", server.name(), port::ECHO);
        let said: Exchange = cast.client.run(&["echo", case.family.flag(), &target, "by name"]).await.with_context(|| case.to_string())?;
        ensure!(said.ok, "{case}: {said:?}");
    }
    outsiders_reach_it(lab, &cast).await?;
    cast.leave()
}

/// What comes from outside the mesh is captured, too: it passes the proxy's listener for it.
async fn outsiders_reach_it(lab: &Lab, cast: &Cast<'_>) -> anyhow::Result<()> {
    let outside = Cast::gather(lab, "outside", false).await?;
    for case in Case::all() {
        let server = cast.server(case);
        let target = server.socket(case.family, port::ECHO);
        let said = outside.echo(&outside.client, &target, "from outside").await?;
        ensure!(said.ok, "{case}: {said:?}");
        let from = said.local.context("the client's own address")?;
        let line = [("direction", "inbound"), ("src.addr", from.as_str()), ("dst.addr", target.as_str())];
        lab.wait_access_line(server.node(), &format!("{case}: a line of {from} to {target}"), |seen| seen.has(&line)).await?;
    }
    outside.leave()
}
