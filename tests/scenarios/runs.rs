//! Two meshes side by side on one box do not disturb each other; after the end of one, nothing of it is left and the host is as before.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tropis_tests::inventory::Inventory;
use tropis_tests::lab::programs_folder;
use tropis_tests::layout::Layout;
use tropis_tests::{Lab, LabOptions, Progress, wait};

use crate::support::{Case, Cast, play_apart};

/// Ten times what a lab needs to come up.
const UP: Duration = Duration::from_secs(60);
/// Ten times what a janitor needs.
const CLEAN: Duration = Duration::from_secs(20);

#[test]
fn two_runs_side_by_side_and_a_clean_box_afterwards() {
    play_apart(side_by_side());
}

#[test]
fn a_lab_that_is_killed_leaves_nothing_behind() {
    play_apart(killed());
}

/// SIGKILL gives the lab no chance to clean up; its janitor does.
async fn killed() -> anyhow::Result<()> {
    let layout = Layout::new("runkilled", None);
    clean(&layout).await?;
    let before = Inventory::of_run(layout.run(), layout.state());
    let program = programs_folder()?.join("tropis-lab");
    let mut lab = tokio::process::Command::new(program)
        .args(["up", "--run", layout.run()])
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting tropis-lab")?;
    let mut lines = BufReader::new(lab.stderr.take().context("its words")?).lines();
    loop {
        let line = tokio::time::timeout(UP, lines.next_line()).await.context("the lab does not come up")??;
        let line = line.context("the lab ended before it was up")?;
        println!("{line}");
        if line.contains("the lab is up") {
            break;
        }
    }
    ensure!(!Inventory::of_run(layout.run(), layout.state()).leftovers().is_empty(), "nothing is there to be left behind");
    lab.kill().await?;
    let mut last = Vec::new();
    let cleaned = wait::until(CLEAN, "everything of the lab to go", async || {
        last = before.differences(&Inventory::of_run(layout.run(), layout.state()));
        last.is_empty().then_some(())
    });
    cleaned.await.with_context(|| format!("left behind: {last:?}"))?;
    // The logs stay after a crash, until somebody has read them.
    ensure!(layout.logs().is_dir(), "the logs went, too");
    clean(&layout).await
}

async fn clean(layout: &Layout) -> anyhow::Result<()> {
    let layout = layout.clone();
    Ok(tokio::task::spawn_blocking(move || Lab::clean(layout.run(), None)).await??)
}

async fn side_by_side() -> anyhow::Result<()> {
    let names = ["runone", "runtwo"];
    let layouts = names.map(|name| Layout::new(name, None));
    for layout in &layouts {
        clean(layout).await?;
    }
    let stock = |layout: &Layout| Inventory::of_run(layout.run(), layout.state());
    let before = [stock(&layouts[0]), stock(&layouts[1])];
    ensure!(before.iter().all(|stock| stock.leftovers().is_empty()), "not clean to begin with: {before:?}");

    let options = |name: &str| LabOptions { progress: Progress::stderr(), ..LabOptions::new(name) };
    let (one, two) = tokio::try_join!(Lab::start(options(names[0])), Lab::start(options(names[1])))?;
    ensure!(one.network.plan != two.network.plan, "both runs took the same addresses");
    let (cast, other) = tokio::try_join!(Cast::gather(&one, "same", true), Cast::gather(&two, "same", true))?;
    for case in Case::all() {
        tokio::try_join!(cast.wait_tunnelled(case), other.wait_tunnelled(case)).with_context(|| format!("{case}: both at once"))?;
    }

    drop(cast);
    one.down().await.context("ending the first run")?;
    let after = stock(&layouts[0]);
    ensure!(after.leftovers().is_empty(), "left behind: {:?}", after.leftovers());
    for case in Case::all() {
        other.wait_tunnelled(case).await.with_context(|| format!("{case}: the other run is gone"))?;
    }
    drop(other);
    two.down().await.context("ending the second run")?;
    for (layout, before) in layouts.iter().zip(&before) {
        let differences = before.differences(&stock(layout));
        ensure!(differences.is_empty(), "{} changed the box: {differences:?}", layout.run());
        ensure!(!layout.state().exists(), "{} is still there", layout.state().display());
    }
    Ok(())
}
