//! What the control plane makes for a waypoint's Gateway: a ServiceAccount, a Deployment and a Service of its name, and the Gateway's
//! status (traffic-api.md 3.2 and 3.6, ambient-protocols.md 11.8).
//!
//! [`desired`] decides, without I/O; [`crate::report`] writes. An object of that name that somebody else made is never adopted: then
//! nothing is deployed, and the status says so. A waypoint gets its address, by which it comes into use, once one of its pods has
//! acknowledged its configuration, and keeps it from then on: a waypoint that is away refuses.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use tropis_compile::{
    Index,
    waypoint::{self, automatic::is_automatic, needed::Need},
};
use tropis_crds::{Finding, Kind, Level, Object, ObjectRef, codes, gateway_api::gateway::Gateway};

use crate::{
    automatic::{self, Stand},
    scope::Key,
};

/// Value of the label [`waypoint::MANAGED`]: who made it, as Istio writes it.
pub(crate) const MANAGED_BY: &str = "istio.io-mesh-controller";
/// The class, as a label.
const CLASS_LABEL: &str = "gateway.networking.k8s.io/gateway-class-name";
/// The account of the proxy's user and group, as Istio has it.
const PROXY_USER: u32 = 1337;
/// The kinds that are made for a waypoint.
const MADE: [Kind; 3] = [Kind::ServiceAccount, Kind::Service, Kind::Deployment];

/// What stands because the control plane wants it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Made {
    /// Its fields.
    pub(crate) fields: Value,
    /// It exists because of us.
    pub(crate) owned: bool,
}

/// What is known of objects by name.
#[derive(Debug, Default)]
pub(crate) struct Existing {
    /// Objects of the kinds above that somebody else made.
    foreign: BTreeSet<ObjectRef>,
    /// Accounts that were made for a waypoint.
    accounts: BTreeSet<ObjectRef>,
    /// Pods that run as an account of the name of a Gateway whose waypoint is not there yet, by that account.
    strangers: BTreeMap<(String, String), ObjectRef>,
}

impl Existing {
    /// Notes an object, or that it is gone.
    pub(crate) fn note(&mut self, reference: &ObjectRef, object: Option<&Object>) {
        if !MADE.contains(&reference.kind) {
            return;
        }
        let ours = object.map(is_ours);
        match ours {
            Some(false) => self.foreign.insert(reference.clone()),
            _ => self.foreign.remove(reference),
        };
        match ours {
            Some(true) if reference.kind == Kind::ServiceAccount => self.accounts.insert(reference.clone()),
            _ => self.accounts.remove(reference),
        };
    }

    /// Looks for pods that run as the account that a waypoint would get: it is theirs. Once a waypoint has its account, whoever runs as it
    /// gets no certificate. `of` gives a pod of an account that is not of its waypoint.
    pub(crate) fn look(&mut self, gateways: impl Iterator<Item = (String, String)>, of: impl Fn(&(String, String)) -> Option<String>) {
        let made = |key: &(String, String)| self.accounts.contains(&ObjectRef::new(Kind::ServiceAccount, key.0.clone(), key.1.clone()));
        let found = gateways.filter(|key| !made(key)).filter_map(|key| {
            let pod = ObjectRef::new(Kind::Pod, key.0.clone(), of(&key)?);
            Some((key, pod))
        });
        self.strangers = found.collect();
    }

    /// Whether a pod is in the way of a waypoint.
    pub(crate) fn has_strangers(&self) -> bool {
        !self.strangers.is_empty()
    }

    /// What has the name of a Gateway, or runs as the account of that name, and was not made for it.
    fn in_the_way(&self, gateway: &ObjectRef) -> impl Iterator<Item = &ObjectRef> {
        let stranger = self.strangers.get(&(gateway.namespace.clone(), gateway.name.clone()));
        self.foreign.iter().filter(|foreign| same_name(foreign, gateway)).chain(stranger)
    }
}

/// Whether an object was made by a control plane for a waypoint, or is a waypoint that it made by itself.
pub(crate) fn is_ours(object: &Object) -> bool {
    let owned = || object.metadata.owner_references.iter().any(|owner| owner.kind == "Gateway" && owner.name == object.metadata.name);
    MADE.contains(&object.kind) && object.label(waypoint::MANAGED) == Some(MANAGED_BY) && owned() || is_automatic(object)
}

/// The waypoints that nobody made.
pub(crate) struct Automatic<'a> {
    /// What becomes of each, by Gateway.
    pub(crate) stands: &'a BTreeMap<Key, Stand>,
    /// Why they are needed.
    pub(crate) needs: &'a BTreeMap<Key, Need>,
}

