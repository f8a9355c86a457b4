//! `tropis proxy-config`: what waypoints do with requests, and for a pod, which proxies its traffic meets.
//!
//! All of it is what the running proxies have in force, each row with its proxy; only what names mean, and which DestinationRule a
//! cluster is by, is looked up in the objects.

mod endpoints;
mod held;
mod in_force;

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Subcommand;
use tropis_compile::{index::Key, waypoint::GATEWAY_NAME};
use tropis_crds::{Kind, ObjectRef};
use tropis_model::{route::Host, view::View};

use crate::{
    arguments::Options,
    control,
    mesh::Mesh,
    names::{self, Name},
    output::Listing,
    state::State,
};

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
            let subject = find(name)?;
            let mut rows = in_force::listeners(&subject, &in_force::running(&state, &mesh, &subject).await?);
            rows.retain(|row| port.is_none_or(|port| row.port == port));
            let headings = &["PROXY", "ADDRESSES", "PORT", "MATCH", "DESTINATION"];
            let listing = Listing::new(headings, rows, |row| {
                vec![row.proxy.clone(), row.addresses.to_owned(), row.port.to_string(), row.r#match.clone(), row.destination.clone()]
            });
            listing.render(format, "No listener.")
        }
        What::Routes { name, port } => {
            in_force::routes(&in_force::running(&state, &mesh, &find(name)?).await?, *port).render(format, NO_WAYPOINT)
        }
        What::Clusters { name, fqdn, port, subset } => {
            let mut rows = in_force::clusters(&in_force::running(&state, &mesh, &find(name)?).await?, &mesh);
            rows.retain(|row| {
                fqdn.as_ref().is_none_or(|fqdn| row.service == *fqdn)
                    && port.is_none_or(|port| row.port == port)
                    && subset.as_ref().is_none_or(|subset| row.subset == *subset)
            });
            let headings = &["PROXY", "SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"];
            let listing = Listing::new(headings, rows, |row| {
                let in_force::Cluster { proxy, service, port, subset, direction, r#type, destination_rule } = row.clone();
                vec![proxy, service, port.to_string(), subset, direction.to_owned(), r#type, destination_rule]
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
        What::Log { name, level, reset } => held::log((&state, format), &mesh, &find(name)?, level.as_deref(), *reset).await,
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

#[cfg(test)]
mod tests;
