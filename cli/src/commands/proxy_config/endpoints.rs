//! Endpoints of pools: what the running waypoints say of those in use, what the control plane told of the others.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use tropis_model::{pool::Pool, workload::Health};

use super::{
    Told,
    held::{pod_of, sockets_of_waypoint},
    hosts, shown,
};
use crate::{
    admin,
    mesh::{self, Mesh},
    output::Listing,
    pods::text,
    render,
    state::State,
};

const HEALTHY: &str = "HEALTHY";
const UNHEALTHY: &str = "UNHEALTHY";
const OK: &str = "OK";
const EJECTED: &str = "FAILED";

/// An endpoint of a pool at one proxy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    proxy: String,
    pub(super) cluster: String,
    pub(super) endpoint: String,
    workload: String,
    status: &'static str,
    /// `OK`, `FAILED` for one that is ejected; empty where nobody runs who would know.
    outlier_check: &'static str,
}

impl Endpoint {
    /// Whether it is in a state that was asked for.
    pub(super) fn is(&self, status: &str) -> bool {
        match status {
            "ejected" => self.outlier_check == EJECTED,
            "healthy" => self.status == HEALTHY,
            _ => self.status == UNHEALTHY,
        }
    }
}

/// The endpoints of waypoints.
pub(super) async fn rows(state: &State, mesh: &Mesh, told: &[Told<'_>]) -> anyhow::Result<Vec<Endpoint>> {
    let mut rows = Vec::new();
    for (key, view) in told {
        let sockets = sockets_of_waypoint(state, mesh, key).unwrap_or_default();
        let mut instances: Vec<(String, BTreeMap<String, Value>)> = Vec::new();
        for socket in sockets {
            let pools = admin::json(&socket.path, "/clusters").await?;
            let pools = pools.as_array().into_iter().flatten().map(|pool| (text(pool, "/pool").to_owned(), pool.clone())).collect();
            instances.push((pod_of(&socket, key), pools));
        }
        if instances.is_empty() {
            instances.push((shown(key), BTreeMap::new()));
        }
        for (proxy, used) in instances {
            for pool in hosts(view).values().flat_map(|host| host.pools.values()) {
                match used.get(&pool.key.to_string()) {
                    Some(said) => rows.extend(in_use(&proxy, pool, said)),
                    None => rows.extend(mesh::members(view, pool).map(|(workload, address)| Endpoint {
                        proxy: proxy.clone(),
                        cluster: render::cluster(&pool.key),
                        endpoint: address.to_string(),
                        workload: workload.name.to_string(),
                        status: if workload.health == Health::Healthy { HEALTHY } else { UNHEALTHY },
                        outlier_check: "",
                    })),
                }
            }
        }
    }
    rows.sort();
    rows.dedup();
    Ok(rows)
}

/// The endpoints of a pool that a waypoint uses.
fn in_use(proxy: &str, pool: &Pool, said: &Value) -> Vec<Endpoint> {
    let each = said["endpoints"].as_array().into_iter().flatten();
    let one = |endpoint: &Value| Endpoint {
        proxy: proxy.to_owned(),
        cluster: render::cluster(&pool.key),
        endpoint: text(endpoint, "/address").to_owned(),
        workload: text(endpoint, "/workload").rsplit('/').next().unwrap_or_default().to_owned(),
        status: if endpoint["ejected"] == true { UNHEALTHY } else { HEALTHY },
        outlier_check: if endpoint["ejected"] == true { EJECTED } else { OK },
    };
    each.map(one).collect()
}

/// The table.
pub(super) fn listing(rows: Vec<Endpoint>) -> Listing<Endpoint> {
    Listing::new(&["PROXY", "ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER", "WORKLOAD"], rows, |row| {
        let Endpoint { proxy, cluster, endpoint, workload, status, outlier_check } = row.clone();
        vec![proxy, endpoint, status.to_owned(), outlier_check.to_owned(), cluster, workload]
    })
}
