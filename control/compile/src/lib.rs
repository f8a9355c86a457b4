//! Kubernetes objects become the mesh's model, and findings about what they mean. Pure: no cluster, no wire, no clock.
//!
//! [`Index`] keeps the objects by what refers to them and says what a change [`Affected`]; [`Compiler`] compiles only that and gives
//! the [`Change`](tropis_model::view::Change)s; [`compile()`] does the same for everything at once. Each noun has its file:
//! [`workload`], [`service`], [`authorization`] (AuthorizationPolicy at L4) and [`peer_authentication`]. [`waypoint`] says who goes
//! through which waypoint and what that one is told; what it does is put together in [`host`] from [`virtual_service`],
//! [`destination_rule`] and [`request_policy`]. Compiling never fails as a whole: what is good comes out, and a [`Finding`] for each
//! thing that is not.

pub mod authorization;
pub mod compiler;
pub mod destination_rule;
pub mod host;
pub mod index;
pub mod namespace;
pub mod peer_authentication;
pub mod request_policy;
pub mod service;
pub mod virtual_service;
pub mod waypoint;
pub mod workload;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tropis_crds::Finding;
use tropis_model::{policy::Policy, service::Service, waypoint::AccessLogFormat, workload::Workload};

use waypoint::{automatic::Scope, needed::AutomaticWaypoints};

pub use compiler::{Compiler, Left, compile};
pub use index::{Affected, Index};

/// What compiling depends on besides the objects.
///
/// tropisd serves its own as JSON, so that others compile as it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// The trust domain of every identity.
    pub trust_domain: Arc<str>,
    /// The namespace whose policies hold for the whole mesh.
    pub root_namespace: String,
    /// What service names end in.
    pub cluster_domain: String,
    /// The first part of every workload's uid.
    pub cluster_id: Arc<str>,
    /// The network that addresses are in; empty is the default one.
    pub network: Arc<str>,
    /// Labels of the sidecar model enrol too.
    pub sidecar_labels: bool,
    /// Whether namespaces get waypoints that nobody made for them.
    pub automatic_waypoints: AutomaticWaypoints,
    /// Whose Services each of those carries.
    pub automatic_waypoint_scope: Scope,
    /// How waypoints log requests; `None` logs nothing.
    pub access_log: Option<AccessLogFormat>,
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
            automatic_waypoints: AutomaticWaypoints::ByNeed,
            automatic_waypoint_scope: Scope::Namespace,
            access_log: Some(AccessLogFormat::Json),
        }
    }
}

/// Everything that the objects of an [`Index`] mean, in order of their keys.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Compiled {
    /// Workloads by uid.
    pub workloads: Vec<Workload>,
    /// Services by namespace and hostname.
    pub services: Vec<Service>,
    /// Policies by key.
    pub policies: Vec<Policy>,
    /// What is to be told, by object.
    pub findings: Vec<Finding>,
}

#[cfg(test)]
mod routing_tests;
#[cfg(test)]
mod tests;
