//! `tropis proxy-status`: a row for every proxy, and for every pod that one of them serves, with how far it is behind the control plane.

use serde::Serialize;
use serde_json::Value;

use crate::{
    admin,
    arguments::Options,
    output::Listing,
    pods::{self, text},
    state::State,
};

const CONTROL: &str = "tropisd";
const CLUSTER: &str = "Kubernetes";
/// What the control plane calls a waypoint's audience, before the Gateway's key.
const WAYPOINT_AUDIENCE: &str = "waypoint ";
/// All that was sent is in force.
pub(crate) const SYNCED: &str = "SYNCED";
/// Something is on its way.
pub(crate) const STALE: &str = "STALE";
/// The proxy did not take a resource.
pub(crate) const REFUSED: &str = "REFUSED";
const HEADINGS: &[&str] = &["NAME", "CLUSTER", "PROXY", "STATUS", "CONTROL PLANE", "SUBSCRIBED TYPES"];

const EXAMPLES: &str = "\
STATUS:
  SYNCED         all that was sent is in force
  STALE          something is on its way
  REFUSED        the proxy did not take a resource; an older one is in force
  NOT SENT       it asked and has nothing yet
  NOT CONNECTED  it does not ask

Examples:
  tropis proxy-status              every pod and proxy
  tropis proxy-status sleep.shop   and what its proxy refused";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Only this proxy or pod, with what it refused.
    name: Option<String>,
}

/// How far a proxy is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) name: String,
    cluster: String,
    /// The proxy behind a pod; its own name for a proxy.
    proxy: String,
    /// The Gateway (`namespace/name`) of a waypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<String>,
    pub(crate) status: String,
    control_plane: String,
    types: Vec<String>,
    /// What it refused, with its reasons.
    pub(crate) refused: Vec<String>,
}

pub(crate) async fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    let state = State::open(&options.state)?;
    let proxies = proxies(&state).await?;
    let mut rows = proxies.clone();
    for node in pods::dumps(&state, None).await? {
        let name = node.name();
        let own = proxies.iter().find(|row| row.proxy == name);
        rows.extend(node.pods().map(|pod| of_pod(pod, &name, own)));
    }
    rows.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(wanted) = &arguments.name {
        let name = crate::names::name(wanted, options.namespace())?;
        let long = format!("{}.{}", name.name, name.namespace);
        let gateway = format!("{}/{}", name.namespace, name.name);
        rows.retain(|row| row.name == long || row.name == *wanted || row.gateway.as_ref() == Some(&gateway));
        anyhow::ensure!(!rows.is_empty(), "no proxy and no pod in the mesh is called {wanted:?}\n`tropis proxy-status` lists all of them");
    }
    let refused: Vec<String> =
        rows.iter().flat_map(|row| row.refused.iter().map(|reason| format!("{} refused {reason}\n", row.name))).collect();
    let listing = Listing::new(HEADINGS, rows, |row| {
        vec![
            row.name.clone(),
            row.cluster.clone(),
            row.proxy.clone(),
            row.status.clone(),
            row.control_plane.clone(),
            format!("{} ({})", row.types.len(), row.types.join(",")),
        ]
    });
    let mut told = listing.render(options.output, "No proxy is connected.")?;
    if options.output == crate::arguments::Format::Table && !refused.is_empty() {
        told += &format!("\n{}", refused.concat());
    }
    Ok(told)
}

/// The proxies that are connected to the control plane.
pub(crate) async fn proxies(state: &State) -> anyhow::Result<Vec<Row>> {
    let control = state.sockets_of(CONTROL)?.remove(0);
    let clients = admin::json(&control.path, "/debug/clients").await?;
    let live = admin::json(&control.path, "/debug/live").await?;
    let generation = live["generation"].as_u64().unwrap_or_default();
    Ok(clients.as_array().into_iter().flatten().map(|client| proxy(client, generation, &control.node)).collect())
}

