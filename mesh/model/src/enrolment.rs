//! Whether a pod belongs to the mesh: a pure decision over labels.
//!
//! `istio.io/dataplane-mode` on the pod wins, then on the namespace; then the labels of sidecar users (`sidecar.istio.io/inject`,
//! `istio-injection`, `istio.io/rev`), because the guides that people follow use only those (docs/guide/differences.md).

use std::collections::BTreeMap;

/// What the decision looks at.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The namespace's labels.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// The pod's labels.
    pub pod_labels: &'a BTreeMap<String, String>,
    /// The pod's annotations.
    pub pod_annotations: &'a BTreeMap<String, String>,
    /// The pod shares its node's network namespace.
    pub host_network: bool,
    /// The sidecar labels enrol too (the default). Off where a sidecar mesh shares the cluster.
    pub sidecar_labels: bool,
}

/// Whether a pod belongs to the mesh, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolment {
    /// It does, by the named label.
    Enrolled(&'static str),
    /// It does not: the named label or property says so.
    OptedOut(&'static str),
    /// Nothing asks for it.
    NotAsked,
}

impl Enrolment {
    /// Whether the pod belongs to the mesh.
    pub fn is_enrolled(self) -> bool {
        matches!(self, Self::Enrolled(_))
    }
}

const MODE: &str = "istio.io/dataplane-mode";
const INJECT: &str = "sidecar.istio.io/inject";
const INJECTION: &str = "istio-injection";
const REVISION: &str = "istio.io/rev";
/// Written by the injector of a sidecar mesh: the pod has a proxy of its own already.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// Decides whether `candidate` belongs to the mesh.
pub fn decide(candidate: &Candidate<'_>) -> Enrolment {
    if candidate.host_network {
        return Enrolment::OptedOut("hostNetwork");
    }
    if candidate.pod_annotations.contains_key(SIDECAR_STATUS) {
        return Enrolment::OptedOut(SIDECAR_STATUS);
    }
    let pod = |key: &str| candidate.pod_labels.get(key).map(String::as_str);
    let namespace = |key: &str| candidate.namespace_labels.get(key).map(String::as_str);
    match pod(MODE).or_else(|| namespace(MODE)) {
        Some("ambient") => return Enrolment::Enrolled(MODE),
        Some(_) => return Enrolment::OptedOut(MODE),
        None => {}
    }
    if !candidate.sidecar_labels {
        return Enrolment::NotAsked;
    }
    match pod(INJECT) {
        Some("false") => return Enrolment::OptedOut(INJECT),
        Some("true") => return Enrolment::Enrolled(INJECT),
        _ => {}
    }
    match namespace(INJECTION) {
        Some("disabled") => return Enrolment::OptedOut(INJECTION),
        Some("enabled") => return Enrolment::Enrolled(INJECTION),
        _ => {}
    }
    if pod(REVISION).or_else(|| namespace(REVISION)).is_some() {
        return Enrolment::Enrolled(REVISION);
    }
    Enrolment::NotAsked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// Labels of the namespace, labels of the pod, whether it is enrolled.
    type Case = (&'static [(&'static str, &'static str)], &'static [(&'static str, &'static str)], bool);

    #[test]
    fn pod_beats_namespace_and_native_beats_sidecar_labels() {
        let cases: &[Case] = &[
            (&[], &[], false),
            (&[(MODE, "ambient")], &[], true),
            (&[(MODE, "ambient")], &[(MODE, "none")], false),
            (&[], &[(MODE, "ambient")], true),
            (&[(MODE, "none")], &[], false),
            (&[(MODE, "none"), (INJECTION, "enabled")], &[], false),
            (&[(INJECTION, "enabled")], &[], true),
            (&[(INJECTION, "disabled")], &[], false),
            (&[(INJECTION, "enabled")], &[(INJECT, "false")], false),
            (&[(INJECTION, "disabled")], &[(INJECT, "true")], true),
            (&[(REVISION, "stable")], &[], true),
            (&[(REVISION, "stable"), (INJECTION, "disabled")], &[], false),
        ];
        for (namespace, pod, expected) in cases {
            let (namespace_labels, pod_labels, none) = (labels(namespace), labels(pod), labels(&[]));
            let candidate = Candidate {
                namespace_labels: &namespace_labels,
                pod_labels: &pod_labels,
                pod_annotations: &none,
                host_network: false,
                sidecar_labels: true,
            };
            assert_eq!(decide(&candidate).is_enrolled(), *expected, "{namespace:?} {pod:?}");
            assert!(!decide(&Candidate { host_network: true, ..candidate }).is_enrolled());
        }
    }

    #[test]
    fn a_pod_with_a_sidecar_is_left_alone_and_sidecar_labels_can_be_ignored() {
        let (ambient, injection, sidecar, none) =
            (labels(&[(MODE, "ambient")]), labels(&[(INJECTION, "enabled")]), labels(&[(SIDECAR_STATUS, "{}")]), labels(&[]));
        let candidate = Candidate {
            namespace_labels: &ambient,
            pod_labels: &none,
            pod_annotations: &sidecar,
            host_network: false,
            sidecar_labels: true,
        };
        assert_eq!(decide(&candidate), Enrolment::OptedOut(SIDECAR_STATUS));
        let ignoring = Candidate { namespace_labels: &injection, pod_annotations: &none, sidecar_labels: false, ..candidate };
        assert_eq!(decide(&ignoring), Enrolment::NotAsked);
    }
}
