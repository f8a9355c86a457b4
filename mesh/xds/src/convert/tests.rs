//! Round trips of arbitrary model values, and a table of what is refused.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::any, prop_oneof, proptest, sample::select, strategy::Just, strategy::Strategy};
use tropis_model::{
    address::{NamespacedHostname, NetworkAddress},
    identity::Identity,
    policy::{Action, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch},
    service::{
        AppProtocol, BalancingMode, HealthPolicy, IpFamilies, LoadBalancing, Scope, Service, ServiceAddress, ServicePort, Visibility,
    },
    workload::{
        ApplicationTunnel, ApplicationTunnelProtocol, GatewayAddress, GatewayDestination, Health, Locality, NetworkMode, TunnelProtocol,
        Workload, WorkloadKind, WorkloadUid,
    },
};

use tropis_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, LABELS_EXTENSION, LABELS_TYPE, security};

use super::*;

mod waypoint;

fn decode_address(resource: &Resource) -> Result<Change, InvalidResource> {
    decode(ResourceType::Address, resource, &mut Interner::default())
}

fn decode_authorization(resource: &Resource) -> Result<Change, InvalidResource> {
    decode(ResourceType::Authorization, resource, &mut Interner::default())
}

fn word() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9.-]{0,9}".prop_map(Arc::from)
}

fn maybe_word() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![Just(Arc::from("")), word()]
}

fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|address| address.to_canonical())
}

fn block() -> impl Strategy<Value = IpNet> {
    (ip(), 0..=128u8)
        .prop_map(|(address, length)| {
            let length = if address.is_ipv4() { length.min(32) } else { length };
            IpNet::new(address, length).unwrap().trunc()
        })
        // A block of ::ffff:0:0/96 is written as the IPv4 block that it stands for.
        .prop_filter("mapped", |block| block.addr() == block.addr().to_canonical())
}

fn hostname() -> impl Strategy<Value = NamespacedHostname> {
    (word(), word()).prop_map(|(namespace, hostname)| NamespacedHostname { namespace, hostname })
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let destination = prop_oneof![
        hostname().prop_map(GatewayDestination::Service),
        (maybe_word(), ip()).prop_map(|(network, address)| GatewayDestination::Address(NetworkAddress { network, address })),
    ];
    (destination, 1..=u16::MAX).prop_map(|(destination, hbone_port)| GatewayAddress { destination, hbone_port })
}

fn identity() -> impl Strategy<Value = Identity> {
    let trust_domain = prop_oneof![Just(Arc::from("cluster.local")), word()];
    let account = prop_oneof![Just(Arc::from("default")), word()];
    (trust_domain, word(), account).prop_map(|(trust_domain, namespace, account)| Identity::new(trust_domain, namespace, account))
}

fn tunnel() -> impl Strategy<Value = ApplicationTunnel> {
    let protocol = select(vec![ApplicationTunnelProtocol::None, ApplicationTunnelProtocol::Proxy]);
    (protocol, option::of(1..=u16::MAX)).prop_map(|(protocol, port)| ApplicationTunnel { protocol, port })
}

fn labels() -> impl Strategy<Value = BTreeMap<Arc<str>, Arc<str>>> {
    proptest::collection::btree_map(word(), maybe_word(), 0..3)
}

