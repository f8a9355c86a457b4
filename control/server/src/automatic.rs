//! Waypoints that nobody asked for by name (design.md §4): a Gateway of ours for each namespace, or account of one, that needs it, and its
//! way out.
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
    waypoint::{
        self,
        needed::{MOST_OF_ACCOUNTS, Need, Reason},
    },
};
use tropis_crds::{Finding, Kind, Level, ObjectRef, codes, gateway_api::CLASS_WAYPOINT};

use crate::{exits::Exits, scope::Key};

/// How long the pods of one that goes are waited for at most: twice what they have to end.
const LONGEST_STOP: Duration = Duration::from_secs(60);

/// What becomes of an automatic waypoint. One that is not named should not exist.
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
    exits: Exits<Key>,
    /// When those that stop are waited for no more.
    stops: BTreeMap<Key, Instant>,
}

impl Automatic {
    /// A waypoint that is detached everywhere keeps running for `drain`.
    pub(crate) fn new(drain: Duration) -> Self {
        Self { exits: Exits::new(drain), stops: BTreeMap::new() }
    }

    /// What should stand, by Gateway. `kept` says whether something goes through a waypoint until another one is ready for it;
    /// `published` is the generation that `index` is published in, and whether the node proxies have one.
    pub(crate) fn decide(
        &mut self,
        index: &Index,
        needs: &BTreeMap<Key, Need>,
        kept: impl Fn(&Key) -> bool,
        (generation, acknowledged): (u64, &dyn Fn(u64) -> bool),
        now: Instant,
    ) -> BTreeMap<Key, Stand> {
        let mut stands: BTreeMap<Key, Stand> = needs.keys().map(|gateway| (gateway.clone(), Stand::InUse)).collect();
        let (mut leaving, mut stopping) = (BTreeSet::new(), BTreeSet::new());
        for gateway in index.automatic_waypoints() {
            let key = (gateway.metadata.namespace.clone(), gateway.metadata.name.clone());
            let mark = gateway.label(waypoint::AUTOMATIC);
            let stand = match mark {
                // What is needed again meanwhile is made anew once this is gone.
                _ if mark == Some(waypoint::STOPPING) || self.stops.contains_key(&key) => {
                    let until = *self.stops.entry(key.clone()).or_insert(now + LONGEST_STOP);
                    stopping.insert(key.clone());
                    (index.has_pods(&key) && now < until).then_some(Stand::Stopping)
                }
                _ if stands.contains_key(&key) || kept(&key) => Some(Stand::InUse),
                // It is marked first: only from then on is it detached.
                Some(waypoint::LEAVING) => {
                    leaving.insert(key.clone());
                    if self.exits.is_out(&key, generation, acknowledged, now) {
                        stopping.insert(key.clone());
                        self.stops.insert(key.clone(), now + LONGEST_STOP);
                        Some(Stand::Stopping)
                    } else {
                        Some(Stand::Leaving)
                    }
                }
                _ => Some(Stand::Leaving),
            };
            match stand {
                Some(stand) => _ = stands.insert(key, stand),
                None => _ = stands.remove(&key),
            }
        }
        self.exits.retain(|gateway| leaving.contains(gateway));
        self.stops.retain(|gateway, _| stopping.contains(gateway));
        stands
    }

    /// When to decide again, if nothing happens before.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let stops = self.stops.values().copied().filter(|until| *until > now);
        stops.chain(self.exits.due(now)).min()
    }
}

/// The Gateway of a namespace, or of an account of it, by its name. Either is for Services, also where a user's own for an account would
/// take what is addressed to the account's pods as well: Services are what needs it, and nobody asked for a proxy before ports that no
/// Service declares, where protocols in which the server speaks first would wait to be told apart. So a change of the scope changes who
/// carries a Service and nothing else.
pub(crate) fn gateway(key: &Key, account: Option<&str>, stand: Stand) -> (ObjectRef, Value) {
    let mark = match stand {
        Stand::InUse => "true",
        Stand::Leaving => waypoint::LEAVING,
        Stand::Stopping => waypoint::STOPPING,
    };
    let (namespace, name) = key;
    let mut fields = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": name, "namespace": namespace, "labels": { waypoint::AUTOMATIC: mark, waypoint::WAYPOINT_FOR: "service" } },
        "spec": {
            "gatewayClassName": CLASS_WAYPOINT,
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    });
    if let Some(account) = account {
        // An account's name may be longer than a label's value.
        fields["metadata"]["annotations"] = json!({ waypoint::FOR_ACCOUNT: account });
    }
    (ObjectRef::new(Kind::Gateway, namespace, name), fields)
}

