//! DestinationRules become pools: which rules count for whom, how they merge, and what their blocks mean with every default filled in.
//!
//! [`select`] finds and merges (traffic-api.md 2.1); [`Policy::of`] resolves the blocks for a port and subset (2.2); `pool` translates.

mod balancer;
mod findings;
mod pool;

use std::{cmp::Reverse, sync::Arc};

use tropis_crds::{
    Finding, Object,
    istio::destination_rule::{ClientTls, ConnectionPool, LoadBalancer, OutlierDetection, RetryBudget, Subset, TrafficPolicy},
};
use tropis_model::pool::{Pool, PoolKey};

use crate::{
    Index,
    index::{key_of, rule_host},
    service,
    virtual_service::is_visible,
};

pub(crate) use findings::elsewhere;
pub use findings::findings;

/// The DestinationRules of one host in one namespace, as one.
#[derive(Debug, Clone)]
pub struct Selected<'a> {
    /// The rules, oldest first; at least one.
    pub objects: Vec<&'a Arc<Object>>,
    /// The traffic policy of the oldest that has one, with its rule.
    pub policy: Option<(&'a Arc<Object>, &'a TrafficPolicy)>,
    /// The subsets; of several with one name the oldest rule's.
    pub subsets: Vec<(&'a Arc<Object>, usize, &'a Subset)>,
}

impl<'a> Selected<'a> {
    /// A subset by its name, with its rule and its place there.
    pub fn subset(&self, name: &str) -> Option<(&'a Arc<Object>, usize, &'a Subset)> {
        self.subsets.iter().find(|(_, _, subset)| subset.name == name).copied()
    }

    fn merge(objects: Vec<&'a Arc<Object>>) -> Self {
        let (mut policy, mut subsets) = (None, Vec::<(&Arc<Object>, usize, &Subset)>::new());
        for object in &objects {
            let Some(rule) = object.destination_rule() else { continue };
            policy = policy.or_else(|| rule.spec.traffic_policy.as_ref().map(|policy| (*object, policy)));
            for (place, subset) in rule.spec.subsets.iter().enumerate() {
                if !subsets.iter().any(|(_, _, other)| other.name == subset.name) {
                    subsets.push((*object, place, subset));
                }
            }
        }
        Self { objects, policy, subsets }
    }
}

/// The rules that count for callers in namespace `client` (a waypoint's own) towards a host of namespace `namespace`: those of the client's
/// namespace, else of the host's, else of the root's; of these the ones with the most specific host. Rules that select their callers by
/// labels never count, because a waypoint is not a sidecar.
pub fn select<'a>(index: &'a Index, client: &str, namespace: &str, host: &str) -> Option<Selected<'a>> {
    let settings = index.settings();
    let seen = |object: &&Arc<Object>| {
        object.destination_rule().is_some_and(|rule| {
            rule.spec.workload_selector.is_none() && is_visible(&rule.spec.export_to, &object.metadata.namespace, client)
        })
    };
    let all: Vec<&Arc<Object>> = index.destination_rules_for(host).into_iter().filter(seen).collect();
    let levels = [client, namespace, settings.root_namespace.as_str()];
    let level = levels.iter().find(|level| all.iter().any(|object| object.metadata.namespace == **level))?;
    let here = all.into_iter().filter(|object| object.metadata.namespace == **level);
    let hosts: Vec<(String, &Arc<Object>)> = here.filter_map(|object| Some((rule_host(settings, object)?, object))).collect();
    let best = hosts.iter().map(|(host, _)| host).min_by_key(|host| (host.starts_with('*'), Reverse(host.len())))?.clone();
    Some(Selected::merge(hosts.into_iter().filter(|(host, _)| *host == best).map(|(_, object)| object).collect()))
}

/// The blocks that hold for one port and subset.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policy<'a> {
    /// How an endpoint is chosen.
    pub load_balancer: Option<&'a LoadBalancer>,
    /// How much the pool takes.
    pub connection_pool: Option<&'a ConnectionPool>,
    /// When an endpoint is left out.
    pub outlier_detection: Option<&'a OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<&'a ClientTls>,
    /// Retries as a share of what is under way.
    pub retry_budget: Option<&'a RetryBudget>,
}

