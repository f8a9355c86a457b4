//! Who is reached straight, who through another waypoint, and who not at all.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    address::NamespacedHostname,
    pool::{Balancer, Limits, LocalityPreference, PoolKey, UpstreamTls, UpstreamVersion},
    route::Host,
    service::{ServiceAddress, ServicePort},
    view::Change,
    waypoint::{Serves, Waypoint},
};

fn name(service: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: "shop".into(), hostname: format!("{service}.shop.svc.cluster.local").into() }
}

fn reference(waypoint: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Service(name(waypoint)), hbone_port: HBONE_PORT }
}

/// A service with one pod.
fn service(app: &str, number: u8, waypoint: Option<&str>) -> [Change; 2] {
    let mut pod = Workload::new(format!("c//Pod/shop/{app}"), app, Identity::new("cluster.local", "shop", app));
    pod.addresses = vec![IpAddr::from([10, 244, 1, number])];
    pod.tunnel_protocol = TunnelProtocol::Hbone;
    pod.services.insert(name(app), [(80, 8080), (HBONE_PORT, HBONE_PORT)].into());
    let mut service = Service::new(app, name(app));
    service.addresses = vec![ServiceAddress { network: "".into(), block: format!("10.96.0.{number}/32").parse().unwrap() }];
    service.ports = [(80, ServicePort { target_port: Some(8080), app_protocol: Default::default() })].into();
    service.waypoint = waypoint.map(reference);
    [Change::Service(service.into()), Change::Workload(pod.into())]
}

/// Where waypoint `shop/own` finds the pool of `ratings`, which goes through `waypoint`, if it knows the host of `ratings` or not.
fn found(waypoint: Option<&str>, is_known: bool) -> Vec<String> {
    let own = Waypoint {
        key: "shop/own".into(),
        service: name("own"),
        serves: Serves::Services,
        policies: Vec::new(),
        access_log: None,
        elsewhere: BTreeSet::new(),
    };
    let host = Host { name: name("ratings"), ports: BTreeMap::new(), policies: Vec::new(), pools: BTreeMap::new() };
    let services = [service("ratings", 1, waypoint), service("own", 2, None), service("other", 3, None)];
    let told = [Change::Waypoint(own.into())].into_iter().chain(is_known.then(|| Change::Host(host.into())));
    let view = View::default().apply(services.into_iter().flatten().chain(told));
    let pool = Pool {
        key: PoolKey { host: name("ratings"), port: 80, subset: None },
        labels: BTreeMap::new(),
        balancer: Balancer::RoundRobin,
        locality: LocalityPreference::None,
        warmup: None,
        limits: Limits::default(),
        outlier: None,
        panic_threshold_percent: 0,
        upstream_version: UpstreamVersion::FromPort,
        tls: UpstreamTls::None,
    };
    let shown = |found: Found| format!("{} by {}", found.reach.address, found.reach.tunnel.unwrap().address);
    find(&view, "shop/own", "", &pool).into_iter().map(shown).collect()
}

#[test]
fn who_goes_straight_to_a_service_has_its_policies_in_the_same_view() {
    let straight = vec!["10.244.1.1:8080 by 10.244.1.1:15008".to_owned()];
    for waypoint in [None, Some("own"), Some("other")] {
        assert_eq!(found(waypoint, true), straight, "{waypoint:?}: its host says what its policies are");
    }
    assert_eq!(found(None, false), straight, "it goes through no waypoint");
    assert_eq!(found(Some("other"), false), ["10.96.0.1:80 by 10.244.1.3:15008"], "the other one asks its policies");
    assert_eq!(found(Some("own"), false), Vec::<String>::new(), "its policies are ours to ask, and are not known");
}
