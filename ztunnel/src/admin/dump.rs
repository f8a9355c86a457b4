//! The dump that `istioctl ztunnel-config` reads: its keys and words are Istio's.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tropis_model::{
    policy::{Action, Clause, Match, Policy, PolicyScope, StringMatch},
    service::{BalancingMode, HealthPolicy, IpFamilies, Scope, Service, Visibility},
    view::View,
    workload::{ApplicationTunnelProtocol, GatewayAddress, Health, NetworkMode, TunnelProtocol, Workload, WorkloadKind},
};
use tropis_telemetry::access::Direction;
use tropis_tls::store::CertificateStatus;
use tropis_xds::ResourceType;

use crate::{app::Shared, connections::ConnectionInfo};

/// Everything.
pub(super) fn dump(shared: &Shared, connections: &[ConnectionInfo]) -> Value {
    let (versions, view) = (shared.view.versions(), shared.view.load());
    let config = &shared.config;
    json!({
        "workloads": view.workloads().map(|workload| self::workload(workload)).collect::<Vec<_>>(),
        "services": view.services().map(|service| self::service(&view, service)).collect::<Vec<_>>(),
        "policies": view.policies().map(|policy| self::policy(policy)).collect::<Vec<_>>(),
        "stagedServices": {},
        "staticConfig": { "workloads": [], "services": [], "policies": [] },
        "version": {
            "version": env!("CARGO_PKG_VERSION"),
            "gitRevision": "unknown",
            "rustVersion": "unknown",
            "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
            "buildStatus": "unknown",
            "istioVersion": "unknown",
            "cryptoProvider": "tls-aws-lc",
        },
        "config": {
            "network": &*config.network,
            "localNode": &*config.node,
            "clusterId": config.cluster_id,
            "clusterDomain": &*config.cluster_domain,
            "xdsAddress": config.xds.address,
            "caAddress": config.ca.address,
            "workerThreads": config.workers,
            "capture": format!("{:?}", config.capture),
            "dnsProxy": config.dns,
            "configVersion": {
                "address": versions.of(ResourceType::Address),
                "authorization": versions.of(ResourceType::Authorization),
            },
        },
        "certificates": shared.certificates.snapshot().iter().map(certificate).collect::<Vec<_>>(),
        "workloadState": workload_state(shared, connections),
    })
}

fn workload_state(shared: &Shared, connections: &[ConnectionInfo]) -> Value {
    let states = shared.served_pods().into_iter().map(|pod| {
        let goes = |direction| connections.iter().filter(|it| it.pod == pod.uid && it.goes(direction)).collect::<Vec<_>>();
        let state = json!({
            "state": "Up",
            "connections": { "inbound": goes(Direction::Inbound), "outbound": goes(Direction::Outbound) },
            "info": {
                "name": &*pod.info.name,
                "namespace": &*pod.info.namespace,
                "serviceAccount": &*pod.info.service_account,
            },
        });
        (pod.uid.to_string(), state)
    });
    Value::Object(states.collect::<Map<_, _>>())
}

