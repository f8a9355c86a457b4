//! Which waypoints there should be without anybody having asked for one (design.md §4).
//!
//! A decision over facts, and nothing else: who makes the Gateways, and when they go, is the control plane's business.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tropis_crds::{
    Object,
    istio::authorization_policy::{Rule, Spec},
};
use tropis_model::enrolment::{self, Candidate};

use super::{
    AUTOMATIC, Choice, Wish, account,
    automatic::{self, Scope, Whose},
    choice, wish,
};
use crate::{
    Index, destination_rule,
    index::{Key, key_of},
    service, virtual_service,
};

/// So many accounts of a namespace get a waypoint of their own: each is a Deployment, and whoever may make pods and routes in a namespace
/// should not fill a cluster with them. Services of other accounts go through the namespace's.
pub const MOST_OF_ACCOUNTS: usize = 16;
/// Value of the label [`AUTOMATIC`] of a namespace for which a waypoint may be made, whatever holds for the mesh.
const ON: &str = "true";
/// Value of the label [`AUTOMATIC`] of a namespace that wants no waypoint made for it.
const OFF: &str = "false";

/// Whether waypoints are made without anybody having asked for one. A namespace's label [`AUTOMATIC`] says otherwise for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AutomaticWaypoints {
    /// Where one is needed.
    #[default]
    ByNeed,
    /// None.
    Off,
}

/// What calls for a waypoint, the first that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The object, as users name it: `VirtualService shop/checkout`.
    pub because: String,
    /// The Service that it is about; `None` for all of the namespace.
    pub service: Option<String>,
    /// The account whose Services the waypoint carries; `None`: the namespace's.
    pub account: Option<String>,
    /// Why it is this waypoint.
    pub reason: Reason,
}

/// Why a Service is carried by one automatic waypoint and not by another. Of several reasons the first in this order is told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// By the namespace's scope.
    ByScope,
    /// It is the namespace's, and [`MOST_OF_ACCOUNTS`] have one of their own; so many have none.
    Beyond(usize),
    /// It is the namespace's, and the Service's pods run as these accounts.
    Mixed(Vec<String>),
    /// The Service goes through it, and the one that is to carry it is not there yet.
    Present,
}

/// A Service that needs a waypoint, and for which no user chose one.
struct Asking<'a> {
    service: &'a Arc<Object>,
    cause: Cause,
}

/// What calls for a waypoint.
#[derive(Clone)]
struct Cause {
    because: String,
    /// It looks at single Services.
    names_services: bool,
}

/// The automatic waypoints that a namespace needs, and why: it is enrolled, it did not opt out, and something asks for layer 7 at a Service
/// of it for which no user chose a waypoint. What goes through one goes on needing that while the one that is to carry it is not there.
pub fn needed(index: &Index, namespace: &str) -> BTreeMap<Key, Need> {
    let by_account = Scope::in_namespace(index, namespace) == Scope::ServiceAccount;
    let stays = || index.gateways_in(namespace).any(|gateway| automatic::is_automatic(gateway) && account(gateway).is_some());
    // All of a namespace's Services go through one waypoint, unless some still go through those of accounts.
    let most = if by_account || stays() { usize::MAX } else { 1 };
    let asking = asking(index, namespace).take(most).map(|asking| (automatic::whose(index, asking.service), asking));
    let asking: Vec<(Whose<'_>, Asking<'_>)> = asking.collect();
    let (own, beyond) = with_their_own(index, namespace, asking.iter().map(|(whose, _)| whose));
    let mut needs = BTreeMap::new();
    for (whose, asking) in &asking {
        let wanted = match whose {
            Whose::Account(account) if own.contains(account) => Some((Some(*account), Reason::ByScope)),
            Whose::Account(_) => Some((None, Reason::Beyond(beyond))),
            Whose::Mixed(accounts) => Some((None, Reason::Mixed(accounts.iter().map(ToString::to_string).collect()))),
            Whose::Namespace => Some((None, Reason::ByScope)),
            Whose::Unknown => None,
        };
        let wanted = wanted.map(|(account, reason)| ((namespace.to_owned(), automatic::name(account)), asking.need(account, reason)));
        let is_there = wanted.as_ref().is_some_and(|(key, _)| automatic::stands(index, key));
        let present = (!is_there).then(|| automatic::present(index, asking.service)).flatten().map(|key| {
            let account = index.gateway(&key).and_then(|gateway| account(gateway));
            (key, asking.need(account, Reason::Present))
        });
        for (key, need) in wanted.into_iter().chain(present) {
            let known = needs.entry(key).or_insert_with(|| need.clone());
            if need.reason < known.reason {
                *known = need;
            }
        }
    }
    needs
}

