//! When a namespace gets a waypoint without anybody having asked for one (design.md §4).
//!
//! A decision over facts, and nothing else: who makes the Gateway, and when it goes, is the control plane's business.

use serde::{Deserialize, Serialize};
use tropis_crds::{
    Object,
    istio::authorization_policy::{Rule, Spec},
};
use tropis_model::enrolment::{self, Candidate};

use super::{AUTOMATIC, MANAGED, Wish, of_service, wish};
use crate::{Index, destination_rule, index::key_of, service, virtual_service};

/// Value of the label [`AUTOMATIC`] of a namespace for which a waypoint may be made, whatever holds for the mesh.
const ON: &str = "true";
/// Value of the label [`AUTOMATIC`] of a namespace that wants no waypoint made for it.
const OFF: &str = "false";

/// Whether waypoints are made without anybody having asked for one. A namespace's label [`AUTOMATIC`] says otherwise for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AutomaticWaypoints {
    /// One for each namespace that needs one.
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
}

/// Whether a namespace needs a waypoint of its own, and why: it is enrolled, it did not opt out, and something asks for layer 7 at a
/// Service of it that no waypoint of the user's serves.
pub fn needed(index: &Index, namespace: &str) -> Option<Need> {
    let object = index.namespace(namespace)?;
    let wanted = match object.label(AUTOMATIC) {
        Some(ON) => true,
        Some(OFF) => false,
        _ => index.settings().automatic_waypoints == AutomaticWaypoints::ByNeed,
    };
    if !wanted || !matches!(wish(object), Wish::Nothing) || !is_enrolled(index, object) {
        return None;
    }
    let mut unserved = index.services_in(namespace).filter(|service| is_unserved(index, service)).peekable();
    unserved.peek()?;
    let by_label = enrolled_by_sidecar_label(index, object);
    if by_label {
        let because = format!("Namespace {namespace} is enrolled by a label of the sidecar model, whose users expect HTTP telemetry");
        return Some(Need { because, service: None });
    }
    let policy = policy_for_all(index, namespace);
    unserved.find_map(|service| {
        let because = policy.clone().or_else(|| asks(index, service))?;
        Some(Need { because, service: Some(service.metadata.name.clone()) })
    })
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

/// Whether no waypoint that a user made serves it, and it may have one.
fn is_unserved(index: &Index, service: &Object) -> bool {
    if service.label(MANAGED).is_some() || !matches!(wish(service), Wish::Nothing) {
        return false;
    }
    match of_service(index, service).0 {
        None => true,
        Some(attached) => index.gateway(&attached.gateway).is_some_and(|gateway| gateway.label(AUTOMATIC).is_some()),
    }
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
