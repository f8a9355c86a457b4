//! AuthorizationPolicies as a waypoint enforces them: nothing cut out, attached to what they name (traffic-api.md 5.2, design.md §6).
//!
//! What stands here differs from Istio on purpose: policies without `targetRefs` hold at the waypoint too, against the original caller
//! and for the endpoint that was chosen. A value that cannot be read is read in the way that allows less, as at L4. An action that
//! nobody can carry out (CUSTOM: there are no external authorizers) denies what it matches, as Istio does when the provider is missing.

mod findings;
mod rules;
mod template;

use std::{collections::BTreeSet, sync::Arc};

use tropis_crds::{
    Finding, Object,
    gateway_api::CLASS_WAYPOINT,
    istio::{
        TargetReference,
        authorization_policy::{Action, Spec},
    },
};
use tropis_model::{
    address::NamespacedHostname,
    bounds,
    policy::PolicyKey,
    request_policy::{Attachment, RequestAction, RequestPolicy, RequestRule},
};

use crate::{
    Index, Settings,
    index::{Key, selects},
    service::policy_key,
};

pub use findings::findings;

/// Only logs, when it says `true`.
const DRY_RUN: &str = "istio.io/dry-run";

/// The policies that may decide about traffic to a service at a waypoint: those attached to the waypoint, its class or the service; and
/// those of the workloads where the endpoints are. What is attached to other services to which its routes lead stands with those.
pub fn of_service<'a>(
    index: &Index,
    waypoint: &Key,
    service: &Object,
    destinations: impl Iterator<Item = &'a NamespacedHostname>,
) -> Vec<Arc<RequestPolicy>> {
    let own = (service.metadata.namespace.as_str(), service.metadata.name.as_str());
    let targets = [Target::Service(own.0, own.1), Target::Gateway(&waypoint.0, &waypoint.1), Target::Class];
    let namespaces = destinations.map(|host| host.namespace.to_string()).chain([own.0.to_owned()]).collect();
    collected(index, &targets, &namespaces)
}

/// The policies that may decide about traffic that is addressed to workloads in `namespaces` and goes through a waypoint.
pub fn of_workloads(index: &Index, waypoint: &Key, namespaces: &BTreeSet<String>) -> Vec<Arc<RequestPolicy>> {
    collected(index, &[Target::Gateway(&waypoint.0, &waypoint.1), Target::Class], namespaces)
}

/// Whether a policy says about traffic to `service` (or to a workload) through a waypoint what nobody but the waypoint can check.
pub(crate) fn is_targeted(index: &Index, waypoint: &Key, service: Option<&Object>) -> bool {
    let own = service.map(|service| Target::Service(&service.metadata.namespace, &service.metadata.name));
    let targets = own.into_iter().chain([Target::Gateway(&waypoint.0, &waypoint.1), Target::Class]);
    targets.into_iter().any(|target| naming(index, target).next().is_some())
}

/// Something that a policy may be attached to.
#[derive(Debug, Clone, Copy)]
enum Target<'a> {
    Service(&'a str, &'a str),
    Gateway(&'a str, &'a str),
    /// The class of waypoints, from the root namespace.
    Class,
}

impl<'a> Target<'a> {
    /// How what names it is attached.
    fn attachment(self) -> Attachment {
        match self {
            Self::Service(..) => Attachment::Service,
            Self::Gateway(..) | Self::Class => Attachment::Target,
        }
    }

