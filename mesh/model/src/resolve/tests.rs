//! Every branch of the plan: services, workloads, waypoints, other networks, what arrives, and how endpoints are preferred.

use std::collections::BTreeMap;

use super::*;
use crate::{
    service::{LoadBalancing, ServiceAddress, ServicePort},
    view::Change,
    workload::{ApplicationTunnel, NetworkMode},
};

/// A small mesh that each test changes to its need.
#[derive(Default)]
struct Mesh {
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<String, Service>,
}

fn hostname(name: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: "shop".into(), hostname: format!("{name}.shop.svc.cluster.local").into() }
}

impl Mesh {
    fn pod(&mut self, name: &str, number: u8) -> &mut Workload {
        let identity = Identity::new("cluster.local", "shop", name);
        let mut workload = Workload::new(format!("c//Pod/shop/{name}"), name, identity);
        workload.addresses = vec![IpAddr::from([10, 244, 1, number]), format!("fd00:10:244:1::{number}").parse().unwrap()];
        workload.tunnel_protocol = TunnelProtocol::Hbone;
        self.workloads.entry(name.to_owned()).or_insert(workload)
    }

    fn service(&mut self, name: &str, number: u8, of: &[&str]) -> &mut Service {
        for endpoint in of {
            let workload = self.workloads.get_mut(*endpoint).unwrap();
            workload.services.insert(hostname(name), [(80, 8080), (HBONE_PORT, HBONE_PORT)].into());
        }
        let mut service = Service::new(name, hostname(name));
        let blocks = [format!("10.96.0.{number}/32"), format!("fd00:10:96::{number}/128")];
        service.addresses = blocks.map(|block| ServiceAddress { network: "".into(), block: block.parse().unwrap() }).into();
        let port = ServicePort { target_port: Some(8080), app_protocol: Default::default() };
        service.ports = [(80, port), (HBONE_PORT, ServicePort { target_port: Some(HBONE_PORT), ..port })].into();
        self.services.entry(name.to_owned()).or_insert(service)
    }

    fn view(&self) -> View {
        let workloads = self.workloads.values().cloned().map(|workload| Change::Workload(Arc::new(workload)));
        let services = self.services.values().cloned().map(|service| Change::Service(Arc::new(service)));
        View::default().apply(workloads.chain(services))
    }

    fn plan(&self, caller: &str, to: &str) -> Result<Plan, ResolveError> {
        self.plan_again(caller, to, &[], 7)
    }

    fn plan_again(&self, caller: &str, to: &str, tried: &[WorkloadUid], seed: u64) -> Result<Plan, ResolveError> {
        let destination = OriginalDestination(to.parse().unwrap());
        outbound(&self.view(), &Question { caller: &self.workloads[caller], destination, network: "", tried }, &mut Draw::new(seed))
    }
}

/// A client and a server with a service before it.
fn pair() -> Mesh {
    let mut mesh = Mesh::default();
    mesh.pod("client", 1);
    mesh.pod("server", 2);
    mesh.service("server", 1, &["server"]);
    mesh
}

fn waypoint_reference(name: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Service(hostname(name)), hbone_port: HBONE_PORT }
}

fn text(plan: &Plan) -> String {
    match plan {
        Plan::Direct { to } => format!("direct {}", to.authority),
        Plan::Tunnel { via, target, waypoint: false } => format!("tunnel {} for {}", via.address, target.authority),
        Plan::Tunnel { via, target, waypoint: true } => format!("waypoint {} for {}", via.address, target.authority),
        Plan::Nested { gateway, target, .. } => format!("nested {} for {}", gateway.address, target.authority),
    }
}

#[test]
fn every_kind_of_address_has_its_plan_on_both_families() {
    let mut mesh = pair();
    mesh.pod("plain", 3).tunnel_protocol = TunnelProtocol::None;
    mesh.service("plain", 3, &["plain"]);
    let cases = [
        ("10.96.0.1:80", "tunnel 10.244.1.2:15008 for 10.244.1.2:8080"),
        ("[fd00:10:96::1]:80", "tunnel [fd00:10:244:1::2]:15008 for [fd00:10:244:1::2]:8080"),
        ("10.244.1.2:9090", "tunnel 10.244.1.2:15008 for 10.244.1.2:9090"),
        ("[fd00:10:244:1::2]:9090", "tunnel [fd00:10:244:1::2]:15008 for [fd00:10:244:1::2]:9090"),
        ("10.96.0.3:80", "direct 10.244.1.3:8080"),
        ("10.244.1.3:9090", "direct 10.244.1.3:9090"),
        ("192.0.2.1:443", "direct 192.0.2.1:443"),
        ("[2001:db8::1]:443", "direct [2001:db8::1]:443"),
    ];
    for (to, expected) in cases {
        assert_eq!(text(&mesh.plan("client", to).unwrap()), expected, "{to}");
    }
}

