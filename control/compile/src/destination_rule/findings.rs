//! What there is to tell about a DestinationRule.

use std::{collections::BTreeMap, sync::Arc};

use tropis_crds::{Finding, Object, codes, nearest};
use tropis_model::pool::PoolKey;

use super::{pool::Unkept, select, shown};
use crate::{
    Index,
    authorization::label_there,
    index::{rule_host, service_selector},
    virtual_service::is_visible,
    waypoint::unserved,
};

/// What is to be told about a rule, whoever uses it.
pub fn findings(index: &Index, object: &Object) -> Vec<Finding> {
    let Some(rule) = object.destination_rule() else { return Vec::new() };
    let Some(host) = rule_host(index.settings(), object) else { return Vec::new() };
    let mut findings = Vec::new();
    if let Some(finding) = missing_host(index, object, &rule.spec.host, &host) {
        findings.push(finding);
    }
    if rule.spec.workload_selector.is_none() {
        let about = (object, "spec.host".to_owned(), format!("{:?}", rule.spec.host));
        findings.extend(unserved::finding(index, index.services_covered(&host), about, "nothing obeys the rule"));
    }
    findings.extend(empty_subsets(index, object, &host));
    findings.extend(shadowed(index, object, &host));
    if rule.spec.workload_selector.is_some() {
        findings.push(
            Finding::warning(codes::INEFFECTIVE_POLICY, object.reference())
                .field("spec.workloadSelector")
                .problem("selects sidecars, and the mesh has none")
                .accepted("leave it out for a rule that waypoints use")
                .effect("no waypoint uses the rule"),
        );
    }
    findings
}

fn missing_host(index: &Index, object: &Object, written: &str, host: &str) -> Option<Finding> {
    if index.services_covered(host).next().is_some() {
        return None;
    }
    let finding = Finding::warning(codes::UNKNOWN_RULE_HOST, object.reference())
        .field("spec.host")
        .found(format!("{written:?}"))
        .problem(format!("names no service ({host} does not exist)"))
        .effect("the rule applies to nothing");
    Some(finding.accepted(elsewhere(index, &object.metadata.namespace, written)))
}

/// Which service an object of `namespace` may have meant that wrote a host that is none: one of the name in another place, or one of the
/// namespace whose name is near.
pub(crate) fn elsewhere(index: &Index, namespace: &str, written: &str) -> String {
    let name = written.split('.').next().unwrap_or(written);
    let found: Vec<String> = index
        .services_called(name)
        .map(|service| format!("{name}.{}.svc.{}", service.metadata.namespace, index.settings().cluster_domain))
        .collect();
    match found.as_slice() {
        [] => {
            let there = index.services_in(namespace).map(|service| service.metadata.name.as_str());
            nearest::accepted(name, there, "the name of a Service in the object's namespace, or NAME.NAMESPACE.svc.DOMAIN")
        }
        some => format!("did you mean {}", some.join(" or ")),
    }
}

fn empty_subsets(index: &Index, object: &Object, host: &str) -> Vec<Finding> {
    let Some(rule) = object.destination_rule() else { return Vec::new() };
    let services: Vec<_> = index.services_covered(host).collect();
    let mut findings = Vec::new();
    for (place, subset) in rule.spec.subsets.iter().enumerate() {
        let selectors: Vec<_> = services.iter().filter_map(|service| Some((service, service_selector(service)?))).collect();
        let selects = selectors.iter().any(|(service, selector)| {
            let labels = selector.iter().chain(&subset.labels).map(|(key, value)| (key.clone(), value.clone())).collect();
            let agree = subset.labels.iter().all(|(key, value)| selector.get(key).is_none_or(|own| own == value));
            agree && index.has_pod(&service.metadata.namespace, &labels)
        });
        if selectors.is_empty() || selects {
            continue;
        }
        let labels: Vec<String> = subset.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        findings.push(
            Finding::error(codes::SUBSET_WITHOUT_PODS, object.reference())
                .field(format!("spec.subsets[{place}].labels"))
                .found(labels.join(","))
                .problem(format!("matches no pod of {host}"))
                .accepted(labels_there(index, services.iter().copied(), &subset.labels))
                .effect(format!("requests that are routed to subset {} get 503 (flag UH)", subset.name)),
        );
    }
    findings
}

/// The values that the services' pods have for the labels of a subset.
fn labels_there<'a>(index: &Index, services: impl Iterator<Item = &'a Arc<Object>>, wanted: &BTreeMap<String, String>) -> String {
    let pods: Vec<_> = services.flat_map(|service| index.pods_of(service)).collect();
    let parts = wanted.iter().filter_map(|(key, value)| {
        let there: Vec<&str> = pods.iter().filter_map(|pod| pod.label(key)).collect();
        (!there.contains(&value.as_str())).then(|| label_there(key, value, &there))
    });
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "labels that one pod of the service carries together".to_owned() } else { parts.join("; ") }
}

/// A rule whose traffic policy or subsets an older rule for the same host hides.
fn shadowed(index: &Index, object: &Object, host: &str) -> Vec<Finding> {
    let Some(rule) = object.destination_rule() else { return Vec::new() };
    let namespace = object.metadata.namespace.as_str();
    if !is_visible(&rule.spec.export_to, namespace, namespace) {
        return Vec::new();
    }
    let Some(selected) = select(index, namespace, namespace, host) else { return Vec::new() };
    if !selected.objects.iter().any(|own| own.reference() == object.reference()) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let shadow = |field: String, found: String, winner: &Object| {
        Finding::warning(codes::POLICY_SHADOWED, object.reference())
            .field(field)
            .found(found)
            .problem(format!("is said by the older DestinationRule {} for the same host too", shown(winner)))
            .effect("the older one holds")
    };
    if let (Some((winner, _)), true) = (selected.policy, rule.spec.traffic_policy.is_some())
        && winner.reference() != object.reference()
    {
        findings.push(shadow("spec.trafficPolicy".to_owned(), "a policy".to_owned(), winner));
    }
    for (place, subset) in rule.spec.subsets.iter().enumerate() {
        if let Some((winner, _, _)) = selected.subset(&subset.name)
            && winner.reference() != object.reference()
        {
            findings.push(shadow(format!("spec.subsets[{place}].name"), format!("{:?}", subset.name), winner));
        }
    }
    findings
}

/// A pool that is left out, because what its rule asks for cannot be kept.
pub(super) fn unkept(rule: &Object, field: &str, key: &PoolKey, unkept: Unkept) -> Finding {
    let (found, accepted) = match unkept {
        Unkept::ClientCertificate => ("mode MUTUAL", "ISTIO_MUTUAL, or SIMPLE without certificates"),
        Unkept::OwnAuthorities => ("caCertificates, caCrl or credentialName", "SIMPLE with the system's authorities"),
    };
    Finding::error(codes::FIELD_NOT_HONOURED, rule.reference())
        .field(format!("{field}.tls"))
        .found(found)
        .problem("is not supported")
        .accepted(accepted)
        .effect(format!("requests to {key} get 503 (flag NC): going on without it would be less safe"))
}
