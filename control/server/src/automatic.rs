//! Waypoints that nobody asked for by name (design.md §4): a Gateway of ours for each namespace that needs one, and its way out.
//!
//! A Gateway whose need ended is marked as leaving: nothing new goes through it. It goes away when the node proxies have acknowledged
//! that, and what was under way has had time to end. The mark stands on the object, so that a control plane that starts anew goes on
//! where the one before it stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;
use tropis_compile::{
    Index,
    waypoint::{self, needed::Need},
};
use tropis_crds::{Finding, Kind, ObjectRef, codes, gateway_api::CLASS_WAYPOINT};

/// The name of every such Gateway, and so of its account, its Deployment and its Service.
pub(crate) const NAME: &str = "automatic-waypoint";
/// How long node proxies are waited for at most: one that does not answer would keep a waypoint for ever.
const LONGEST_ACKNOWLEDGEMENT: Duration = Duration::from_secs(60);

/// What becomes of a namespace's automatic waypoint. One that is not named should not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// It is needed.
    InUse,
    /// It is not needed, and may still carry something.
    Leaving,
}

/// How far a waypoint is on its way out.
#[derive(Debug, Clone, Copy)]
enum Exit {
    /// Detached in this generation of the configuration; node proxies are waited for until then.
    Detached { generation: u64, at_most: Instant },
    /// Detached everywhere; it goes then.
    Draining { until: Instant },
}

/// Decides over automatic waypoints.
#[derive(Debug)]
pub(crate) struct Automatic {
    drain: Duration,
    exits: BTreeMap<String, Exit>,
}

impl Automatic {
    /// A waypoint that is detached everywhere keeps running for `drain`.
    pub(crate) fn new(drain: Duration) -> Self {
        Self { drain, exits: BTreeMap::new() }
    }

    /// What should stand in each namespace. `generation` is the present one, that `index` is published in; `acknowledged` says whether
    /// the node proxies have one.
    pub(crate) fn decide(
        &mut self,
        index: &Index,
        needs: &BTreeMap<String, Need>,
        generation: u64,
        acknowledged: impl Fn(u64) -> bool,
        now: Instant,
    ) -> BTreeMap<String, Stand> {
        let mut stands: BTreeMap<String, Stand> = needs.keys().map(|namespace| (namespace.clone(), Stand::InUse)).collect();
        let mut leaving = BTreeSet::new();
        for gateway in index.automatic_waypoints().filter(|gateway| gateway.metadata.name == NAME) {
            let namespace = &gateway.metadata.namespace;
            if stands.contains_key(namespace) {
                continue;
            }
            // It is marked first: only from then on is it detached.
            let marked = gateway.label(waypoint::AUTOMATIC) == Some(waypoint::LEAVING);
            if !marked || !self.has_left(namespace, generation, &acknowledged, now) {
                stands.insert(namespace.clone(), Stand::Leaving);
            }
            if marked {
                leaving.insert(namespace.clone());
            }
        }
        self.exits.retain(|namespace, _| leaving.contains(namespace));
        stands
    }

    fn has_left(&mut self, namespace: &str, generation: u64, acknowledged: impl Fn(u64) -> bool, now: Instant) -> bool {
        let detached = Exit::Detached { generation, at_most: now + LONGEST_ACKNOWLEDGEMENT };
        let exit = self.exits.entry(namespace.to_owned()).or_insert(detached);
        if let Exit::Detached { generation, at_most } = *exit
            && (acknowledged(generation) || now >= at_most)
        {
            *exit = Exit::Draining { until: now + self.drain };
        }
        matches!(*exit, Exit::Draining { until } if now >= until)
    }

    /// When to decide again, if nothing happens before.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let times = self.exits.values().map(|exit| match exit {
            Exit::Detached { at_most, .. } => *at_most,
            Exit::Draining { until } => *until,
        });
        times.filter(|time| *time > now).min()
    }
}

/// The Gateway of a namespace. It is for Services, as one that a user makes is.
pub(crate) fn gateway(namespace: &str, stand: Stand) -> (ObjectRef, Value) {
    let mark = match stand {
        Stand::InUse => "true",
        Stand::Leaving => waypoint::LEAVING,
    };
    let fields = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": NAME, "namespace": namespace, "labels": { waypoint::AUTOMATIC: mark, "istio.io/waypoint-for": "service" } },
        "spec": {
            "gatewayClassName": CLASS_WAYPOINT,
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    });
    (ObjectRef::new(Kind::Gateway, namespace, NAME), fields)
}

/// What was made for a namespace, and why.
pub(crate) fn made(namespace: &str, need: &Need) -> Finding {
    let at = need.service.as_ref().map(|service| format!(", for Service {namespace}/{service}")).unwrap_or_default();
    finding(codes::AUTOMATIC_WAYPOINT, namespace)
        .found(format!("{}{at}", need.because))
        .problem("needs a waypoint, and nobody made one")
        .accepted("label istio.io/use-waypoint to choose a waypoint of your own, or this label with \"false\" to have none")
        .effect(format!("Gateway {namespace}/{NAME} was made and carries the namespace's Services while something needs it"))
}