/// Everything that should stand, and what there is to tell. `live` says whether a pod of a waypoint has its configuration in force.
pub(crate) fn desired(
    index: &Index,
    existing: &Existing,
    automatic: &Automatic<'_>,
    findings: &[Finding],
    live: impl Fn(&(String, String)) -> bool,
) -> (BTreeMap<ObjectRef, Made>, Vec<Finding>) {
    let (mut made, mut told) = (BTreeMap::new(), Vec::new());
    for (key, stand) in automatic.stands {
        let need = automatic.needs.get(key);
        // One that is needed no more says itself for whom it was.
        let account = match need {
            Some(need) => need.account.as_deref(),
            None => index.gateway(key).and_then(|object| waypoint::account(object)),
        };
        let (reference, fields) = automatic::gateway(key, account, *stand);
        let obstacle = in_the_way(index, existing, &reference);
        if let Some(need) = need {
            told.push(match &obstacle {
                Some(taken) => automatic::taken(key, need, taken),
                None => automatic::made(key, need),
            });
        }
        if obstacle.is_none() {
            made.insert(reference, Made { fields, owned: true });
        }
    }
    for object in index.waypoints() {
        let reference = object.reference();
        if is_automatic(object) && !made.contains_key(&reference) {
            // It goes, and all that was made for it.
            continue;
        }
        let by_hand = waypoint::is_deployed_by_hand(object);
        let key = (reference.namespace.clone(), reference.name.clone());
        let stops = is_automatic(object) && automatic.stands.get(&key) == Some(&Stand::Stopping);
        let obstacles: Vec<Finding> = match object.gateway() {
            Some(gateway) if by_hand => vec![deployed_by_hand(&reference, gateway)],
            _ if !is_service_name(&reference.name) => vec![no_name(&reference)],
            _ => existing.in_the_way(&reference).map(|taken| name_taken(&reference, taken)).collect(),
        };
        let asked = object.gateway().filter(|_| !by_hand).and_then(|gateway| address_asked(&reference, gateway));
        if obstacles.is_empty() {
            let mut all = vec![(Kind::ServiceAccount, service_account(object)), (Kind::Service, service(object))];
            all.extend((!stops).then(|| (Kind::Deployment, deployment(object))));
            for (kind, fields) in all {
                made.insert(ObjectRef::new(kind, reference.namespace.clone(), reference.name.clone()), Made { fields, owned: true });
            }
        }
        let own = || findings.iter().filter(|finding| finding.object == reference);
        let in_use = || waypoint::address(index.settings(), object).is_some() || live(&key);
        let state = State {
            wrong: own().find(|finding| finding.level == Level::Error),
            warnings: own().filter(|finding| finding.level == Level::Warning).chain(&asked).collect(),
            obstacle: obstacles.first(),
            programmed: !stops && obstacles.is_empty() && in_use(),
        };
        let status = status(index, object, &state);
        told.extend(obstacles);
        told.extend(asked);
        match made.get_mut(&reference) {
            Some(own) => own.fields["status"] = status,
            None => _ = made.insert(reference, Made { fields: json!({ "status": status }), owned: false }),
        }
    }
    (made, told)
}

/// What has the name of an automatic waypoint and is not ours.
fn in_the_way(index: &Index, existing: &Existing, gateway: &ObjectRef) -> Option<ObjectRef> {
    let known = index.gateway(&(gateway.namespace.clone(), gateway.name.clone())).filter(|object| !is_automatic(object));
    known.map(|object| object.reference()).or_else(|| existing.in_the_way(gateway).next().cloned())
}

fn same_name(object: &ObjectRef, gateway: &ObjectRef) -> bool {
    object.namespace == gateway.namespace && object.name == gateway.name
}

fn name_taken(gateway: &ObjectRef, taken: &ObjectRef) -> Finding {
    let finding = Finding::error(codes::NAME_TAKEN, gateway.clone()).field("metadata.name").found(taken.to_string());
    let finding = match taken.kind {
        Kind::Pod => finding
            .problem("runs as the account of this name, which the waypoint would take over")
            .accepted("a Gateway that is not called as an account that pods run as"),
        _ => finding
            .problem("exists and was not made for this Gateway")
            .accepted("a name that no ServiceAccount, Service or Deployment of the namespace has"),
    };
    finding.effect("no waypoint is deployed, and nothing goes through it")
}

