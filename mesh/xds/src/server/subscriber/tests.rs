//! Sequences of requests and publications, as the reference describes them.

use std::sync::Arc;

use tropis_model::{
    address::NamespacedHostname,
    identity::Identity,
    policy::{Action, Policy, PolicyKey, PolicyScope},
    route::Host,
    view::Change,
    waypoint::{Serves, Waypoint},
    workload::Workload,
};
use tropis_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, HOST_TYPE, WAYPOINT_TYPE, xds::Status};

use super::*;
use crate::server::Resources;

fn pod(name: &str, node: &str) -> Change {
    let mut workload = Workload::new(format!("k//Pod/ns/{name}"), name, Identity::new("cluster.local", "ns", "sa"));
    workload.node = node.into();
    Change::Workload(Arc::new(workload))
}

fn gone(name: &str) -> Change {
    Change::RemoveAddress(format!("k//Pod/ns/{name}").into())
}

fn policy(name: &str) -> Change {
    Change::Policy(Arc::new(Policy {
        key: PolicyKey(format!("ns/{name}").into()),
        namespace: "ns".into(),
        scope: PolicyScope::Namespace,
        action: Action::Allow,
        rules: Vec::new(),
        dry_run: false,
    }))
}

fn waypoint() -> Audience {
    Audience::Waypoint("ns/waypoint".into())
}

fn hostname(name: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: "ns".into(), hostname: name.into() }
}

fn host(name: &str) -> Change {
    Change::Host(Arc::new(Host { name: hostname(name), ports: BTreeMap::new(), policies: Vec::new(), pools: BTreeMap::new() }))
}

fn own() -> Change {
    Change::Waypoint(Arc::new(Waypoint {
        key: "ns/waypoint".into(),
        service: hostname("waypoint"),
        serves: Serves::Services,
        policies: Vec::new(),
        access_log: None,
        elsewhere: Default::default(),
    }))
}

fn policy_gone(name: &str) -> Change {
    Change::RemovePolicy(PolicyKey(format!("ns/{name}").into()))
}

/// A subscriber with its table, spoken to as a client speaks.
struct Talk {
    table: Resources,
    subscriber: Subscriber,
    patient_enough: bool,
}

impl Talk {
    fn new(changes: &[Change]) -> Self {
        let table = Resources::new("i");
        table.publish(changes);
        Self { table, subscriber: Subscriber::new(Audience::NodeProxies), patient_enough: false }
    }

    /// A waypoint's; `changes` are what concerns it.
    fn waypoint(changes: &[Change]) -> Self {
        let talk = Self { table: Resources::new("i"), subscriber: Subscriber::new(waypoint()), patient_enough: false };
        talk.tell(changes);
        talk
    }

    fn tell(&self, changes: &[Change]) {
        let mut step = self.table.step();
        step.apply(&waypoint(), changes);
        step.publish();
    }

    fn subscribe(&mut self, type_url: &str, versions: &[(&str, &str)]) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            initial_resource_versions: versions.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect(),
            ..Default::default()
        };
        self.subscriber.request(request).unwrap();
    }

    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        self.subscriber.next(&self.table.snapshot().unwrap(), self.patient_enough)
    }

    fn answer(&mut self, response: &DeltaDiscoveryResponse, refusal: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: refusal.map(|message| Status { message: message.into(), ..Default::default() }),
            ..Default::default()
        };
        self.subscriber.request(request).unwrap();
    }

    /// Everything that comes, acknowledged; each as `type: +updated -removed`.
    fn drain(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(response) = self.next() {
            seen.push(summary(&response));
            self.answer(&response, None);
        }
        seen
    }
}

fn summary(response: &DeltaDiscoveryResponse) -> String {
    let kind = match ResourceType::from_url(&response.type_url).unwrap() {
        ResourceType::Address => "addresses",
        ResourceType::Authorization => "policies",
        ResourceType::Waypoint => "waypoints",
        ResourceType::Host => "hosts",
    };
    let short = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let updated = response.resources.iter().map(|resource| format!(" +{}", short(&resource.name)));
    let removed = response.removed_resources.iter().map(|name| format!(" -{}", short(name)));
    format!("{kind}:{}", updated.chain(removed).collect::<String>())
}

