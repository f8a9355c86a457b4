//! When `tropis explain` can be held to the proxies: as soon as every one of them has acknowledged exactly what the objects of this moment
//! come to, which is what it reasons from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tropis_compile::{Compiler, Settings};
use tropis_source::dir::snapshot;
use tropis_tests::{Lab, Program, observe, wait};
use tropis_xds::server::{Audience, Resources, Snapshot};

/// Ten times what a change needs on a box that has other things to do.
const CHANGE: Duration = Duration::from_secs(30);

/// Waits until it is in force everywhere.
pub(super) async fn wait(lab: &Lab) -> anyhow::Result<()> {
    let mut last = String::new();
    let found = wait::until(CHANGE, "what the objects come to, in force everywhere", async || match look(lab).await {
        Ok(()) => Some(()),
        Err(missing) => {
            last = format!("{missing:#}");
            None
        }
    });
    found.await.context(last)
}

/// An error says what is not in force.
async fn look(lab: &Lab) -> anyhow::Result<()> {
    let state = lab.layout().state().to_path_buf();
    let wanted = tokio::task::spawn_blocking(move || told(&state)).await?;
    let published = ask(lab, "/debug/resources").await?;
    for audience in wanted.audiences() {
        for served in audience.types() {
            let wanted: BTreeMap<&str, &str> = wanted.resources(audience, *served).collect();
            let table = &published["audiences"][audience.to_string()][served.word()];
            let present = table.as_object().with_context(|| format!("{audience} is told nothing of {}", served.word()))?;
            let present: BTreeMap<&str, &str> =
                present.iter().filter_map(|(name, version)| Some((name.as_str(), version.as_str()?))).collect();
            let differs = |name: &&&str| wanted.get(**name) != present.get(**name);
            let different = wanted.keys().chain(present.keys()).find(differs);
            ensure!(different.is_none(), "{audience} is told another {} {}", served.word(), different.unwrap_or(&""));
        }
    }
    let live = ask(lab, &format!("/debug/live?generation={}", published["generation"])).await?;
    if live["live"] != true {
        bail!("{} has not been acknowledged by {}", live["generation"], live["lagging"]);
    }
    Ok(())
}

/// Everything that proxies are told about these objects once all of them have caught up.
fn told(state: &Path) -> Arc<Snapshot> {
    let mut compiler = Compiler::new(Settings::default());
    for object in &snapshot::of_state(state).objects {
        compiler.apply(object);
    }
    let resources = Resources::new("wanted");
    let mut step = resources.step();
    step.apply(&Audience::NodeProxies, &compiler.changes());
    for told in compiler.waypoints() {
        compiler.acknowledged(&told.gateway);
        let (namespace, name) = &told.gateway;
        step.apply(&Audience::Waypoint(format!("{namespace}/{name}").into()), &told.changes.unwrap_or_default());
    }
    step.apply(&Audience::NodeProxies, &compiler.changes());
    step.publish();
    resources.snapshot().expect("something was published")
}

/// Asks tropisd.
async fn ask(lab: &Lab, path: &str) -> anyhow::Result<Value> {
    let (socket, path) = (lab.layout().socket(Program::Tropisd.name(), "control"), path.to_owned());
    let (_, text) = tokio::task::spawn_blocking(move || observe::get_unix(&socket, &path)).await??;
    Ok(serde_json::from_str(&text)?)
}