fn workload() -> impl Strategy<Value = Workload> {
    let ports = proptest::collection::btree_map(any::<u16>(), 1..=u16::MAX, 0..4);
    let names = (word(), word(), maybe_word(), maybe_word(), maybe_word(), maybe_word(), maybe_word(), word());
    let kinds = (
        select(vec![TunnelProtocol::None, TunnelProtocol::Hbone]),
        select(vec![WorkloadKind::Deployment, WorkloadKind::CronJob, WorkloadKind::Pod, WorkloadKind::Job]),
        select(vec![Health::Healthy, Health::Unhealthy]),
        select(vec![NetworkMode::Standard, NetworkMode::HostNetwork]),
        any::<bool>(),
        prop_oneof![Just(1), any::<u32>()],
    );
    let parts = (
        identity(),
        vec(ip(), 0..3),
        option::of(gateway()),
        option::of(gateway()),
        vec(word(), 0..3),
        proptest::collection::btree_map(hostname(), ports, 0..3),
        option::of(tunnel()),
        (maybe_word(), maybe_word(), maybe_word()),
        labels(),
    );
    (names, kinds, parts).prop_map(|(names, kinds, parts)| {
        let (uid, name, network, node, canonical_name, canonical_revision, workload_name, cluster_id) = names;
        let (tunnel_protocol, workload_kind, health, network_mode, native_tunnel, capacity) = kinds;
        let (identity, addresses, waypoint, network_gateway, authorization_policies, services, application_tunnel, locality, labels) =
            parts;
        Workload {
            uid: WorkloadUid(uid),
            namespace: identity.namespace.clone(),
            hostname: name.clone(),
            name,
            identity,
            addresses,
            network,
            tunnel_protocol,
            native_tunnel,
            waypoint,
            network_gateway,
            node,
            canonical_name,
            canonical_revision,
            workload_kind,
            workload_name,
            authorization_policies,
            health,
            cluster_id,
            services,
            application_tunnel,
            locality: Locality { region: locality.0, zone: locality.1, subzone: locality.2 },
            network_mode,
            capacity,
            labels,
        }
    })
}

fn service() -> impl Strategy<Value = Service> {
    let protocols =
        select(vec![AppProtocol::Unknown, AppProtocol::Http11, AppProtocol::Http2, AppProtocol::Grpc, AppProtocol::Tcp, AppProtocol::Tls]);
    let port = (option::of(1..=u16::MAX), protocols).prop_map(|(target_port, app_protocol)| ServicePort { target_port, app_protocol });
    let scopes = select(vec![Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node, Scope::Cluster, Scope::Network]);
    let modes = select(vec![BalancingMode::Any, BalancingMode::Strict, BalancingMode::Failover, BalancingMode::Passthrough]);
    let health = select(vec![HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]);
    let balancing = (vec(scopes, 0..4), modes, health).prop_map(|(routing_preference, mode, health_policy)| LoadBalancing {
        routing_preference,
        mode,
        health_policy,
    });
    let address = (maybe_word(), block()).prop_map(|(network, block)| ServiceAddress { network, block });
    (
        (hostname(), word(), vec(address, 0..3), proptest::collection::btree_map(any::<u16>(), port, 0..4)),
        (vec(word(), 0..2), option::of(gateway()), vec((gateway(), any::<u32>()), 0..3), balancing),
        select(vec![IpFamilies::Automatic, IpFamilies::Ipv4Only, IpFamilies::Ipv6Only, IpFamilies::Dual]),
        any::<bool>(),
        select(vec![Visibility::Public, Visibility::Namespace]),
    )
        .prop_map(|(names, gateways, ip_families, canonical, visibility)| {
            let (hostname, name, addresses, ports) = names;
            let (subject_alt_names, waypoint, weighted_waypoints, load_balancing) = gateways;
            Service {
                hostname,
                name,
                addresses,
                ports,
                subject_alt_names,
                waypoint,
                weighted_waypoints,
                load_balancing,
                ip_families,
                canonical,
                visibility,
            }
        })
}

