//! A waypoint as it knows itself: what it serves, and what holds for all of its traffic.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{address::NamespacedHostname, request_policy::RequestPolicy, workload::WorkloadUid};

/// A waypoint's own configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Waypoint {
    /// `namespace/name` of its Gateway.
    pub key: Arc<str>,
    /// Its own service.
    pub service: NamespacedHostname,
    /// What may be addressed through it.
    pub serves: Serves,
    /// Policies for traffic that is addressed to workloads (a host's own are in the host).
    pub policies: Vec<Arc<RequestPolicy>>,
    /// How requests are logged; `None` logs nothing.
    pub access_log: Option<AccessLogFormat>,
    /// Workloads that it serves and that nobody is to reach through it any more, or yet: whoever is connected to one had better connect
    /// again.
    pub elsewhere: BTreeSet<WorkloadUid>,
}

/// `istio.io/waypoint-for`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Serves {
    /// Traffic addressed to services.
    #[default]
    Services,
    /// Traffic addressed to workloads.
    Workloads,
    /// Both.
    All,
    /// Nothing.
    Nothing,
}

impl Serves {
    /// Whether traffic addressed to services goes through it.
    pub const fn services(self) -> bool {
        matches!(self, Self::Services | Self::All)
    }

    /// Whether traffic addressed to workloads goes through it.
    pub const fn workloads(self) -> bool {
        matches!(self, Self::Workloads | Self::All)
    }
}

/// How requests are logged (MeshConfig `accessLogEncoding`, `accessLogFormat`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AccessLogFormat {
    /// Istio's fields as JSON, and ours.
    Json,
    /// Text with Envoy's operators; `None` is Istio's default format.
    Text(Option<Arc<str>>),
}
