//! `tropis proxy-config`: what waypoints do with requests, and for a pod, which proxies its traffic meets.
//!
//! Routes, clusters and listeners of a waypoint are what the control plane tells it, compiled here from the same objects; endpoints with
//! their ejections, certificates and log levels come from the running proxy.

mod endpoints;
mod held;

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Subcommand;
use serde::Serialize;
use tropis_compile::{destination_rule, index::Key, waypoint::GATEWAY_NAME};
use tropis_crds::{Kind, Object, ObjectRef};
use tropis_model::{route::Host, view::View};

use crate::{
    arguments::Options,
    control,
    mesh::Mesh,
    names::{self, Name},
    output::Listing,
    render,
    state::State,
};

/// What a node proxy opens in each pod that it serves.
const POD_LISTENERS: [(u16, &str, &str); 4] = [
    (15001, "all connections that the pod opens", "by address, see `tropis explain`"),
    (15006, "plain connections to the pod", "the pod, where policy allows"),
    (15008, "HBONE tunnels to the pod", "the pod, where policy allows"),
    (15053, "questions of the pod's resolver", "DNS proxy"),
];

const EXAMPLES: &str = "\
Examples:
  tropis proxy-config routes waypoint.shop
  tropis proxy-config endpoints sleep.shop     through the waypoints that the pod calls through";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Where proxies listen, and what for.
    #[command(visible_aliases = ["listener", "l"])]
    Listeners {
        /// A waypoint or a pod.
        name: String,
        /// Only this port.
        #[arg(long)]
        port: Option<u16>,
    },
    /// Which route a request takes.
    #[command(visible_aliases = ["route", "r"])]
    Routes {
        /// A waypoint or a pod.
        name: String,
        /// Only this service port.
        #[arg(long)]
        port: Option<u16>,
    },
    /// The pools that routes name.
    #[command(visible_aliases = ["cluster", "c"])]
    Clusters {
        /// A waypoint or a pod.
        name: String,
        /// Only of this service.
        #[arg(long)]
        fqdn: Option<String>,
        /// Only of this service port.
        #[arg(long)]
        port: Option<u16>,
        /// Only this subset.
        #[arg(long)]
        subset: Option<String>,
    },
    /// The endpoints of pools, with those that are ejected.
    #[command(visible_aliases = ["endpoint", "ep"])]
    Endpoints {
        /// A waypoint or a pod.
        name: String,
        /// Only at this port.
        #[arg(long)]
        port: Option<u16>,
        /// Only of this cluster, for example "outbound|9080||reviews.shop.svc.cluster.local".
        #[arg(long)]
        cluster: Option<String>,
        /// Only in this state.
        #[arg(long, value_parser = ["healthy", "unhealthy", "ejected"])]
        status: Option<String>,
    },
    /// Certificates, without their keys.
    #[command(visible_aliases = ["secrets", "s"])]
    Secret {
        /// A waypoint or a pod.
        name: String,
    },
    /// The log level.
    #[command(visible_alias = "o")]
    Log {
        /// A waypoint or a pod.
        name: String,
        /// A level (debug) or a filter (info,access=off).
        #[arg(long)]
        level: Option<String>,
        /// Back to what it started with.
        #[arg(long, conflicts_with = "level")]
        reset: bool,
    },
}

/// What a name on the command line means.
#[derive(Debug)]
enum Subject {
    /// A waypoint, by its Gateway.
    Waypoint(Key),
    /// A pod.
    Pod(Name),
}

/// A waypoint, and what it is told.
type Told<'a> = (&'a Key, &'a View);

