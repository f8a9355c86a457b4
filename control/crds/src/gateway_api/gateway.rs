//! `Gateway` (`gateway.networking.k8s.io` v1, v1beta1): a waypoint, or a gateway at the mesh's edge.
//!
//! Each field's doc says how far it is obeyed for a waypoint (class `istio-waypoint`); no other class is served yet. The checks are in `validate`.

mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

pub(crate) use validate::validate;

/// The whole object.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// As written; read once more by [`crate::decode()`].
    pub api_version: String,
    /// As written.
    pub kind: String,
    /// As written; [`crate::Object::metadata`] is the typed form.
    pub metadata: Value,
    /// What is wanted.
    pub spec: Spec,
    /// What there is, written by the control plane.
    #[serde(default)]
    pub status: Status,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Who serves it; `istio-waypoint` makes it a waypoint. Honoured.
    pub gateway_class_name: String,
    /// Where it listens; a waypoint has one, `mesh` 15008 `HBONE`. Honoured.
    pub listeners: Vec<Listener>,
    /// The addresses that it should have; a `Hostname` names a Service that somebody else deploys. Honoured.
    pub addresses: Vec<Address>,
    /// What its pods, Service and account carry. Honoured.
    pub infrastructure: Option<Infrastructure>,
    /// Who may add listeners. Not honoured.
    pub allowed_listeners: Option<AllowedListeners>,
    /// TLS of all listeners. Not honoured.
    pub tls: Option<Value>,
    /// Whether routes without a parent attach. Not honoured.
    pub default_scope: Option<String>,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    /// Its name, unique in the gateway. Honoured.
    pub name: String,
    /// The host that it serves. Not honoured at a waypoint.
    pub hostname: Option<String>,
    /// Its port, 1 to 65535. Honoured.
    pub port: i64,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP`, or `HBONE` for a waypoint. Honoured.
    pub protocol: String,
    /// Its TLS. Not honoured at a waypoint.
    pub tls: Option<ListenerTls>,
    /// What may attach to it, hence whose services may use the waypoint. Honoured for namespaces.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// `GatewayTLSConfig`. Not honoured at a waypoint.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTls {
    /// `Terminate` or `Passthrough`. Not honoured.
    pub mode: Option<TlsMode>,
    /// Secrets with certificates. Not honoured.
    pub certificate_refs: Vec<SecretReference>,
    /// How clients' certificates are verified. Not honoured.
    pub frontend_validation: Option<Value>,
    /// Options of the implementation. Not honoured.
    pub options: BTreeMap<String, String>,
}

/// `TLSModeType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum TlsMode {
    /// TLS ends here.
    Terminate,
    /// TLS goes through.
    Passthrough,
}

/// A Secret.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct SecretReference {
    /// API group. Not honoured.
    pub group: Option<String>,
    /// Kind. Not honoured.
    pub kind: Option<String>,
    /// Name. Not honoured.
    pub name: String,
    /// Namespace. Not honoured.
    pub namespace: Option<String>,
}

/// Which routes may attach; for a waypoint, whose services may use it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct AllowedRoutes {
    /// From which namespaces; absent is the gateway's own. Honoured.
    pub namespaces: Option<RouteNamespaces>,
    /// Of which kinds. Not honoured.
    pub kinds: Vec<RouteKind>,
}

/// Namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// Which. Honoured.
    pub from: FromNamespaces,
    /// With `Selector`: by the namespace's labels. Honoured.
    pub selector: Option<LabelSelector>,
}

/// `FromNamespaces`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum FromNamespaces {
    /// All of them.
    All,
    /// Those that a selector selects.
    Selector,
    /// The gateway's own.
    #[default]
    Same,
    /// None.
    None,
}

/// A kind of route.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct RouteKind {
    /// API group. Not honoured.
    pub group: Option<String>,
    /// Kind. Not honoured.
    pub kind: String,
}

/// Kubernetes' `LabelSelector`: all of its parts must hold; an empty one selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// These labels. Honoured.
    pub match_labels: BTreeMap<String, String>,
    /// These conditions. Honoured.
    pub match_expressions: Vec<LabelRequirement>,
}

/// A condition on a label.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LabelRequirement {
    /// The label's key.
    pub key: String,
    /// What must hold.
    pub operator: LabelOperator,
    /// With `In` and `NotIn` at least one, otherwise none.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What must hold of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum LabelOperator {
    /// It is there with one of the values.
    In,
    /// It is absent, or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether something with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                match requirement.operator {
                    LabelOperator::In => value.is_some_and(|value| requirement.values.contains(value)),
                    LabelOperator::NotIn => value.is_none_or(|value| !requirement.values.contains(value)),
                    LabelOperator::Exists => value.is_some(),
                    LabelOperator::DoesNotExist => value.is_none(),
                }
            })
    }
}

impl AllowedRoutes {
    /// Whether something in a namespace with these labels may attach to a gateway in namespace `own`.
    pub fn allows(&self, own: &str, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        let Some(namespaces) = &self.namespaces else { return own == namespace };
        match namespaces.from {
            FromNamespaces::All => true,
            FromNamespaces::Same => own == namespace,
            FromNamespaces::None => false,
            FromNamespaces::Selector => namespaces.selector.as_ref().is_some_and(|selector| selector.matches(labels)),
        }
    }
}

/// An address of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    /// What `value` is. Honoured.
    #[serde(rename = "type")]
    pub kind: AddressType,
    /// The address; in a spec it may be empty. Honoured.
    pub value: String,
}

/// `AddressType`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "String")]
pub enum AddressType {
    /// An IPv4 or IPv6 address.
    #[default]
    IpAddress,
    /// A DNS name.
    Hostname,
    /// An implementation's own, `DOMAIN/NAME`.
    Other(String),
}

impl From<String> for AddressType {
    fn from(text: String) -> Self {
        match text.as_str() {
            "IPAddress" => Self::IpAddress,
            "Hostname" => Self::Hostname,
            _ => Self::Other(text),
        }
    }
}

/// What is made for a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    /// Labels of what is made. Honoured.
    pub labels: BTreeMap<String, String>,
    /// Annotations of what is made. Honoured.
    pub annotations: BTreeMap<String, String>,
    /// More settings. Not honoured.
    pub parameters_ref: Option<ParametersReference>,
}

/// Where more settings are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ParametersReference {
    /// API group. Not honoured.
    pub group: String,
    /// Kind. Not honoured.
    pub kind: String,
    /// Name. Not honoured.
    pub name: String,
}

/// Who may add listeners. Not honoured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct AllowedListeners {
    /// From which namespaces. Not honoured.
    pub namespaces: Option<RouteNamespaces>,
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Its addresses; a waypoint is not used before it has one.
    pub addresses: Vec<Address>,
    /// As written.
    pub conditions: Value,
    /// As written.
    pub listeners: Value,
    /// As written.
    pub attached_listener_sets: Value,
}