#[test]
fn the_hop_must_prove_the_workload_or_what_the_service_says() {
    let mut mesh = pair();
    mesh.services.get_mut("server").unwrap().subject_alt_names = vec!["spiffe://cluster.local/ns/x/sa/y".into(), "not an identity".into()];
    let Plan::Tunnel { via, .. } = mesh.plan("client", "10.96.0.1:80").unwrap() else { panic!("a tunnel") };
    let expected: Vec<_> = via.expected.iter().map(Identity::principal).collect();
    assert_eq!(expected, ["cluster.local/ns/x/sa/y", "cluster.local/ns/shop/sa/server"]);
    let Plan::Tunnel { via, .. } = mesh.plan("client", "10.244.1.2:80").unwrap() else { panic!("a tunnel") };
    assert_eq!(via.expected.len(), 1);
}

#[test]
fn our_own_listeners_on_loopback_are_a_loop() {
    let mesh = pair();
    for to in ["127.0.0.1:15001", "[::1]:15006", "127.0.0.1:15008"] {
        assert!(matches!(mesh.plan("client", to), Err(ResolveError::LoopDetected { .. })), "{to}");
    }
}

#[test]
fn a_service_without_a_usable_endpoint_is_an_error_and_never_goes_to_its_address() {
    let mut mesh = pair();
    let unknown_port = mesh.plan("client", "10.96.0.1:81").unwrap_err();
    assert_eq!(unknown_port, ResolveError::NoEndpoint { service: hostname("server"), port: 81 });
    mesh.workloads.get_mut("server").unwrap().health = Health::Unhealthy;
    assert!(matches!(mesh.plan("client", "10.96.0.1:80"), Err(ResolveError::NoEndpoint { .. })));
    assert!(mesh.plan("client", "10.244.1.2:8080").is_ok(), "its own address still reaches it");
    mesh.services.get_mut("server").unwrap().load_balancing.health_policy = HealthPolicy::AllowAll;
    assert!(mesh.plan("client", "10.96.0.1:80").is_ok());
    mesh.workloads.get_mut("server").unwrap().capacity = 0;
    assert!(mesh.plan("client", "10.96.0.1:80").is_err(), "no capacity is never chosen");
}

#[test]
fn a_service_waypoint_gets_the_addressed_name_and_is_never_gone_around() {
    let mut mesh = pair();
    mesh.pod("waypoint", 9);
    mesh.service("waypoint", 9, &["waypoint"]);
    mesh.services.get_mut("server").unwrap().waypoint = Some(waypoint_reference("waypoint"));
    assert_eq!(text(&mesh.plan("client", "10.96.0.1:80").unwrap()), "waypoint 10.244.1.9:15008 for 10.96.0.1:80");
    assert_eq!(text(&mesh.plan("client", "10.244.1.2:80").unwrap()), "tunnel 10.244.1.2:15008 for 10.244.1.2:80");
    mesh.workloads.get_mut("waypoint").unwrap().health = Health::Unhealthy;
    let absent = mesh.plan("client", "10.96.0.1:80").unwrap_err();
    assert_eq!(absent.reason(), (Reason::NoWaypoint, Side::Mesh));
    mesh.services.get_mut("server").unwrap().load_balancing.mode = BalancingMode::Passthrough;
    assert!(mesh.plan("client", "10.96.0.1:80").is_err(), "a pass-through service does not go around it either");
}

#[test]
fn a_workload_waypoint_takes_what_is_addressed_to_the_pod_but_not_its_own_traffic() {
    let mut mesh = pair();
    mesh.pod("waypoint", 9);
    mesh.service("waypoint", 9, &["waypoint"]);
    mesh.workloads.get_mut("server").unwrap().waypoint = Some(waypoint_reference("waypoint"));
    assert_eq!(text(&mesh.plan("client", "10.244.1.2:80").unwrap()), "waypoint 10.244.1.9:15008 for 10.244.1.2:80");
    assert_eq!(text(&mesh.plan("waypoint", "10.244.1.2:80").unwrap()), "tunnel 10.244.1.2:15008 for 10.244.1.2:80");
    assert_eq!(text(&mesh.plan("client", "10.96.0.1:80").unwrap()), "tunnel 10.244.1.2:15008 for 10.244.1.2:8080");
}

#[test]
fn weighted_waypoints_share_by_weight() {
    let mut mesh = pair();
    for (name, number) in [("old", 8), ("new", 9)] {
        mesh.pod(name, number);
        mesh.service(name, number, &[name]);
    }
    mesh.services.get_mut("server").unwrap().weighted_waypoints = vec![(waypoint_reference("old"), 75), (waypoint_reference("new"), 25)];
    let through_new = (0..1000)
        .filter(|seed| mesh.plan_again("client", "10.96.0.1:80", &[], *seed).unwrap().next().unwrap().name.as_ref() == "new")
        .count();
    assert!((190..310).contains(&through_new), "{through_new} of 1000");
}

