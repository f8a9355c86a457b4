//! Istio's kinds as users write them. Each field's doc says how far the mesh obeys it at L4 (in the node proxy) or, for routes, at all:
//! *honoured*, *needs a waypoint*, or *not honoured*; [`FIELDS`] says the same for the reference page.

pub mod authorization_policy;
pub mod check;
pub mod destination_rule;
pub mod peer_authentication;
pub mod value;
pub mod virtual_service;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{decode::About, kind::Kind, names};

/// A field of a kind and how far it is obeyed, for the generated reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The path below `spec`, list markers left out; it stands for everything below it too.
    pub path: &'static str,
    /// How far it is obeyed.
    pub support: FieldSupport,
    /// What it does here, one sentence.
    pub does: &'static str,
}

impl Field {
    /// A field that every node proxy obeys.
    pub const fn honoured(path: &'static str, does: &'static str) -> Self {
        Self { path, support: FieldSupport::Honoured, does }
    }

    /// A field that a waypoint obeys.
    pub const fn needs_waypoint(path: &'static str, does: &'static str) -> Self {
        Self { path, support: FieldSupport::NeedsWaypoint, does }
    }

    /// A field that nothing obeys.
    pub const fn not_honoured(path: &'static str, does: &'static str) -> Self {
        Self { path, support: FieldSupport::NotHonoured, does }
    }
}

/// How far a field is obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldSupport {
    /// By every node proxy.
    Honoured,
    /// Only by a waypoint.
    NeedsWaypoint,
    /// By nobody yet.
    NotHonoured,
}

/// The fields of every kind whose fields are read, for the generated reference; a kind that comes joins here.
pub const FIELDS: &[(Kind, &[Field])] =
    &[(Kind::AuthorizationPolicy, authorization_policy::FIELDS), (Kind::PeerAuthentication, peer_authentication::FIELDS)];

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::decode;

    /// Specs that set every field of a kind, as the schema has them.
    fn complete(kind: Kind) -> Vec<Value> {
        let both = |names: &[&str], value: Value| -> Value {
            let negated = |name: &str| format!("not{}{}", name[..1].to_uppercase(), &name[1..]);
            names.iter().flat_map(|name| [(*name).to_owned(), negated(name)]).map(|name| (name, value.clone())).collect()
        };
        match kind {
            Kind::AuthorizationPolicy => {
                let mut source = both(&["principals", "namespaces", "requestPrincipals", "trustDomains"], json!(["a"]));
                let blocks = both(&["ipBlocks", "remoteIpBlocks"], json!(["10.0.0.0/8"]));
                source.as_object_mut().unwrap().extend(blocks.as_object().unwrap().clone());
                let mut operation = both(&["hosts", "methods", "paths"], json!(["a"]));
                operation["ports"] = json!(["80"]);
                operation["notPorts"] = json!(["81"]);
                let when = json!({"key": "source.ip", "values": ["10.0.0.1"], "notValues": ["10.0.0.2"]});
                let target = json!({"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "w"});
                vec![
                    json!({
                        "selector": {"matchLabels": {"app": "a"}}, "action": "DENY",
                        "rules": [{"from": [{"source": source}], "to": [{"operation": operation}], "when": [when]}],
                    }),
                    json!({"rules": [{"from": [{"source": both(&["serviceAccounts"], json!(["shop/a"]))}]}]}),
                    json!({"targetRef": target}),
                    json!({"targetRefs": [target]}),
                    json!({"action": "CUSTOM", "provider": {"name": "p"}, "rules": [{}]}),
                ]
            }
            Kind::PeerAuthentication => vec![json!({
                "selector": {"matchLabels": {"app": "a"}}, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"80": {"mode": "PERMISSIVE"}},
            })],
            other => panic!("no complete specs of {other}"),
        }
    }

    /// Paths of all values, list markers left out.
    fn paths(at: &str, value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    paths(&if at.is_empty() { name.clone() } else { format!("{at}.{name}") }, value, found);
                }
            }
            Value::Array(entries) => entries.iter().for_each(|entry| paths(at, entry, found)),
            _ => _ = found.insert(at.to_owned()),
        }
    }

    #[test]
    fn the_reference_lists_the_fields_that_are_read_and_no_others() {
        for (kind, fields) in FIELDS {
            let mut found = BTreeSet::new();
            for spec in complete(*kind) {
                paths("", &spec, &mut found);
                let object = json!({
                    "apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": {"name": "a", "namespace": "shop"}, "spec": spec,
                });
                decode(object).unwrap_or_else(|findings| panic!("{kind}: {findings:?}"));
            }
            found.retain(|path| path != "rules");
            let covers =
                |field: &Field, path: &str| path.strip_prefix(field.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            for path in &found {
                assert_eq!(fields.iter().filter(|field| covers(field, path)).count(), 1, "{kind} {path}");
            }
            for field in *fields {
                assert!(found.iter().any(|path| covers(field, path)), "{kind} has no field {}", field.path);
                assert!(field.does.ends_with('.'), "{kind} {}: a sentence", field.path);
            }
        }
    }
}