/// The row of a connected proxy.
fn proxy(client: &Value, generation: u64, control: &str) -> Row {
    let subscriptions: Vec<(&String, &Value)> = client["subscriptions"].as_object().into_iter().flatten().collect();
    let asked: Vec<_> = subscriptions.into_iter().filter(|(_, state)| state["subscribed"] == true).collect();
    let refused = asked.iter().flat_map(|(kind, state)| {
        let rejected = state["rejected"].as_object().into_iter().flatten();
        rejected.map(move |(name, reason)| format!("{kind} {name}: {}", reason.as_str().unwrap_or_default()))
    });
    let refused: Vec<String> = refused.collect();
    let behind = |state: &Value| state["acknowledged"].as_u64().unwrap_or_default() < generation;
    let status = match () {
        () if !refused.is_empty() => REFUSED,
        () if asked.iter().any(|(_, state)| behind(state) && state["acknowledged"] == 0) => "NOT SENT",
        () if asked.iter().any(|(_, state)| behind(state)) => STALE,
        () => SYNCED,
    };
    let name = node_name(text(client, "/node"), text(client, "/client"));
    Row {
        proxy: name.clone(),
        gateway: text(client, "/audience").strip_prefix(WAYPOINT_AUDIENCE).map(str::to_owned),
        name,
        cluster: CLUSTER.to_owned(),
        status: status.to_owned(),
        control_plane: format!("{CONTROL}.{control}"),
        types: asked.iter().map(|(kind, _)| (*kind).clone()).collect(),
        refused,
    }
}

/// The name in an xDS node (`ztunnel~10.0.0.1~ztunnel-abc.istio-system~…`), else what its credentials say.
fn node_name(node: &str, client: &str) -> String {
    match node.split('~').nth(2).filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None if !node.is_empty() => node.to_owned(),
        None => client.to_owned(),
    }
}

/// The row of a pod: as far as the node proxy that serves it.
fn of_pod(pod: &Value, proxy: &str, own: Option<&Row>) -> Row {
    let (status, control_plane, types) = match own {
        Some(row) => (row.status.clone(), row.control_plane.clone(), row.types.clone()),
        None => ("NOT CONNECTED".to_owned(), String::new(), Vec::new()),
    };
    Row {
        name: format!("{}.{}", text(pod, "/info/name"), text(pod, "/info/namespace")),
        cluster: CLUSTER.to_owned(),
        proxy: proxy.to_owned(),
        gateway: None,
        status,
        control_plane,
        types,
        refused: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn client(acknowledged: u64, rejected: Value) -> Value {
        let state = json!({"subscribed": true, "acknowledged": acknowledged, "inFlight": null, "rejected": rejected});
        json!({"client": "istio-system/ztunnel", "node": "ztunnel~10.88.0.11~ztunnel-a.istio-system~x", "subscriptions": {"address": state}})
    }

    #[test]
    fn a_status_says_how_far_a_proxy_is() {
        let status = |acknowledged, rejected| proxy(&client(acknowledged, rejected), 7, "control").status;
        assert_eq!(status(7, json!({})), "SYNCED");
        assert_eq!(status(6, json!({})), "STALE");
        assert_eq!(status(0, json!({})), "NOT SENT");
        assert_eq!(status(7, json!({"a": "no"})), "REFUSED");
        assert_eq!(proxy(&client(7, json!({"a": "no"})), 7, "control").refused, ["address a: no"]);
    }

    #[test]
    fn a_pod_is_as_far_as_its_node_proxy() {
        let own = proxy(&client(6, json!({})), 7, "control");
        assert_eq!(own.name, "ztunnel-a.istio-system");
        let pod = json!({"info": {"name": "sleep", "namespace": "shop"}});
        assert_eq!(of_pod(&pod, "ztunnel-a.istio-system", Some(&own)).status, "STALE");
        assert_eq!(of_pod(&pod, "ztunnel-a.istio-system", None).status, "NOT CONNECTED");
    }
}
