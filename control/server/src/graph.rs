//! The live graph of the mesh, for people who look at it: workloads, who calls whom and how much, whether encrypted, who is ejected.
//!
//! [`draw`] makes it, a pure function of [`Facts`]: the objects' (`inventory.rs`), and the proxies' own numbers (`numbers.rs`), which
//! `proxies.rs` asks for only while somebody looks (`look.rs`). docs/adr/0009-draw-the-graph-from-the-proxies-own-numbers.md says why.

pub(crate) mod inventory;
pub(crate) mod look;
mod numbers;
mod proxies;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use inventory::{Group, Inventory, Key};
use proxies::{Proxy, Said};
use traffic::Edges;

/// Workloads that are drawn, those with traffic first; the graph says how many were left out.
const MAX_NODES: usize = 400;
/// Edges that are drawn, the busiest first.
const MAX_EDGES: usize = 1000;

/// What a graph is made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// What there is.
    pub(crate) inventory: Inventory,
    /// What each proxy said now, or why it is silent; `None` when nobody was told where proxies are.
    pub(crate) proxies: Option<BTreeMap<Proxy, Result<Said, String>>>,
    /// What each proxy counted in the last `window`.
    pub(crate) moved: BTreeMap<Proxy, numbers::Numbers>,
    /// The time that `moved` is of.
    pub(crate) window: Duration,
    /// Proxies that were not asked because there are too many.
    pub(crate) unasked: usize,
}

/// The graph, as the page reads it. Rates are per second, over the last `window_seconds`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Graph {
    /// Every object was read once; before that, much is missing.
    complete: bool,
    window_seconds: f64,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    ejected: Vec<Ejected>,
    proxies: Asked,
    /// Workloads that are not drawn because there are too many.
    left_out: usize,
}

/// What a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Role {
    /// Pods of one owner.
    Workload,
    /// A waypoint.
    Waypoint,
    /// Whoever is called, or calls, and is no workload of this mesh.
    Outside,
}

/// A workload, a waypoint, or the world outside.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Node {
    /// `NAMESPACE/NAME`.
    id: String,
    namespace: String,
    name: String,
    role: Role,
    pods: usize,
    ready: usize,
    /// Pods that are in the mesh.
    enrolled: usize,
    identities: BTreeSet<String>,
    services: BTreeSet<String>,
    /// The nodes that its pods run on.
    runs_on: BTreeSet<Arc<str>>,
}

/// How the connections of an edge were secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Security {
    /// All of them: both ends proved who they are, and nobody between can read.
    MutualTls,
    /// None of them.
    Plain,
    /// Some.
    Mixed,
    /// Nobody said, or nothing passed.
    Unknown,
}

/// Who calls whom.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Edge {
    from: String,
    to: String,
    security: Security,
    /// Something passed, or was refused, in the last `window_seconds`. Otherwise `security` is of all the time before.
    active: bool,
    requests_per_second: f64,
    /// Of the requests in the last `window_seconds`, the part that failed: 0 to 1.
    failed_share: f64,
    bytes_per_second: f64,
    connections_per_second: f64,
    /// Connections that were refused or broke.
    broken_per_second: f64,
    /// Since the proxies started: whether it speaks HTTP where a waypoint reads it.
    requests: u64,
    bytes: u64,
}

/// An endpoint that a waypoint leaves out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ejected {
    /// The node of the graph.
    node: String,
    /// The node of the waypoint.
    by: String,
    pool: String,
    address: String,
    /// At least; 0 when it comes back with the next request.
    seconds_left: f64,
}

/// Whose numbers these are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Asked {
    /// This control plane knows where proxies can be asked.
    known: bool,
    answered: usize,
    /// Each proxy that did not answer, and why.
    silent: BTreeMap<String, String>,
    /// Proxies that were not asked because there are too many.
    unasked: usize,
}

/// Draws the graph.
pub(crate) fn draw(facts: &Facts) -> Graph {
    let inventory = &facts.inventory;
    let mut edges = Edges::default();
    for (proxy, said) in facts.proxies.iter().flatten() {
        let Ok(said) = said else { continue };
        edges.add(&said.numbers, inventory, gateway(inventory, proxy), |both| &mut both.ever);
        if let Some(moved) = facts.moved.get(proxy) {
            edges.add(moved, inventory, gateway(inventory, proxy), |both| &mut both.lately);
        }
    }
    let ejected = ejected(facts);
    let mut edges = edges.drawn(inventory, facts.window);
    let (nodes, left_out) = nodes(inventory, &edges, &ejected);
    let drawn: BTreeSet<&str> = nodes.iter().map(|node| node.id.as_str()).collect();
    edges.retain(|edge| drawn.contains(edge.from.as_str()) && drawn.contains(edge.to.as_str()));
    let silent = |(proxy, said): (&Proxy, &Result<Said, String>)| Some((proxy.to_string(), said.as_ref().err()?.clone()));
    let proxies = Asked {
        known: facts.proxies.is_some(),
        answered: facts.proxies.iter().flatten().filter(|(_, said)| said.is_ok()).count(),
        silent: facts.proxies.iter().flatten().filter_map(silent).collect(),
        unasked: facts.unasked,
    };
    Graph { complete: inventory.complete, window_seconds: facts.window.as_secs_f64(), nodes, edges, ejected, proxies, left_out }
}