#[test]
fn another_try_takes_another_endpoint_as_long_as_there_is_one() {
    let mut mesh = pair();
    mesh.pod("second", 3);
    mesh.services.clear();
    mesh.service("server", 1, &["server", "second"]);
    let first = mesh.plan("client", "10.96.0.1:80").unwrap().next().unwrap().uid.clone();
    for seed in 0..20 {
        let second = mesh.plan_again("client", "10.96.0.1:80", std::slice::from_ref(&first), seed).unwrap().next().unwrap().uid.clone();
        assert_ne!(first, second);
    }
    let all = mesh.workloads.values().map(|workload| workload.uid.clone()).collect::<Vec<_>>();
    assert!(mesh.plan_again("client", "10.96.0.1:80", &all, 1).is_ok(), "when all were tried, any may be tried again");
}

#[test]
fn endpoints_are_chosen_by_capacity() {
    let mut mesh = pair();
    mesh.pod("big", 3).capacity = 3;
    mesh.services.clear();
    mesh.service("server", 1, &["server", "big"]);
    let big = (0..1000)
        .filter(|seed| mesh.plan_again("client", "10.96.0.1:80", &[], *seed).unwrap().next().unwrap().name.as_ref() == "big")
        .count();
    assert!((690..810).contains(&big), "{big} of 1000");
}