#[test]
fn both_types_get_a_first_response_even_if_it_is_empty() {
    let mut talk = Talk::new(&[]);
    assert_eq!(talk.next(), None, "nothing is sent unasked");
    talk.subscribe(ADDRESS_TYPE, &[]);
    talk.subscribe(AUTHORIZATION_TYPE, &[]);
    assert_eq!(talk.drain(), ["policies:", "addresses:"]);
    assert_eq!(talk.drain(), [""; 0]);
}

#[test]
fn only_what_changed_is_sent() {
    let mut talk = Talk::new(&[pod("a", "1"), pod("b", "1")]);
    talk.subscribe(ADDRESS_TYPE, &[]);
    assert_eq!(talk.drain(), ["addresses: +a +b"]);
    talk.table.publish(&[pod("b", "2"), pod("c", "1")]);
    assert_eq!(talk.drain(), ["addresses: +b +c"]);
    talk.table.publish(&[gone("a"), pod("c", "1")]);
    assert_eq!(talk.drain(), ["addresses: -a"]);
}

#[test]
fn a_long_reason_is_cut() {
    let mut talk = Talk::new(&[policy("a")]);
    talk.subscribe(AUTHORIZATION_TYPE, &[]);
    let response = talk.next().unwrap();
    talk.answer(&response, Some(&format!("ns/a: {}", "\u{fc}".repeat(1 << 20))));
    let (_, policies) = talk.subscriber.state().find(|(served, _)| *served == ResourceType::Authorization).unwrap();
    let kept = policies.rejected["ns/a"].len();
    assert!((MAX_REFUSAL_BYTES - 16..=MAX_REFUSAL_BYTES).contains(&kept), "{kept}");
}

#[test]
fn a_slow_client_gets_several_changes_as_one() {
    let mut talk = Talk::new(&[pod("a", "1")]);
    talk.subscribe(ADDRESS_TYPE, &[]);
    let first = talk.next().unwrap();
    talk.table.publish(&[pod("b", "1")]);
    talk.table.publish(&[pod("b", "2"), pod("c", "1")]);
    talk.table.publish(&[gone("c"), gone("a")]);
    assert_eq!(talk.next(), None, "one response is under way");
    talk.answer(&first, None);
    assert_eq!(talk.drain(), ["addresses: +b -a"]);
}

#[test]
fn a_reconnecting_client_gets_the_difference_to_what_it_names() {
    let changes = [pod("a", "1"), pod("b", "1"), pod("c", "1"), policy("p")];
    let mut talk = Talk::new(&changes);
    let snapshot = talk.table.snapshot().unwrap();
    let version = |wanted: &str| {
        snapshot.resources(&Audience::NodeProxies, ResourceType::Address).find(|(name, _)| name.ends_with(wanted)).unwrap().1.to_owned()
    };
    let held = [("k//Pod/ns/a", version("/a")), ("k//Pod/ns/b", "stale".to_owned()), ("k//Pod/ns/z", "gone".to_owned())];
    let held: Vec<(&str, &str)> = held.iter().map(|(name, version)| (*name, version.as_str())).collect();
    talk.subscribe(AUTHORIZATION_TYPE, &[("ns/p", ""), ("ns/q", "")]);
    talk.subscribe(ADDRESS_TYPE, &held);
    assert_eq!(talk.drain(), ["policies: +p", "addresses: +b +c -z", "policies: -q"]);
}

#[test]
fn a_client_that_is_up_to_date_gets_empty_first_responses() {
    let mut talk = Talk::new(&[pod("a", "1")]);
    let snapshot = talk.table.snapshot().unwrap();
    let held: Vec<(&str, &str)> = snapshot.resources(&Audience::NodeProxies, ResourceType::Address).collect();
    talk.subscribe(ADDRESS_TYPE, &held);
    assert_eq!(talk.drain(), ["addresses:"]);
}

#[test]
fn policies_come_before_the_workloads_that_name_them_and_go_after() {
    let mut talk = Talk::new(&[]);
    talk.subscribe(ADDRESS_TYPE, &[]);
    talk.subscribe(AUTHORIZATION_TYPE, &[]);
    talk.drain();
    talk.table.publish(&[pod("a", "1"), policy("p")]);
    assert_eq!(talk.drain(), ["policies: +p", "addresses: +a"]);
    talk.table.publish(&[policy_gone("p"), policy("q"), pod("a", "2")]);
    assert_eq!(talk.drain(), ["policies: +q", "addresses: +a", "policies: -p"]);
}

