//! Connections that should work, and those that policy forbids.

use std::{io::Read, net::Shutdown, sync::Arc, thread, time::Duration};

use tropis_model::{policy::PolicyScope, view::Change};

use crate::{
    log,
    mesh::{Mesh, PORT, connect, deny, echo, is_reset, ping, service},
    network,
};

#[test]
fn a_connection_goes_through_a_tunnel_that_proves_both_ends() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("tunnel");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    for to in [server.network.v4, server.network.v6] {
        let mut stream = connect(&client.network, to, PORT).unwrap();
        ping(&mut stream, "hello").unwrap();
        // Half-close: what we said is over, the answer is not.
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        let authority = std::net::SocketAddr::new(to, PORT).to_string();
        for direction in ["outbound", "inbound"] {
            let line = log::wait_for(&[("src.workload", &client.name), ("dst.hbone_addr", &authority), ("direction", direction)]);
            assert_eq!(line["src.identity"], client.workload.identity.to_string());
            assert_eq!(line["dst.identity"], server.workload.identity.to_string());
            assert_eq!((line["reason"].as_str(), line["stage"].as_str()), ("completed", "relay"));
            assert_eq!((line["bytes_sent"].as_str(), line["bytes_recv"].as_str()), ("5", "5"));
            assert_eq!(line["dst.addr"], std::net::SocketAddr::new(to, 15008).to_string());
        }
    }
    let (_, text) = mesh.nodes[1].metrics.render("");
    let opened = text.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total{reporter=\"destination\""));
    let opened = opened.expect("the destination reports");
    assert!(opened.contains("connection_security_policy=\"mutual_tls\"") && opened.ends_with(" 2"), "{opened}");
}

#[test]
fn a_service_address_reaches_an_endpoint_that_answers() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("service");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    let service = service("echo", "10.96.0.7");
    // One endpoint has no listener: it is tried, left out, and the other one answers.
    let member = |mut workload: tropis_model::workload::Workload| {
        workload.services.insert(service.hostname.clone(), Default::default());
        Change::Workload(Arc::new(workload))
    };
    let mut dead = server.workload.clone();
    dead.uid = tropis_model::workload::WorkloadUid("Kubernetes//Pod/shop/dead".into());
    dead.name = "dead".into();
    dead.addresses = vec!["10.77.0.99".parse().unwrap()];
    let absent = mesh.stranger(99);
    assert_eq!(absent.v4, dead.addresses[0]);
    mesh.apply([Change::Service(Arc::new(service.clone())), member(dead), member(server.workload.clone())]);
    for _ in 0..10 {
        let mut stream = connect(&client.network, "10.96.0.7".parse().unwrap(), 80).unwrap();
        ping(&mut stream, "hello").unwrap();
    }
    let line = log::wait_for(&[("src.workload", &client.name), ("direction", "outbound"), ("dst.workload", &server.name)]);
    assert_eq!(line["dst.service"], "echo.shop.svc.cluster.local");
    assert_eq!(log::count(&[("src.workload", &client.name), ("direction", "outbound"), ("reason", "connect_refused")]), 0);
}

#[test]
fn strangers_pass_until_strict_refuses_them() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("strict");
    let server = mesh.pod(1, "server", 2);
    echo(&server.network);
    let stranger = mesh.stranger(9);
    for to in [server.network.v4, server.network.v6] {
        ping(&mut connect(&stranger, to, PORT).unwrap(), "hello").unwrap();
    }
    let line = log::wait_for(&[("dst.workload", &server.name), ("direction", "inbound"), ("reason", "completed")]);
    assert!(!line.contains_key("src.identity"));
    mesh.apply([deny("strict-for-strangers", PolicyScope::Namespace, None)]);
    for to in [server.network.v4, server.network.v6] {
        assert!(is_reset(connect(&stranger, to, PORT)));
    }
    let line = log::wait_for(&[("dst.workload", &server.name), ("reason", "policy_denied")]);
    assert_eq!((line["policy"].as_str(), line["stage"].as_str()), ("shop/strict-for-strangers", "authorize"));
}