fn workload(workload: &Workload) -> Value {
    json!({
        "workloadIps": workload.addresses,
        "waypoint": workload.waypoint.as_ref().map(gateway),
        "networkGateway": workload.network_gateway.as_ref().map(gateway),
        "protocol": match workload.tunnel_protocol {
            TunnelProtocol::None => "TCP",
            TunnelProtocol::Hbone => "HBONE",
        },
        "networkMode": match workload.network_mode {
            NetworkMode::Standard => "Standard",
            NetworkMode::HostNetwork => "HostNetwork",
        },
        "uid": &*workload.uid.0,
        "name": &*workload.name,
        "namespace": &*workload.namespace,
        "trustDomain": &*workload.identity.trust_domain,
        "serviceAccount": &*workload.identity.service_account,
        "network": &*workload.network,
        "workloadName": &*workload.workload_name,
        "workloadType": match workload.workload_kind {
            WorkloadKind::Deployment => "deployment",
            WorkloadKind::CronJob => "cronjob",
            WorkloadKind::Pod => "pod",
            WorkloadKind::Job => "job",
        },
        "canonicalName": &*workload.canonical_name,
        "canonicalRevision": &*workload.canonical_revision,
        "hostname": &*workload.hostname,
        "node": &*workload.node,
        "nativeTunnel": workload.native_tunnel,
        "applicationTunnel": workload.application_tunnel.map(|tunnel| json!({
            "protocol": match tunnel.protocol {
                ApplicationTunnelProtocol::None => "NONE",
                ApplicationTunnelProtocol::Proxy => "PROXY",
            },
            "port": tunnel.port,
        })),
        "authorizationPolicies": workload.authorization_policies.iter().map(|key| &**key).collect::<Vec<_>>(),
        "status": health(workload.health),
        "clusterId": &*workload.cluster_id,
        "locality": {
            "region": &*workload.locality.region,
            "zone": &*workload.locality.zone,
            "subzone": &*workload.locality.subzone,
        },
        "services": workload.services.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "capacity": workload.capacity,
    })
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

fn gateway(gateway: &GatewayAddress) -> Value {
    json!({ "destination": gateway.destination.to_string(), "hboneMtlsPort": gateway.hbone_port })
}

fn service(view: &View, service: &Service) -> Value {
    let single = |own: &&tropis_model::service::ServiceAddress| own.block.prefix_len() == own.block.max_prefix_len();
    let blocks: Vec<_> = service.addresses.iter().filter(|own| !single(own)).collect();
    let endpoints = view.endpoints(&service.hostname).map(|endpoint| {
        let uid = endpoint.workload.uid.to_string();
        let ports: Map<_, _> = endpoint.ports.iter().map(|(service, own)| (service.to_string(), json!(own))).collect();
        (uid.clone(), json!({ "workloadUid": uid, "port": ports, "status": health(endpoint.workload.health) }))
    });
    let ports = service.ports.iter().map(|(port, declared)| (port.to_string(), json!(declared.target_port.unwrap_or(0))));
    json!({
        "name": &*service.name,
        "namespace": &*service.hostname.namespace,
        "hostname": &*service.hostname.hostname,
        "vips": service.addresses.iter().filter(single).map(|own| format!("{}/{}", own.network, own.block.addr())).collect::<Vec<_>>(),
        "cidrVips": (!blocks.is_empty())
            .then(|| blocks.iter().map(|own| json!({ "network": &*own.network, "cidr": own.block })).collect::<Vec<_>>()),
        "ports": Value::Object(ports.collect()),
        "endpoints": Value::Object(endpoints.collect()),
        "subjectAltNames": service.subject_alt_names.iter().map(|name| &**name).collect::<Vec<_>>(),
        "waypoint": service.waypoint.as_ref().map(gateway),
        "weightedWaypoints": (!service.weighted_waypoints.is_empty()).then(|| {
            let weighted = service.weighted_waypoints.iter();
            weighted.map(|(waypoint, weight)| json!({ "destination": gateway(waypoint), "weight": weight })).collect::<Vec<_>>()
        }),
        "loadBalancer": (service.load_balancing.mode != BalancingMode::Any).then(|| json!({
            "routingPreferences": service.load_balancing.routing_preference.iter().map(|scope| match scope {
                Scope::Region => "Region",
                Scope::Zone => "Zone",
                Scope::Subzone => "Subzone",
                Scope::Node => "Node",
                Scope::Cluster => "Cluster",
                Scope::Network => "Network",
            }).collect::<Vec<_>>(),
            "mode": match service.load_balancing.mode {
                BalancingMode::Any => "Standard",
                BalancingMode::Strict => "Strict",
                BalancingMode::Failover => "Failover",
                BalancingMode::Passthrough => "Passthrough",
            },
            "healthPolicy": match service.load_balancing.health_policy {
                HealthPolicy::OnlyHealthy => "OnlyHealthy",
                HealthPolicy::AllowAll => "AllowAll",
            },
        })),
        "ipFamilies": match service.ip_families {
            IpFamilies::Automatic => None,
            IpFamilies::Dual => Some("Dual"),
            IpFamilies::Ipv4Only => Some("IPv4"),
            IpFamilies::Ipv6Only => Some("IPv6"),
        },
        "canonical": service.canonical,
        "visibility": match service.visibility {
            Visibility::Public => "Public",
            Visibility::Namespace => "Namespace",
        },
    })
}

fn policy(policy: &Policy) -> Value {
    let clause = |clause: &Clause| clause.matches.iter().map(self::one_match).collect::<Vec<_>>();
    json!({
        "name": policy.key.0.rsplit_once('/').map_or(&*policy.key.0, |(_, name)| name),
        "namespace": &*policy.namespace,
        "scope": match policy.scope {
            PolicyScope::Global => "Global",
            PolicyScope::Namespace => "Namespace",
            PolicyScope::WorkloadSelector => "WorkloadSelector",
        },
        "action": match policy.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
        },
        "rules": policy.rules.iter().map(|rule| rule.clauses.iter().map(clause).collect::<Vec<_>>()).collect::<Vec<_>>(),
        "dryRun": policy.dry_run,
    })
}