pub(crate) async fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    let state = State::open(&options.state)?;
    let mesh = Mesh::compile(control::settings(&state).await, &state.snapshot().objects);
    let find = |name: &str| subject(&mesh, name, options.namespace());
    let format = options.output;
    match &arguments.what {
        What::Listeners { name, port } => {
            let mut rows = listeners(&find(name)?, &mesh);
            rows.retain(|row| port.is_none_or(|port| row.port == port));
            let headings = &["PROXY", "ADDRESSES", "PORT", "MATCH", "DESTINATION"];
            let listing = Listing::new(headings, rows, |row| {
                vec![row.proxy.clone(), row.addresses.to_owned(), row.port.to_string(), row.r#match.clone(), row.destination.clone()]
            });
            listing.render(format, "No listener.")
        }
        What::Routes { name, port } => routes(&find(name)?, &mesh, *port).render(format, NO_WAYPOINT),
        What::Clusters { name, fqdn, port, subset } => {
            let mut rows = clusters(&find(name)?, &mesh);
            rows.retain(|row| {
                fqdn.as_ref().is_none_or(|fqdn| row.service == *fqdn)
                    && port.is_none_or(|port| row.port == port)
                    && subset.as_ref().is_none_or(|subset| row.subset == *subset)
            });
            let headings = &["PROXY", "SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"];
            let listing = Listing::new(headings, rows, |row| {
                let Cluster { proxy, service, port, subset, direction, r#type, destination_rule } = row.clone();
                vec![proxy, service, port.to_string(), subset, direction.to_owned(), r#type.to_owned(), destination_rule]
            });
            listing.render(format, NO_WAYPOINT)
        }
        What::Endpoints { name, port, cluster, status } => {
            let mut rows = endpoints::rows(&state, &mesh, &told(&find(name)?, &mesh)).await?;
            rows.retain(|row| {
                port.is_none_or(|port| row.endpoint.ends_with(&format!(":{port}")))
                    && cluster.as_ref().is_none_or(|cluster| row.cluster == *cluster)
                    && status.as_ref().is_none_or(|status| row.is(status))
            });
            endpoints::listing(rows).render(format, NO_WAYPOINT)
        }
        What::Secret { name } => held::secret(&state, &mesh, &find(name)?, format).await,
        What::Log { name, level, reset } => held::log(&state, &mesh, &find(name)?, level.as_deref(), *reset).await,
    }
}

const NO_WAYPOINT: &str = "Nothing: no waypoint is on the way. Node proxies decide by `tropis ztunnel-config services`; \
                           `tropis waypoint list -A` lists waypoints.";

/// A waypoint by its Gateway or by one of its pods, or another pod.
fn subject(mesh: &Mesh, text: &str, namespace: &str) -> anyhow::Result<Subject> {
    let name = names::name(text, namespace)?;
    let key = (name.namespace.clone(), name.name.clone());
    if mesh.waypoints.contains_key(&key) {
        return Ok(Subject::Waypoint(key));
    }
    let pod = match name.kind.as_str() {
        "" => mesh.index().pod(&key),
        kind if names::kind(kind).is_ok_and(|kind| kind == Kind::Pod) => mesh.index().pod(&key),
        kind => mesh.pod_of(names::kind(kind)?, &key),
    };
    let Some(pod) = pod else {
        let object = ObjectRef::new(Kind::Pod, name.namespace.as_str(), name.name.as_str());
        bail!(
            "{object} does not exist, and no waypoint is called so\n`tropis get pods -A` and `tropis waypoint list -A` list what there is"
        );
    };
    if let Some(gateway) = pod.label(GATEWAY_NAME) {
        let key = (pod.metadata.namespace.clone(), gateway.to_owned());
        if mesh.waypoints.contains_key(&key) {
            return Ok(Subject::Waypoint(key));
        }
    }
    Ok(Subject::Pod(Name { kind: String::new(), namespace: pod.metadata.namespace.clone(), name: pod.metadata.name.clone() }))
}

/// The waypoints that a subject's traffic meets: itself; for a pod, all that it may call through, its own among them.
fn told<'a>(subject: &Subject, mesh: &'a Mesh) -> Vec<Told<'a>> {
    mesh.waypoints
        .iter()
        .filter(|(key, _)| matches!(subject, Subject::Pod(_)) || matches!(subject, Subject::Waypoint(own) if own == *key))
        .collect()
}

/// Namespace and name as istioctl writes a proxy: `waypoint.shop`.
fn shown((namespace, name): &Key) -> String {
    format!("{name}.{namespace}")
}

fn hosts(view: &View) -> BTreeMap<&str, &Host> {
    view.hosts().map(|host| (&*host.name.hostname, &**host)).collect()
}

#[derive(Debug, Clone, Serialize)]
struct Listener {
    proxy: String,
    addresses: &'static str,
    port: u16,
    r#match: String,
    destination: String,
}

fn listeners(subject: &Subject, mesh: &Mesh) -> Vec<Listener> {
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
    for (key, view) in told(subject, mesh) {
        for host in hosts(view).values() {
            rows.extend(host.ports.iter().map(|(port, own)| Listener {
                proxy: shown(key),
                addresses: "[::],0.0.0.0",
                port: tropis_model::resolve::HBONE_PORT,
                r#match: format!("tunnel to {}:{port}", host.name.hostname),
                destination: format!("{:?}, {} routes", own.protocol, own.http.len() + own.tls.len() + own.tcp.len()),
            }));
        }
    }
    rows
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Route {
    proxy: String,
    name: String,
    vhost: String,
    domains: String,
    r#match: String,
    virtual_service: String,
    destination: String,
}

fn routes(subject: &Subject, mesh: &Mesh, wanted: Option<u16>) -> Listing<Route> {
    let mut rows = Vec::new();
    for (key, view) in told(subject, mesh) {
        for host in hosts(view).values() {
            for (number, port) in host.ports.iter().filter(|(number, _)| wanted.is_none_or(|wanted| wanted == **number)) {
                let row = |r#match: String, origin, destination: String| Route {
                    proxy: shown(key),
                    name: number.to_string(),
                    vhost: format!("{}:{number}", host.name.hostname),
                    domains: host.name.hostname.to_string(),
                    r#match,
                    virtual_service: render::virtual_service(origin),
                    destination,
                };
                rows.extend(port.http.iter().map(|route| row(render::matches(route), &route.origin, render::action(route))));
                let tls = port.tls.iter().map(|route| {
                    row(
                        format!("TLS to {}", route.server_names.join(",")),
                        &route.origin,
                        render::destinations(&route.destinations).join(", "),
                    )
                });
                rows.extend(tls);
                let tcp =
                    port.tcp.iter().map(|route| row("TCP".to_owned(), &route.origin, render::destinations(&route.destinations).join(", ")));
                rows.extend(tcp);
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
struct Cluster {
    proxy: String,
    service: String,
    port: u16,
    subset: String,
    direction: &'static str,
    r#type: &'static str,
    destination_rule: String,
}

fn clusters(subject: &Subject, mesh: &Mesh) -> Vec<Cluster> {
    let mut rows = Vec::new();
    for (key, view) in told(subject, mesh) {
        for pool in hosts(view).values().flat_map(|host| host.pools.values()) {
            let (namespace, hostname) = (&pool.key.host.namespace, &pool.key.host.hostname);
            let rule = destination_rule::select(mesh.index(), &key.0, namespace, hostname);
            rows.push(Cluster {
                proxy: shown(key),
                service: hostname.to_string(),
                port: pool.key.port,
                subset: pool.key.subset.as_deref().unwrap_or_default().to_owned(),
                direction: "outbound",
                r#type: render::balancer(&pool.balancer),
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

#[cfg(test)]
mod tests;
