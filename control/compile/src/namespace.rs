//! What a namespace's labels mean for the mesh, where a user may expect something else.

use tropis_crds::{Finding, Object, codes};

use crate::Settings;

const MODE: &str = "istio.io/dataplane-mode";
const INJECTION: &str = "istio-injection";
const REVISION: &str = "istio.io/rev";

/// What there is to tell about a namespace.
pub fn findings(settings: &Settings, object: &Object) -> Vec<Finding> {
    let (mode, injection, revision) = (object.label(MODE), object.label(INJECTION), object.label(REVISION));
    let field = |key: &str| format!("metadata.labels[{key}]");
    let mut findings = Vec::new();
    if let Some(mode) = mode.filter(|mode| !["ambient", "none"].contains(mode)) {
        findings.push(
            Finding::warning(codes::UNREADABLE_VALUE, object.reference())
                .field(field(MODE))
                .found(format!("{mode:?}"))
                .problem("is not a mode")
                .accepted("ambient or none")
                .effect("the namespace is not enrolled"),
        );
        return findings;
    }
    if let (None, Some("disabled"), Some(revision)) = (mode, injection, revision) {
        findings.push(
            Finding::warning(codes::NAMESPACE_MULTIPLE_LABELS, object.reference())
                .field(field(REVISION))
                .found(format!("{revision:?}"))
                .problem(format!("contradicts {INJECTION}: disabled"))
                .accepted("one of the two labels")
                .effect("the namespace is not enrolled"),
        );
        return findings;
    }
    let sidecar = match (injection, revision) {
        (Some("enabled"), _) => Some((INJECTION, "enabled")),
        (None, Some(revision)) => Some((REVISION, revision)),
        _ => None,
    };
    if let (Some((label, value)), None) = (sidecar, mode) {
        let note = Finding::info(codes::SIDECAR_LABEL_ENROLS, object.reference()).field(field(label)).found(format!("{value:?}"));
        findings.push(match settings.sidecar_labels {
            true => note
                .problem("is a label of the sidecar model")
                .accepted(format!("{MODE}: ambient says the same"))
                .effect("the namespace's pods are enrolled in the ambient mesh, without sidecars and without restarts"),
            false => note
                .problem("is a label of the sidecar model, which is left to another mesh here")
                .accepted(format!("{MODE}: ambient enrols"))
                .effect("the namespace is not enrolled"),
        });
    }
    findings
}
