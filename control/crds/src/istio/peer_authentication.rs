//! `PeerAuthentication` (`security.istio.io` v1, v1beta1): whether mutual TLS is demanded of those who connect to a workload.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{WorkloadSelector, validate_selector};
use crate::{decode::About, names};

/// The whole object.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// As written; read once more by [`crate::decode()`].
    pub api_version: String,
    /// As written.
    pub kind: String,
    /// As written; [`crate::Object::metadata`] is the typed form.
    pub metadata: Value,
    /// What is demanded.
    #[serde(default)]
    pub spec: Spec,
    /// Written by the control plane.
    #[serde(default)]
    pub status: Value,
}

/// What is demanded, of whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// The workloads; absent for the whole namespace, or the whole mesh in the root namespace. Honoured.
    pub selector: Option<WorkloadSelector>,
    /// For all ports. Honoured.
    pub mtls: Option<MutualTls>,
    /// For single ports of the workload (target ports); needs a selector. Honoured.
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

impl Spec {
    /// The mode for all ports; `Unset` where nothing is said.
    pub fn mode(&self) -> Mode {
        self.mtls.unwrap_or_default().mode
    }

    /// Modes of single ports, in order of the port; keys that are no port were refused by decoding.
    pub fn ports(&self) -> BTreeMap<u16, Mode> {
        self.port_level_mtls.iter().filter_map(|(port, mtls)| Some((port.parse().ok()?, mtls.mode))).collect()
    }
}

/// `MutualTLS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    /// The mode. Honoured.
    pub mode: Mode,
}

/// `MutualTLS.Mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// As the level above says.
    #[default]
    Unset,
    /// Read as `Permissive`: in ambient nothing turns mutual TLS off between enrolled workloads.
    Disable,
    /// Plaintext is let in too.
    Permissive,
    /// Only mutual TLS is let in.
    Strict,
}

pub(crate) fn validate(about: &mut About<'_>, policy: &PeerAuthentication) {
    let spec = &policy.spec;
    validate_selector(about, spec.selector.as_ref());
    if spec.selector.as_ref().is_none_or(WorkloadSelector::is_empty) && !spec.port_level_mtls.is_empty() {
        about.refuse("spec.portLevelMtls", "", "is only allowed with a selector", "add spec.selector.matchLabels");
    }
    for port in spec.port_level_mtls.keys() {
        if !port.parse().is_ok_and(names::is_port) {
            about.refuse(&format!("spec.portLevelMtls[{port}]"), format!("{port:?}"), "is not a port", "1 to 65535");
        }
    }
}
