//! Fields of several writers become one object, as server-side apply would have it: mappings are merged, a list or a scalar is one
//! field with one owner. Two lists are merged by key, because their entries have owners of their own: `conditions` (by `type`) and
//! `ownerReferences` (by `uid`).

use serde_json::{Map, Value};

/// Puts the fields of `over` onto `base`. Nulls in `over` say nothing.
pub fn merge(base: &mut Value, over: &Value) {
    merge_field("", base, over);
}

fn merge_field(name: &str, base: &mut Value, over: &Value) {
    match (base, over) {
        (_, Value::Null) => {}
        (Value::Object(base), Value::Object(over)) => merge_mapping(base, over),
        (Value::Array(base), Value::Array(over)) if list_key(name).is_some() => {
            let key = list_key(name).unwrap_or_default();
            for entry in over {
                match base.iter_mut().find(|known| entry.get(key).is_some() && known.get(key) == entry.get(key)) {
                    Some(known) => merge_field("", known, entry),
                    None => base.push(said("", entry)),
                }
            }
        }
        (base, over) => *base = said(name, over),
    }
}

fn merge_mapping(base: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (name, value) in over {
        match base.get_mut(name) {
            Some(known) => merge_field(name, known, value),
            None if value.is_null() => {}
            None => {
                base.insert(name.clone(), said(name, value));
            }
        }
    }
}

/// A value without the nulls in its mappings. A list that is one field is taken as it is.
fn said(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let fields = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(name, value)| (name.clone(), said(name, value))).collect())
        }
        Value::Array(entries) if list_key(name).is_some() => entries.iter().map(|entry| said("", entry)).collect(),
        value => value.clone(),
    }
}

/// The field by which entries of a list are told apart, for the lists that are merged.
fn list_key(name: &str) -> Option<&'static str> {
    match name {
        "conditions" => Some("type"),
        "ownerReferences" => Some("uid"),
        _ => None,
    }
}

/// The first field that both set, to different values.
pub fn conflict(one: &Value, other: &Value) -> Option<String> {
    conflict_at("", "", one, other)
}

fn conflict_at(path: &str, name: &str, one: &Value, other: &Value) -> Option<String> {
    match (one, other) {
        (Value::Null, _) | (_, Value::Null) => None,
        (Value::Object(one), Value::Object(other)) => one.iter().find_map(|(name, value)| {
            let path = match (path.is_empty(), name.contains(['.', '/'])) {
                (true, _) => name.clone(),
                (false, true) => format!("{path}[{name}]"),
                (false, false) => format!("{path}.{name}"),
            };
            conflict_at(&path, name, value, other.get(name)?)
        }),
        (Value::Array(one), Value::Array(other)) if list_key(name).is_some() => {
            let key = list_key(name).unwrap_or_default();
            one.iter().find_map(|entry| {
                let label = entry.get(key)?;
                let known = other.iter().find(|known| known.get(key) == Some(label))?;
                conflict_at(&format!("{path}[{}]", label.as_str().unwrap_or_default()), "", entry, known)
            })
        }
        (one, other) => (one != other).then(|| path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn mappings_are_merged_lists_and_scalars_replaced() {
        let mut base = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"ports": [1, 2], "ip": null}});
        merge(&mut base, &json!({"metadata": {"annotations": {"b": "2"}, "labels": null}, "spec": {"ports": [3], "ip": "10.0.0.1"}}));
        assert_eq!(base, json!({"metadata": {"labels": {"a": "1"}, "annotations": {"b": "2"}}, "spec": {"ports": [3], "ip": "10.0.0.1"}}));
    }

    #[test]
    fn conditions_of_several_writers_live_side_by_side() {
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let accepted = json!({"status": {"conditions": [{"type": "Accepted", "status": "True"}]}});
        let mut merged = ready.clone();
        merge(&mut merged, &accepted);
        merge(&mut merged, &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        assert_eq!(
            merged,
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Accepted", "status": "True"}]}})
        );
        assert_eq!(conflict(&ready, &accepted), None);
        assert_eq!(conflict(&ready, &merged).as_deref(), Some("status.conditions[Ready].status"));
    }

    #[test]
    fn conflicts_name_the_field() {
        let one = json!({"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}});
        let other = json!({"metadata": {"annotations": {"ambient.istio.io/redirection": "pending", "a": "b"}}});
        assert_eq!(conflict(&one, &other).as_deref(), Some("metadata.annotations[ambient.istio.io/redirection]"));
        assert_eq!(conflict(&one, &one), None);
    }

    /// Objects of few names, so that they overlap.
    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..3u8).prop_map(Value::from)];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner.clone(), 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
                prop::collection::btree_map("[a-c]", inner, 0..3).prop_map(|map| {
                    let conditions = map.into_iter().map(|(kind, value)| json!({"type": kind, "value": value}));
                    json!({"conditions": conditions.collect::<Vec<_>>()})
                }),
            ]
        })
    }

    fn object() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[a-d]", tree(), 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    /// Without order of fields and of keyed lists, which mean nothing.
    fn ordered(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let sorted: std::collections::BTreeMap<_, _> = map.iter().map(|(name, value)| (name.clone(), ordered(value))).collect();
                Value::Object(
                    sorted
                        .into_iter()
                        .map(|(name, value)| match (name.as_str(), value) {
                            ("conditions", Value::Array(mut entries)) => {
                                entries.sort_by_key(|entry| entry["type"].to_string());
                                (name, Value::Array(entries))
                            }
                            (_, value) => (name, value),
                        })
                        .collect(),
                )
            }
            Value::Array(entries) => Value::Array(entries.iter().map(ordered).collect()),
            value => value.clone(),
        }
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(mut base in object(), over in object()) {
            merge(&mut base, &over);
            let once = base.clone();
            merge(&mut base, &over);
            prop_assert_eq!(base, once);
        }

        #[test]
        fn writers_without_conflict_may_come_in_any_order(base in object(), one in object(), other in object()) {
            prop_assume!(conflict(&one, &other).is_none());
            let (mut first, mut second) = (base.clone(), base);
            merge(&mut first, &one);
            merge(&mut first, &other);
            merge(&mut second, &other);
            merge(&mut second, &one);
            prop_assert_eq!(ordered(&first), ordered(&second));
        }
    }
}
