//! What must not happen, and how it is said.

use std::{
    io::Read,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tropis_model::{
    view::Change,
    workload::{GatewayAddress, GatewayDestination},
};
use tropis_ztunnel::app::drain;

use crate::{
    log,
    mesh::{Mesh, PORT, connect, descriptor, echo, is_reset, ping, service},
    network,
};

#[test]
fn a_policy_that_has_not_arrived_denies() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("missing");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    let mut guarded = server.workload.clone();
    guarded.authorization_policies.push("shop/not-here-yet".into());
    mesh.apply([Change::Workload(Arc::new(guarded))]);
    assert!(is_reset(connect(&client.network, server.network.v4, PORT)));
    let line = log::wait_for(&[("src.workload", &client.name), ("direction", "inbound")]);
    assert_eq!((line["reason"].as_str(), line["policy"].as_str()), ("policy_missing", "shop/not-here-yet"));
}

#[test]
fn a_waypoint_that_is_missing_is_not_gone_around() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("waypoint");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    let mut guarded = service("echo", "10.96.0.7");
    let waypoint = service("waypoint", "10.96.0.8");
    guarded.waypoint = Some(GatewayAddress { destination: GatewayDestination::Service(waypoint.hostname.clone()), hbone_port: 15008 });
    let mut member = server.workload.clone();
    member.services.insert(guarded.hostname.clone(), Default::default());
    mesh.apply([Change::Service(Arc::new(guarded)), Change::Service(Arc::new(waypoint)), Change::Workload(Arc::new(member))]);
    assert!(is_reset(connect(&client.network, "10.96.0.7".parse().unwrap(), 80)));
    let line = log::wait_for(&[("src.workload", &client.name), ("direction", "outbound")]);
    assert_eq!((line["reason"].as_str(), line["stage"].as_str(), line["side"].as_str()), ("no_waypoint", "resolve", "mesh"));
    assert!(line["error"].contains("shop/waypoint.shop.svc.cluster.local"), "{}", line["error"]);
}

#[test]
fn a_pod_that_the_control_plane_has_not_described_waits_and_is_refused() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("unknown");
    let server = mesh.pod(1, "server", 2);
    echo(&server.network);
    let pod = mesh.network.pod(5);
    mesh.network.capture(5);
    assert_eq!(mesh.nodes[0].agent.add("u5", "shop", "unknown-late", "late", &descriptor(&pod)), "");
    let started = Instant::now();
    assert!(is_reset(connect(&pod, server.network.v4, PORT)));
    assert!(started.elapsed() >= Duration::from_secs(4), "{:?}", started.elapsed());
    let line = log::wait_for(&[("reason", "workload_unknown")]);
    assert_eq!(line["stage"], "identify");
}

#[test]
fn the_listener_itself_is_no_way_in() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("direct");
    let server = mesh.pod(1, "server", 2);
    let stranger = mesh.stranger(9);
    // 15006 is where inbound connections are captured to; so is a connection to 15001.
    for port in [15001, 15006] {
        assert!(is_reset(connect(&stranger, server.network.v4, port)));
    }
    // From inside the pod, past the packet rules: netfilter says that it was going to the listener itself.
    let loopback = "127.0.0.1".parse().unwrap();
    assert!(is_reset(connect(&server.network, loopback, 15001)));
    log::wait_for(&[("reason", "loop_detected"), ("direction", "outbound"), ("src.workload", &server.name)]);
}

#[test]
fn draining_finishes_what_is_open_and_cuts_the_rest() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("drain");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    let mut short = connect(&client.network, server.network.v4, PORT).unwrap();
    let mut long = connect(&client.network, server.network.v4, PORT).unwrap();
    ping(&mut short, "hello").unwrap();
    ping(&mut long, "hello").unwrap();
    let shared = mesh.nodes[0].shared.clone();
    let handle = mesh.nodes[0].runtime.handle().clone();
    let draining = thread::spawn(move || {
        let started = Instant::now();
        handle.block_on(drain(&shared));
        started.elapsed()
    });
    thread::sleep(Duration::from_millis(300));
    // Nothing new, but what is open works.
    assert!(is_reset(connect(&client.network, server.network.v4, PORT)));
    ping(&mut short, "still here").unwrap();
    drop(short);
    log::wait_for(&[("src.workload", &client.name), ("direction", "outbound"), ("reason", "completed")]);
    let took = draining.join().unwrap();
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(long.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    log::wait_for(&[("src.workload", &client.name), ("direction", "outbound"), ("reason", "drained")]);
}

#[test]
fn the_agent_may_go_and_come_back() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("agent");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    let node = &mut mesh.nodes[0];
    assert_eq!(node.agent.snapshot_sent(), "");
    assert_eq!(
        node.agent.ask(tropis_proto::zds::workload_request::Payload::SnapshotSent(Default::default()), None),
        "the node agent broke the protocol: a second SnapshotSent"
    );
    // The proxy hung up after that, and connects anew; what it serves stays until the new snapshot says otherwise.
    node.agent = node.listener.accept();
    assert_eq!(node.readiness.pending(), ["workload proxy manager"]);
    let mut stream = connect(&client.network, server.network.v4, PORT).unwrap();
    ping(&mut stream, "hello").unwrap();
    assert_eq!(node.agent.keep(&client.uid), "");
    assert_eq!(node.agent.snapshot_sent(), "");
    ping(&mut stream, "kept").unwrap();
    // The same pod in the same namespace again changes nothing; what is no namespace is refused, and the connection stays.
    assert_eq!(node.agent.add(&client.uid, "shop", &client.name, &client.name, &descriptor(&client.network)), "");
    ping(&mut stream, "kept").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap().into();
    assert!(node.agent.add("x", "shop", "x", "x", &file).contains("not of a network namespace"));
    assert!(node.readiness.pending().is_empty());
}

#[test]
fn a_pod_whose_port_is_taken_is_refused_and_tried_again() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("taken");
    let server = mesh.pod(1, "server", 2);
    echo(&server.network);
    let pod = mesh.network.pod(5);
    mesh.network.capture(5);
    let taken = pod.namespace.run(|| std::net::TcpListener::bind("127.0.0.1:15006").unwrap()).unwrap();
    let node = &mesh.nodes[0];
    let error = node.agent.add("u5", "shop", "taken-late", "late", &descriptor(&pod));
    assert!(error.contains("15006: bind"), "{error}");
    assert_eq!(node.agent.snapshot_sent(), "");
    assert_eq!(node.readiness.pending(), ["workload proxy manager"]);
    assert!(node.metrics.render("").1.contains("workload_manager_pending_proxy_count 1"));
    drop(taken);
    let deadline = Instant::now() + Duration::from_secs(15);
    while !node.readiness.pending().is_empty() {
        assert!(Instant::now() < deadline, "still pending");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(node.metrics.render("").1.contains("workload_manager_active_proxy_count 1"));
}
