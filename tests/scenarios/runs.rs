//! Two meshes side by side on one box do not disturb each other; after the end of one, nothing of it is left and the host is as before.

use anyhow::{Context, ensure};
use tropis_tests::inventory::Inventory;
use tropis_tests::layout::Layout;
use tropis_tests::{Lab, LabOptions, Progress};

use crate::support::{Case, Cast, play_apart};

#[test]
fn two_runs_side_by_side_and_a_clean_box_afterwards() {
    play_apart(side_by_side());
}

async fn side_by_side() -> anyhow::Result<()> {
    let names = ["runone", "runtwo"];
    let layouts = names.map(|name| Layout::new(name, None));
    for layout in &layouts {
        Lab::clean(layout.run(), None)?;
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
