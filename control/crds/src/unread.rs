//! What Istio reads in Kubernetes' own objects and nothing here does: labels, annotations, and configuration in ConfigMaps. Whoever writes
//! it hears so, as of any field that is not honoured.

use std::collections::BTreeMap;

use crate::{
    codes,
    decode::About,
    finding::Finding,
    kind::Kind,
    object::{Metadata, Typed},
};

/// Kinds, the label or annotation, and what happens now.
const KEYS: &[(&[Kind], &str, &str)] = &[
    (&[Kind::Service, Kind::Namespace], "istio.io/ingress-use-waypoint", "callers outside the mesh reach the pods without the waypoint"),
    (&[Kind::Service, Kind::Namespace], "istio.io/use-waypoint-canary", CANARY),
    (&[Kind::Service, Kind::Namespace], "istio.io/use-waypoint-canary-namespace", CANARY),
    (&[Kind::Service, Kind::Namespace], "istio.io/use-waypoint-canary-weight", CANARY),
    (&[Kind::Service], "topology.istio.io/network", "all endpoints of the service are taken to be in the mesh's own network"),
];
const CANARY: &str = "everything goes through the waypoint that istio.io/use-waypoint names";

/// ConfigMaps of Istio's: what their names begin with, the key, what it is and what happens now.
const CONFIG: &[(&str, &str, &str, &str)] = &[
    (
        "istio",
        "mesh",
        "is Istio's mesh configuration, which nothing here reads",
        "its access log, defaults, providers and trust domain are not in force; the settings of tropisd are",
    ),
    ("istio", "meshNetworks", "is Istio's list of networks, which nothing here reads", "the mesh is one network"),
    (
        "istio-sidecar-injector",
        "values",
        "are settings of sidecars, and the mesh has none",
        "pods stay as they are; the resources of waypoints are those of their Deployments",
    ),
];

pub(crate) fn tell(about: &mut About<'_>, kind: Kind, metadata: &Metadata, typed: &Typed) {
    for (map, entries) in [("labels", &metadata.labels), ("annotations", &metadata.annotations)] {
        tell_keys(about, kind, map, entries);
    }
    let Typed::ConfigMap(config) = typed else { return };
    for (name, key, problem, effect) in CONFIG {
        // Revisions have a ConfigMap each, `istio-REVISION`.
        let is_named = metadata.name == *name || (*name == "istio" && metadata.name.starts_with("istio-"));
        if is_named && config.data.iter().flatten().any(|(own, _)| own == key) {
            let object = about.object.clone();
            let finding = Finding::warning(codes::FIELD_NOT_HONOURED, object).field(format!("data[{key}]")).problem(*problem);
            about.push(finding.accepted("the settings of tropisd").effect(*effect));
        }
    }
}

fn tell_keys(about: &mut About<'_>, kind: Kind, map: &str, entries: &BTreeMap<String, String>) {
    for (_, key, effect) in KEYS.iter().filter(|(kinds, key, _)| kinds.contains(&kind) && entries.contains_key(*key)) {
        let object = about.object.clone();
        let finding = Finding::warning(codes::FIELD_NOT_HONOURED, object).field(format!("metadata.{map}[{key}]"));
        about.push(finding.found(format!("{:?}", entries[*key])).problem("is not obeyed here").effect(*effect));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::decode;

    fn told(value: Value) -> Vec<String> {
        decode(value).unwrap().1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn labels_and_annotations_that_nothing_reads_are_told_of() {
        let service = |metadata: Value| {
            let mut own = json!({"name": "a", "namespace": "shop"});
            own.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
            told(json!({"apiVersion": "v1", "kind": "Service", "metadata": own, "spec": {"ports": [{"port": 80}]}}))
        };
        let canary = service(json!({"labels": {"istio.io/use-waypoint": "w", "istio.io/use-waypoint-canary": "x"}}));
        assert_eq!(
            canary,
            [
                "Warning [TRP0012] (Service shop/a) metadata.labels[istio.io/use-waypoint-canary]: \"x\" is not obeyed here; everything goes \
              through the waypoint that istio.io/use-waypoint names"
            ]
        );
        assert_eq!(service(json!({"annotations": {"topology.istio.io/network": "n"}})).len(), 1);
        assert!(service(json!({"labels": {"app": "a"}})).is_empty());
    }

    #[test]
    fn istios_own_configuration_is_told_of() {
        let map = |name: &str, key: &str| {
            told(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "istio-system"}, "data": {key: ""}})).len()
        };
        assert_eq!([map("istio", "mesh"), map("istio-canary", "mesh"), map("istio-sidecar-injector", "values")], [1, 1, 1]);
        assert_eq!([map("istio", "other"), map("shop", "mesh"), map("istio-ca-root-cert", "root-cert.pem")], [0, 0, 0]);
    }
}