fn no_name(gateway: &ObjectRef) -> Finding {
    Finding::error(codes::NAME_TAKEN, gateway.clone())
        .field("metadata.name")
        .found(format!("{:?}", gateway.name))
        .problem("cannot be the name of a Service, which a waypoint has")
        .accepted("at most 63 of a-z, 0-9 and -, beginning with a letter and not ending with -")
        .effect("no waypoint is deployed, and nothing goes through it")
}

/// Somebody else's proxies would need configuration and certificates of ours, which only pods that we made get.
fn deployed_by_hand(gateway: &ObjectRef, fields: &Gateway) -> Finding {
    Finding::error(codes::FIELD_NOT_HONOURED, gateway.clone())
        .field("spec.addresses")
        .found(asked(fields))
        .problem("asks for a waypoint that somebody else deploys, and those are not served")
        .accepted("no addresses: the waypoint is deployed for the Gateway")
        .effect("nothing is deployed for it, and nothing goes through it")
}

fn address_asked(gateway: &ObjectRef, fields: &Gateway) -> Option<Finding> {
    fields.spec.addresses.iter().any(|address| !address.value.is_empty()).then(|| {
        Finding::warning(codes::FIELD_NOT_HONOURED, gateway.clone())
            .field("spec.addresses")
            .found(asked(fields))
            .problem("asks for an address, which a waypoint cannot choose")
            .accepted("no addresses")
            .effect("the waypoint has the address that its Service is given")
    })
}

fn asked(gateway: &Gateway) -> String {
    let values: Vec<&str> = gateway.spec.addresses.iter().map(|address| address.value.as_str()).collect();
    values.join(", ")
}

/// Whether a Service may have this name (RFC 1035 §2.3.1).
fn is_service_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 63 && name.starts_with(|first: char| first.is_ascii_lowercase()) && !name.ends_with('-') && name.bytes().all(good)
}

struct State<'a> {
    wrong: Option<&'a Finding>,
    warnings: Vec<&'a Finding>,
    /// Why nothing is deployed for it.
    obstacle: Option<&'a Finding>,
    programmed: bool,
}

/// The status of a waypoint's Gateway. Times of transition are added when it is written.
fn status(index: &Index, object: &Object, state: &State<'_>) -> Value {
    let generation = object.metadata.generation;
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        let mut condition = json!({
            "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
        });
        if let Some(generation) = generation {
            condition["observedGeneration"] = generation.into();
        }
        condition
    };
    let accepted = match state.wrong {
        Some(wrong) => condition("Accepted", false, reason(wrong), &wrong.to_string()),
        None => {
            let all = state.warnings.iter().map(ToString::to_string);
            let message: Vec<String> = std::iter::once("it is a waypoint of this mesh".to_owned()).chain(all).collect();
            condition("Accepted", true, "Accepted", &message.join("; "))
        }
    };
    let programmed = match state.obstacle {
        Some(obstacle) if obstacle.code == codes::FIELD_NOT_HONOURED => {
            condition("Programmed", false, "AddressNotUsable", &obstacle.to_string())
        }
        Some(obstacle) => condition("Programmed", false, "Invalid", &obstacle.to_string()),
        None if state.programmed => condition("Programmed", true, "Programmed", "its pods have its configuration; without one it refuses"),
        None => condition("Programmed", false, "Pending", "no pod of it has acknowledged its configuration yet"),
    };
    let holds = state.programmed;
    let gateway = object.gateway();
    let names = gateway.into_iter().flat_map(|gateway| &gateway.spec.listeners).map(|listener| listener.name.as_str());
    let listener = |name: &str| {
        json!({
            "name": name, "supportedKinds": [], "attachedRoutes": 0,
            "conditions": [
                accepted.clone(),
                condition("Conflicted", false, "NoConflicts", "no other listener is in its way"),
                condition("Programmed", holds, if holds { "Programmed" } else { "Pending" }, "as the Gateway"),
                condition("ResolvedRefs", true, "ResolvedRefs", "it refers to nothing"),
            ],
        })
    };
    let own = waypoint::own_service(index.settings(), &(object.metadata.namespace.clone(), object.metadata.name.clone()));
    let addresses: Vec<Value> = holds.then(|| json!({ "type": "Hostname", "value": &*own.hostname })).into_iter().collect();
    json!({ "addresses": addresses, "conditions": [accepted, programmed], "listeners": names.map(listener).collect::<Vec<_>>() })
}

/// The reason, in the Gateway API's words where it has one.
fn reason(wrong: &Finding) -> &'static str {
    match wrong.field.as_deref() {
        _ if wrong.code == codes::REFUSED_BY_PROXY => "RefusedByProxy",
        Some(field) if field.starts_with("spec.listeners") => "ListenersNotValid",
        _ => "Invalid",
    }
}

