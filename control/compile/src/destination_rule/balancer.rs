//! How an endpoint is chosen, and what near and far mean.

use std::sync::Arc;

use tropis_crds::istio::destination_rule::{ConsistentHash, LoadBalancer, LocalitySetting, SimpleBalancer};
use tropis_model::{
    pool::{Balancer, Distribution, HashAlgorithm, HashKey, LocalityMatch, LocalityPreference, Warmup},
    service::{BalancingMode, LoadBalancing, Scope},
};

/// Labels that are compared in order, with the value that they are compared with, or with the caller's own.
type Labels = Vec<(Arc<str>, Option<Arc<str>>)>;

/// Points of a ring, at least, where nothing else is said.
const RING_SIZE: u32 = 1024;
/// Entries of Maglev's table, where nothing else is said.
const TABLE_SIZE: u32 = 65_537;

pub(super) fn balancer(written: Option<&LoadBalancer>) -> Balancer {
    let Some(written) = written else { return Balancer::LeastRequest };
    if let Some((key, hash)) = written.consistent_hash.as_ref().and_then(|hash| Some((hash_key(hash)?, hash))) {
        return Balancer::ConsistentHash { key, algorithm: algorithm(hash) };
    }
    match written.simple.unwrap_or_default() {
        SimpleBalancer::Unspecified | SimpleBalancer::LeastConn | SimpleBalancer::LeastRequest => Balancer::LeastRequest,
        SimpleBalancer::Random => Balancer::Random,
        SimpleBalancer::RoundRobin => Balancer::RoundRobin,
        SimpleBalancer::Passthrough => Balancer::Passthrough,
    }
}

/// The key; `None` for `useSourceIp: false`, which hashes nothing.
fn hash_key(hash: &ConsistentHash) -> Option<HashKey> {
    if let Some(name) = &hash.http_header_name {
        return Some(HashKey::Header(name.to_ascii_lowercase().into()));
    }
    if let Some(cookie) = &hash.http_cookie {
        return Some(HashKey::Cookie {
            name: cookie.name.as_str().into(),
            path: (!cookie.path.is_empty()).then(|| cookie.path.as_str().into()),
            ttl: cookie.ttl.map(|ttl| ttl.0),
            attributes: cookie.attributes.iter().map(|own| (own.name.as_str().into(), own.value.as_str().into())).collect(),
        });
    }
    if let Some(name) = &hash.http_query_parameter_name {
        return Some(HashKey::QueryParameter(name.as_str().into()));
    }
    hash.use_source_ip.filter(|used| *used).map(|_| HashKey::SourceAddress)
}

fn algorithm(hash: &ConsistentHash) -> HashAlgorithm {
    let size = |written: Option<i64>, otherwise: u32| {
        written.and_then(|size| u32::try_from(size).ok()).filter(|size| *size > 0).unwrap_or(otherwise)
    };
    match (&hash.maglev, &hash.ring_hash) {
        (Some(maglev), _) => HashAlgorithm::Maglev { table_size: size(maglev.table_size, TABLE_SIZE) },
        (None, Some(ring)) => HashAlgorithm::Ring { minimum_size: size(ring.minimum_ring_size, RING_SIZE) },
        (None, None) => HashAlgorithm::Ring { minimum_size: size(hash.minimum_ring_size, RING_SIZE) },
    }
}

/// Slow start, where the balancer has weights to work with.
pub(super) fn warmup(written: Option<&LoadBalancer>) -> Option<Warmup> {
    let written = written.filter(|written| matches!(balancer(Some(written)), Balancer::LeastRequest | Balancer::RoundRobin))?;
    let (duration, minimum, aggression) = match &written.warmup {
        Some(warmup) => (warmup.duration?, warmup.minimum_percent, warmup.aggression),
        None => (written.warmup_duration_secs?, None, None),
    };
    Some(Warmup { duration: duration.0, minimum_percent: minimum.unwrap_or(10.0), aggression: aggression.unwrap_or(1.0) })
}

/// What near and far mean: the rule's word, else the Service's, else the mesh's default, which is failover where endpoints can be left out.
pub(super) fn locality(written: Option<&LoadBalancer>, ejects: bool, service: &LoadBalancing) -> LocalityPreference {
    match written.and_then(|written| written.locality_lb_setting.as_ref()) {
        Some(setting) if setting.enabled == Some(false) => LocalityPreference::None,
        Some(setting) if !setting.distribute.is_empty() => LocalityPreference::Distribute(distribute(setting)),
        Some(setting) if ejects => LocalityPreference::Failover { regions: regions(setting), labels: labels(setting) },
        Some(_) => LocalityPreference::None,
        None => match of_service(service) {
            Some(labels) => LocalityPreference::Failover { regions: Vec::new(), labels },
            None if ejects => LocalityPreference::Failover { regions: Vec::new(), labels: Vec::new() },
            None => LocalityPreference::None,
        },
    }
}

fn distribute(setting: &LocalitySetting) -> Vec<Distribution> {
    let rules = setting.distribute.iter().map(|rule| Distribution {
        from: place(&rule.from),
        to: rule.to.iter().map(|(to, share)| (place(to), u32::try_from(*share).unwrap_or_default())).collect(),
    });
    rules.collect()
}

/// A locality in which what is left out or `*` is any.
fn place(written: &str) -> LocalityMatch {
    let mut parts = written.split('/').map(|part| (part != "*").then(|| Arc::from(part)));
    let mut next = || parts.next().flatten();
    LocalityMatch { region: next(), zone: next(), subzone: next() }
}

fn regions(setting: &LocalitySetting) -> Vec<(Arc<str>, Arc<str>)> {
    setting.failover.iter().map(|rule| (rule.from.as_str().into(), rule.to.as_str().into())).collect()
}

fn labels(setting: &LocalitySetting) -> Labels {
    let entries = setting.failover_priority.iter().map(|entry| match entry.split_once('=') {
        Some((key, value)) => (key.into(), Some(value.into())),
        None => (entry.as_str().into(), None),
    });
    entries.collect()
}

/// What a Service's `trafficDistribution` compares, in order.
fn of_service(service: &LoadBalancing) -> Option<Labels> {
    let label = |scope: &Scope| match scope {
        Scope::Network => "topology.istio.io/network",
        Scope::Region => "topology.kubernetes.io/region",
        Scope::Zone => "topology.kubernetes.io/zone",
        Scope::Subzone => "topology.istio.io/subzone",
        Scope::Node => "kubernetes.io/hostname",
        Scope::Cluster => "topology.istio.io/cluster",
    };
    let labels = service.routing_preference.iter().map(|scope| (label(scope).into(), None)).collect();
    (service.mode == BalancingMode::Failover).then_some(labels)
}
