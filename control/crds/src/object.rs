//! An object: its metadata, its whole value, and the typed form of the kinds that the mesh reads.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    finding::ObjectRef,
    gateway_api::gateway::Gateway,
    istio::{
        authorization_policy::AuthorizationPolicy, destination_rule::DestinationRule, peer_authentication::PeerAuthentication,
        virtual_service::VirtualService,
    },
    kind::Kind,
};

/// What every object carries (`ObjectMeta`), as far as the mesh uses it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The name.
    pub name: String,
    /// The namespace, empty for cluster-scoped kinds; `default` when a namespaced object names none.
    pub namespace: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The annotations.
    pub annotations: BTreeMap<String, String>,
    /// Assigned by the API server; empty until then.
    pub uid: String,
    /// Assigned by the API server; empty until then.
    pub resource_version: String,
    /// Counts changes of the spec.
    pub generation: Option<i64>,
    /// When the API server first saw it (RFC 3339, UTC): decides "oldest first". Empty until then.
    pub creation_timestamp: String,
    /// Set when the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// Who owns it.
    pub owner_references: Vec<OwnerReference>,
}

/// An owner (`OwnerReference`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// The owner's API version.
    pub api_version: String,
    /// The owner's kind.
    pub kind: String,
    /// The owner's name.
    pub name: String,
    /// The owner's uid.
    pub uid: String,
    /// The owner that controls it; at most one.
    pub controller: Option<bool>,
}

/// The account of a Pod that names none; Kubernetes makes one of this name in every namespace.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// The typed form. Boxed apart from the object, so that kinds which nobody reads cost a word.
#[derive(Debug, Clone)]
pub(crate) enum Typed {
    Untyped,
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    Pod(Box<Pod>),
    Service(Box<Service>),
    ServiceAccount(Box<ServiceAccount>),
    ConfigMap(Box<ConfigMap>),
    Secret(Box<Secret>),
    Deployment(Box<Deployment>),
    ReplicaSet(Box<ReplicaSet>),
    StatefulSet(Box<StatefulSet>),
    DaemonSet(Box<DaemonSet>),
    Job(Box<Job>),
    CronJob(Box<CronJob>),
    EndpointSlice(Box<EndpointSlice>),
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    PeerAuthentication(Box<PeerAuthentication>),
    VirtualService(Box<VirtualService>),
    DestinationRule(Box<DestinationRule>),
    Gateway(Box<Gateway>),
}

/// An object that was decoded. Two are equal when their values are.
#[derive(Debug, Clone)]
pub struct Object {
    /// The kind.
    pub kind: Kind,
    /// The metadata.
    pub metadata: Metadata,
    /// The whole object, nulls as written.
    pub value: Arc<Value>,
    pub(crate) typed: Typed,
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.metadata == other.metadata && self.value == other.value
    }
}

macro_rules! accessors {
    ($($method:ident $kind:ident $doc:literal;)*) => {
        impl Object {
            $(#[doc = $doc]
            pub fn $method(&self) -> Option<&$kind> {
                match &self.typed {
                    Typed::$kind(typed) => Some(typed),
                    _ => None,
                }
            })*
        }
    };
}

accessors! {
    namespace Namespace "The Namespace that this object is, if it is one.";
    node Node "The Node that this object is, if it is one.";
    pod Pod "The Pod that this object is, if it is one.";
    service Service "The Service that this object is, if it is one.";
    service_account ServiceAccount "The ServiceAccount that this object is, if it is one.";
    config_map ConfigMap "The ConfigMap that this object is, if it is one.";
    secret Secret "The Secret that this object is, if it is one.";
    deployment Deployment "The Deployment that this object is, if it is one.";
    replica_set ReplicaSet "The ReplicaSet that this object is, if it is one.";
    stateful_set StatefulSet "The StatefulSet that this object is, if it is one.";
    daemon_set DaemonSet "The DaemonSet that this object is, if it is one.";
    job Job "The Job that this object is, if it is one.";
    cron_job CronJob "The CronJob that this object is, if it is one.";
    endpoint_slice EndpointSlice "The EndpointSlice that this object is, if it is one.";
    authorization_policy AuthorizationPolicy "The AuthorizationPolicy that this object is, if it is one.";
    peer_authentication PeerAuthentication "The PeerAuthentication that this object is, if it is one.";
    virtual_service VirtualService "The VirtualService that this object is, if it is one.";
    destination_rule DestinationRule "The DestinationRule that this object is, if it is one.";
    gateway Gateway "The Gateway API Gateway that this object is, if it is one.";
}

impl Object {
    /// The object's key.
    pub fn reference(&self) -> ObjectRef {
        ObjectRef::new(self.kind, self.metadata.namespace.clone(), self.metadata.name.clone())
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.get(key).map(String::as_str)
    }

    /// An annotation's value.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.get(key).map(String::as_str)
    }

    /// The account that this Pod runs as: `spec.serviceAccountName`, else its deprecated alias `spec.serviceAccount`, else `default`
    /// (the order of the API server's own conversion). `None` for other kinds. Whoever decides over identities asks here.
    pub fn pod_service_account(&self) -> Option<&str> {
        let spec = self.pod()?.spec.as_ref();
        let written = spec.into_iter().flat_map(|spec| [&spec.service_account_name, &spec.service_account]);
        Some(written.flatten().map(String::as_str).find(|account| !account.is_empty()).unwrap_or(DEFAULT_SERVICE_ACCOUNT))
    }

    /// What "oldest first" sorts by: creation time, then name, then namespace. An object without a creation time is the newest.
    pub fn age(&self) -> (bool, &str, &str, &str) {
        let created = self.metadata.creation_timestamp.as_str();
        (created.is_empty(), created, &self.metadata.name, &self.metadata.namespace)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::decode;

    #[test]
    fn a_pod_runs_as_its_account_by_name_by_alias_or_by_default() {
        for (spec, account) in [
            (json!({"serviceAccountName": "cart"}), "cart"),
            (json!({"serviceAccount": "cart"}), "cart"),
            (json!({"serviceAccountName": "cart", "serviceAccount": "other"}), "cart"),
            (json!({"serviceAccountName": "", "serviceAccount": "cart"}), "cart"),
            (json!({"serviceAccountName": "", "serviceAccount": ""}), "default"),
            (json!({}), "default"),
        ] {
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec});
            pod["spec"]["containers"] = json!([]);
            let (object, _) = decode(pod).unwrap();
            assert_eq!(object.pod_service_account(), Some(account), "{spec}");
        }
        let (namespace, _) = decode(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})).unwrap();
        assert_eq!(namespace.pod_service_account(), None);
    }
}