fn one_match(one: &Match) -> Value {
    let strings = |values: &[StringMatch]| {
        let words = values.iter().map(|value| match value {
            StringMatch::Exact(text) => json!({ "Exact": &**text }),
            StringMatch::Prefix(text) => json!({ "Prefix": &**text }),
            StringMatch::Suffix(text) => json!({ "Suffix": &**text }),
            StringMatch::Presence => json!({ "Presence": [] }),
        });
        Value::Array(words.collect())
    };
    let accounts = |values: &[tropis_model::policy::ServiceAccountMatch]| {
        let words = values.iter().map(|value| json!({ "namespace": &*value.namespace, "serviceAccount": &*value.service_account }));
        Value::Array(words.collect())
    };
    let fields = [
        ("namespaces", strings(&one.namespaces)),
        ("notNamespaces", strings(&one.not_namespaces)),
        ("principals", strings(&one.principals)),
        ("notPrincipals", strings(&one.not_principals)),
        ("serviceAccounts", accounts(&one.service_accounts)),
        ("notServiceAccounts", accounts(&one.not_service_accounts)),
        ("sourceIps", json!(one.source_ips)),
        ("notSourceIps", json!(one.not_source_ips)),
        ("destinationIps", json!(one.destination_ips)),
        ("notDestinationIps", json!(one.not_destination_ips)),
        ("destinationPorts", json!(one.destination_ports)),
        ("notDestinationPorts", json!(one.not_destination_ports)),
    ];
    let used = fields.into_iter().filter(|(_, values)| values.as_array().is_some_and(|values| !values.is_empty()));
    Value::Object(used.map(|(name, values)| (name.to_owned(), values)).collect())
}

fn certificate(status: &CertificateStatus) -> Value {
    let (chain, roots) = match &status.certificate {
        None => (Vec::new(), Vec::new()),
        Some(certificate) => {
            let mut chain: Vec<Value> = certificate.chain().iter().map(|der| json!({ "pem": pem(der) })).collect();
            if let Some(Value::Object(leaf)) = chain.first_mut() {
                leaf.insert("serialNumber".into(), json!(certificate.serial()));
                leaf.insert("validFrom".into(), json!(rfc3339(certificate.not_before())));
                leaf.insert("expirationTime".into(), json!(rfc3339(certificate.not_after())));
            }
            (chain, certificate.roots().iter().map(|der| json!({ "pem": pem(der) })).collect())
        }
    };
    json!({ "identity": status.identity.to_string(), "state": status.state(), "certChain": chain, "rootCerts": roots })
}

/// Base64 of the PEM text, as Istio's tools expect it.
fn pem(der: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).unwrap_or_default());
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    BASE64_STANDARD.encode(text)
}

fn rfc3339(time: std::time::SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tropis_model::{
        identity::Identity,
        policy::{PolicyKey, Rule},
    };

    use super::*;

    #[test]
    fn a_policy_reads_as_istios() {
        let strict = Policy {
            key: PolicyKey("istio-system/istio_converted_static_strict".into()),
            namespace: "istio-system".into(),
            scope: PolicyScope::WorkloadSelector,
            action: Action::Deny,
            rules: vec![Rule {
                clauses: vec![Clause { matches: vec![Match { not_principals: vec![StringMatch::Presence], ..Match::default() }] }],
            }],
            dry_run: false,
        };
        assert_eq!(
            policy(&strict),
            json!({
                "name": "istio_converted_static_strict", "namespace": "istio-system", "scope": "WorkloadSelector", "action": "Deny",
                "rules": [[[{ "notPrincipals": [{ "Presence": [] }] }]]], "dryRun": false,
            })
        );
    }

    #[test]
    fn a_workload_has_istios_keys() {
        let value = workload(&Workload::new("Kubernetes//Pod/a/b", "b", Identity::new("cluster.local", "a", "default")));
        for key in ["workloadIps", "protocol", "uid", "trustDomain", "workloadType", "canonicalRevision", "status", "clusterId", "capacity"]
        {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert_eq!(value["protocol"], "TCP");
    }
}