#[test]
fn workloads_wait_while_new_policies_cannot_be_sent() {
    let mut talk = Talk::new(&[]);
    talk.subscribe(ADDRESS_TYPE, &[]);
    talk.subscribe(AUTHORIZATION_TYPE, &[]);
    let first = talk.next().unwrap();
    assert_eq!(summary(&first), "policies:");
    talk.table.publish(&[policy("p"), pod("a", "1")]);
    assert_eq!(talk.next(), None);
    talk.answer(&first, None);
    assert_eq!(talk.drain(), ["policies: +p", "addresses: +a"]);
}

#[test]
fn a_policy_removed_before_its_workloads_were_told_is_still_told() {
    let mut talk = Talk::new(&[]);
    talk.subscribe(ADDRESS_TYPE, &[]);
    talk.subscribe(AUTHORIZATION_TYPE, &[]);
    talk.drain();
    talk.table.publish(&[policy("p"), pod("a", "1")]);
    let upsert = talk.next().unwrap();
    assert_eq!(summary(&upsert), "policies: +p");
    talk.table.publish(&[policy_gone("p")]);
    talk.answer(&upsert, None);
    assert_eq!(talk.drain(), ["addresses: +a", "policies: -p"]);
}

#[test]
fn a_client_of_policies_only_hears_of_removals_after_a_while() {
    let mut talk = Talk::new(&[]);
    talk.subscribe(AUTHORIZATION_TYPE, &[("ns/old", "")]);
    assert_eq!(talk.drain(), ["policies:"]);
    talk.patient_enough = true;
    assert_eq!(talk.drain(), ["policies: -old"]);
}

#[test]
fn a_waypoint_hears_of_endpoints_before_routes_and_loses_them_after() {
    let mut talk = Talk::waypoint(&[pod("a", "1"), own(), host("web")]);
    for type_url in [AUTHORIZATION_TYPE, ADDRESS_TYPE, WAYPOINT_TYPE, HOST_TYPE] {
        talk.subscribe(type_url, &[]);
    }
    assert_eq!(talk.drain(), ["addresses: +a", "waypoints: +waypoint", "hosts: +web"], "never a policy of layer 4");
    talk.tell(&[Change::RemoveHost(hostname("web")), host("api"), gone("a"), pod("b", "1")]);
    assert_eq!(talk.drain(), ["addresses: +b", "hosts: +api -web", "addresses: -a"]);
    let generation = talk.table.snapshot().unwrap().generation;
    assert!(talk.subscriber.state().all(|(_, state)| state.acknowledged == generation));
}

#[test]
fn a_waypoint_that_comes_back_hears_of_what_differs_in_the_same_order() {
    let mut talk = Talk::waypoint(&[pod("a", "1"), pod("b", "1"), own(), host("web"), host("api")]);
    let snapshot = talk.table.snapshot().unwrap();
    let version = |kind, wanted: &str| snapshot.resources(&waypoint(), kind).find(|(name, _)| name.ends_with(wanted)).unwrap().1.to_owned();
    let a = version(ResourceType::Address, "/a");
    talk.subscribe(ADDRESS_TYPE, &[("k//Pod/ns/a", &a), ("k//Pod/ns/b", "stale"), ("k//Pod/ns/z", "gone")]);
    assert_eq!(talk.drain(), ["addresses: +b"], "what is gone waits until the routes were told");
    let own = version(ResourceType::Waypoint, "/waypoint");
    talk.subscribe(WAYPOINT_TYPE, &[("ns/waypoint", &own)]);
    let web = version(ResourceType::Host, "/web");
    talk.subscribe(HOST_TYPE, &[("ns/web", &web), ("ns/old", "1")]);
    assert_eq!(talk.drain(), ["waypoints:", "hosts: +api -old", "addresses: -z"]);
}

