//! The stand-in for kube-proxy: service addresses for pods outside the mesh, as nftables rules in the *node* namespaces.
//!
//! This is the cluster's part of the network. The mesh itself adds no netfilter rule anywhere.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::Snapshot;
use crate::cluster::services::ServiceView;
use crate::network::addresses::Family;
use crate::network::commands::nft;
use crate::network::namespace::Namespace;
use crate::progress::Progress;

/// Keeps the rules of `nodes` in step with the services. The receiver has the last state whose rules are in force on every node.
pub fn start(
    nodes: Vec<Arc<Namespace>>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    progress: Progress,
) -> (watch::Receiver<Arc<Snapshot>>, JoinHandle<()>) {
    let (in_force, applied) = watch::channel(Arc::default());
    let task = tokio::spawn(async move {
        let mut rules = String::new();
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let wanted = ruleset(&snapshot.services);
            if wanted == rules || apply(&nodes, &wanted, &progress).await {
                rules = wanted;
                in_force.send_replace(snapshot);
            }
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    });
    (applied, task)
}

/// Applies `rules` on every node; whether all took them.
async fn apply(nodes: &[Arc<Namespace>], rules: &str, progress: &Progress) -> bool {
    let mut all = true;
    for node in nodes {
        let (node, rules) = (node.clone(), rules.to_owned());
        match tokio::task::spawn_blocking(move || nft(&node, &rules)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                progress.step(format!("kube-proxy: {error}"));
                all = false;
            }
            // The lab is ending.
            Err(_) => all = false,
        }
    }
    all
}

/// The rules for `services`, to be applied in one transaction: both tables are replaced.
pub fn ruleset(services: &[ServiceView]) -> String {
    let mut rules = String::new();
    for (family, table) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let name = format!("{table} kube-proxy");
        // Adding before deleting: the delete of a table that is not there would fail.
        let _ = writeln!(rules, "table {name} {{ }}\ndelete table {name}\ntable {name} {{");
        let mut translations = String::new();
        let mut rejections = String::new();
        let mut own = Vec::new();
        for service in services {
            for address in service.addresses.iter().filter(|address| Family::of(**address) == family) {
                service_rules(service, *address, table, &mut translations, &mut rejections);
            }
            let pods = service.backends.iter().filter(|backend| backend.serves(service)).map(|backend| backend.addresses.of(family));
            own.extend(pods);
        }
        let _ = writeln!(rules, "  chain services {{\n{translations}  }}");
        for (hook, priority) in [("prerouting", "dstnat"), ("output", "-100")] {
            let _ = writeln!(rules, "  chain {hook} {{ type nat hook {hook} priority {priority}; jump services; }}");
        }
        let _ = writeln!(rules, "  chain no-endpoints {{\n{rejections}  }}");
        for hook in ["forward", "output"] {
            let _ = writeln!(rules, "  chain filter-{hook} {{ type filter hook {hook} priority filter; jump no-endpoints; }}");
        }
        own.sort();
        own.dedup();
        if !own.is_empty() {
            // A pod that reaches itself through a service must get its answers by the node too.
            let pairs: Vec<String> = own.iter().map(|address| format!("{address} . {address}")).collect();
            let _ = writeln!(
                rules,
                "  chain postrouting {{ type nat hook postrouting priority srcnat; {table} saddr . {table} daddr {{ {} }} masquerade; }}",
                pairs.join(", ")
            );
        }
        rules.push_str("}\n");
    }
    rules
}

fn service_rules(service: &ServiceView, address: IpAddr, table: &str, translations: &mut String, rejections: &mut String) {
    let family = Family::of(address);
    for (index, port) in service.ports.iter().enumerate() {
        let protocol = port.protocol.to_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp") {
            continue;
        }
        let matches = format!("{table} daddr {address} {protocol} dport {}", port.port);
        let serving = service.backends.iter().filter(|backend| backend.serves(service));
        let endpoints: Vec<String> = serving
            .filter_map(|backend| Some(format!("{} . {}", backend.addresses.of(family), backend.targets.get(index).copied().flatten()?)))
            .collect();
        let _ = match endpoints.len() {
            0 => writeln!(rejections, "    {matches} reject;"),
            count => {
                let choices: Vec<String> =
                    endpoints.iter().enumerate().map(|(number, endpoint)| format!("{number} : {endpoint}")).collect();
                writeln!(translations, "    {matches} dnat to numgen random mod {count} map {{ {} }};", choices.join(", "))
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::object::Key;
    use crate::cluster::services::{Backend, ServicePort, Target};
    use crate::network::addresses::AddressPlan;

    fn service(ready: bool) -> ServiceView {
        let plan = AddressPlan::new(0);
        ServiceView {
            key: Key::new("Service", "shop", "web"),
            addresses: plan.service(20).both().to_vec(),
            families: Family::BOTH.to_vec(),
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: "TCP".into(),
                port: 80,
                target: Target::Number(8080),
                app_protocol: None,
            }],
            backends: vec![Backend {
                pod: Key::pod("shop", "web-1"),
                uid: "u".into(),
                node: "a".into(),
                addresses: plan.pod(1, 2),
                ready,
                terminating: false,
                hostname: None,
                targets: vec![Some(8080)],
            }],
            selector: Default::default(),
            headless: false,
            publish_not_ready: false,
        }
    }

    #[test]
    fn a_service_address_becomes_a_pods() {
        let rules = ruleset(&[service(true)]);
        assert!(rules.contains("ip daddr 10.96.0.20 tcp dport 80 dnat to numgen random mod 1 map { 0 : 10.244.1.2 . 8080 };"), "{rules}");
        assert!(rules.contains("ip6 daddr fd00:10:96::14 tcp dport 80 dnat to numgen random mod 1 map { 0 : fd00:10:244:1::2 . 8080 };"));
    }

    #[test]
    fn a_service_without_endpoints_refuses() {
        let rules = ruleset(&[service(false)]);
        assert!(rules.contains("ip daddr 10.96.0.20 tcp dport 80 reject;"), "{rules}");
        assert!(!rules.contains("dnat to"));
    }
}
