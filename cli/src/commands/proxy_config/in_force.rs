//! What the running waypoints have in force, as their admin sockets show it: hosts with listeners, routes and clusters.

use serde::Serialize;
use serde_json::Value;
use tropis_compile::{destination_rule, index::Key};
use tropis_crds::Object;

use super::{
    Subject,
    held::{pod_of, sockets_of_waypoint, waypoint_sockets},
    told,
};
use crate::{admin, mesh::Mesh, output::Listing, pods::text, render, state::State};

/// What a node proxy opens in each pod that it serves.
const POD_LISTENERS: [(u16, &str, &str); 4] = [
    (15001, "all connections that the pod opens", "by address, see `tropis explain`"),
    (15006, "plain connections to the pod", "the pod, where policy allows"),
    (15008, "HBONE tunnels to the pod", "the pod, where policy allows"),
    (15053, "questions of the pod's resolver", "DNS proxy"),
];

/// A pod of a waypoint.
#[derive(Debug)]
pub(super) struct Running {
    /// `waypoint-1.shop`.
    pub(super) proxy: String,
    pub(super) gateway: Key,
    /// Its `/config_dump`.
    pub(super) dump: Value,
}

impl Running {
    /// Hosts by name, each with its hostname.
    fn hosts(&self) -> Vec<(&str, &Value)> {
        let hosts = list(&self.dump, "hosts").map(|host| (text(host, "/name").rsplit('/').next().unwrap_or_default(), host));
        let mut hosts: Vec<_> = hosts.collect();
        hosts.sort_by_key(|(name, _)| *name);
        hosts
    }
}

/// The waypoints that a subject's traffic meets, as they run. A waypoint that is asked for and does not run is an error; one that a pod
/// might call through is only noted.
pub(super) async fn running(state: &State, mesh: &Mesh, subject: &Subject) -> anyhow::Result<Vec<Running>> {
    let mut running = Vec::new();
    for (key, _) in told(subject, mesh) {
        let sockets = match subject {
            Subject::Waypoint(_) => waypoint_sockets(state, mesh, key)?,
            Subject::Pod(_) => sockets_of_waypoint(state, mesh, key)?,
        };
        if sockets.is_empty() {
            eprintln!("Note: no pod of waypoint {}/{} runs: nothing is in force there", key.0, key.1);
        }
        for socket in sockets {
            let dump = admin::json(&socket.path, "/config_dump").await?;
            running.push(Running { proxy: pod_of(&socket, key), gateway: key.clone(), dump });
        }
    }
    Ok(running)
}

fn list<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value[name].as_array().into_iter().flatten()
}

fn number(value: &Value) -> u16 {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).unwrap_or_default()
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Listener {
    pub(super) proxy: String,
    pub(super) addresses: &'static str,
    pub(super) port: u16,
    pub(super) r#match: String,
    pub(super) destination: String,
}

/// Where proxies listen: a pod's node proxy in the pod, waypoints for tunnels to their hosts.
pub(super) fn listeners(subject: &Subject, running: &[Running]) -> Vec<Listener> {
    let mut rows = Vec::new();
    if let Subject::Pod(pod) = subject {
        let proxy = format!("ztunnel (in {}.{})", pod.name, pod.namespace);
        rows.extend(POD_LISTENERS.iter().map(|(port, what, destination)| Listener {
            proxy: proxy.clone(),
            addresses: "the pod's own",
            port: *port,
            r#match: (*what).to_owned(),
            destination: (*destination).to_owned(),
        }));
    }
    for own in running {
        for (hostname, host) in own.hosts() {
            rows.extend(list(host, "ports").map(|port| {
                let routes: usize = ["http", "tls", "tcp"].iter().map(|kind| list(port, kind).count()).sum();
                Listener {
                    proxy: own.proxy.clone(),
                    addresses: "[::],0.0.0.0",
                    port: tropis_model::resolve::HBONE_PORT,
                    r#match: format!("tunnel to {hostname}:{}", number(&port["port"])),
                    destination: format!("{}, {}", text(port, "/protocol"), render::counted(routes, "route", "routes")),
                }
            }));
        }
    }
    rows
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Route {
    proxy: String,
    name: String,
    vhost: String,
    domains: String,
    r#match: String,
    virtual_service: String,
    destination: String,
}

/// The routes in the order in which they are tried.
pub(super) fn routes(running: &[Running], wanted: Option<u16>) -> Listing<Route> {
    let mut rows = Vec::new();
    for own in running {
        for (hostname, host) in own.hosts() {
            for port in list(host, "ports") {
                let number = number(&port["port"]);
                if wanted.is_some_and(|wanted| wanted != number) {
                    continue;
                }
                let row = |r#match: String, route: &Value| Route {
                    proxy: own.proxy.clone(),
                    name: number.to_string(),
                    vhost: format!("{hostname}:{number}"),
                    domains: hostname.to_owned(),
                    r#match,
                    virtual_service: render::virtual_service(text(route, "/origin")),
                    destination: text(route, "/destination").to_owned(),
                };
                rows.extend(list(port, "http").map(|route| row(text(route, "/match").to_owned(), route)));
                rows.extend(list(port, "tls").map(|route| {
                    let names: Vec<&str> = list(route, "serverNames").filter_map(Value::as_str).collect();
                    row(format!("TLS to {}", names.join(",")), route)
                }));
                rows.extend(list(port, "tcp").map(|route| row("TCP".to_owned(), route)));
            }
        }
    }
    let headings = &["PROXY", "NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE", "DESTINATION"];
    Listing::new(headings, rows, |row| {
        let Route { proxy, name, vhost, domains, r#match, virtual_service, destination } = row.clone();
        vec![proxy, name, vhost, domains, r#match, virtual_service, destination]
    })
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cluster {
    pub(super) proxy: String,
    pub(super) service: String,
    pub(super) port: u16,
    pub(super) subset: String,
    pub(super) direction: &'static str,
    pub(super) r#type: String,
    /// By the objects that there are now: a proxy is not told whose settings it obeys.
    pub(super) destination_rule: String,
}

/// The pools that routes name.
pub(super) fn clusters(running: &[Running], mesh: &Mesh) -> Vec<Cluster> {
    let mut rows = Vec::new();
    for own in running {
        for pool in own.hosts().into_iter().flat_map(|(_, host)| list(host, "pools")) {
            let (namespace, hostname) = (text(pool, "/service/namespace"), text(pool, "/service/hostname"));
            let rule = destination_rule::select(mesh.index(), &own.gateway.0, namespace, hostname);
            rows.push(Cluster {
                proxy: own.proxy.clone(),
                service: hostname.to_owned(),
                port: number(&pool["port"]),
                subset: text(pool, "/subset").to_owned(),
                direction: "outbound",
                r#type: text(pool, "/type").to_owned(),
                destination_rule: rule
                    .map(|rule| rule.objects.iter().map(|object| named(object)).collect::<Vec<_>>().join(","))
                    .unwrap_or_default(),
            });
        }
    }
    rows
}

fn named(object: &Object) -> String {
    format!("{}.{}", object.metadata.name, object.metadata.namespace)
}