/// The workload that a waypoint's pod belongs to.
fn gateway<'a>(inventory: &'a Inventory, proxy: &Proxy) -> Option<&'a Key> {
    match proxy {
        Proxy::Waypoint(namespace, pod) => inventory.workload_of_pod(namespace, pod),
        Proxy::Ztunnel(_) => None,
    }
}

fn id((namespace, name): &Key) -> String {
    format!("{namespace}/{name}")
}

fn ejected(facts: &Facts) -> Vec<Ejected> {
    let mut found = Vec::new();
    for (proxy, said) in facts.proxies.iter().flatten() {
        let (Ok(said), Some(by)) = (said, gateway(&facts.inventory, proxy)) else { continue };
        for one in &said.ejected {
            let Some(node) = facts.inventory.workload_of(&one.workload) else { continue };
            found.push(Ejected {
                node: id(node),
                by: id(by),
                pool: one.pool.clone(),
                address: one.address.clone(),
                seconds_left: one.remaining.as_secs_f64(),
            });
        }
    }
    found.sort_by(|one, other| (&one.node, &one.by, &one.pool, &one.address).cmp(&(&other.node, &other.by, &other.pool, &other.address)));
    // Several pods of one waypoint may have ejected it: it is out for as long as any of them says.
    found.dedup_by(|next, kept| {
        let same = (&next.node, &next.by, &next.pool, &next.address) == (&kept.node, &kept.by, &kept.pool, &kept.address);
        kept.seconds_left = if same { kept.seconds_left.max(next.seconds_left) } else { kept.seconds_left };
        same
    });
    found
}

/// The nodes of what is worth drawing, and how many were left out. What belongs to the mesh itself is drawn where it has traffic.
fn nodes(inventory: &Inventory, edges: &[Edge], ejected: &[Ejected]) -> (Vec<Node>, usize) {
    let mut busy: BTreeSet<&str> = edges.iter().flat_map(|edge| [edge.from.as_str(), edge.to.as_str()]).collect();
    busy.extend(ejected.iter().map(|one| one.node.as_str()));
    let mut nodes: Vec<Node> = inventory.workloads.iter().map(|(key, group)| node(key, group)).collect();
    nodes.retain(|node| busy.contains(node.id.as_str()) || inventory.workloads.get(&key(node)).is_some_and(|group| !group.system));
    let known: BTreeSet<String> = nodes.iter().map(|node| node.id.clone()).collect();
    nodes.extend(busy.iter().filter(|id| !known.contains(**id)).filter_map(|id| stranger(id)));
    nodes.sort_by(|one, other| (!busy.contains(one.id.as_str()), &one.id).cmp(&(!busy.contains(other.id.as_str()), &other.id)));
    let left_out = nodes.split_off(MAX_NODES.min(nodes.len())).len();
    nodes.sort_by(|one, other| one.id.cmp(&other.id));
    (nodes, left_out)
}

fn key(node: &Node) -> Key {
    (node.namespace.clone(), node.name.clone())
}

fn node(key: &Key, group: &Group) -> Node {
    Node {
        id: id(key),
        namespace: key.0.clone(),
        name: key.1.clone(),
        role: if group.waypoint { Role::Waypoint } else { Role::Workload },
        pods: group.pods,
        ready: group.ready,
        enrolled: group.enrolled,
        identities: group.identities.clone(),
        services: group.services.clone(),
        runs_on: group.nodes.clone(),
    }
}

/// An end of an edge that is no workload: the world outside, or a workload that was deleted a moment ago.
fn stranger(id: &str) -> Option<Node> {
    let (namespace, name) = id.split_once('/')?;
    let role = if namespace.is_empty() { Role::Outside } else { Role::Workload };
    Some(Node { role, ..node(&(namespace.to_owned(), name.to_owned()), &Group::default()) })
}

#[cfg(test)]
mod tests;
