//! From what proxies counted to edges: both ends of a connection count it, and a waypoint between them counts its requests.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Edge, MAX_EDGES, Security, id,
    inventory::{Inventory, Key},
    numbers::{Counts, End, Numbers, Reporter},
};

/// The ends that are no workloads of this mesh. An empty namespace keeps them apart from every workload.
const CALLERS: &str = "callers";
const CALLED: &str = "called";

/// What went from one workload to another, by who said it.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    by_source: Sum,
    by_destination: Sum,
    by_waypoint: Sum,
}

/// Counts, and what of them was by mutual TLS or plain: bytes, connections that were let through, requests.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    counts: Counts,
    mutual_tls: u64,
    plain: u64,
}

impl Sum {
    fn add(&mut self, counts: Counts, mutual_tls: bool) {
        self.counts.add(counts);
        let weight = counts.bytes.saturating_add(counts.requests).saturating_add(counts.opened.saturating_sub(counts.broken));
        let side = if mutual_tls { &mut self.mutual_tls } else { &mut self.plain };
        *side = side.saturating_add(weight);
    }

    fn is_empty(&self) -> bool {
        self.counts == Counts::default()
    }
}

/// Since the proxies started, and in the last few seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Both {
    pub(super) ever: Period,
    pub(super) lately: Period,
}

/// What was told of a period.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Period(Told);

impl Period {
    /// Connections are the same for both proxies at their ends: the caller's counts, unless it says nothing, being none of the mesh's.
    fn connections(&self) -> Counts {
        if self.0.by_source.is_empty() { self.0.by_destination.counts } else { self.0.by_source.counts }
    }

    fn requests(&self) -> Counts {
        self.0.by_waypoint.counts
    }

    fn is_empty(&self) -> bool {
        self.0.by_source.is_empty() && self.0.by_destination.is_empty() && self.0.by_waypoint.is_empty()
    }

    /// What any reporter saw plain is plain: whoever looks for an open lock must find it.
    fn security(&self) -> Security {
        let Told { by_source, by_destination, by_waypoint } = &self.0;
        let sum = |of: fn(&Sum) -> u64| [by_source, by_destination, by_waypoint].iter().any(|one| of(one) > 0);
        match (sum(|one| one.mutual_tls), sum(|one| one.plain)) {
            (true, false) => Security::MutualTls,
            (false, true) => Security::Plain,
            (true, true) => Security::Mixed,
            (false, false) => Security::Unknown,
        }
    }
}

/// What went between whom.
#[derive(Debug, Default)]
pub(super) struct Edges(BTreeMap<(Key, Key), Both>);

impl Edges {
    /// Takes in what a proxy counted in one period; `gateway` is the workload of a waypoint's pod. Node proxies come first: of workloads
    /// that share an account, a waypoint cannot tell which one calls, but the caller's node proxy knows.
    pub(super) fn add(
        &mut self,
        numbers: &Numbers,
        inventory: &Inventory,
        gateway: Option<&Key>,
        period: impl Fn(&mut Both) -> &mut Period,
    ) {
        let outside = |end: &str| (String::new(), end.to_owned());
        for (pair, counts) in numbers {
            let source = self.caller(&pair.source, inventory, gateway, &period).unwrap_or_else(|| outside(CALLERS));
            match (pair.reporter, gateway) {
                (Reporter::Waypoint, Some(gateway)) => {
                    // Whether the way on was encrypted is the destination's node proxy to say; this label is of the way in.
                    let Period(told) = period(self.between(source, gateway.clone()));
                    told.by_waypoint.add(*counts, pair.mutual_tls);
                    if let Some(destination) = called(&pair.destination, inventory) {
                        let Period(told) = period(self.between(gateway.clone(), destination));
                        told.by_waypoint.counts.add(*counts);
                    }
                }
                (Reporter::Waypoint, None) => {}
                (Reporter::Source | Reporter::Destination, _) => {
                    let destination = called(&pair.destination, inventory).unwrap_or_else(|| outside(CALLED));
                    let Period(told) = period(self.between(source, destination));
                    let sum = if pair.reporter == Reporter::Source { &mut told.by_source } else { &mut told.by_destination };
                    sum.add(*counts, pair.mutual_tls);
                }
            }
        }
    }

    /// The workload that called: of several with the same identity the only one that has connections to `gateway`.
    fn caller(
        &mut self,
        end: &End,
        inventory: &Inventory,
        gateway: Option<&Key>,
        period: impl Fn(&mut Both) -> &mut Period,
    ) -> Option<Key> {
        let identity = match end {
            End::Workload(key) => return Some(key.clone()),
            End::Identity(identity) => identity,
            End::Unknown => return None,
        };
        let all: Vec<&Key> = inventory.workloads_of_identity(identity).collect();
        let [_, _, ..] = all.as_slice() else { return all.first().map(|only| (*only).clone()) };
        let gateway = gateway?;
        let mut connected = all.into_iter().filter(|from| {
            let both = self.0.get_mut(&((*from).clone(), gateway.clone()));
            both.is_some_and(|both| !period(both).0.by_source.is_empty())
        });
        let only = connected.next().cloned();
        only.filter(|_| connected.next().is_none())
    }

    fn between(&mut self, from: Key, to: Key) -> &mut Both {
        self.0.entry((from, to)).or_default()
    }

    /// The edges to draw: of workloads that are gone only while something still passes.
    pub(super) fn drawn(&self, inventory: &Inventory, window: Duration) -> Vec<Edge> {
        let exists = |key: &Key| key.0.is_empty() || inventory.workloads.contains_key(key);
        let worth =
            |((from, to), both): &(&(Key, Key), &Both)| !both.ever.is_empty() && (!both.lately.is_empty() || (exists(from) && exists(to)));
        let mut edges: Vec<Edge> = self.0.iter().filter(worth).map(|((from, to), both)| edge(from, to, both, window)).collect();
        if edges.len() > MAX_EDGES {
            let load = |edge: &Edge| edge.requests_per_second + edge.bytes_per_second + edge.connections_per_second;
            edges.sort_by(|one, other| load(other).total_cmp(&load(one)));
            edges.truncate(MAX_EDGES);
            edges.sort_by(|one, other| (&one.from, &one.to).cmp(&(&other.from, &other.to)));
        }
        edges
    }
}

/// The workload that was called; of an identity that several have, nobody knows which.
fn called(end: &End, inventory: &Inventory) -> Option<Key> {
    match end {
        End::Workload(key) => Some(key.clone()),
        End::Identity(identity) => {
            let mut all = inventory.workloads_of_identity(identity);
            let only = all.next().cloned();
            only.filter(|_| all.next().is_none())
        }
        End::Unknown => None,
    }
}

fn edge(from: &Key, to: &Key, both: &Both, window: Duration) -> Edge {
    let Both { ever, lately } = both;
    let seconds = window.as_secs_f64();
    let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let (requests, connections) = (lately.requests(), lately.connections());
    let active = !lately.is_empty();
    Edge {
        from: id(from),
        to: id(to),
        security: match lately.security() {
            Security::Unknown => ever.security(),
            known => known,
        },
        active,
        requests_per_second: rate(requests.requests),
        failed_share: if requests.requests > 0 { requests.failed as f64 / requests.requests as f64 } else { 0.0 },
        bytes_per_second: rate(connections.bytes),
        connections_per_second: rate(connections.opened),
        broken_per_second: rate(connections.broken),
        requests: ever.requests().requests,
        bytes: ever.connections().bytes,
    }
}