#[test]
fn a_waypoint_is_told_what_belongs_together() {
    let mut talk = Talk::waypoint(&[pod("a", "1"), own(), host("web")]);
    let next = |talk: &mut Talk, is_continued: bool, expected: &str| {
        let response = talk.next().unwrap();
        assert_eq!((summary(&response).as_str(), response.continued), (expected, is_continued));
        talk.answer(&response, None);
    };
    talk.subscribe(ADDRESS_TYPE, &[]);
    next(&mut talk, true, "addresses: +a");
    assert!(talk.next().is_none(), "it is about to ask for the rest");
    talk.subscribe(HOST_TYPE, &[]);
    next(&mut talk, true, "hosts: +web");
    assert!(talk.next().is_none(), "nothing closes them before it has asked for all");
    talk.subscribe(WAYPOINT_TYPE, &[]);
    next(&mut talk, false, "waypoints: +waypoint");
    talk.tell(&[pod("a", "2")]);
    next(&mut talk, false, "addresses: +a");
    talk.tell(&[pod("a", "3"), pod("b", "1"), host("api")]);
    next(&mut talk, true, "addresses: +a +b");
    // Of what was to follow nothing is left.
    talk.tell(&[Change::RemoveHost(hostname("api")), gone("b")]);
    next(&mut talk, false, "hosts:");
    next(&mut talk, false, "addresses: -b");
    assert!(talk.next().is_none());
    let generation = talk.table.snapshot().unwrap().generation;
    assert!(talk.subscriber.state().all(|(_, state)| state.acknowledged == generation));
}

#[test]
fn what_was_to_follow_waits_for_the_answer_to_the_one_before() {
    let mut talk = Talk::waypoint(&[pod("a", "1"), own(), host("web")]);
    for type_url in [ADDRESS_TYPE, WAYPOINT_TYPE, HOST_TYPE] {
        talk.subscribe(type_url, &[]);
    }
    talk.drain();
    talk.tell(&[host("api")]);
    let slow = talk.next().unwrap();
    talk.tell(&[pod("a", "2"), host("more")]);
    let addresses = talk.next().unwrap();
    assert_eq!((summary(&slow), summary(&addresses)), ("hosts: +api".into(), "addresses: +a".into()));
    assert!(addresses.continued && talk.next().is_none());
    talk.answer(&addresses, None);
    assert!(talk.next().is_none());
    talk.tell(&[Change::RemoveHost(hostname("more"))]);
    assert!(talk.next().is_none());
    talk.answer(&slow, None);
    let closing = talk.next().unwrap();
    assert_eq!((summary(&closing).as_str(), closing.continued), ("hosts:", false));
    let generation = talk.table.snapshot().unwrap().generation;
    let has_all = |talk: &Talk| talk.subscriber.state().all(|(_, state)| state.acknowledged == generation);
    assert!(!has_all(&talk), "the addresses are not in force before that one is");
    talk.answer(&closing, None);
    assert!(talk.next().is_none() && has_all(&talk));
}

#[test]
fn a_waypoint_without_a_table_waits() {
    let mut talk = Talk::new(&[pod("a", "1")]);
    talk.subscriber = Subscriber::new(waypoint());
    talk.subscribe(ADDRESS_TYPE, &[]);
    assert_eq!(talk.drain(), [""; 0], "nobody else's table is told");
    talk.tell(&[]);
    assert_eq!(talk.drain(), ["addresses:"]);
}

#[test]
fn a_refused_resource_is_remembered_until_it_is_accepted() {
    let mut talk = Talk::new(&[pod("a", "1"), pod("b", "1")]);
    talk.subscribe(ADDRESS_TYPE, &[]);
    let response = talk.next().unwrap();
    talk.answer(&response, Some("k//Pod/ns/a: no good; k//Pod/ns/b: too late"));
    assert_eq!(talk.drain(), [""; 0], "what was refused is not sent again");
    let rejected =
        |talk: &Talk| talk.subscriber.subscriptions[&ResourceType::Address].state.rejected.clone().into_iter().collect::<Vec<_>>();
    let both = [("k//Pod/ns/a".to_owned(), "no good".to_owned()), ("k//Pod/ns/b".to_owned(), "too late".to_owned())];
    assert_eq!(rejected(&talk), both);
    talk.table.publish(&[pod("a", "2")]);
    assert_eq!(talk.drain(), ["addresses: +a"]);
    assert_eq!(rejected(&talk), both[1..]);
    talk.table.publish(&[gone("b")]);
    assert_eq!(talk.drain(), ["addresses: -b"]);
    assert_eq!(rejected(&talk), []);
}

