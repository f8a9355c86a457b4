//! Whether the proxies on the way have in force what was explained: the decisions are those of the objects, and a proxy that lags behind
//! or refused something goes by older ones.

use std::{collections::BTreeSet, net::SocketAddr};

use serde::Serialize;
use tropis_compile::{index::Key, waypoint::GATEWAY_NAME};
use tropis_model::workload::{TunnelProtocol, Workload};

use super::{question::Question, story::Decided};
use crate::{
    commands::proxy_status::{self, Row},
    mesh::Mesh,
    pods::ZTUNNEL,
    state::State,
};

/// Nobody could be asked.
const UNKNOWN: &str = "UNKNOWN";
const NOT_CONNECTED: &str = "NOT CONNECTED";

/// A proxy that decides on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Proxy {
    /// Its pod, or its place if no pod of it is connected.
    pub(super) proxy: String,
    /// `node a`, `waypoint shop/waypoint`.
    pub(super) place: String,
    /// A word of `tropis proxy-status`, or `UNKNOWN`.
    pub(super) status: String,
    /// What it refused, with its reasons.
    pub(super) refused: Vec<String>,
}

impl Proxy {
    /// What a reader must know; `None` if it has everything in force.
    pub(super) fn note(&self) -> Option<String> {
        let Self { proxy, place, status, refused } = self;
        let what = match status.as_str() {
            proxy_status::SYNCED => return None,
            proxy_status::REFUSED => format!("refused {}; an older version is in force there", refused.join(", ")),
            proxy_status::STALE => "has not confirmed the latest yet".to_owned(),
            UNKNOWN => "cannot be asked about, since tropisd does not answer".to_owned(),
            NOT_CONNECTED => "is not connected to tropisd and goes by what it had".to_owned(),
            _ => "asked and has nothing yet".to_owned(),
        };
        Some(if proxy == place { format!("{place} {what}") } else { format!("{proxy} ({place}) {what}") })
    }
}

/// Where a proxy decides.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Node(String),
    Waypoint(Key),
}

/// The proxies that decide about a question, and how far each is.
pub(super) async fn ask(state: &State, mesh: &Mesh, question: &Question, decided: &Decided) -> Vec<Proxy> {
    let known = proxy_status::proxies(state).await.ok();
    places(mesh, question, decided).iter().flat_map(|place| proxies(mesh, place, known.as_deref())).collect()
}

/// The caller's node, the waypoints that are called, and the nodes of endpoints in the mesh.
fn places(mesh: &Mesh, question: &Question, decided: &Decided) -> BTreeSet<Place> {
    let addresses = decided.endpoints.iter().filter_map(|endpoint| endpoint.address.parse::<SocketAddr>().ok());
    let called = addresses.chain(decided.next_hops.iter().copied());
    let called = called.filter_map(|address| mesh.view.workload_at(&question.caller.network, address.ip()));
    std::iter::once(&question.caller).chain(called).filter_map(|workload| place(mesh, workload)).collect()
}

fn place(mesh: &Mesh, workload: &Workload) -> Option<Place> {
    let namespace = workload.namespace.to_string();
    let pod = mesh.index().pod(&(namespace.clone(), workload.name.to_string()));
    match pod.and_then(|pod| pod.label(GATEWAY_NAME)) {
        Some(gateway) => Some(Place::Waypoint((namespace, gateway.to_owned()))),
        None => (workload.tunnel_protocol == TunnelProtocol::Hbone).then(|| Place::Node(workload.node.to_string())),
    }
}

/// Which of the proxies that the control plane knows are at a place.
enum Wanted {
    /// Those of a waypoint, `NAMESPACE/NAME`.
    PodsOf(String),
    /// The one of a node, by its name; nobody knows the name of one that is not in the mesh's view.
    NodeProxy(Option<String>),
}

impl Wanted {
    fn is(&self, row: &Row) -> bool {
        match self {
            Self::PodsOf(gateway) => row.gateway.as_ref() == Some(gateway),
            Self::NodeProxy(name) => row.gateway.is_none() && name.as_ref() == Some(&row.name),
        }
    }
}

/// The proxies of a place among those that the control plane knows; `None` if it could not be asked.
fn proxies(mesh: &Mesh, place: &Place, known: Option<&[Row]>) -> Vec<Proxy> {
    let (shown, wanted) = match place {
        Place::Waypoint((namespace, name)) => {
            let gateway = format!("{namespace}/{name}");
            (format!("waypoint {gateway}"), Wanted::PodsOf(gateway))
        }
        Place::Node(node) => {
            let own = |workload: &&_| of_node(workload, node);
            let name = mesh.view.workloads().map(AsRef::as_ref).find(own).map(|own: &Workload| format!("{}.{}", own.name, own.namespace));
            (format!("node {node}"), Wanted::NodeProxy(name))
        }
    };
    let missing = |status: &str| Proxy { proxy: shown.clone(), place: shown.clone(), status: status.to_owned(), refused: Vec::new() };
    let Some(known) = known else { return vec![missing(UNKNOWN)] };
    let found = known.iter().filter(|row| wanted.is(row)).map(|row| Proxy {
        proxy: row.name.clone(),
        place: shown.clone(),
        status: row.status.clone(),
        refused: row.refused.clone(),
    });
    let found: Vec<Proxy> = found.collect();
    if found.is_empty() { vec![missing(NOT_CONNECTED)] } else { found }
}

/// Whether a workload is the node proxy of a node.
fn of_node(workload: &Workload, node: &str) -> bool {
    *workload.node == *node && *workload.identity.service_account == *ZTUNNEL
}