#[test]
fn a_denied_caller_is_reset_and_the_policy_is_named() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("denied");
    let (good, bad, server) = (mesh.pod(0, "good", 1), mesh.pod(0, "bad", 3), mesh.pod(1, "server", 2));
    echo(&server.network);
    mesh.apply([deny("not-bad", PolicyScope::Namespace, Some(&bad.name))]);
    ping(&mut connect(&good.network, server.network.v4, PORT).unwrap(), "hello").unwrap();
    assert!(is_reset(connect(&bad.network, server.network.v4, PORT)));
    let inbound = log::wait_for(&[("src.workload", &bad.name), ("direction", "inbound")]);
    assert_eq!((inbound["reason"].as_str(), inbound["policy"].as_str()), ("policy_denied", "shop/not-bad"));
    assert_eq!(inbound["src.identity"], bad.workload.identity.to_string());
    let outbound = log::wait_for(&[("src.workload", &bad.name), ("direction", "outbound")]);
    assert_eq!(outbound["reason"], "tunnel_denied");
    // Both had proved who they are before one denied the other.
    assert_eq!(outbound["src.identity"], bad.workload.identity.to_string());
    assert_eq!(outbound["dst.identity"], server.workload.identity.to_string());
    let (_, text) = mesh.nodes[1].metrics.render("");
    assert!(text.lines().any(|line| line.starts_with("istio_tcp_connections_failed_total") && line.contains("response_flags=\"DENY\"")));
}

#[test]
fn an_open_connection_ends_when_policy_forbids_it() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("revoked");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    let stranger = mesh.stranger(9);
    let mut tunnelled = connect(&client.network, server.network.v4, PORT).unwrap();
    let mut plain = connect(&stranger, server.network.v4, PORT).unwrap();
    for stream in [&mut tunnelled, &mut plain] {
        ping(stream, "before").unwrap();
    }
    // Something else changes: nobody notices.
    mesh.apply([Change::Service(Arc::new(service("other", "10.96.0.9")))]);
    // A policy that is there already is attached to the workload: only the workload changes (STRICT by label, for instance).
    mesh.apply([deny("strict", PolicyScope::WorkloadSelector, None)]);
    for stream in [&mut tunnelled, &mut plain] {
        ping(stream, "still").unwrap();
    }
    let mut strict = server.workload.clone();
    strict.authorization_policies.push("shop/strict".into());
    mesh.apply([Change::Workload(Arc::new(strict))]);
    assert_eq!(plain.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    ping(&mut tunnelled, "still").unwrap();
    mesh.apply([deny("not-client", PolicyScope::Namespace, Some(&client.name))]);
    assert_eq!(tunnelled.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let line = log::wait_for(&[("src.workload", &client.name), ("direction", "inbound")]);
    assert_eq!((line["reason"].as_str(), line["policy"].as_str()), ("permit_revoked", "shop/not-client"));
    let line = log::wait_for(&[("dst.workload", &server.name), ("policy", "shop/strict")]);
    assert_eq!(line["reason"], "permit_revoked");
}

#[test]
fn a_pod_that_is_not_served_any_more_lets_go() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("removed");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    assert_eq!(mesh.nodes[0].readiness.pending(), ["workload proxy manager"]);
    assert_eq!(mesh.nodes[0].agent.snapshot_sent(), "");
    assert!(mesh.nodes[0].readiness.pending().is_empty());
    let mut stream = connect(&client.network, server.network.v4, PORT).unwrap();
    ping(&mut stream, "hello").unwrap();
    assert_eq!(mesh.nodes[0].agent.remove(&client.uid), "");
    // Under packet rules the agent takes the rules away too, so what is open ends.
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let line = log::wait_for(&[("src.workload", &client.name), ("direction", "outbound")]);
    assert_eq!(line["reason"], "drained");
    thread::sleep(Duration::from_millis(100));
    assert!(is_reset(connect(&client.network, server.network.v4, PORT)));
}
