//! What the DNS proxy answers, name by name.

use std::{collections::BTreeMap, sync::Arc};

use tropis_model::{
    address::NamespacedHostname,
    identity::Identity,
    service::{ServiceAddress, ServicePort},
    view::Change,
};

use super::*;

fn service(namespace: &str, hostname: &str, addresses: &[&str]) -> Service {
    let name = hostname.split('.').next().unwrap();
    let mut service = Service::new(name, NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() });
    service.addresses = addresses.iter().map(|block| ServiceAddress { network: "".into(), block: block.parse().unwrap() }).collect();
    service.ports.insert(80, ServicePort { target_port: Some(8080), app_protocol: Default::default() });
    service
}

fn workload(name: &str, addresses: &[&str], service: Option<&Service>) -> Workload {
    let mut workload = Workload::new(format!("//Pod/shop/{name}"), name, Identity::new("cluster.local", "shop", name));
    workload.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    if let Some(service) = service {
        workload.services.insert(service.hostname.clone(), BTreeMap::new());
    }
    workload
}

fn ask(changes: Vec<Change>, name: &str, family: Family) -> Answer {
    let client = workload("client", &["10.0.0.9"], None);
    answer(&View::default().apply(changes), &Question { client: &client, domain: "cluster.local", name, family })
}

fn mesh() -> Vec<Change> {
    let mut v6_only = service("shop", "six.shop.svc.cluster.local", &["fd00::6/128"]);
    v6_only.ip_families = IpFamilies::Ipv6Only;
    let headless = service("shop", "heads.shop.svc.cluster.local", &[]);
    let mut sick = workload("sick", &["10.0.0.3"], Some(&headless));
    sick.health = Health::Unhealthy;
    let pods = [workload("h1", &["10.0.0.1", "fd00::1"], Some(&headless)), workload("h2", &["10.0.0.2"], Some(&headless)), sick];
    let mut hidden = service("other", "secret.example", &["240.240.0.5/32"]);
    hidden.visibility = Visibility::Namespace;
    let services = [
        service("shop", "cart.shop.svc.cluster.local", &["10.96.0.1/32", "fd00:10:96::1/128"]),
        service("other", "web.other.svc.cluster.local", &["10.96.0.2/32"]),
        service("other", "api.example.com", &["240.240.0.1/32"]),
        service("other", "*.wild.example", &["240.240.0.2/32"]),
        service("other", "*.deep.wild.example", &["240.240.0.3/32"]),
        service("other", "blocks.example", &["10.200.0.0/16"]),
        v6_only,
        headless,
        hidden,
    ];
    let services = services.into_iter().map(|service| Change::Service(Arc::new(service)));
    services.chain(pods.into_iter().map(|pod| Change::Workload(Arc::new(pod)))).collect()
}

fn here(alias: Option<&str>, addresses: &[&str]) -> Answer {
    Answer::Here { alias: alias.map(str::to_owned), addresses: addresses.iter().map(|address| address.parse().unwrap()).collect() }
}

#[test]
fn names_of_the_mesh_are_answered() {
    let cases: &[(&str, Family, Answer)] = &[
        ("cart.shop.svc.cluster.local", Family::V4, here(None, &["10.96.0.1"])),
        ("cart.shop.svc.cluster.local", Family::V6, here(None, &["fd00:10:96::1"])),
        ("cart", Family::V4, here(None, &["10.96.0.1"])),
        ("cart.shop", Family::V4, here(None, &["10.96.0.1"])),
        ("cart.shop.svc", Family::V4, here(None, &["10.96.0.1"])),
        ("web.other", Family::V4, here(None, &["10.96.0.2"])),
        // What a pod's resolver makes of `web.other` with ndots:5.
        ("web.other.shop.svc.cluster.local", Family::V4, here(Some("web.other"), &["10.96.0.2"])),
        ("api.example.com", Family::V4, here(None, &["240.240.0.1"])),
        ("api.example.com.shop.svc.cluster.local", Family::V4, here(Some("api.example.com"), &["240.240.0.1"])),
        ("a.wild.example", Family::V4, here(None, &["240.240.0.2"])),
        ("a.b.wild.example", Family::V4, here(None, &["240.240.0.2"])),
        ("a.deep.wild.example", Family::V4, here(None, &["240.240.0.3"])),
        ("a.wild.example.svc.cluster.local", Family::V4, here(None, &["240.240.0.2"])),
        ("heads", Family::V4, here(None, &["10.0.0.1", "10.0.0.2"])),
        ("heads", Family::V6, here(None, &["fd00::1"])),
    ];
    for (name, family, expected) in cases {
        let mut found = ask(mesh(), name, *family);
        if let Answer::Here { addresses, .. } = &mut found {
            addresses.sort();
        }
        assert_eq!(found, *expected, "{name} {family:?}");
    }
}

#[test]
fn a_name_without_addresses_of_the_family_is_ours_and_empty() {
    assert_eq!(ask(mesh(), "six.shop.svc.cluster.local", Family::V4), here(None, &[]));
    assert_eq!(ask(mesh(), "web.other", Family::V6), here(None, &[]));
    assert_eq!(ask(mesh(), "blocks.example", Family::V4), here(None, &[]));
}

#[test]
fn other_names_are_somebody_elses() {
    for name in
        ["", "example.com", "nope.shop.svc.cluster.local", "wild.example", "secret.example", "h1.heads.shop.svc.cluster.local", "local"]
    {
        assert_eq!(ask(mesh(), name, Family::V4), Answer::Elsewhere, "{name}");
    }
}

#[test]
fn the_clients_own_namespace_comes_first() {
    let mut own = service("shop", "db.example", &["240.240.1.1/32"]);
    own.canonical = false;
    let mut canonical = service("aaa", "db.example", &["240.240.1.2/32"]);
    canonical.canonical = true;
    let both = vec![Change::Service(Arc::new(canonical.clone())), Change::Service(Arc::new(own))];
    assert_eq!(ask(both, "db.example", Family::V4), here(None, &["240.240.1.1"]));
    let other = service("000", "db.example", &["240.240.1.3/32"]);
    let both = vec![Change::Service(Arc::new(other)), Change::Service(Arc::new(canonical))];
    assert_eq!(ask(both, "db.example", Family::V4), here(None, &["240.240.1.2"]));
}
