//! What there is to tell about what a policy is attached to.

use tropis_crds::{
    Finding, Object, codes,
    gateway_api::CLASS_WAYPOINT,
    istio::authorization_policy::{Action, Spec},
    nearest,
};

use super::references;
use crate::{Index, index::selects};

/// What is to be told about a policy's targets and selector. `gateway` says whether a Gateway of a namespace and name exists.
pub fn findings(index: &Index, object: &Object, gateway: impl Fn(&str, &str) -> bool) -> Vec<Finding> {
    let Some(policy) = object.authorization_policy() else { return Vec::new() };
    let spec = &policy.spec;
    let own = object.metadata.namespace.as_str();
    let mut findings = Vec::new();
    for (place, target) in references(spec).enumerate() {
        let field = if spec.target_ref.is_some() { "spec.targetRef".to_owned() } else { format!("spec.targetRefs[{place}]") };
        let name = target.name.as_str();
        let found = format!("{} {own}/{name}", target.kind);
        let missing = || {
            Finding::error(codes::REFERENCED_RESOURCE_NOT_FOUND, object.reference())
                .field(format!("{field}.name"))
                .found(found.clone())
                .problem("does not exist")
                .effect("the policy is not enforced anywhere")
        };
        match target.kind.as_str() {
            "Service" if index.service(&(own.to_owned(), name.to_owned())).is_none() => {
                let others: Vec<&str> = index.services_called(name).map(|service| service.metadata.namespace.as_str()).collect();
                findings.push(match others.as_slice() {
                    [] => {
                        let there = index.services_in(own).map(|service| service.metadata.name.as_str());
                        missing().accepted(nearest::accepted(name, there, "a Service of the policy's namespace"))
                    }
                    some => missing().accepted(format!(
                        "a policy is attached only within its own namespace; {name} is in {}, so put the policy there",
                        some.join(" and in ")
                    )),
                });
            }
            "Gateway" if !gateway(own, name) => {
                let there = index.gateways_in(own).map(|gateway| gateway.metadata.name.as_str());
                findings.push(missing().accepted(nearest::accepted(name, there, "a Gateway of the policy's namespace")));
            }
            "GatewayClass" if own != index.settings().root_namespace || name != CLASS_WAYPOINT => findings.push(
                Finding::warning(codes::INEFFECTIVE_POLICY, object.reference())
                    .field(field)
                    .found(format!("GatewayClass {name} in namespace {own}"))
                    .problem("is not a target of policies")
                    .accepted(format!("{CLASS_WAYPOINT}, from namespace {}", index.settings().root_namespace))
                    .effect("the policy is not enforced anywhere"),
            ),
            "ServiceEntry" => findings.push(
                Finding::warning(codes::FIELD_NOT_HONOURED, object.reference())
                    .field(field)
                    .found(found)
                    .problem("is of a kind that nothing obeys yet")
                    .effect("the policy is not enforced for it"),
            ),
            _ => {}
        }
    }
    findings.extend(misplaced(index, object, spec));
    findings.extend(outvoted(index, object, spec));
    findings
}

/// An ALLOW policy that allows nobody, beside others for the same workloads that do: what one of them allows is allowed.
fn outvoted(index: &Index, object: &Object, spec: &Spec) -> Option<Finding> {
    let allows_nobody = |spec: &Spec| spec.action == Action::Allow && spec.rules.as_ref().is_none_or(Vec::is_empty);
    if !allows_nobody(spec) || references(spec).next().is_some() {
        return None;
    }
    let root = index.settings().root_namespace.as_str();
    let own = object.metadata.namespace.as_str();
    let places = if own == root { vec![own] } else { vec![own, root] };
    let beside = places.into_iter().flat_map(|place| index.authorizations_in(place)).filter(|other| {
        other.authorization_policy().is_some_and(|policy| {
            let other = &policy.spec;
            let covers = other.selector.is_none() || other.selector == spec.selector;
            other.action == Action::Allow && !allows_nobody(other) && references(other).next().is_none() && covers
        })
    });
    let names: Vec<String> = beside.map(|other| other.reference().to_string()).collect();
    (!names.is_empty()).then(|| {
        Finding::warning(codes::INEFFECTIVE_POLICY, object.reference())
            .field("spec.rules")
            .problem(format!("allows nobody, and callers of the same workloads are allowed by {}", names.join(" and ")))
            .accepted("action DENY with rules: [{}] to deny everybody")
            .effect("what any ALLOW policy allows is allowed; this one denies nothing more")
    })
}

/// A selector that matches nothing where it stands, and pods of another namespace.
fn misplaced(index: &Index, object: &Object, spec: &Spec) -> Option<Finding> {
    let selector = selects(spec.selector.as_ref())?;
    let own = object.metadata.namespace.as_str();
    if own == index.settings().root_namespace || index.has_pod(own, &selector.match_labels) {
        return None;
    }
    let others = index.namespaces_with(&selector.match_labels);
    let labels: Vec<String> = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    (!others.is_empty()).then(|| {
        Finding::warning(codes::INEFFECTIVE_POLICY, object.reference())
            .field("metadata.namespace")
            .found(format!("{own:?}"))
            .problem(format!("has no pod with {}, but {} has", labels.join(","), others.join(" and ")))
            .accepted(format!("the policy in namespace {}", others.join(" or ")))
            .effect("the policy protects nothing")
    })
}

/// An action for which there is nobody to ask.
pub(super) fn no_authorizer(object: &Object, spec: &Spec) -> Finding {
    let name = spec.provider.as_ref().map(|provider| provider.name.as_str()).unwrap_or_default();
    Finding::error(codes::ACTION_UNSUPPORTED, object.reference())
        .field("spec.provider.name")
        .found(format!("{name:?}"))
        .problem("is an external authorizer, and none is supported")
        .accepted("ALLOW or DENY")
        .effect("requests that the policy matches are denied at waypoints")
}