#[test]
fn locality_is_preferred_or_required() {
    let mut mesh = pair();
    mesh.pod("near", 3);
    mesh.services.clear();
    mesh.service("server", 1, &["server", "near"]);
    for (name, node) in [("client", "a"), ("near", "a"), ("server", "b")] {
        mesh.workloads.get_mut(name).unwrap().node = node.into();
    }
    let chosen = |mesh: &Mesh| {
        let names = (0..40).filter_map(|seed| mesh.plan_again("client", "10.96.0.1:80", &[], seed).ok());
        names.map(|plan| plan.next().unwrap().name.to_string()).collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(chosen(&mesh), ["near", "server"]);
    for mode in [BalancingMode::Strict, BalancingMode::Failover] {
        let load_balancing = LoadBalancing { mode, routing_preference: vec![Scope::Node], health_policy: HealthPolicy::OnlyHealthy };
        mesh.services.get_mut("server").unwrap().load_balancing = load_balancing;
        assert_eq!(chosen(&mesh), ["near"], "{mode:?}");
    }
    mesh.workloads.get_mut("near").unwrap().health = Health::Unhealthy;
    assert_eq!(chosen(&mesh), ["server"], "fail-over");
    mesh.services.get_mut("server").unwrap().load_balancing.mode = BalancingMode::Strict;
    assert!(chosen(&mesh).is_empty(), "strict");
}

#[test]
fn a_leading_network_match_beats_everything_and_a_mismatch_does_not_end_the_row() {
    let mut mesh = pair();
    let scopes = [Scope::Network, Scope::Region, Scope::Zone];
    mesh.pod("far", 3).network = "other".into();
    mesh.workloads.get_mut("client").unwrap().locality.zone = "z1".into();
    mesh.workloads.get_mut("far").unwrap().locality.zone = "z1".into();
    let [client, near, far] = ["client", "server", "far"].map(|name| &mesh.workloads[name]);
    assert_eq!(rank(&scopes, client, near), (2, 2), "network and region match, zone does not");
    assert_eq!(rank(&scopes, client, far), (2, 0), "region and zone match");
}

#[test]
fn another_network_is_reached_through_its_gateway_and_only_for_a_service() {
    let mut mesh = pair();
    mesh.pod("gateway", 9);
    mesh.service("gateway", 9, &["gateway"]);
    let server = mesh.workloads.get_mut("server").unwrap();
    server.network = "west".into();
    server.addresses.clear();
    assert!(matches!(mesh.plan("client", "10.96.0.1:80"), Err(ResolveError::NoEndpoint { .. })), "no gateway: it is no endpoint");
    mesh.workloads.get_mut("server").unwrap().network_gateway = Some(waypoint_reference("gateway"));
    mesh.services.get_mut("server").unwrap().subject_alt_names = vec!["spiffe://cluster.local/ns/shop/sa/server".into()];
    let plan = mesh.plan("client", "10.96.0.1:80").unwrap();
    assert_eq!(text(&plan), "nested 10.244.1.9:15008 for server.shop.svc.cluster.local:80");
    mesh.workloads.get_mut("gateway").unwrap().health = Health::Unhealthy;
    assert_eq!(mesh.plan("client", "10.96.0.1:80").unwrap_err().reason().0, Reason::NoGateway);
}

#[test]
fn a_workload_address_in_a_pass_through_block_is_the_workload() {
    let mut mesh = pair();
    let wide = mesh.service("wide", 7, &[]);
    wide.addresses = vec![ServiceAddress { network: "".into(), block: "10.0.0.0/8".parse().unwrap() }];
    wide.load_balancing.mode = BalancingMode::Passthrough;
    assert_eq!(text(&mesh.plan("client", "10.244.1.2:80").unwrap()), "tunnel 10.244.1.2:15008 for 10.244.1.2:80");
    assert_eq!(text(&mesh.plan("client", "10.9.9.9:80").unwrap()), "direct 10.9.9.9:80");
}

#[test]
fn host_network_workloads_are_plain_addresses() {
    let mut mesh = pair();
    mesh.pod("agent", 4).network_mode = NetworkMode::HostNetwork;
    assert_eq!(text(&mesh.plan("client", "10.244.1.4:80").unwrap()), "direct 10.244.1.4:80");
}

#[test]
fn authorities_are_read_strictly() {
    for text in ["10.0.0.1:80", "[fd00::1]:80", "reviews.shop.svc.cluster.local:9080"] {
        assert_eq!(text.parse::<Authority>().unwrap().to_string(), text);
    }
    assert_eq!("[::ffff:10.0.0.1]:80".parse::<Authority>().unwrap().to_string(), "10.0.0.1:80");
    for text in ["", ":80", "host", "host:", "host:0", "host:99999", "fd00::1:80x", "a b:80", "user@host:80", "host/x:80"] {
        assert!(text.parse::<Authority>().is_err(), "{text}");
    }
}

fn arrive(mesh: &Mesh, local: &str, local_ip: &str, authority: &str) -> Result<Arrival, ResolveError> {
    inbound(&mesh.view(), &mesh.workloads[local], local_ip.parse().unwrap(), &authority.parse().unwrap(), None)
}

#[test]
fn a_tunnel_ends_here_only_if_it_asks_for_what_is_here() {
    let mesh = pair();
    let to = |authority: &str| arrive(&mesh, "server", "10.244.1.2", authority).map(|arrival| arrival.to.to_string());
    assert_eq!(to("10.244.1.2:8080").unwrap(), "10.244.1.2:8080");
    assert_eq!(to("server.shop.svc.cluster.local:80").unwrap(), "10.244.1.2:8080");
    assert!(matches!(to("10.244.1.1:8080"), Err(ResolveError::NotHere { .. })), "another pod");
    assert!(matches!(to("10.96.0.1:80"), Err(ResolveError::NotHere { .. })), "a service address");
    assert!(matches!(to("other.shop.svc.cluster.local:80"), Err(ResolveError::NotServed { .. })));
    assert!(matches!(to("server.shop.svc.cluster.local:81"), Err(ResolveError::NotServed { .. })));
    assert!(matches!(to("10.244.1.2:15006"), Err(ResolveError::LoopDetected { .. })));
    let arrival = arrive(&mesh, "server", "10.244.1.2", "10.244.1.2:8080").unwrap();
    assert_eq!(arrival.service.unwrap().name.as_ref(), "server");
}

#[test]
fn a_waypoint_takes_tunnels_for_what_it_fronts() {
    let mut mesh = pair();
    mesh.pod("waypoint", 9);
    mesh.service("waypoint", 9, &["waypoint"]);
    assert!(arrive(&mesh, "waypoint", "10.244.1.9", "10.96.0.1:80").is_err());
    mesh.services.get_mut("server").unwrap().waypoint = Some(waypoint_reference("waypoint"));
    assert!(arrive(&mesh, "waypoint", "10.244.1.9", "10.96.0.1:80").is_ok());
    assert!(arrive(&mesh, "client", "10.244.1.1", "10.96.0.1:80").is_err());
}

#[test]
fn an_application_tunnel_changes_the_port_and_may_ask_for_a_header() {
    let mut mesh = pair();
    mesh.workloads.get_mut("server").unwrap().application_tunnel =
        Some(ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port: Some(15088) });
    let arrival = arrive(&mesh, "server", "10.244.1.2", "10.96.0.1:80").unwrap();
    assert_eq!((arrival.to.port(), arrival.proxy_header), (15088, true));
}

#[test]
fn plain_traffic_goes_where_it_was_addressed_but_never_to_a_listener() {
    let mesh = pair();
    let pass = |to: &str| passthrough(&mesh.view(), &mesh.workloads["server"], OriginalDestination(to.parse().unwrap()));
    assert_eq!(pass("10.244.1.2:8080").unwrap().to.to_string(), "10.244.1.2:8080");
    assert!(pass("10.244.1.2:15001").is_err());
}
