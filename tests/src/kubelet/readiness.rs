//! `readinessProbe.httpGet`, asked from inside the pod's namespace: no probe crosses the network.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;

use crate::network::namespace::Namespace;
use crate::observe;

/// A question over HTTP whose answer says whether a container is ready.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    port: u16,
    path: String,
}

impl Probe {
    /// `readinessProbe.httpGet` of a container; its port may be named.
    pub fn of(container: &Value) -> Option<Self> {
        let get = container["readinessProbe"].get("httpGet")?;
        let named = |name: &str| {
            let ports = container["ports"].as_array().into_iter().flatten();
            let mut numbers = ports.filter(|port| port["name"] == name).map(|port| &port["containerPort"]);
            numbers.next().and_then(Value::as_u64)
        };
        let port = get["port"].as_u64().or_else(|| named(get["port"].as_str()?))?;
        let path = get["path"].as_str().unwrap_or("/").to_owned();
        Some(Self { port: u16::try_from(port).ok()?, path })
    }

    /// Asks; as for the kubelet, 200 to 399 is a yes. Blocks.
    pub fn passes(&self, namespace: &Namespace) -> bool {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port);
        observe::get(namespace, address, &self.path).is_ok_and(|(status, _)| (200..400).contains(&status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_probe_may_name_its_port() {
        let ports = json!([{"name": "status-port", "containerPort": 15021}]);
        let probe =
            |port: Value| Probe::of(&json!({"ports": ports, "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": port}}}));
        let wanted = Some(Probe { port: 15021, path: "/healthz/ready".to_owned() });
        assert_eq!((probe(json!(15021)), probe(json!("status-port"))), (wanted.clone(), wanted));
        assert_eq!(probe(json!("other")), None);
        assert_eq!(Probe::of(&json!({"readinessProbe": {"tcpSocket": {"port": 1}}})), None);
    }
}
