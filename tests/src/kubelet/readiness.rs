//! Which ports a pod listens on, from its own `/proc/net/tcp{,6}`; and `readinessProbe.httpGet`, asked from inside the pod's namespace.
//! No probe crosses the network.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;

use crate::network::namespace::Namespace;
use crate::observe;

/// Ports in LISTEN.
pub type Listening = BTreeSet<u16>;

/// State `LISTEN` in the tables (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// The ports in LISTEN inside `namespace`; empty when it cannot be looked at.
pub fn listening(namespace: &Namespace) -> Listening {
    let tables =
        namespace.run(|| ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default()));
    tables.unwrap_or_default().iter().flat_map(|table| ports(table)).collect()
}

/// The ports in LISTEN of one table: `sl local_address rem_address st …`, addresses as `HEX:PORT`.
fn ports(table: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        (state == LISTEN).then_some(port)
    })
}

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

    #[test]
    fn reads_listening_ports_only() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
             1: 0100007F:1F91 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0\n\
             2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0 0 0\n";
        assert_eq!(ports(table).collect::<Vec<_>>(), [8080, 80]);
    }
}