impl<'a> Policy<'a> {
    /// Resolves the blocks: a port's settings replace the whole policy of the rule; a subset overrides block by block, and where it has
    /// settings for the port these replace the four blocks.
    pub fn of(rule: Option<&'a TrafficPolicy>, subset: Option<&'a TrafficPolicy>, port: u16) -> Self {
        let base = rule.map_or_else(Self::default, |rule| Self::at_port(rule, port).unwrap_or_else(|| Self::whole(rule)));
        let Some(subset) = subset else { return base };
        let own = Self::whole(subset);
        let merged = Self {
            load_balancer: own.load_balancer.or(base.load_balancer),
            connection_pool: own.connection_pool.or(base.connection_pool),
            outlier_detection: own.outlier_detection.or(base.outlier_detection),
            tls: own.tls.or(base.tls),
            retry_budget: own.retry_budget.or(base.retry_budget),
        };
        match Self::at_port(subset, port) {
            Some(own) => Self { retry_budget: merged.retry_budget, ..own },
            None => merged,
        }
    }

    fn whole(policy: &'a TrafficPolicy) -> Self {
        Self {
            load_balancer: policy.load_balancer.as_ref(),
            connection_pool: policy.connection_pool.as_ref(),
            outlier_detection: policy.outlier_detection.as_ref(),
            tls: policy.tls.as_ref(),
            retry_budget: policy.retry_budget.as_ref(),
        }
    }

    fn at_port(policy: &'a TrafficPolicy, port: u16) -> Option<Self> {
        let own = policy.port_level_settings.iter().find(|own| own.port.number == i64::from(port))?;
        Some(Self {
            load_balancer: own.load_balancer.as_ref(),
            connection_pool: own.connection_pool.as_ref(),
            outlier_detection: own.outlier_detection.as_ref(),
            tls: own.tls.as_ref(),
            retry_budget: None,
        })
    }
}

/// The pool of a key as callers in namespace `client` reach it. `None`, with a finding or without, when it does not exist: its service,
/// its port or its subset is missing, or its rule asks for something that cannot be kept.
pub(crate) fn pool(index: &Index, client: &str, key: &PoolKey) -> (Option<Pool>, Vec<Finding>) {
    let Some(object) = index.service_named(&key.host.hostname) else { return (None, Vec::new()) };
    let (Some(service), _) = service::compile(index.settings(), object) else { return (None, Vec::new()) };
    let Some(port) = service.ports.get(&key.port) else { return (None, Vec::new()) };
    let selected = select(index, client, &key.host.namespace, &key.host.hostname);
    let subset = match &key.subset {
        None => None,
        Some(name) => match selected.as_ref().and_then(|selected| selected.subset(name)) {
            Some(found) => Some(found),
            None => return (None, Vec::new()),
        },
    };
    let rule = selected.as_ref().and_then(|selected| selected.policy).map(|(_, policy)| policy);
    let own = subset.and_then(|(_, _, subset)| subset.traffic_policy.as_ref());
    let policy = Policy::of(rule, own, key.port);
    match pool::translate(key, &service, crate::host::protocol(port.app_protocol), subset.map(|(_, _, subset)| subset), &policy) {
        Ok(pool) => (Some(pool), Vec::new()),
        Err(unkept) => {
            let in_subset = own.is_some_and(|own| own.tls.is_some() || !own.port_level_settings.is_empty());
            let said = match subset.filter(|_| in_subset) {
                Some((object, place, _)) => Some((object, format!("spec.subsets[{place}].trafficPolicy"))),
                None => selected.as_ref().and_then(|selected| selected.policy).map(|(object, _)| (object, "spec.trafficPolicy".to_owned())),
            };
            (None, said.iter().map(|(object, field)| findings::unkept(object, field, key, unkept)).collect())
        }
    }
}

/// `namespace/name`, as findings write it.
pub(crate) fn shown(object: &Object) -> String {
    let (namespace, name) = key_of(object);
    format!("{namespace}/{name}")
}
