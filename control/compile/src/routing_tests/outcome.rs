//! Objects compiled as in a running mesh: with the waypoints that tropisd makes by itself, and everything in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use serde_json::{Value, json};
use tropis_crds::{Finding, decode};
use tropis_model::{
    authorize::{self, ConnectionFacts},
    identity::Identity,
    route::Host,
    view::{Change, View},
};

use crate::{Compiler, Settings, waypoint};

/// A mesh with the waypoints that tropisd makes by itself, each with everything in force that it is told.
#[derive(Default)]
pub(super) struct Outcome {
    /// The namespaces that got a waypoint, and why.
    pub(super) needs: BTreeMap<String, String>,
    /// What waypoints do, by service.
    pub(super) hosts: BTreeMap<String, Host>,
    /// What node proxies know.
    pub(super) view: View,
    findings: Vec<Finding>,
}

impl Outcome {
    /// What objects mean together; those that are refused change nothing.
    pub(super) fn of(values: &[Value]) -> Self {
        let mut compiler = Compiler::new(Settings::default());
        let mut outcome = Self::default();
        for value in values {
            match decode(value.clone()) {
                Ok((object, findings)) => {
                    compiler.apply(&Arc::new(object));
                    outcome.findings.extend(findings);
                }
                Err(findings) => outcome.findings.extend(findings),
            }
        }
        let mut changes = compiler.changes();
        outcome.needs = compiler.needs().iter().map(|((namespace, _), need)| (namespace.clone(), need.because.clone())).collect();
        for namespace in outcome.needs.keys() {
            let made = json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": waypoint::automatic::NAME, "namespace": namespace, "labels": {waypoint::AUTOMATIC: "true"}},
                "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
                "status": {"addresses": [{"type": "Hostname", "value": format!("automatic-waypoint.{namespace}.svc.cluster.local")}]},
            });
            compiler.apply(&Arc::new(decode(made).unwrap().0));
        }
        changes.extend(compiler.changes());
        for told in compiler.waypoints() {
            for change in told.changes.into_iter().flatten() {
                if let Change::Host(host) = change {
                    outcome.hosts.insert(host.name.to_string(), (*host).clone());
                }
            }
            compiler.acknowledged(&told.gateway);
        }
        changes.extend(compiler.changes());
        outcome.view = View::default().apply(changes);
        outcome.findings.extend(compiler.findings().cloned());
        outcome
    }

    /// Level, code, object and field of each finding.
    pub(super) fn findings(&self) -> Vec<String> {
        let shown = |finding: &Finding| {
            format!("{} {} {} {}", finding.level, finding.code, finding.object, finding.field.as_deref().unwrap_or_default())
                .trim_end()
                .to_owned()
        };
        let lines: BTreeSet<String> = self.findings.iter().map(shown).collect();
        lines.into_iter().collect()
    }

    /// Which callers each pod's node proxy lets in at a port: one without a certificate, two accounts, and the waypoint.
    pub(super) fn admission(&self, port: u16) -> BTreeMap<String, Vec<&'static str>> {
        let of = |namespace: &str, account: &str| Some(Identity::new("cluster.local", namespace, account));
        let mut pods = BTreeMap::new();
        for workload in self.view.workloads() {
            let own = &*workload.namespace;
            let callers = [
                ("plain", None),
                ("sleep", of(own, "sleep")),
                ("stranger", of("other", "stranger")),
                ("waypoint", of(own, "automatic-waypoint")),
            ];
            let lets_in = |peer: &Option<Identity>| {
                let destination = SocketAddr::new(workload.addresses[0], port);
                let facts = ConnectionFacts { peer: peer.clone(), source: "10.1.9.9".parse().unwrap(), destination };
                authorize::inbound(&self.view, workload, &facts).is_ok()
            };
            let names = callers.iter().filter(|(_, peer)| lets_in(peer)).map(|(name, _)| *name).collect();
            pods.insert(format!("{own}/{}", workload.name), names);
        }
        pods
    }
}
