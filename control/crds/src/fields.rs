//! Every field of every kind that has a typed form of ours: how far it is obeyed, what it does here, and the tests that show it. The page
//! docs/reference/fields.md is made of this.

mod authorization_policy;
mod destination_rule;
mod gateway;
mod peer_authentication;
mod virtual_service;

#[cfg(test)]
mod complete;
#[cfg(test)]
mod declared;

use crate::kind::Kind;

/// A field of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The path below `spec`, list markers left out; it stands for everything below it too.
    pub path: &'static str,
    /// How far it is obeyed.
    pub support: FieldSupport,
    /// What it does here, in sentences.
    pub does: &'static str,
    /// The names of the tests that show it; `cargo xtask check` looks whether they exist.
    pub tests: &'static [&'static str],
}

impl Field {
    /// A field that every node proxy obeys.
    const fn honoured(path: &'static str, does: &'static str, tests: &'static [&'static str]) -> Self {
        Self { path, support: FieldSupport::Honoured, does, tests }
    }

    /// A field that a waypoint obeys.
    const fn needs_waypoint(path: &'static str, does: &'static str, tests: &'static [&'static str]) -> Self {
        Self { path, support: FieldSupport::NeedsWaypoint, does, tests }
    }

    /// A field that nothing obeys.
    const fn not_honoured(path: &'static str, does: &'static str, tests: &'static [&'static str]) -> Self {
        Self { path, support: FieldSupport::NotHonoured, does, tests }
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

/// The fields of each kind, in the order in which the page shows them; a kind that comes joins here.
pub const FIELDS: &[(Kind, &[Field])] = &[
    (Kind::VirtualService, virtual_service::FIELDS),
    (Kind::DestinationRule, destination_rule::FIELDS),
    (Kind::Gateway, gateway::FIELDS),
    (Kind::AuthorizationPolicy, authorization_policy::FIELDS),
    (Kind::PeerAuthentication, peer_authentication::FIELDS),
];

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use serde_json::{Value, json};

    use super::*;
    use crate::{Support, decode};

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

    fn is_at_or_below(path: &str, at: &str) -> bool {
        path.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Decodes a spec, be it refused or not: fields that Istio's webhook refuses are fields too.
    fn decoded(kind: Kind, spec: &Value) {
        let object = json!({
            "apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": {"name": "a", "namespace": "shop"}, "spec": spec,
        });
        let findings = decode(object).err().unwrap_or_default();
        let unread = findings.iter().map(ToString::to_string).find(|text| text.contains("schema") || text.contains("wrong type"));
        assert_eq!(unread, None, "{kind} {spec}");
    }

    #[test]
    fn the_reference_lists_the_fields_that_are_read_and_no_others() {
        for (kind, fields) in FIELDS {
            let mut found = BTreeSet::new();
            for spec in complete::specs(*kind) {
                paths("", &spec, &mut found);
                decoded(*kind, &spec);
            }
            // A rule of a policy may be empty.
            found.retain(|path| path != "rules");
            for path in &found {
                assert_eq!(fields.iter().filter(|field| is_at_or_below(path, field.path)).count(), 1, "{kind} {path}");
            }
            for field in *fields {
                assert!(found.iter().any(|path| is_at_or_below(path, field.path)), "{kind} has no field {}", field.path);
            }
        }
    }

    #[test]
    fn the_complete_specs_leave_out_no_field_that_a_type_has() {
        for (kind, _) in FIELDS {
            let (declared, mut set) = (RefCell::default(), BTreeSet::new());
            for spec in complete::specs(*kind) {
                paths("", &spec, &mut set);
                declared::add(*kind, &spec, &declared);
            }
            for (path, name) in declared.take().iter().flat_map(|(path, names)| names.iter().map(move |name| (path, *name))) {
                // The other name of `mirrorPercent`.
                let name = if name == "mirror_percent" { "mirrorPercent" } else { name };
                let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                assert!(set.iter().any(|path| is_at_or_below(path, &full)), "{kind}: no complete spec sets {full}");
            }
        }
    }

    #[test]
    fn fields_are_told_once_in_sentences_with_tests_and_of_kinds_that_are_honoured() {
        for (kind, fields) in FIELDS {
            assert_eq!(kind.support(), Support::Honoured, "{kind}");
            let paths: BTreeSet<&str> = fields.iter().map(|field| field.path).collect();
            assert_eq!(paths.len(), fields.len(), "{kind}");
            for field in *fields {
                assert!(field.does.ends_with('.') && !field.does.contains('|'), "{kind} {}: a sentence", field.path);
                assert!(!field.tests.is_empty(), "{kind} {}: a test", field.path);
            }
        }
    }
}
