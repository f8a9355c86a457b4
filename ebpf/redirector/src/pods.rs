//! Which pods of this node belong to the mesh: namespaces and pods as the source tells them, decided by `model::enrolment`.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    sync::Arc,
};

use serde_json::Value;
use tropis_crds::{Kind, Object, ObjectRef};
use tropis_model::enrolment::{Candidate, decide};

/// Never enrolled, as istio-cni excludes it: what the cluster itself runs on.
const EXCLUDED_NAMESPACE: &str = "kube-system";
/// What we report about a pod.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";

/// What enrolment needs to know of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// Which object it is.
    pub reference: ObjectRef,
    /// What it runs as: [`Object::pod_service_account`].
    pub service_account: String,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// It runs or may run again.
    pub alive: bool,
    /// What the pod's annotation says about capturing its DNS, if anything.
    pub dns_capture: Option<bool>,
    /// The pod's annotation asks for no capture of what arrives.
    pub bypass_inbound: bool,
    /// Of `status`: a pod whose status changed may run in another namespace by now.
    status_digest: u64,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    host_network: bool,
}

impl PodFacts {
    /// `namespace/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.reference.namespace, self.reference.name)
    }

    /// Whether a change from `self` to `other` leaves everything as it is that enrolment wrote.
    pub fn enrols_like(&self, other: &Self) -> bool {
        let written = |facts: &Self| (facts.addresses.clone(), facts.dns_capture, facts.bypass_inbound);
        written(self) == written(other)
    }

    fn read(object: &Object) -> Option<Self> {
        let pod = object.pod()?;
        let service_account = object.pod_service_account()?.to_owned();
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let single = status.and_then(|status| status.pod_ip.as_deref());
        let several = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default().iter().map(|ip| ip.ip.as_str());
        let mut addresses: Vec<IpAddr> = single.into_iter().chain(several).filter_map(|text| text.parse().ok()).collect();
        addresses.sort();
        addresses.dedup();
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let annotation = |key: &str| object.metadata.annotations.get(key).map(String::as_str);
        Some(Self {
            uid: object.metadata.uid.clone(),
            reference: object.reference(),
            service_account,
            addresses,
            alive: !matches!(phase, "Succeeded" | "Failed"),
            dns_capture: annotation(DNS_CAPTURE).and_then(|text| text.parse().ok()),
            bypass_inbound: annotation(BYPASS_INBOUND) == Some("true"),
            status_digest: digest(&object.value["status"]),
            labels: object.metadata.labels.clone(),
            annotations: object.metadata.annotations.clone(),
            host_network: spec.host_network.unwrap_or(false),
        })
    }
}

/// Equal for equal values, within this process.
fn digest(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}

/// What the source told about this node.
#[derive(Debug)]
pub struct Facts {
    node: String,
    sidecar_labels: bool,
    namespaces: HashMap<String, BTreeMap<String, String>>,
    pods: HashMap<ObjectRef, Arc<PodFacts>>,
}

impl Facts {
    /// Nothing yet.
    pub fn new(node: &str, sidecar_labels: bool) -> Self {
        Self { node: node.to_owned(), sidecar_labels, namespaces: HashMap::new(), pods: HashMap::new() }
    }

    /// Takes in an object. Kinds and pods that are not this node's business are ignored.
    pub fn apply(&mut self, object: &Object) {
        if object.namespace().is_some() {
            self.namespaces.insert(object.metadata.name.clone(), object.metadata.labels.clone());
        } else if let Some(pod) = object.pod() {
            let here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(self.node.as_str());
            match PodFacts::read(object).filter(|facts| here && !facts.uid.is_empty()) {
                Some(facts) => drop(self.pods.insert(facts.reference.clone(), Arc::new(facts))),
                None => drop(self.pods.remove(&object.reference())),
            }
        }
    }

    /// Forgets an object.
    pub fn remove(&mut self, object: &ObjectRef) {
        if object.kind == Kind::Namespace {
            self.namespaces.remove(&object.name);
        } else {
            self.pods.remove(object);
        }
    }

    /// The pod of this UID, if it exists on this node and runs, enrolled or not.
    pub fn alive(&self, uid: &str) -> Option<Arc<PodFacts>> {
        self.pods.values().find(|pod| pod.uid == uid && pod.alive).map(Arc::clone)
    }