#[test]
fn acknowledgements_tell_how_far_the_client_is() {
    let mut talk = Talk::new(&[pod("a", "1")]);
    talk.subscribe(ADDRESS_TYPE, &[]);
    talk.subscribe(AUTHORIZATION_TYPE, &[]);
    talk.drain();
    let states = |talk: &Talk| talk.subscriber.state().map(|(_, state)| state.clone()).collect::<Vec<_>>();
    // Policies, addresses.
    let acknowledged = |talk: &Talk| states(talk).iter().map(|state| state.acknowledged).collect::<Vec<_>>();
    assert_eq!(acknowledged(&talk), [1, 1]);
    talk.table.publish(&[pod("a", "2")]);
    let response = talk.next().unwrap();
    assert_eq!(states(&talk)[1].in_flight, Some(2));
    assert_eq!(talk.next(), None);
    assert_eq!(acknowledged(&talk), [2, 1], "the change does not concern policies");
    let stale = DeltaDiscoveryResponse { nonce: "another".into(), ..response.clone() };
    talk.answer(&stale, None);
    assert_eq!(acknowledged(&talk), [2, 1]);
    talk.answer(&response, None);
    assert_eq!(acknowledged(&talk), [2, 2]);
}

/// A pod with an address.
fn pod_at(name: &str, address: &str) -> Change {
    let Change::Workload(workload) = pod(name, "1") else { unreachable!() };
    Change::Workload(Arc::new(Workload { addresses: vec![address.parse().unwrap()], ..Workload::clone(&workload) }))
}

impl Talk {
    fn ask(&mut self, more: &[&str], less: &[&str]) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.into(),
            resource_names_subscribe: owned(more),
            resource_names_unsubscribe: owned(less),
            ..Default::default()
        };
        self.subscriber.request(request).unwrap();
    }
}

#[test]
fn a_waypoint_is_told_of_callers_for_as_long_as_it_asks_for_them() {
    let mut talk = Talk::waypoint(&[pod("a", "1"), own()]);
    for type_url in [ADDRESS_TYPE, WAYPOINT_TYPE, HOST_TYPE] {
        talk.subscribe(type_url, &[]);
    }
    talk.table.publish(&[pod_at("caller", "10.0.0.1"), pod_at("other", "fd00::2")]);
    assert_eq!(talk.drain(), ["addresses: +a", "waypoints: +waypoint", "hosts:"], "nobody is told unasked");
    talk.ask(&["/10.0.0.1"], &[]);
    assert_eq!(talk.drain(), ["addresses: +caller"]);
    talk.ask(&["/10.0.0.1", "/fd00::2"], &[]);
    assert_eq!(talk.drain(), ["addresses: +other"]);
    talk.table.publish(&[pod_at("other", "fd00::3"), pod("third", "1")]);
    assert_eq!(talk.drain(), ["addresses: -other"], "it is not at that address any more");
    talk.ask(&[], &["/10.0.0.1", "/fd00::2"]);
    assert_eq!(talk.drain(), ["addresses: -caller"]);
    let generation = talk.table.snapshot().unwrap().generation;
    assert!(talk.subscriber.state().all(|(_, state)| state.acknowledged == generation));
}

#[test]
fn an_address_that_nobody_has_is_told_as_removed_once_and_told_when_somebody_gets_it() {
    let mut talk = Talk::waypoint(&[own()]);
    for type_url in [ADDRESS_TYPE, WAYPOINT_TYPE, HOST_TYPE] {
        talk.subscribe(type_url, &[]);
    }
    talk.drain();
    talk.ask(&["/10.0.0.1"], &[]);
    assert_eq!(talk.drain(), ["addresses: -10.0.0.1"]);
    talk.tell(&[host("web")]);
    assert_eq!(talk.drain(), ["hosts: +web"], "it is said once");
    talk.table.publish(&[pod_at("late", "10.0.0.1")]);
    assert_eq!(talk.drain(), ["addresses: +late"]);
}

#[test]
fn what_stands_in_a_waypoints_own_table_counts_for_a_caller_too() {
    let labelled = |change: Change, label: &str| {
        let Change::Workload(workload) = change else { unreachable!() };
        Change::Workload(Arc::new(Workload { labels: [(label.into(), "x".into())].into(), ..Workload::clone(&workload) }))
    };
    let own_labels = labelled(pod_at("a", "10.0.0.1"), "own");
    let mut talk = Talk::waypoint(&[own_labels, own()]);
    let mut step = talk.table.step();
    step.apply(&Audience::NodeProxies, &[pod_at("a", "10.0.0.1"), pod_at("b", "10.0.0.2")]);
    step.callers(&[labelled(pod_at("a", "10.0.0.1"), "asked"), labelled(pod_at("b", "10.0.0.2"), "asked")]);
    step.publish();
    for type_url in [ADDRESS_TYPE, WAYPOINT_TYPE, HOST_TYPE] {
        talk.subscribe(type_url, &[]);
    }
    talk.drain();
    talk.ask(&["/10.0.0.1"], &[]);
    assert_eq!(talk.drain(), [""; 0], "it has it");
    talk.tell(&[gone("a")]);
    assert_eq!(talk.drain(), ["addresses: +a"], "now it is a caller and nothing else");
    talk.ask(&["/10.0.0.2"], &[]);
    let response = talk.next().unwrap();
    assert_eq!(summary(&response), "addresses: +b");
    let sent = crate::convert::decode(ResourceType::Address, &response.resources[0], &mut Default::default()).unwrap();
    assert_eq!(sent, labelled(pod_at("b", "10.0.0.2"), "asked"), "with the labels that routes ask callers for");
}