fn found_match() -> impl Strategy<Value = Match> {
    let text = || {
        let text = prop_oneof![
            maybe_word().prop_map(StringMatch::Exact),
            maybe_word().prop_map(StringMatch::Prefix),
            maybe_word().prop_map(StringMatch::Suffix),
            Just(StringMatch::Presence),
        ];
        vec(text, 0..3)
    };
    let account = || {
        let account = (word(), word()).prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account });
        vec(account, 0..2)
    };
    let blocks = || vec(block(), 0..2);
    let ports = || vec(any::<u16>(), 0..2);
    ((text(), text(), text(), text()), (account(), account()), (blocks(), blocks(), blocks(), blocks()), (ports(), ports())).prop_map(
        |(texts, accounts, blocks, ports)| Match {
            namespaces: texts.0,
            not_namespaces: texts.1,
            principals: texts.2,
            not_principals: texts.3,
            service_accounts: accounts.0,
            not_service_accounts: accounts.1,
            source_ips: blocks.0,
            not_source_ips: blocks.1,
            destination_ips: blocks.2,
            not_destination_ips: blocks.3,
            destination_ports: ports.0,
            not_destination_ports: ports.1,
        },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    let clause = vec(found_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    (
        (word(), word()),
        select(vec![PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector]),
        select(vec![Action::Allow, Action::Deny]),
        vec(rule, 0..3),
        any::<bool>(),
    )
        .prop_map(|((namespace, name), scope, action, rules, dry_run)| Policy {
            key: PolicyKey(format!("{namespace}/{name}").into()),
            namespace,
            scope,
            action,
            rules,
            dry_run,
        })
}

fn resource(encoded: &Encoded) -> Resource {
    let body = encoded.body.clone().unwrap();
    Resource {
        name: encoded.name.to_string(),
        version: String::new(),
        resource: Some(prost_types::Any { type_url: encoded.r#type.url().to_owned(), value: body }),
        aliases: encoded.aliases.clone(),
    }
}

proptest! {
    #[test]
    fn a_workload_survives_the_wire(workload in workload()) {
        let change = Change::Workload(Arc::new(workload));
        let decoded = decode_address(&resource(&encode(&change)));
        proptest::prop_assert_eq!(decoded, Ok(change));
    }

    #[test]
    fn a_service_survives_the_wire(service in service()) {
        let change = Change::Service(Arc::new(service));
        let decoded = decode_address(&resource(&encode(&change)));
        proptest::prop_assert_eq!(decoded, Ok(change));
    }

    #[test]
    fn a_policy_survives_the_wire(policy in policy()) {
        let change = Change::Policy(Arc::new(policy));
        let decoded = decode_authorization(&resource(&encode(&change)));
        proptest::prop_assert_eq!(decoded, Ok(change));
    }

    #[test]
    fn bytes_of_a_stranger_never_panic(value in vec(any::<u8>(), 0..200), r#type in select(ResourceType::ALL.to_vec())) {
        let any = prost_types::Any { type_url: r#type.url().to_owned(), value };
        let resource = Resource { name: "ns/name".into(), resource: Some(any), ..Default::default() };
        for expected in ResourceType::ALL {
            let _ = decode(expected, &resource, &mut Interner::default());
        }
        let _ = denying_policy(&resource);
    }
}

fn address_of(kind: AddressKind, name: &str) -> Resource {
    let value = wire::Address { r#type: Some(kind) }.encode_to_vec();
    let any = prost_types::Any { type_url: ADDRESS_TYPE.to_owned(), value };
    Resource { name: name.to_owned(), resource: Some(any), ..Default::default() }
}

fn workload_with(change: impl FnOnce(&mut wire::Workload)) -> Result<Change, InvalidResource> {
    let mut wire = wire::Workload { uid: "uid".into(), ..Default::default() };
    change(&mut wire);
    decode_address(&address_of(AddressKind::Workload(wire), "uid"))
}

fn service_with(change: impl FnOnce(&mut wire::Service)) -> Result<Change, InvalidResource> {
    let mut wire = wire::Service { namespace: "ns".into(), hostname: "host".into(), ..Default::default() };
    change(&mut wire);
    decode_address(&address_of(AddressKind::Service(wire), "ns/host"))
}

fn authorization(change: impl FnOnce(&mut security::Authorization)) -> Resource {
    let mut wire = security::Authorization { namespace: "ns".into(), name: "name".into(), ..Default::default() };
    change(&mut wire);
    let any = prost_types::Any { type_url: AUTHORIZATION_TYPE.to_owned(), value: wire.encode_to_vec() };
    Resource { name: "ns/name".into(), resource: Some(any), ..Default::default() }
}

fn match_with(change: impl FnOnce(&mut security::Match)) -> Resource {
    authorization(|policy| {
        let mut found = security::Match::default();
        change(&mut found);
        policy.rules = vec![security::Rule { clauses: vec![security::Clause { matches: vec![found] }] }];
    })
}

#[test]
fn what_is_not_understood_is_refused() {
    let refused = |result: Result<Change, InvalidResource>, text: &str| {
        assert_eq!(result.map_err(|error| error.to_string()), Err(text.to_owned()));
    };
    refused(workload_with(|w| w.uid = String::new()), "uid is empty");
    refused(workload_with(|w| w.uid = "other".into()), "the resource is named otherwise than its content, \"other\"");
    refused(workload_with(|w| w.addresses = vec![vec![1, 2, 3]]), "addresses: an address of 3 bytes");
    refused(workload_with(|w| w.tunnel_protocol = 2), "tunnel_protocol: LEGACY_ISTIO_MTLS is not supported");
    refused(workload_with(|w| w.tunnel_protocol = 9), "tunnel_protocol: the value 9 is not known");
    refused(workload_with(|w| w.network_mode = 2), "network_mode: the value 2 is not known");
    refused(workload_with(|w| w.status = 2), "status: the value 2 is not known");
    refused(workload_with(|w| w.waypoint = Some(Default::default())), "waypoint is empty");
    refused(
        workload_with(|w| {
            w.services.insert("host".into(), Default::default());
        }),
        "services: the key \"host\" is not namespace/hostname",
    );
    refused(
        workload_with(|w| w.application_tunnel = Some(wire::ApplicationTunnel { protocol: 7, port: 0 })),
        "application_tunnel.protocol: the value 7 is not known",
    );
    refused(service_with(|s| s.hostname = String::new()), "hostname is empty");
    refused(service_with(|s| s.ip_families = 4), "ip_families: the value 4 is not known");
    refused(
        service_with(|s| s.addresses = vec![wire::NetworkAddress { address: vec![10, 0, 0, 0], length: Some(33), ..Default::default() }]),
        "addresses: a prefix of 33 bits is too long for its address",
    );
    refused(
        service_with(|s| s.ports = vec![wire::Port { service_port: 65_536, ..Default::default() }]),
        "ports.service_port: 65536 is not a port",
    );
    let balancing = |mode, health_policy, scope| {
        service_with(|s| s.load_balancing = Some(wire::LoadBalancing { routing_preference: vec![scope], mode, health_policy }))
    };
    refused(balancing(9, 0, 1), "load_balancing.mode: the value 9 is not known");
    refused(balancing(0, 9, 1), "load_balancing.health_policy: the value 9 is not known");
    refused(balancing(0, 0, 0), "load_balancing.routing_preference: UNSPECIFIED_SCOPE is not supported");
    refused(service_with(|s| s.weighted_waypoints = vec![Default::default()]), "weighted_waypoints.destination is empty");

    let authorization_refused = |resource: Resource, text: &str| {
        refused(decode_authorization(&resource), text);
    };
    authorization_refused(authorization(|p| p.scope = 3), "scope: the value 3 is not known");
    authorization_refused(authorization(|p| p.action = 3), "action: the value 3 is not known");
    authorization_refused(match_with(|m| m.principals = vec![Default::default()]), "principals: a string match of an unknown kind");
    authorization_refused(match_with(|m| m.source_ips = vec![Default::default()]), "source_ips: an address of 0 bytes");
    authorization_refused(match_with(|m| m.destination_ports = vec![70_000]), "destination_ports: 70000 is not a port");
    authorization_refused(
        match_with(|m| m.extensions = vec![wire::Extension { name: "moon".into(), config: None }]),
        "a match has the unknown condition \"moon\"",
    );
    refused(decode_address(&Resource::default()), "the resource has no body");
    refused(decode_address(&authorization(|_| {})), "the body is of type \"type.googleapis.com/istio.security.Authorization\"");
}

#[test]
fn labels_of_a_workload_are_an_extension_beside_others() {
    let extension = |name: &str, type_url: &str, value: Vec<u8>| wire::Extension {
        name: name.to_owned(),
        config: Some(prost_types::Any { type_url: type_url.to_owned(), value }),
    };
    let labelled = |extensions: Vec<wire::Extension>| match workload_with(|w| w.extensions = extensions) {
        Ok(Change::Workload(workload)) => Ok(workload.labels.clone()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    };
    let labels = tropis_proto::waypoint::Labels { labels: [("app".to_owned(), "web".to_owned())].into() }.encode_to_vec();
    let known = extension(LABELS_EXTENSION, LABELS_TYPE, labels.clone());
    let foreign = extension("istio.io/moon", "type.googleapis.com/moon", vec![1, 2, 3]);
    assert_eq!(labelled(vec![foreign.clone(), known]), Ok([("app".into(), "web".into())].into()));
    assert_eq!(labelled(vec![foreign]), Ok(BTreeMap::new()));
    let otherwise = extension(LABELS_EXTENSION, "type.googleapis.com/moon", labels);
    assert_eq!(labelled(vec![otherwise]), Err("the body is of type \"type.googleapis.com/moon\"".to_owned()));
    let many = (0..=tropis_model::bounds::LABELS).map(|number| (number.to_string(), String::new())).collect();
    let many = tropis_proto::waypoint::Labels { labels: many }.encode_to_vec();
    assert_eq!(labelled(vec![extension(LABELS_EXTENSION, LABELS_TYPE, many)]), Err("labels: 257 are more than 256".to_owned()));
}

#[test]
fn unset_fields_have_istios_defaults() {
    let Ok(Change::Workload(workload)) = workload_with(|w| {
        w.namespace = "ns".into();
        w.workload_type = 77;
        w.addresses = vec!["::ffff:10.0.0.1".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()];
        let ports = vec![
            wire::Port { service_port: 80, target_port: 0, app_protocol: 0 },
            wire::Port { service_port: 81, target_port: 8081, app_protocol: 0 },
        ];
        w.services.insert("ns/host".into(), wire::PortList { ports });
    }) else {
        panic!("a workload with defaults is good")
    };
    assert_eq!(workload.identity, Identity::new("cluster.local", "ns", "default"));
    assert_eq!((&*workload.cluster_id, workload.capacity), ("Kubernetes", 1));
    assert_eq!(workload.workload_kind, WorkloadKind::Deployment);
    assert_eq!(workload.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(workload.services.values().next(), Some(&BTreeMap::from([(81, 8081)])), "a port without target is absent");
    let Ok(Change::Service(service)) = service_with(|s| s.visibility = 9) else { panic!("an unknown visibility is public") };
    assert_eq!(service.visibility, Visibility::Public);
}

#[test]
fn a_refused_policy_can_be_stood_in_for_by_one_that_denies_its_scope() {
    let resource = match_with(|m| m.principals = vec![Default::default()]);
    let stand_in = denying_policy(&resource).unwrap();
    assert_eq!((&*stand_in.key.0, &*stand_in.namespace), ("ns/name", "ns"));
    assert_eq!((stand_in.scope, stand_in.action), (PolicyScope::Global, Action::Deny));
    assert_eq!(stand_in.rules, [Rule::default()], "a rule without clauses matches everything");
    let unreadable = denying_policy(&authorization(|p| p.scope = 44)).unwrap();
    assert_eq!(unreadable.scope, PolicyScope::Namespace);
    assert_eq!(denying_policy(&authorization(|p| p.dry_run = true)), None);
}

#[test]
fn names_and_aliases_are_istios() {
    let mut service = Service::new("web", NamespacedHostname { namespace: "ns".into(), hostname: "web.ns.svc.cluster.local".into() });
    service.addresses = ["10.96.0.1/32", "fd00:10:96::1/128", "240.0.0.0/8"]
        .map(|block| ServiceAddress { network: "".into(), block: block.parse().unwrap() })
        .to_vec();
    let encoded = encode(&Change::Service(Arc::new(service)));
    assert_eq!(&*encoded.name, "ns/web.ns.svc.cluster.local");
    assert_eq!(encoded.aliases, ["/10.96.0.1", "/fd00:10:96::1", "/240.0.0.0/8"]);
}