/// Nothing can be made for a namespace, because of what has its name.
pub(crate) fn taken(namespace: &str, need: &Need, taken: &ObjectRef) -> Finding {
    finding(codes::NAME_TAKEN, namespace)
        .found(taken.to_string())
        .problem(format!("was not made by the control plane, so no waypoint is made, which {} needs", need.because))
        .accepted(format!("a namespace without an object of that name, or label istio.io/use-waypoint: {NAME} to use a waypoint of yours"))
        .effect("no waypoint is made; rules of layer 4 hold, and what looks at HTTP is not done")
}

fn finding(code: &'static str, namespace: &str) -> Finding {
    let namespace = ObjectRef::cluster(Kind::Namespace, namespace);
    let finding = if code == codes::NAME_TAKEN { Finding::error(code, namespace) } else { Finding::info(code, namespace) };
    finding.field(format!("metadata.labels[{}]", waypoint::AUTOMATIC))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tropis_compile::Settings;
    use tropis_crds::decode;

    use super::*;

    const DRAIN: Duration = Duration::from_secs(30);

    fn needs(because: &str) -> BTreeMap<String, Need> {
        [("shop".to_owned(), Need { because: because.to_owned(), service: None })].into()
    }

    fn index(stand: Option<Stand>) -> Index {
        let mut index = Index::new(Settings::default());
        if let Some(stand) = stand {
            index.apply(&Arc::new(decode(gateway("shop", stand).1).unwrap().0));
        }
        index
    }

    fn stand(decided: &BTreeMap<String, Stand>) -> Option<Stand> {
        decided.get("shop").copied()
    }

    #[test]
    fn it_stands_while_it_is_needed_and_is_marked_before_it_goes() {
        let (mut automatic, now) = (Automatic::new(DRAIN), Instant::now());
        let mut decide = |index: &Index, needs: &_| stand(&automatic.decide(index, needs, 7, |_| true, now));
        assert_eq!(decide(&index(None), &BTreeMap::new()), None);
        assert_eq!(decide(&index(None), &needs("x")), Some(Stand::InUse));
        assert_eq!(decide(&index(Some(Stand::InUse)), &needs("x")), Some(Stand::InUse));
        assert_eq!(decide(&index(Some(Stand::InUse)), &BTreeMap::new()), Some(Stand::Leaving), "acknowledgements of before do not count");
        assert_eq!(decide(&index(Some(Stand::Leaving)), &needs("y")), Some(Stand::InUse), "a need that comes back keeps it");
    }

    #[test]
    fn it_goes_when_node_proxies_have_acknowledged_and_it_had_time_to_drain() {
        let (mut automatic, start) = (Automatic::new(DRAIN), Instant::now());
        let index = index(Some(Stand::Leaving));
        let mut decide = |at: u64, generation, acknowledged: bool| {
            let now = start + Duration::from_secs(at);
            let decided = automatic.decide(&index, &BTreeMap::new(), generation, |of| acknowledged && of == 7, now);
            (stand(&decided), automatic.due(now).map(|due| (due - start).as_secs()))
        };
        assert_eq!(decide(0, 7, false), (Some(Stand::Leaving), Some(60)));
        assert_eq!(decide(5, 8, false), (Some(Stand::Leaving), Some(60)), "the generation that detached it counts, not a later one");
        assert_eq!(decide(10, 9, true), (Some(Stand::Leaving), Some(40)));
        assert_eq!(decide(39, 9, false), (Some(Stand::Leaving), Some(40)));
        assert_eq!(decide(40, 9, false), (None, None));
        assert_eq!(decide(41, 9, false), (None, None), "and not again, while its object is still seen");
    }

    #[test]
    fn a_node_proxy_that_never_answers_does_not_keep_it() {
        let (mut automatic, start) = (Automatic::new(DRAIN), Instant::now());
        let index = index(Some(Stand::Leaving));
        let mut decide = |at: u64| stand(&automatic.decide(&index, &BTreeMap::new(), 7, |_| false, start + Duration::from_secs(at)));
        assert_eq!([0, 59, 60, 89, 90].map(&mut decide).map(|stand| stand.is_some()), [true, true, true, true, false]);
    }

    #[test]
    fn a_gateway_that_only_bears_the_mark_is_a_users() {
        let mut index = Index::new(Settings::default());
        let (_, mut fields) = gateway("shop", Stand::Leaving);
        fields["metadata"]["name"] = "theirs".into();
        index.apply(&Arc::new(decode(fields).unwrap().0));
        let decided = Automatic::new(DRAIN).decide(&index, &BTreeMap::new(), 1, |_| true, Instant::now());
        assert!(decided.is_empty());
    }
}
