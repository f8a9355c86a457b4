//! What the admin endpoint shows. Hosts are shown as the model has them, and in the words of `tropis_model::describe`, which
//! `tropis proxy-config` prints.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tropis_model::{describe, route::Host};
use tropis_xds::current::Seen;

use crate::{app::Shared, stages::report::cluster, upstream::pools::PoolInfo};

/// What we know.
pub(super) fn config(shared: &Shared) -> Value {
    let Seen { view, version } = shared.view.seen();
    let config = &shared.config;
    let own = view.waypoint(&config.gateway);
    let certificates = shared.certificates.snapshot();
    json!({
        "gateway": &*config.gateway,
        "identity": config.identity.to_string(),
        "configVersion": *version,
        "serves": own.map(|own| format!("{:?}", own.serves)),
        "policies": own.map(|own| own.policies.iter().map(|policy| policy.key.to_string()).collect::<Vec<_>>()),
        "hosts": view.hosts().map(|host| self::host(host)).collect::<Vec<_>>(),
        "services": view.services().map(|service| json!({
            "name": service.hostname.to_string(),
            "addresses": service.addresses.iter().map(|own| own.block.addr().to_string()).collect::<Vec<_>>(),
            "endpoints": view.endpoints(&service.hostname).map(|endpoint| endpoint.workload.uid.to_string()).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "workloads": view.workloads().map(|workload| json!({
            "uid": workload.uid.to_string(),
            "addresses": workload.addresses,
            "identity": workload.identity.to_string(),
            "labels": workload.labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect::<std::collections::BTreeMap<_, _>>(),
        })).collect::<Vec<_>>(),
        "certificates": certificates.iter().map(|status| json!({
            "identity": status.identity.to_string(),
            "state": status.state(),
            "serial": status.certificate.as_ref().map(|certificate| certificate.serial().to_owned()),
        })).collect::<Vec<_>>(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

fn host(host: &Host) -> Value {
    let ports = host.ports.iter().map(|(number, port)| {
        json!({
            "port": number,
            "protocol": format!("{:?}", port.protocol),
            "http": port.http.iter().map(|route| json!({
                "name": &*route.name,
                "origin": describe::origin(&route.origin),
                "match": describe::matches(route),
                "destination": describe::action(route),
                "matches": route.matches.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>(),
                "action": format!("{:?}", route.action),
            })).collect::<Vec<_>>(),
            "tls": port.tls.iter().map(|route| json!({
                "origin": describe::origin(&route.origin),
                "serverNames": route.server_names.iter().map(|name| &**name).collect::<Vec<_>>(),
                "destination": describe::destinations(&route.destinations).join(", "),
            })).collect::<Vec<_>>(),
            "tcp": port.tcp.iter().map(|route| json!({
                "origin": describe::origin(&route.origin),
                "destination": describe::destinations(&route.destinations).join(", "),
            })).collect::<Vec<_>>(),
        })
    });
    json!({
        "name": host.name.to_string(),
        "ports": ports.collect::<Vec<_>>(),
        "policies": host.policies.iter().map(|policy| json!({
            "key": policy.key.to_string(),
            "attachment": format!("{:?}", policy.attachment),
            "action": format!("{:?}", policy.action),
            "dryRun": policy.dry_run,
        })).collect::<Vec<_>>(),
        "pools": host.pools.values().map(|pool| json!({
            "key": pool.key.to_string(),
            "cluster": cluster(pool, true),
            "service": { "namespace": &*pool.key.host.namespace, "hostname": &*pool.key.host.hostname },
            "port": pool.key.port,
            "subset": pool.key.subset.as_deref(),
            "type": describe::balancer(&pool.balancer),
            "balancer": format!("{:?}", pool.balancer),
            "limits": format!("{:?}", pool.limits),
            "outlier": pool.outlier.as_ref().map(|outlier| format!("{outlier:?}")),
        })).collect::<Vec<_>>(),
    })
}

/// The pools in use.
pub(super) fn pools(shared: &Shared) -> Value {
    Value::Array(shared.pools.list().iter().map(pool).collect())
}

fn pool(info: &PoolInfo) -> Value {
    let ready = &info.current.ready;
    let under_way = info.current.state.counts.under_way();
    let each = ready.endpoints.candidates().iter().zip(&ready.members).zip(&info.ejected);
    json!({
        "pool": ready.pool.key.to_string(),
        "cluster": cluster(&ready.pool, true),
        "connections": under_way.connections,
        "pendingRequests": under_way.pending_requests,
        "requests": under_way.requests,
        "retries": under_way.retries,
        "ejections": info.ejections,
        "endpoints": each.map(|((candidate, member), ejected)| json!({
            "address": candidate.address.to_string(),
            "workload": candidate.workload.uid.to_string(),
            "weight": candidate.weight,
            "active": member.active.load(Ordering::Relaxed),
            "ejected": ejected.is_some(),
            "returnsAfterMilliseconds": ejected.map(|left| left.as_millis() as u64),
        })).collect::<Vec<_>>(),
    })
}