/// What was made, and why.
pub(crate) fn made(key: &Key, need: &Need) -> Finding {
    let (namespace, name) = key;
    let gateway = format!("Gateway {namespace}/{name}");
    let (level, problem, effect) = match &need.reason {
        Reason::ByScope => (Level::Info, "needs a waypoint, and nobody made one".to_owned(), format!("{gateway} was made")),
        Reason::Mixed(accounts) => {
            let problem =
                format!("needs a waypoint, nobody made one, and the Service's pods run as several accounts: {}", accounts.join(", "));
            (Level::Info, problem, format!("{gateway} was made beside those of accounts"))
        }
        Reason::Beyond(more) => {
            let problem = format!(
                "needs a waypoint, and {MOST_OF_ACCOUNTS} accounts of the namespace have one of their own, which is the most; {more} more have none"
            );
            (Level::Warning, problem, format!("{gateway} was made beside those of accounts"))
        }
        Reason::Present => {
            let problem = "needs a waypoint, and the one that is to carry the Service is not there yet".to_owned();
            (Level::Info, problem, format!("{gateway} stays until it is"))
        }
    };
    let whose = match &need.account {
        Some(account) => format!("the Services all of whose pods run as account {account}"),
        None => "the namespace's Services".to_owned(),
    };
    finding(level, codes::AUTOMATIC_WAYPOINT, namespace)
        .found(format!("{}{}", need.because, at(namespace, need)))
        .problem(problem)
        .accepted("label istio.io/use-waypoint to choose a waypoint of your own, or this label with \"false\" to have none")
        .effect(format!("{effect} and carries {whose} while something needs it"))
}

/// Nothing can be made, because of what has the name.
pub(crate) fn taken(key: &Key, need: &Need, taken: &ObjectRef) -> Finding {
    let (namespace, name) = key;
    finding(Level::Error, codes::NAME_TAKEN, namespace)
        .found(taken.to_string())
        .problem(format!("was not made by the control plane, so no waypoint is made, which {}{} needs", need.because, at(namespace, need)))
        .accepted(format!("a namespace without an object called {name}, or label istio.io/use-waypoint to use a waypoint of yours"))
        .effect("no waypoint is made; rules of layer 4 hold, and what looks at HTTP is not done")
}

/// The Service that a need is about.
fn at(namespace: &str, need: &Need) -> String {
    need.service.as_ref().map(|service| format!(", for Service {namespace}/{service},")).unwrap_or_default()
}

