//! The mesh as the control plane compiles it, made here from the same objects by the same code.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use tropis_compile::{Compiler, Index, Settings, index::Key};
use tropis_crds::{Finding, Kind, Object};
use tropis_model::{
    pool::Pool,
    view::{Change, View},
    workload::Workload,
};

/// What the objects mean.
#[derive(Debug)]
pub(crate) struct Mesh {
    compiler: Compiler,
    /// What every node proxy is told.
    pub(crate) view: View,
    /// What each waypoint is told, by namespace and name of its Gateway.
    pub(crate) waypoints: BTreeMap<Key, View>,
}

impl Mesh {
    /// Compiles objects as the control plane does by these settings. Waypoints are taken to have in force what they are told: the policies in it let them in at their destinations.
    pub(crate) fn compile<'a>(settings: Settings, objects: impl IntoIterator<Item = &'a Arc<Object>>) -> Self {
        let mut compiler = Compiler::new(settings);
        for object in objects {
            compiler.apply(object);
        }
        let mut changes = compiler.changes();
        let mut waypoints = BTreeMap::new();
        for told in compiler.waypoints() {
            let changes: Vec<Change> = told.changes.unwrap_or_default();
            compiler.acknowledged(&told.gateway);
            waypoints.insert(told.gateway, View::default().apply(changes));
        }
        changes.extend(compiler.changes());
        Self { compiler, view: View::default().apply(changes), waypoints }
    }

    /// The objects by what refers to them.
    pub(crate) fn index(&self) -> &Index {
        self.compiler.index()
    }

    /// A workload as a waypoint is told it that knows it as a caller alone.
    pub(crate) fn as_caller<'a>(&'a self, workload: &'a Arc<Workload>) -> &'a Arc<Workload> {
        self.compiler.as_caller(workload)
    }

    /// What there is to tell about the objects together.
    pub(crate) fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.compiler.findings()
    }

    /// The workload of a pod.
    pub(crate) fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.view.workloads().find(|workload| *workload.namespace == *namespace && *workload.name == *name)
    }

    /// The first pod of a Service or of a Deployment (or whatever else makes pods).
    pub(crate) fn pod_of(&self, kind: Kind, (namespace, name): &Key) -> Option<&Arc<Object>> {
        let owned = |workload: &&Arc<Workload>| match kind {
            Kind::Service => workload.services.keys().any(|service| *service.namespace == **namespace && short(&service.hostname) == name),
            _ => *workload.namespace == **namespace && *workload.workload_name == **name,
        };
        let mut found: Vec<&Arc<Workload>> = self.view.workloads().filter(owned).collect();
        found.sort_by(|one, other| one.uid.cmp(&other.uid));
        let first = found.first()?;
        self.index().pod(&(first.namespace.to_string(), first.name.to_string()))
    }
}

/// The first label of a name.
fn short(hostname: &str) -> &str {
    hostname.split('.').next().unwrap_or(hostname)
}

/// The workloads of a pool, with the address at which each serves it.
pub(crate) fn members<'a>(view: &'a View, pool: &'a Pool) -> impl Iterator<Item = (&'a Arc<Workload>, SocketAddr)> {
    let declared = view.service(&pool.key.host).and_then(|service| service.ports.get(&pool.key.port).copied());
    let carries = |workload: &Workload| pool.labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value));
    view.endpoints(&pool.key.host).filter(move |endpoint| carries(endpoint.workload)).filter_map(move |endpoint| {
        let port = endpoint.ports.get(&pool.key.port).copied().or(declared?.target_port)?;
        Some((endpoint.workload, SocketAddr::new(*endpoint.workload.addresses.first()?, port)))
    })
}