#[test]
fn a_waypoint_that_comes_back_with_its_callers_is_told_only_what_differs() {
    let mut talk = Talk::waypoint(&[own()]);
    talk.table.publish(&[pod_at("caller", "10.0.0.1")]);
    let snapshot = talk.table.snapshot().unwrap();
    let version = snapshot.callers("/10.0.0.1").next().unwrap().1.resource.version.clone();
    let request = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.into(),
        resource_names_subscribe: ["*", "/10.0.0.1", "/10.0.0.9"].map(str::to_owned).into(),
        initial_resource_versions: [("k//Pod/ns/caller".to_owned(), version)].into(),
        ..Default::default()
    };
    talk.subscriber.request(request).unwrap();
    assert_eq!(talk.drain(), ["addresses: -10.0.0.9"]);
}

#[test]
fn a_client_cannot_ask_for_more_addresses_than_there_is_room_for() {
    let mut talk = Talk::waypoint(&[own()]);
    talk.subscribe(ADDRESS_TYPE, &[]);
    let ask = |talk: &mut Talk, names: Vec<String>| {
        let request = DeltaDiscoveryRequest { type_url: ADDRESS_TYPE.into(), resource_names_subscribe: names, ..Default::default() };
        talk.subscriber.request(request)
    };
    assert_eq!(ask(&mut talk, (0..4096).map(|number| format!("/fd00::{number:x}")).collect()), Ok(()));
    assert!(matches!(ask(&mut talk, vec!["/fd00::ffff:1".into()]), Err(BadRequest::TooMany { .. })));
    let mut talk = Talk::waypoint(&[own()]);
    talk.subscribe(ADDRESS_TYPE, &[]);
    assert!(matches!(ask(&mut talk, vec!["x".repeat(1000)]), Err(BadRequest::TooMany { .. })));
}

#[test]
fn named_subscriptions_are_refused_and_a_wildcard_can_be_left() {
    let mut talk = Talk::new(&[pod("a", "1")]);
    let named =
        DeltaDiscoveryRequest { type_url: ADDRESS_TYPE.into(), resource_names_subscribe: vec!["/10.0.0.1".into()], ..Default::default() };
    assert_eq!(talk.subscriber.request(named.clone()), Err(BadRequest::Named("/10.0.0.1".into())));
    let mut waypoints = Talk::waypoint(&[own()]);
    assert_eq!(waypoints.subscriber.request(named), Err(BadRequest::Named("/10.0.0.1".into())), "alone, nor by a waypoint");
    talk.subscribe(ADDRESS_TYPE, &[]);
    talk.drain();
    let leave = DeltaDiscoveryRequest { type_url: ADDRESS_TYPE.into(), resource_names_unsubscribe: vec!["*".into()], ..Default::default() };
    talk.subscriber.request(leave).unwrap();
    talk.table.publish(&[pod("a", "2")]);
    assert_eq!(talk.drain(), [""; 0]);
}

#[test]
fn a_change_costs_in_proportion_to_itself() {
    let mesh: Vec<Change> = (0..50_000).map(|number| pod(&format!("p{number}"), "1")).collect();
    let mut talk = Talk::new(&mesh);
    talk.subscribe(ADDRESS_TYPE, &[]);
    talk.drain();
    let started = std::time::Instant::now();
    let changes = 100;
    for number in 0..changes {
        talk.table.publish(&[pod(&format!("p{number}"), "2")]);
        assert_eq!(talk.drain(), [format!("addresses: +p{number}")]);
    }
    let each = started.elapsed() / changes;
    println!("one change among 50 000: {each:?}");
    // Normally some 30 microseconds; looking at every resource would take several milliseconds.
    assert!(each < std::time::Duration::from_millis(1), "{each:?}");
}