    fn namespace(self, settings: &'a Settings) -> &'a str {
        match self {
            Self::Service(namespace, _) | Self::Gateway(namespace, _) => namespace,
            Self::Class => &settings.root_namespace,
        }
    }

    fn is(&self, reference: &TargetReference) -> bool {
        match self {
            Self::Service(_, name) => reference.kind == "Service" && reference.name == *name,
            Self::Gateway(_, name) => reference.kind == "Gateway" && reference.name == *name,
            Self::Class => reference.kind == "GatewayClass" && reference.name == CLASS_WAYPOINT,
        }
    }
}

/// The policies that name a target.
fn naming<'a>(index: &'a Index, target: Target<'a>) -> impl Iterator<Item = &'a Arc<Object>> {
    let all = index.authorizations_in(target.namespace(index.settings()));
    all.filter(move |object| object.authorization_policy().is_some_and(|policy| references(&policy.spec).any(|own| target.is(own))))
}

fn collected(index: &Index, targets: &[Target<'_>], namespaces: &BTreeSet<String>) -> Vec<Arc<RequestPolicy>> {
    let settings = index.settings();
    let mut keys = BTreeSet::new();
    let mut policies = Vec::new();
    let attached = targets.iter().flat_map(|target| naming(index, *target).map(|object| (object, Some(target.attachment()))));
    let root = settings.root_namespace.as_str();
    let places = namespaces.iter().map(String::as_str).filter(|namespace| *namespace != root).chain([root]);
    let loose = places
        .flat_map(|namespace| index.authorizations_in(namespace))
        .filter(|object| object.authorization_policy().is_some_and(|policy| references(&policy.spec).next().is_none()));
    for (object, attachment) in attached.chain(loose.map(|object| (object, None))) {
        if keys.insert(object.reference())
            && let (Some(policy), _) = compile(settings, object)
        {
            policies.push(Arc::new(match attachment {
                Some(attachment) => RequestPolicy { attachment, ..policy },
                None => policy,
            }));
        }
    }
    policies
}

/// No more policies than a waypoint takes. In the place of those beyond stands a denial of everything, also of what routes bring: what they
/// say is not known there.
pub(crate) fn bounded(mut policies: Vec<Arc<RequestPolicy>>) -> Vec<Arc<RequestPolicy>> {
    if policies.len() > bounds::POLICIES {
        let beyond = policies.drain(bounds::POLICIES - 1..).next();
        policies.extend(beyond.map(|policy| {
            let (action, rules) = (RequestAction::Deny, vec![RequestRule::default()]);
            Arc::new(RequestPolicy { attachment: Attachment::Service, action, rules, dry_run: false, ..RequestPolicy::clone(&policy) })
        }));
    }
    policies
}

/// What a policy is attached to by name.
pub(crate) fn references(spec: &Spec) -> impl Iterator<Item = &TargetReference> {
    spec.target_ref.iter().chain(&spec.target_refs)
}

/// Compiles a policy for waypoints; `None` for an object that is none. One that names something is attached as the waypoint's: with a
/// service that it names it is [`Attachment::Service`]. The findings are about its values; for a policy without
/// `targetRefs` the node proxy's compilation tells most of them too.
pub fn compile(settings: &Settings, object: &Object) -> (Option<RequestPolicy>, Vec<Finding>) {
    let Some(policy) = object.authorization_policy() else { return (None, Vec::new()) };
    let spec = &policy.spec;
    let namespace = object.metadata.namespace.as_str();
    let attachment = if references(spec).next().is_some() {
        Attachment::Target
    } else {
        let labels = selects(spec.selector.as_ref()).into_iter().flat_map(|selector| &selector.match_labels);
        Attachment::Workloads {
            namespace: (namespace != settings.root_namespace).then(|| namespace.into()),
            labels: labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        }
    };
    let action = match spec.action {
        Action::Allow => RequestAction::Allow,
        Action::Deny | Action::Custom => RequestAction::Deny,
        Action::Audit => RequestAction::Audit,
    };
    let (rules, mut findings) = rules::read(settings, object, action, spec.rules.as_deref().unwrap_or_default());
    if spec.action == Action::Custom {
        findings.push(findings::no_authorizer(object, spec));
    }
    let key = PolicyKey(policy_key(namespace, &object.metadata.name));
    let dry_run = object.annotation(DRY_RUN) == Some("true") && spec.action != Action::Custom;
    (Some(RequestPolicy { key, attachment, action, rules, dry_run }), findings)
}