fn finding(level: Level, code: &'static str, namespace: &str) -> Finding {
    let namespace = ObjectRef::cluster(Kind::Namespace, namespace);
    Finding::new(level, code, namespace).field(format!("metadata.labels[{}]", waypoint::AUTOMATIC))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tropis_compile::{Settings, waypoint::automatic::name};
    use tropis_crds::decode;

    use super::*;

    const DRAIN: Duration = Duration::from_secs(30);

    fn key(account: Option<&str>) -> Key {
        ("shop".to_owned(), name(account))
    }

    fn need(account: Option<&str>, reason: Reason) -> Need {
        Need { because: "VirtualService shop/r".to_owned(), service: Some("web".to_owned()), account: account.map(str::to_owned), reason }
    }

    fn needs() -> BTreeMap<Key, Need> {
        [(key(None), need(None, Reason::ByScope))].into()
    }

    fn index(stand: Option<Stand>) -> Index {
        let mut index = Index::new(Settings::default());
        if let Some(stand) = stand {
            index.apply(&Arc::new(decode(gateway(&key(None), None, stand).1).unwrap().0));
        }
        index
    }

    fn stand(decided: &BTreeMap<Key, Stand>) -> Option<Stand> {
        decided.get(&key(None)).copied()
    }

    /// What is decided about namespace `shop` in `generation`, if the node proxies have what `acknowledged` says.
    fn decide(
        automatic: &mut Automatic,
        index: &Index,
        needs: &BTreeMap<Key, Need>,
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
        assert_eq!(decide(&index(None), &needs()), Some(Stand::InUse));
        assert_eq!(decide(&index(Some(Stand::InUse)), &needs()), Some(Stand::InUse));
        assert_eq!(decide(&index(Some(Stand::InUse)), &BTreeMap::new()), Some(Stand::Leaving), "acknowledgements of before do not count");
        assert_eq!(decide(&index(Some(Stand::Leaving)), &needs()), Some(Stand::InUse), "a need that comes back keeps it");
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
            "metadata": {"name": "p", "namespace": "shop", "labels": {waypoint::GATEWAY_NAME: name(None), waypoint::MANAGED: "istio.io-mesh-controller"}},
            "spec": {"containers": []},
        });
        index.apply(&Arc::new(decode(pod).unwrap().0));
        assert_eq!(at(&index, &BTreeMap::new(), 1), Some(Stand::Stopping));
        assert_eq!(at(&index, &needs(), 30), Some(Stand::Stopping), "one that stops takes nothing new");
        assert_eq!(at(&index, &needs(), 60), None, "a pod that never ends does not keep it");
    }

    #[test]
    fn a_gateway_that_only_bears_the_mark_is_a_users() {
        let mut index = Index::new(Settings::default());
        for (named, account) in [("theirs", None), ("other", Some("web")), (&*name(Some("api")), Some("web")), (&*name(Some("web")), None)]
        {
            let (_, mut fields) = gateway(&key(None), account, Stand::Leaving);
            fields["metadata"]["name"] = named.into();
            index.apply(&Arc::new(decode(fields).unwrap().0));
        }
        let decided = Automatic::new(DRAIN).decide(&index, &BTreeMap::new(), |_| false, (1, &|_| true), Instant::now());
        assert_eq!(decided, BTreeMap::new());
    }

    #[test]
    fn those_of_accounts_come_and_go_each_by_itself() {
        let (mut automatic, start) = (Automatic::new(DRAIN), Instant::now());
        let mut index = Index::new(Settings::default());
        let mut stands = |index: &Index, needed: &[&str], at: u64| {
            let needs = needed.iter().map(|account| (key(Some(account)), need(Some(account), Reason::ByScope))).collect();
            let stands = automatic.decide(index, &needs, |_| false, (7, &|_| true), start + Duration::from_secs(at));
            ["api", "web"].map(|account| stands.get(&key(Some(account))).copied())
        };
        assert_eq!(stands(&index, &["api", "web"], 0), [Some(Stand::InUse); 2]);
        for account in ["api", "web"] {
            index.apply(&Arc::new(decode(gateway(&key(Some(account)), Some(account), Stand::InUse).1).unwrap().0));
        }
        assert_eq!(stands(&index, &["api"], 1), [Some(Stand::InUse), Some(Stand::Leaving)]);
        index.apply(&Arc::new(decode(gateway(&key(Some("web")), Some("web"), Stand::Leaving).1).unwrap().0));
        assert_eq!(stands(&index, &["api"], 2), [Some(Stand::InUse), Some(Stand::Leaving)]);
        assert_eq!(stands(&index, &["api"], 32), [Some(Stand::InUse), Some(Stand::Stopping)]);
        assert_eq!(stands(&index, &["api"], 33), [Some(Stand::InUse), None]);
    }

    #[test]
    fn what_is_told_names_the_gateway_and_why_it_is_that_one() {
        let told = |account: Option<&str>, reason| made(&key(account), &need(account, reason));
        let web = told(Some("web"), Reason::ByScope).to_string();
        assert!(web.contains("VirtualService shop/r, for Service shop/web, needs a waypoint"), "{web}");
        assert!(
            web.contains("Gateway shop/automatic-waypoint-web was made and carries the Services all of whose pods run as account web"),
            "{web}"
        );
        let mixed = told(None, Reason::Mixed(vec!["api".to_owned(), "web".to_owned()])).to_string();
        assert!(
            mixed.contains("several accounts: api, web") && mixed.contains("Gateway shop/automatic-waypoint was made beside"),
            "{mixed}"
        );
        let beyond = told(None, Reason::Beyond(3));
        assert!(
            beyond.level == Level::Warning && beyond.to_string().contains("16 accounts") && beyond.to_string().contains("3 more"),
            "{beyond}"
        );
        let present = told(Some("web"), Reason::Present).to_string();
        assert!(present.contains("Gateway shop/automatic-waypoint-web stays until it is"), "{present}");
    }
}
