//! Waypoints that nobody asked for by name (design.md §4): a Gateway of ours for each namespace that needs one, and its way out.
//!
//! A Gateway whose need ended is marked as leaving: nothing new goes through it. When the node proxies have acknowledged that and what was
//! under way has had time to end, it is marked as stopping: its Deployment is taken away, and when its pods have ended, so is all the
//! rest. The mark stands on the object, so that a control plane that starts anew goes on where the one before it stopped.

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

use crate::{exits::Exits, scope::Key};

/// The name of every such Gateway, and so of its account, its Deployment and its Service.
pub(crate) const NAME: &str = "automatic-waypoint";
/// How long the pods of one that goes are waited for at most: twice what they have to end.
const LONGEST_STOP: Duration = Duration::from_secs(60);

/// What becomes of a namespace's automatic waypoint. One that is not named should not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// It is needed.
    InUse,
    /// It is not needed, and may still carry something.
    Leaving,
    /// Nothing goes through it: its pods finish what is open, and are still let in for it.
    Stopping,
}

/// Decides over automatic waypoints.
#[derive(Debug)]
pub(crate) struct Automatic {
    exits: Exits<String>,
    /// When those that stop are waited for no more.
    stops: BTreeMap<String, Instant>,
}

impl Automatic {
    /// A waypoint that is detached everywhere keeps running for `drain`.
    pub(crate) fn new(drain: Duration) -> Self {
        Self { exits: Exits::new(drain), stops: BTreeMap::new() }
    }

    /// What should stand in each namespace. `kept` says whether something goes through a waypoint until another one is ready for it;
    /// `published` is the generation that `index` is published in, and whether the node proxies have one.
    pub(crate) fn decide(
        &mut self,
        index: &Index,
        needs: &BTreeMap<String, Need>,
        kept: impl Fn(&Key) -> bool,
        (generation, acknowledged): (u64, &dyn Fn(u64) -> bool),
        now: Instant,
    ) -> BTreeMap<String, Stand> {
        let mut stands: BTreeMap<String, Stand> = needs.keys().map(|namespace| (namespace.clone(), Stand::InUse)).collect();
        let (mut leaving, mut stopping) = (BTreeSet::new(), BTreeSet::new());
        for gateway in index.automatic_waypoints().filter(|gateway| gateway.metadata.name == NAME) {
            let namespace = gateway.metadata.namespace.clone();
            let key = (namespace.clone(), NAME.to_owned());
            let mark = gateway.label(waypoint::AUTOMATIC);
            let stand = match mark {
                // What is needed again meanwhile is made anew once this is gone.
                _ if mark == Some(waypoint::STOPPING) || self.stops.contains_key(&namespace) => {
                    let until = *self.stops.entry(namespace.clone()).or_insert(now + LONGEST_STOP);
                    stopping.insert(namespace.clone());
                    (index.has_pods(&key) && now < until).then_some(Stand::Stopping)
                }
                _ if stands.contains_key(&namespace) || kept(&key) => Some(Stand::InUse),
                // It is marked first: only from then on is it detached.
                Some(waypoint::LEAVING) => {
                    leaving.insert(namespace.clone());
                    if self.exits.is_out(&namespace, generation, acknowledged, now) {
                        stopping.insert(namespace.clone());
                        self.stops.insert(namespace.clone(), now + LONGEST_STOP);
                        Some(Stand::Stopping)
                    } else {
                        Some(Stand::Leaving)
                    }
                }
                _ => Some(Stand::Leaving),
            };
            match stand {
                Some(stand) => _ = stands.insert(namespace, stand),
                None => _ = stands.remove(&namespace),
            }
        }
        self.exits.retain(|namespace| leaving.contains(namespace));
        self.stops.retain(|namespace, _| stopping.contains(namespace));
        stands
    }

    /// When to decide again, if nothing happens before.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let stops = self.stops.values().copied().filter(|until| *until > now);
        stops.chain(self.exits.due(now)).min()
    }
}

