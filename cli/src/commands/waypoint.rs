//! `tropis waypoint`: Gateways of class `istio-waypoint`, as `istioctl waypoint` makes and lists them.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};
use tropis_compile::waypoint::{AUTOMATIC, is_waypoint};
use tropis_crds::{Kind, Object, ObjectRef};
use tropis_source::write::{self, Edit};

use super::{
    apply, delete,
    label::{self, Change},
};
use crate::{
    arguments::{Format, Options},
    output::{self, Done, Listing},
    state::State,
};

const DEFAULT_NAME: &str = "waypoint";
const CLASS: &str = "istio-waypoint";
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// How often a waypoint that is awaited is looked at.
const WAIT_PERIOD: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
Examples:
  tropis waypoint apply -n shop --enroll-namespace --wait
  tropis waypoint list -A";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Write into the folder that the mesh was started on with --manifests.
    #[arg(long, global = true)]
    into_manifests: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a waypoint, or change what it is for.
    Apply {
        #[command(flatten)]
        wanted: Wanted,
        /// Send the namespace's traffic through it.
        #[arg(long)]
        enroll_namespace: bool,
        /// The namespace may have another waypoint now.
        #[arg(long)]
        overwrite: bool,
        /// Wait until it is ready, at most so many seconds.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
        wait: Option<u64>,
    },
    /// Print the Gateway that `apply` would write.
    Generate {
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Remove waypoints.
    Delete {
        /// The waypoints.
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// All of the namespace.
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// List waypoints.
    List {
        /// Of all namespaces.
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Print what the control plane says of a waypoint.
    Status {
        /// The waypoint; all of the namespace if none is named.
        name: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Wanted {
    /// Its name.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Which traffic it takes.
    #[arg(long = "for", value_enum)]
    traffic: Option<Traffic>,
}

impl Wanted {
    /// The value of [`WAYPOINT_FOR`].
    fn word(&self) -> Option<String> {
        Some(self.traffic?.to_possible_value()?.get_name().to_owned())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Traffic {
    Service,
    Workload,
    All,
    None,
}

pub(crate) async fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    let namespace = options.namespace();
    if let What::Generate { wanted } = &arguments.what {
        return output::value(options.output, &gateway(namespace, wanted));
    }
    let state = State::open(&options.state)?;
    match &arguments.what {
        What::Generate { .. } => Ok(String::new()),
        What::Apply { wanted, enroll_namespace, overwrite, wait } => {
            let folder = state.writable(arguments.into_manifests)?;
            let mut told = vec![applied(&folder, namespace, wanted)?];
            if *enroll_namespace {
                told.push(enroll(&state, &folder, namespace, &wanted.name, *overwrite)?);
            }
            if let Some(seconds) = wait {
                told.push(ready(&state, namespace, &wanted.name, Duration::from_secs(*seconds)).await?);
            }
            output::done(options.output, &told)
        }
        What::Delete { names, all } => {
            let folder = state.writable(arguments.into_manifests)?;
            let names = match all {
                // Those that tropisd made go with their need.
                true => waypoints(&state, Some(namespace))
                    .iter()
                    .filter(|object| !made_by_itself(object))
                    .map(|object| object.metadata.name.clone())
                    .collect(),
                false => names.clone(),
            };
            output::done(options.output, &deleted(&state, &folder, namespace, &names)?)
        }
        What::List { all_namespaces } => {
            let found = waypoints(&state, (!all_namespaces).then_some(namespace));
            let headings = &["NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED", "MADE BY"];
            let listing = Listing::new(headings, found.iter().map(|object| summary(object)).collect(), |row: &Summary| {
                vec![
                    row.namespace.clone(),
                    row.name.clone(),
                    row.revision.clone(),
                    row.traffic.to_owned(),
                    row.programmed.clone(),
                    row.made_by.to_owned(),
                ]
            });
            listing.render(options.output, "No waypoints found. `tropis waypoint apply --enroll-namespace` makes one.")
        }
        What::Status { name } => {
            let mut found = waypoints(&state, Some(namespace));
            found.retain(|object| name.as_ref().is_none_or(|name| object.metadata.name == *name));
            if let (Some(name), true) = (name, found.is_empty()) {
                bail!("there is no waypoint {namespace}/{name}\n`tropis waypoint list -A` lists all of them");
            }
            let conditions = found.iter().flat_map(|object| conditions(object)).collect();
            let headings = &["NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE"];
            let listing = Listing::new(headings, conditions, |row: &Condition| {
                let Condition { namespace, name, status, r#type, reason, message } = row.clone();
                vec![namespace, name, status, r#type, reason, message]
            });
            listing.render(options.output, "The control plane has not said anything yet.")
        }
    }
}

/// The Gateway of a waypoint.
fn gateway(namespace: &str, wanted: &Wanted) -> Value {
    let mut gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": wanted.name, "namespace": namespace},
        "spec": {"gatewayClassName": CLASS, "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    });
    if let Some(word) = wanted.word() {
        gateway["metadata"]["labels"] = json!({ WAYPOINT_FOR: word });
    }
    gateway
}

fn applied(folder: &Path, namespace: &str, wanted: &Wanted) -> anyhow::Result<Done> {
    let object = ObjectRef::new(Kind::Gateway, namespace, wanted.name.as_str());
    apply::refuse_listed(folder, [&object])?;
    let wish = gateway(namespace, wanted);
    let mut outcome = Ok(false);
    let writing = || format!("write {object} into {}", folder.display());
    let found = write::edit(folder, &object, |present| {
        outcome = same_class(present).and_then(|()| merge(present, wanted, &wish));
        if matches!(outcome, Ok(true)) { Edit::Write } else { Edit::Keep }
    });
    let found = found.with_context(writing)?;
    outcome?;
    if !found {
        write::apply(folder, &object, &write::to_yaml(&wish)?).with_context(writing)?;
    }
    Ok(Done::new(&object, "applied").told(format!("✅ waypoint {namespace}/{} applied", wanted.name)))
}

/// Refuses to make a waypoint of what is another gateway.
fn same_class(present: &Value) -> anyhow::Result<()> {
    match present.pointer("/spec/gatewayClassName").and_then(Value::as_str) {
        None | Some(CLASS) => Ok(()),
        Some(other) => bail!("this Gateway is of class {other:?}, not a waypoint\nChoose another name with --name"),
    }
}

/// Puts what is wished into what there is, and leaves the rest: other labels, who may attach, infrastructure. Comes back with whether
/// anything changed.
fn merge(present: &mut Value, wanted: &Wanted, wish: &Value) -> anyhow::Result<bool> {
    let before = present.clone();
    let label = wanted.word().map(|word| Change::Set(WAYPOINT_FOR.to_owned(), word));
    label::put(present, label.as_slice(), true)?;
    let mut spec = present["spec"].as_object().cloned().unwrap_or_default();
    for part in ["gatewayClassName", "listeners"] {
        let there = spec.entry(part).or_insert(Value::Null);
        if there.is_null() {
            *there = wish["spec"][part].clone();
        }
    }
    present["spec"] = Value::Object(spec);
    Ok(*present != before)
}

/// Labels a namespace with its waypoint; one that no YAML speaks of yet gets its object.
fn enroll(state: &State, folder: &Path, namespace: &str, name: &str, overwrite: bool) -> anyhow::Result<Done> {
    let object = ObjectRef::cluster(Kind::Namespace, namespace);
    apply::refuse_listed(folder, [&object])?;
    let change = [Change::Set(USE_WAYPOINT.to_owned(), name.to_owned())];
    let mut outcome = Ok(false);
    let found = write::edit(folder, &object, |value| {
        outcome = label::put(value, &change, overwrite);
        if matches!(outcome, Ok(true)) { Edit::Write } else { Edit::Keep }
    })?;
    outcome?;
    if !found {
        if state.snapshot().objects.iter().any(|own| own.reference() == object) {
            return Err(delete::absent(state, &object));
        }
        let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {USE_WAYPOINT: name}}});
        write::apply(folder, &object, &write::to_yaml(&value)?)?;
    }
    Ok(Done::new(&object, "labeled").told(format!("✅ namespace {namespace} labeled with \"{USE_WAYPOINT}: {name}\"")))
}

async fn ready(state: &State, namespace: &str, name: &str, at_most: Duration) -> anyhow::Result<Done> {
    let asked = tokio::time::Instant::now();
    loop {
        let found = waypoints(state, Some(namespace));
        let own = found.iter().find(|object| object.metadata.name == name);
        if own.is_some_and(|object| summary(object).programmed == "True") {
            let object = ObjectRef::new(Kind::Gateway, namespace, name);
            return Ok(Done::new(&object, "ready").told(format!("✅ waypoint {namespace}/{name} is ready")));
        }
        if asked.elapsed() >= at_most {
            let said: Vec<String> = own
                .into_iter()
                .flat_map(|object| conditions(object))
                .map(|one| format!("{}={} {}", one.r#type, one.status, one.message))
                .collect();
            bail!(
                "waypoint {namespace}/{name} is not ready after {} s ({})\n`tropis analyze live -n {namespace}` and `tropis logs tropisd` may say why",
                at_most.as_secs(),
                if said.is_empty() { "the control plane has not said anything".to_owned() } else { said.join("; ") }
            );
        }
        tokio::time::sleep(WAIT_PERIOD).await;
    }
}

fn deleted(state: &State, folder: &Path, namespace: &str, names: &[String]) -> anyhow::Result<Vec<Done>> {
    let objects: Vec<ObjectRef> = names.iter().map(|name| ObjectRef::new(Kind::Gateway, namespace, name.as_str())).collect();
    let known = waypoints(state, Some(namespace));
    for object in &objects {
        match known.iter().find(|own| own.reference() == *object) {
            None => bail!("there is no waypoint {namespace}/{}\n`tropis waypoint list -A` lists all of them", object.name),
            Some(own) if made_by_itself(own) => bail!(
                "waypoint {namespace}/{} was made because something asks for one; it goes with its need\n\
                 `tropis label namespace {namespace} {AUTOMATIC}=false` keeps the namespace without one",
                object.name
            ),
            Some(_) => {}
        }
    }
    apply::refuse_listed(folder, &objects)?;
    let mut told = Vec::new();
    for object in &objects {
        if !delete::remove(folder, object)? {
            return Err(delete::absent(state, object)).context(output::done(Format::Table, &told)?);
        }
        told.push(Done::new(object, "deleted").told(format!("waypoint {namespace}/{} deleted", object.name)));
    }
    Ok(told)
}

/// The waypoints of a namespace, or of all.
fn waypoints(state: &State, namespace: Option<&str>) -> Vec<Arc<Object>> {
    let mut objects = state.snapshot().objects;
    objects.retain(|object| is_waypoint(object) && namespace.is_none_or(|namespace| object.metadata.namespace == namespace));
    objects.sort_by_key(|object| object.reference());
    objects
}

fn made_by_itself(object: &Object) -> bool {
    object.label(AUTOMATIC).is_some()
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    namespace: String,
    name: String,
    revision: String,
    traffic: &'static str,
    programmed: String,
    made_by: &'static str,
}

fn summary(object: &Object) -> Summary {
    let serves = tropis_compile::waypoint::serves(object);
    let programmed = conditions(object).into_iter().find(|condition| condition.r#type == "Programmed");
    Summary {
        namespace: object.metadata.namespace.clone(),
        name: object.metadata.name.clone(),
        revision: object.label("istio.io/rev").unwrap_or("default").to_owned(),
        traffic: match (serves.services(), serves.workloads()) {
            (true, true) => "all",
            (true, false) => "service",
            (false, true) => "workload",
            (false, false) => "none",
        },
        programmed: programmed.map_or_else(|| "Unknown".to_owned(), |condition| condition.status),
        made_by: if made_by_itself(object) { "mesh" } else { "user" },
    }
}

#[derive(Debug, Clone, Serialize)]
struct Condition {
    namespace: String,
    name: String,
    status: String,
    r#type: String,
    reason: String,
    message: String,
}

fn conditions(object: &Object) -> Vec<Condition> {
    let list = object.value.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let one = |condition: &Value| {
        let text = |name: &str| condition[name].as_str().unwrap_or_default().to_owned();
        Condition {
            namespace: object.metadata.namespace.clone(),
            name: object.metadata.name.clone(),
            status: text("status"),
            r#type: text("type"),
            reason: text("reason"),
            message: text("message"),
        }
    };
    list.map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waypoint_is_a_gateway_that_the_mesh_accepts() {
        let wanted = Wanted { name: "waypoint".to_owned(), traffic: Some(Traffic::All) };
        let (object, findings) = tropis_crds::decode(gateway("shop", &wanted)).unwrap();
        assert!(is_waypoint(&object) && findings.is_empty(), "{findings:?}");
        let row = summary(&object);
        assert_eq!((row.traffic, row.programmed.as_str(), row.made_by), ("all", "Unknown", "user"));
    }

    #[test]
    fn what_a_waypoint_has_besides_stays() {
        let mut present = gateway("shop", &Wanted { name: "waypoint".to_owned(), traffic: None });
        present["metadata"]["labels"] = json!({"team": "shop"});
        present["spec"]["listeners"][0]["allowedRoutes"] = json!({"namespaces": {"from": "All"}});
        let before = present.clone();
        let wanted = Wanted { name: "waypoint".to_owned(), traffic: Some(Traffic::All) };
        let wish = gateway("shop", &wanted);
        assert!(merge(&mut present, &wanted, &wish).unwrap());
        assert_eq!(present["metadata"]["labels"], json!({"team": "shop", WAYPOINT_FOR: "all"}));
        assert_eq!(present["spec"], before["spec"]);
        assert!(!merge(&mut present, &wanted, &wish).unwrap(), "nothing is left to do");
        let mut odd = json!({"metadata": {"name": "waypoint", "labels": 3}, "spec": []});
        assert!(merge(&mut odd, &wanted, &wish).unwrap());
        assert_eq!((&odd["spec"], &odd["metadata"]["labels"]), (&wish["spec"], &wish["metadata"]["labels"]));
        assert!(same_class(&json!({"spec": {"gatewayClassName": "istio"}})).unwrap_err().to_string().contains("--name"));
    }
}
