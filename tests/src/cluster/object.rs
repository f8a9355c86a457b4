//! Objects as the stand-in for the API server keeps them: JSON under a key, with the few readings that controllers need.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

/// What tells an object from every other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `kind:`.
    pub kind: String,
    /// Its namespace; empty for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// A key of a namespaced object (or, with an empty namespace, of another).
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// A pod's key.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::new("Pod", namespace, name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(formatter, "{} {}", self.kind, self.name),
            namespace => write!(formatter, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// Kinds that live in no namespace, of those the harness looks at.
const CLUSTER_WIDE: &[&str] = &[
    "Namespace",
    "Node",
    "GatewayClass",
    "IngressClass",
    "PersistentVolume",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
];

/// Whether objects of `kind` live in a namespace.
pub fn is_namespaced(kind: &str) -> bool {
    !CLUSTER_WIDE.contains(&kind)
}

/// The key of an object, `default` being the namespace of those that name none. `None`: no kind or no name.
pub fn key_of(object: &Value) -> Option<Key> {
    let kind = object["kind"].as_str()?;
    let name = object["metadata"]["name"].as_str()?;
    let namespace = match is_namespaced(kind) {
        true => object["metadata"]["namespace"].as_str().unwrap_or("default"),
        false => "",
    };
    Some(Key::new(kind, namespace, name))
}

/// A map of strings at `pointer`; empty when there is none.
pub fn strings(object: &Value, pointer: &str) -> BTreeMap<String, String> {
    let entries = object.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Whether `labels` have every entry of a non-empty `selector`.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_have_the_default_namespace() {
        let key = key_of(&json!({"kind": "Pod", "metadata": {"name": "x"}}));
        assert_eq!(key, Some(Key::pod("default", "x")));
        let node = key_of(&json!({"kind": "Node", "metadata": {"name": "a", "namespace": "ignored"}}));
        assert_eq!(node, Some(Key::new("Node", "", "a")));
        assert_eq!(key_of(&json!({"kind": "Pod"})), None);
    }

    #[test]
    fn an_empty_selector_selects_nothing() {
        let labels = strings(&json!({"metadata": {"labels": {"app": "x", "v": "1"}}}), "/metadata/labels");
        assert!(selects(&BTreeMap::from([("app".into(), "x".into())]), &labels));
        assert!(!selects(&BTreeMap::from([("app".into(), "y".into())]), &labels));
        assert!(!selects(&BTreeMap::new(), &labels));
    }
}