/// The Gateway of a namespace. It is for Services, as one that a user makes is.
pub(crate) fn gateway(namespace: &str, stand: Stand) -> (ObjectRef, Value) {
    let mark = match stand {
        Stand::InUse => "true",
        Stand::Leaving => waypoint::LEAVING,
        Stand::Stopping => waypoint::STOPPING,
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

    /// What is decided about namespace `shop` in `generation`, if the node proxies have what `acknowledged` says.
    fn decide(
        automatic: &mut Automatic,
        index: &Index,
        needs: &BTreeMap<String, Need>,
        (generation, acknowledged): (u64, &dyn Fn(u64) -> bool),
        now: Instant,
    ) -> Option<Stand> {
        stand(&automatic.decide(index, needs, |_| false, (generation, acknowledged), now))
    }

    #[test]
    fn it_stands_while_it_is_needed_and_is_marked_before_it_goes() {
        let (mut automatic, now) = (Automatic::new(DRAIN), Instant::now());
        let mut decide = |index: &Index, needs: &_| decide(&mut automatic, index, needs, (7, &|_| true), now);
        assert_eq!(decide(&index(None), &BTreeMap::new()), None);
        assert_eq!(decide(&index(None), &needs("x")), Some(Stand::InUse));
        assert_eq!(decide(&index(Some(Stand::InUse)), &needs("x")), Some(Stand::InUse));
        assert_eq!(decide(&index(Some(Stand::InUse)), &BTreeMap::new()), Some(Stand::Leaving), "acknowledgements of before do not count");
        assert_eq!(decide(&index(Some(Stand::Leaving)), &needs("y")), Some(Stand::InUse), "a need that comes back keeps it");
    }

    #[test]
    fn it_stays_while_something_goes_through_it_until_another_waypoint_is_ready() {
        let mut automatic = Automatic::new(DRAIN);
        let mut decided =
            |kept: bool| stand(&automatic.decide(&index(Some(Stand::InUse)), &BTreeMap::new(), |_| kept, (7, &|_| true), Instant::now()));
        assert_eq!([true, false].map(&mut decided), [Some(Stand::InUse), Some(Stand::Leaving)]);
    }

    #[test]
    fn its_pods_go_when_node_proxies_have_acknowledged_and_it_had_time_to_drain() {
        let (mut automatic, start) = (Automatic::new(DRAIN), Instant::now());
        let index = index(Some(Stand::Leaving));
        let mut decide = |at: u64, generation, acknowledged: bool| {
            let now = start + Duration::from_secs(at);
            let decided = decide(&mut automatic, &index, &BTreeMap::new(), (generation, &|of| acknowledged && of == 7), now);
            (decided, automatic.due(now).map(|due| (due - start).as_secs()))
        };
        assert_eq!(decide(0, 7, false), (Some(Stand::Leaving), Some(60)));
        assert_eq!(decide(5, 8, false), (Some(Stand::Leaving), Some(60)), "the generation that detached it counts, not a later one");
        assert_eq!(decide(10, 9, true), (Some(Stand::Leaving), Some(40)));
        assert_eq!(decide(39, 9, false), (Some(Stand::Leaving), Some(40)));
        assert_eq!(decide(40, 9, false), (Some(Stand::Stopping), Some(100)));
        assert_eq!(decide(41, 9, false), (None, Some(100)), "it has no pods, though its mark is not seen yet");
    }

    #[test]
    fn a_node_proxy_that_never_answers_does_not_keep_it() {
        let (mut automatic, start) = (Automatic::new(DRAIN), Instant::now());
        let index = index(Some(Stand::Leaving));
        let mut decide = |at: u64| {
            decide(&mut automatic, &index, &BTreeMap::new(), (7, &|_| false), start + Duration::from_secs(at)) == Some(Stand::Leaving)
        };
        assert_eq!([0, 59, 60, 89, 90].map(&mut decide), [true, true, true, true, false]);
    }

    #[test]
    fn it_is_gone_when_its_pods_are_and_is_not_needed_before() {
        let (mut automatic, start) = (Automatic::new(DRAIN), Instant::now());
        let mut index = index(Some(Stand::Stopping));
        let mut at =
            |index: &Index, needs: &_, seconds| decide(&mut automatic, index, needs, (7, &|_| true), start + Duration::from_secs(seconds));
        assert_eq!(at(&index, &BTreeMap::new(), 0), None);
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "shop", "labels": {waypoint::GATEWAY_NAME: NAME, waypoint::MANAGED: "istio.io-mesh-controller"}},
            "spec": {"containers": []},
        });
        index.apply(&Arc::new(decode(pod).unwrap().0));
        assert_eq!(at(&index, &BTreeMap::new(), 1), Some(Stand::Stopping));
        assert_eq!(at(&index, &needs("x"), 30), Some(Stand::Stopping), "one that stops takes nothing new");
        assert_eq!(at(&index, &needs("x"), 60), None, "a pod that never ends does not keep it");
    }

    #[test]
    fn a_gateway_that_only_bears_the_mark_is_a_users() {
        let mut index = Index::new(Settings::default());
        let (_, mut fields) = gateway("shop", Stand::Leaving);
        fields["metadata"]["name"] = "theirs".into();
        index.apply(&Arc::new(decode(fields).unwrap().0));
        assert_eq!(decide(&mut Automatic::new(DRAIN), &index, &BTreeMap::new(), (1, &|_| true), Instant::now()), None);
    }
}