    /// The pods that belong to the mesh and can be enrolled now, by UID.
    pub fn wanted(&self) -> BTreeMap<String, Arc<PodFacts>> {
        let wanted = self.pods.values().filter(|pod| pod.alive && !pod.addresses.is_empty() && self.belongs(pod));
        wanted.map(|pod| (pod.uid.clone(), Arc::clone(pod))).collect()
    }

    /// The pods of which a report says that they are enrolled, or are to be, although they do not belong to the mesh.
    pub fn wrongly_marked(&self) -> Vec<Arc<PodFacts>> {
        let wanted = self.wanted();
        let marked = |pod: &&Arc<PodFacts>| pod.annotations.contains_key(REDIRECTION) && !wanted.contains_key(&pod.uid);
        self.pods.values().filter(marked).map(Arc::clone).collect()
    }

    fn belongs(&self, pod: &PodFacts) -> bool {
        let none = BTreeMap::new();
        pod.reference.namespace != EXCLUDED_NAMESPACE
            && decide(&Candidate {
                namespace_labels: self.namespaces.get(&pod.reference.namespace).unwrap_or(&none),
                pod_labels: &pod.labels,
                pod_annotations: &pod.annotations,
                host_network: pod.host_network,
                sidecar_labels: self.sidecar_labels,
            })
            .is_enrolled()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        tropis_crds::decode(value).unwrap().0
    }

    fn pod(name: &str, node: &str, more: Value) -> Value {
        let mut value = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
            "spec": {"nodeName": node, "containers": [{"name": "app", "image": "app"}]},
            "status": {"phase": "Running", "podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}, {"ip": "fd00:10:244:1::7"}]},
        });
        for (key, change) in more.as_object().unwrap() {
            for (inner, content) in change.as_object().unwrap() {
                value[key][inner] = content.clone();
            }
        }
        value
    }

    fn namespace(labels: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
    }

    #[test]
    fn the_namespaces_label_enrols_its_pods_of_this_node_only() {
        let mut facts = Facts::new("a", true);
        facts.apply(&object(pod("here", "a", json!({}))));
        facts.apply(&object(pod("there", "b", json!({}))));
        assert!(facts.wanted().is_empty());
        facts.apply(&object(namespace(json!({"istio.io/dataplane-mode": "ambient"}))));
        let wanted = facts.wanted();
        assert_eq!(wanted.keys().collect::<Vec<_>>(), ["uid-here"]);
        assert_eq!(wanted["uid-here"].addresses.len(), 2);
        assert_eq!(wanted["uid-here"].service_account, "default");
        facts.apply(&object(namespace(json!({}))));
        assert!(facts.wanted().is_empty());
        assert!(facts.alive("uid-here").is_some());
    }

    #[test]
    fn the_proxy_is_told_the_account_that_certificates_are_issued_for() {
        let mut facts = Facts::new("a", true);
        facts.apply(&object(namespace(json!({"istio.io/dataplane-mode": "ambient"}))));
        facts.apply(&object(pod("one", "a", json!({"spec": {"serviceAccount": "cart"}}))));
        assert_eq!(facts.wanted()["uid-one"].service_account, "cart", "the older name of the field");
    }

    #[test]
    fn pods_that_cannot_be_enrolled_are_not_wanted() {
        for more in [
            json!({"spec": {"hostNetwork": true}}),
            json!({"status": {"phase": "Succeeded"}}),
            json!({"status": {"podIP": null, "podIPs": []}}),
            json!({"metadata": {"labels": {"istio.io/dataplane-mode": "none"}}}),
            json!({"metadata": {"annotations": {"sidecar.istio.io/status": "{}"}}}),
        ] {
            let mut facts = Facts::new("a", true);
            facts.apply(&object(namespace(json!({"istio.io/dataplane-mode": "ambient"}))));
            facts.apply(&object(pod("one", "a", more.clone())));
            assert!(facts.wanted().is_empty(), "{more}");
        }
    }

    #[test]
    fn a_deleted_pod_is_not_wanted() {
        let mut facts = Facts::new("a", true);
        facts.apply(&object(namespace(json!({"istio.io/dataplane-mode": "ambient"}))));
        let one = object(pod("one", "a", json!({})));
        facts.apply(&one);
        assert_eq!(facts.wanted().len(), 1);
        facts.remove(&one.reference());
        assert!(facts.wanted().is_empty() && facts.alive("uid-one").is_none());
    }
}