impl Asking<'_> {
    fn need(&self, account: Option<&str>, reason: Reason) -> Need {
        Need {
            because: self.cause.because.clone(),
            service: self.cause.names_services.then(|| self.service.metadata.name.clone()),
            account: account.map(str::to_owned),
            reason,
        }
    }
}

/// The accounts that get a waypoint of their own, and how many do not. Those that have one come first: none is taken away for another.
fn with_their_own<'a: 'b, 'b>(index: &Index, namespace: &str, all: impl Iterator<Item = &'b Whose<'a>>) -> (BTreeSet<&'a str>, usize) {
    let has_one = |account: &str| automatic::stands(index, &(namespace.to_owned(), automatic::name(Some(account))));
    let ranked = all.filter_map(|whose| match whose {
        Whose::Account(account) => Some((!has_one(account), *account)),
        _ => None,
    });
    let ranked: BTreeSet<(bool, &str)> = ranked.collect();
    let beyond = ranked.len().saturating_sub(MOST_OF_ACCOUNTS);
    (ranked.into_iter().take(MOST_OF_ACCOUNTS).map(|(_, account)| account).collect(), beyond)
}

/// Whether a waypoint that nobody made carries a Service, or will. Where the account of its pods decides which, one without pods has none.
pub(super) fn is_promised(index: &Index, service: &Object) -> bool {
    let namespace = service.metadata.namespace.as_str();
    match Scope::in_namespace(index, namespace) {
        Scope::Namespace => asking(index, namespace).next().is_some(),
        Scope::ServiceAccount => may_have_one(index, namespace)
            .filter(|_| is_open(index, service) && automatic::whose(index, service) != Whose::Unknown)
            .is_some_and(|object| for_all(index, object).is_some() || asks(index, service).is_some()),
    }
}

/// The Services of a namespace that need a waypoint, in order of their names.
fn asking<'a>(index: &'a Index, namespace: &str) -> impl Iterator<Item = Asking<'a>> + use<'a> {
    let services = may_have_one(index, namespace).map(|object| (index.services_in(namespace), for_all(index, object)));
    services.into_iter().flat_map(move |(services, for_all)| {
        services.filter(move |service| is_open(index, service)).filter_map(move |service| {
            let cause = for_all.clone().or_else(|| Some(Cause { because: asks(index, service)?, names_services: true }))?;
            Some(Asking { service, cause })
        })
    })
}

/// A namespace for which waypoints may be made.
fn may_have_one<'a>(index: &'a Index, namespace: &str) -> Option<&'a Arc<Object>> {
    let object = index.namespace(namespace)?;
    let wanted = match object.label(AUTOMATIC) {
        Some(ON) => true,
        Some(OFF) => false,
        _ => index.settings().automatic_waypoints == AutomaticWaypoints::ByNeed,
    };
    (wanted && matches!(wish(object), Wish::Nothing) && is_enrolled(index, object)).then_some(object)
}

/// What calls for a waypoint at every Service of a namespace.
fn for_all(index: &Index, namespace: &Object) -> Option<Cause> {
    let name = namespace.metadata.name.as_str();
    if enrolled_by_sidecar_label(index, namespace) {
        let because = format!("Namespace {name} is enrolled by a label of the sidecar model, whose users expect HTTP telemetry");
        return Some(Cause { because, names_services: false });
    }
    policy_for_all(index, name).map(|because| Cause { because, names_services: true })
}