/// Labels and annotations of everything that is made for a Gateway.
fn metadata(object: &Object) -> Value {
    let infrastructure = object.gateway().and_then(|gateway| gateway.spec.infrastructure.as_ref());
    let mut labels: BTreeMap<String, String> = infrastructure.map(|infrastructure| infrastructure.labels.clone()).unwrap_or_default();
    labels.extend(own_labels(object));
    let mut metadata = json!({
        "name": object.metadata.name, "namespace": object.metadata.namespace, "labels": labels,
        "ownerReferences": [{
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": object.metadata.name, "uid": object.metadata.uid,
        }],
    });
    if let Some(annotations) = infrastructure.map(|infrastructure| &infrastructure.annotations).filter(|own| !own.is_empty()) {
        metadata["annotations"] = json!(annotations);
    }
    metadata
}

fn own_labels(object: &Object) -> [(String, String); 3] {
    let class = object.gateway().map(|gateway| gateway.spec.gateway_class_name.clone()).unwrap_or_default();
    [
        (waypoint::GATEWAY_NAME.to_owned(), object.metadata.name.clone()),
        (CLASS_LABEL.to_owned(), class),
        (waypoint::MANAGED.to_owned(), MANAGED_BY.to_owned()),
    ]
}

fn service_account(object: &Object) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(object) })
}

fn service(object: &Object) -> Value {
    let mut own = metadata(object);
    own["annotations"]["networking.istio.io/traffic-distribution"] = "PreferClose".into();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": own,
        "spec": {
            "type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack",
            "selector": { waypoint::GATEWAY_NAME: object.metadata.name },
            "ports": [
                { "name": "status-port", "port": 15021, "protocol": "TCP", "appProtocol": "tcp" },
                { "name": "mesh", "port": 15008, "protocol": "TCP", "appProtocol": "hbone" },
            ],
        },
    })
}

fn deployment(object: &Object) -> Value {
    let name = object.metadata.name.as_str();
    let infrastructure = object.gateway().and_then(|gateway| gateway.spec.infrastructure.as_ref());
    let mut labels: BTreeMap<String, String> = infrastructure.map(|infrastructure| infrastructure.labels.clone()).unwrap_or_default();
    labels.extend(own_labels(object));
    for (key, value) in [
        ("istio.io/dataplane-mode", "none"),
        ("sidecar.istio.io/inject", "false"),
        ("service.istio.io/canonical-name", name),
        ("service.istio.io/canonical-revision", "latest"),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let mut annotations = Map::new();
    for (key, value) in infrastructure.iter().flat_map(|infrastructure| &infrastructure.annotations) {
        annotations.insert(key.clone(), value.as_str().into());
    }
    for (key, value) in [("prometheus.io/scrape", "true"), ("prometheus.io/port", "15020"), ("prometheus.io/path", "/stats/prometheus")] {
        annotations.insert(key.to_owned(), value.into());
    }
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(object),
        "spec": {
            "selector": { "matchLabels": { waypoint::GATEWAY_NAME: name } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": {
                "metadata": { "labels": labels, "annotations": annotations },
                "spec": {
                    "serviceAccountName": name,
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": { "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" }] },
                    "containers": [{
                        "name": "istio-proxy", "image": "tropis/waypoint", "args": ["proxy", "waypoint"],
                        "ports": [
                            { "containerPort": 15020, "name": "metrics" },
                            { "containerPort": 15021, "name": "status-port" },
                            { "containerPort": 15090, "name": "http-envoy-prom" },
                            { "containerPort": 15008, "name": "mesh" },
                        ],
                        "env": [
                            field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"),
                            field("INSTANCE_IP", "status.podIP"), field("NODE_NAME", "spec.nodeName"),
                            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
                            { "name": "TROPIS_GATEWAY", "value": format!("{}/{name}", object.metadata.namespace) },
                        ],
                        "readinessProbe": {
                            "httpGet": { "path": "/healthz/ready", "port": 15021 },
                            "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 4,
                        },
                        "securityContext": {
                            "runAsUser": PROXY_USER, "runAsGroup": PROXY_USER, "runAsNonRoot": true, "privileged": false,
                            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
                        },
                        "volumeMounts": [
                            { "name": "istio-token", "mountPath": "/var/run/secrets/tokens" },
                            { "name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio" },
                        ],
                    }],
                    "volumes": [
                        { "name": "istio-token", "projected": { "sources": [
                            { "serviceAccountToken": { "audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token" } },
                        ] } },
                        { "name": "istiod-ca-cert", "configMap": { "name": "istio-ca-root-cert" } },
                    ],
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;
