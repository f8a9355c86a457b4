//! Istio's kinds as users write them. Each field's doc says how far the mesh obeys it at L4 (in the node proxy) or, for routes, at all:
//! *honoured*, *needs a waypoint*, or *not honoured*; [`crate::FIELDS`] says the same for the reference page.

pub mod authorization_policy;
pub(crate) mod bounds;
pub mod check;
pub mod destination_rule;
pub mod peer_authentication;
pub mod value;
pub mod virtual_service;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{decode::About, names};

/// `WorkloadSelector`: workloads by their labels. Honoured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// All of these labels, with exactly these values; empty selects every workload in scope. Honoured.
    pub match_labels: BTreeMap<String, String>,
}

impl WorkloadSelector {
    /// Whether a workload with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty()
    }
}

/// `PolicyTargetReference`: the Gateway, GatewayClass, Service or ServiceEntry that a policy is attached to. Needs a waypoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetReference {
    /// API group, empty for the core one. Needs a waypoint.
    pub group: String,
    /// Kind. Needs a waypoint.
    pub kind: String,
    /// Name. Needs a waypoint.
    pub name: String,
    /// Must be empty or the policy's own. Needs a waypoint.
    pub namespace: String,
}

/// How many `targetRefs` a policy may have.
const TARGETS_MAX: usize = 16;

/// Checks what the API server's schema and Istio's webhook check about a selector.
pub(crate) fn validate_selector(about: &mut About<'_>, selector: Option<&WorkloadSelector>) {
    validate_selector_at(about, selector, "spec.selector");
}

/// Checks a selector that stands at `path`.
pub(crate) fn validate_selector_at(about: &mut About<'_>, selector: Option<&WorkloadSelector>, path: &str) {
    for (key, value) in selector.iter().flat_map(|selector| &selector.match_labels) {
        let field = format!("{path}.matchLabels[{key}]");
        if key.is_empty() || !names::is_label_key(key) {
            about.refuse(&field, "", "the key is not a label key", "letters, digits, -, _ and ., with an optional DNS prefix/");
        } else if !names::is_label_value(value) {
            let accepted = "at most 63 letters, digits, -, _ and ., without wildcards";
            about.refuse(&field, format!("{value:?}"), "is not a label value", accepted);
        }
    }
}

/// Checks `targetRef` and `targetRefs`.
pub(crate) fn validate_targets(about: &mut About<'_>, single: Option<&TargetReference>, many: &[TargetReference], selector: bool) {
    if selector && (single.is_some() || !many.is_empty()) {
        about.refuse("spec.selector", "a selector beside targetRefs", "is ambiguous", "one of selector and targetRefs");
    }
    if single.is_some() && !many.is_empty() {
        about.refuse("spec.targetRef", "targetRef beside targetRefs", "is ambiguous", "one of targetRef and targetRefs");
    }
    if many.len() > TARGETS_MAX {
        about.refuse("spec.targetRefs", many.len().to_string(), "entries are too many", "at most 16");
    }
    let own = about.object.namespace.clone();
    let fields = single.iter().map(|target| ("spec.targetRef".to_owned(), *target));
    for (field, target) in fields.chain(many.iter().enumerate().map(|(index, target)| (format!("spec.targetRefs[{index}]"), target))) {
        let known = [
            ("gateway.networking.k8s.io", "Gateway"),
            ("gateway.networking.k8s.io", "GatewayClass"),
            ("", "Service"),
            ("core", "Service"),
            ("networking.istio.io", "ServiceEntry"),
        ];
        if !known.contains(&(target.group.as_str(), target.kind.as_str())) {
            let found = format!("{:?}", format!("{}/{}", target.group, target.kind));
            about.refuse(&format!("{field}.kind"), found, "cannot be a target", "Gateway, GatewayClass, Service, ServiceEntry");
        }
        if target.name.is_empty() {
            about.refuse(&format!("{field}.name"), "", "is missing", "the target's name");
        }
        if !target.namespace.is_empty() && target.namespace != own {
            about.refuse(&format!("{field}.namespace"), format!("{:?}", target.namespace), "is another namespace", "the policy's own");
        }
    }
}

/// An IP address or CIDR block as Istio reads it: an address is a block of one, bits beyond the length are cut off.
pub fn block(text: &str) -> Option<ipnet::IpNet> {
    match text.parse::<std::net::IpAddr>() {
        Ok(address) => Some(address.to_canonical().into()),
        Err(_) => text.parse::<ipnet::IpNet>().ok().map(|block| block.trunc()),
    }
}