fn is_enrolled(index: &Index, namespace: &Object) -> bool {
    let nothing = Default::default();
    let candidate = Candidate {
        namespace_labels: &namespace.metadata.labels,
        pod_labels: &nothing,
        pod_annotations: &nothing,
        host_network: false,
        sidecar_labels: index.settings().sidecar_labels,
    };
    enrolment::decide(&candidate).is_enrolled()
}

fn enrolled_by_sidecar_label(index: &Index, namespace: &Object) -> bool {
    let mut labels = namespace.metadata.labels.clone();
    labels.remove("istio.io/dataplane-mode");
    let nothing = Default::default();
    let sidecar_labels = index.settings().sidecar_labels;
    let candidate =
        Candidate { namespace_labels: &labels, pod_labels: &nothing, pod_annotations: &nothing, host_network: false, sidecar_labels };
    namespace.label("istio.io/dataplane-mode").is_none() && enrolment::decide(&candidate).is_enrolled()
}

/// Whether no user chose whether it goes through a waypoint, and through which.
fn is_open(index: &Index, service: &Object) -> bool {
    matches!(choice(index, service), (Choice::Open, _))
}

/// What asks for layer 7 at a service: routes and traffic policies that a waypoint of its namespace would use.
fn asks(index: &Index, object: &Object) -> Option<String> {
    let settings = index.settings();
    let namespace = object.metadata.namespace.as_str();
    let host = service::hostname(settings, namespace, &object.metadata.name).hostname;
    let near = |found: &Object| found.metadata.namespace == namespace || found.metadata.namespace == settings.root_namespace;
    let key = key_of(object);
    let mut routes = virtual_service::used(index, &key, namespace, &host).into_iter();
    let routed = routes.find(|found| near(found) && virtual_service::routes_in_mesh(found)).map(|found| shown(found));
    // Subsets alone do nothing before a route names one.
    let ruled = || destination_rule::select(index, namespace, namespace, &host)?.policy.map(|(found, _)| shown(found));
    let targeted = || {
        let mut policies = index.authorizations_in(namespace);
        let targets = |spec: &Spec| {
            spec.target_ref.iter().chain(&spec.target_refs).any(|target| target.kind == "Service" && target.name == object.metadata.name)
        };
        policies.find(|found| found.authorization_policy().is_some_and(|policy| targets(&policy.spec))).map(|found| shown(found))
    };
    routed.or_else(ruled).or_else(targeted)
}

/// A policy of the namespace or the mesh that looks at requests.
fn policy_for_all(index: &Index, namespace: &str) -> Option<String> {
    let root = index.settings().root_namespace.as_str();
    let places = if namespace == root { vec![namespace] } else { vec![namespace, root] };
    let mut policies = places.into_iter().flat_map(|place| index.authorizations_in(place));
    let looks =
        |spec: &Spec| spec.target_ref.is_none() && spec.target_refs.is_empty() && spec.rules.iter().flatten().any(looks_at_requests);
    policies.find(|found| found.authorization_policy().is_some_and(|policy| looks(&policy.spec))).map(|found| shown(found))
}

fn looks_at_requests(rule: &Rule) -> bool {
    let source = rule.from.iter().flatten().map(|from| &from.source).any(|source| {
        [&source.request_principals, &source.not_request_principals, &source.remote_ip_blocks, &source.not_remote_ip_blocks]
            .into_iter()
            .any(|list| !list.is_empty())
    });
    let operation = rule.to.iter().flatten().map(|to| &to.operation).any(|operation| {
        [&operation.hosts, &operation.not_hosts, &operation.methods, &operation.not_methods, &operation.paths, &operation.not_paths]
            .into_iter()
            .any(|list| !list.is_empty())
    });
    let condition = rule.when.iter().flatten().any(|condition| condition.key.starts_with("request.") || condition.key == "remote.ip");
    source || operation || condition
}

fn shown(object: &Object) -> String {
    format!("{} {}/{}", object.kind.as_str(), object.metadata.namespace, object.metadata.name)
}
