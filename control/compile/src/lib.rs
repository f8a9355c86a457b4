//! Kubernetes and Istio objects to the model and findings. Pure: no cluster, no wire, no clock.
//!
//! [`Index`] holds the objects as facts that refer to each other by name; [`compile`] makes workloads, services and policies of them and
//! says what cannot be honoured. Compiling never fails as a whole: what is good is returned, each thing that is not is a
//! [`Finding`]. Meaning follows Istio's control plane (`docs/guide/differences.md` lists where it does not).

pub mod authorization;
pub mod index;
pub mod peers;
pub mod service;
pub mod workload;

use std::sync::Arc;

use tropis_crds::{Finding, Kind, Level, codes, kind::Support};
use tropis_model::{policy::Policy, service::Service, workload::Workload};

pub use index::Index;

/// What holds for the whole mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The trust domain of every identity.
    pub trust_domain: Arc<str>,
    /// The namespace whose policies hold for the mesh.
    pub root_namespace: String,
    /// The DNS domain of the cluster.
    pub cluster_domain: String,
    /// The cluster's name.
    pub cluster_id: Arc<str>,
    /// The cluster's network; empty is the default one.
    pub network: Arc<str>,
    /// The labels of sidecar users enrol too.
    pub sidecar_labels: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".into(),
            network: "".into(),
            sidecar_labels: true,
        }
    }
}

/// What came of compiling.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compiled {
    /// Pods, and addresses that endpoint slices name without a pod.
    pub workloads: Vec<Workload>,
    /// Services.
    pub services: Vec<Service>,
    /// L4 policies, converted PeerAuthentications among them.
    pub policies: Vec<Policy>,
    /// What a user should know.
    pub findings: Vec<Finding>,
}

/// Compiles everything that the index holds.
pub fn compile(index: &Index) -> Compiled {
    let mut findings = Vec::new();
    let authorization = authorization::compile(index, &mut findings);
    let peers = peers::compile(index, &mut findings);
    let workloads = workload::compile(index, &authorization, &peers);
    let services = service::compile(index);
    unhonoured(index, &mut findings);
    let policies = authorization.policies.into_iter().chain(peers.policies).collect();
    findings.sort();
    Compiled { workloads, services, policies, findings }
}

/// A finding for every object that nothing obeys yet, and a note for namespaces that enrol by a label of the sidecar model.
fn unhonoured(index: &Index, findings: &mut Vec<Finding>) {
    for object in index.objects() {
        if object.kind.support() == Support::NotHonoured {
            findings.push(
                Finding::warning(codes::KIND_NOT_HONOURED, object.reference())
                    .problem("is valid in shape, but this version does not obey its kind")
                    .effect("nothing; traffic is not changed by it"),
            );
        }
        if object.kind == Kind::Namespace && index.settings().sidecar_labels {
            let native = object.label("istio.io/dataplane-mode").is_some();
            let sidecar =
                ["istio-injection", "istio.io/rev"].into_iter().find(|key| object.label(key).is_some_and(|value| value != "disabled"));
            if let Some(key) = sidecar.filter(|_| !native) {
                findings.push(
                    Finding::new(Level::Info, codes::SIDECAR_LABEL_ENROLS, object.reference())
                        .field(format!("metadata.labels[{key}]"))
                        .problem("enrols the namespace without sidecars")
                        .accepted("istio.io/dataplane-mode: ambient says the same natively")
                        .effect("its pods are in the mesh"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
