//! A node proxy that does not know our maps: what it dials passes by its cgroup, and its listeners are found and registered for it.

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
};

use crate::{
    lab::{Families, HBONE, Lab, OUTBOUND, PASSTHROUGH, WAIT, accept, canonical, destinations, is_idle, original, pod_ip, world_ip},
    program::Node,
};

#[test]
fn what_an_admitted_cgroup_dials_passes_where_the_pods_entry_says_so() {
    let Some(lab) = Lab::start("passed", Families::Both) else { return };
    let capture = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    let server = lab.in_world(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
    // This process is in a cgroup below the one that is captured.
    let own = fs::metadata(lab.cgroup.join("agents")).unwrap().ino();
    let above = fs::metadata(&lab.cgroup).unwrap().ino();
    let mut entry = lab.entry(Families::Both, 0);
    let cases = [(false, None, true), (true, None, true), (true, Some(above), true), (false, Some(own), true), (true, Some(own), false)];
    for (foreign_proxy, admitted, captured) in cases {
        entry.foreign_proxy = foreign_proxy;
        capture.maps().enrol(lab.pod.cookie(), &entry).unwrap();
        for cgroup in capture.maps().proxies().unwrap() {
            capture.maps().dismiss_proxy(cgroup).unwrap();
        }
        if let Some(cgroup) = admitted {
            capture.maps().admit_proxy(cgroup).unwrap();
        }
        for destination in destinations(80) {
            let client = lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
            let (accepted, peer) = accept(if captured { &proxy } else { &server });
            assert!(
                is_idle(if captured { &server } else { &proxy }),
                "{destination}: foreign proxy {foreign_proxy}, admitted {admitted:?}"
            );
            if captured {
                assert_eq!(original(&accepted), Some(canonical(destination)));
            } else {
                assert_eq!(canonical(peer), canonical(client.local_addr().unwrap()), "nothing is rewritten");
            }
        }
    }
    let counted = capture.maps().outbound(lab.pod.cookie()).unwrap();
    assert_eq!((counted.captured, counted.passed_proxy), (12, 3));
}

#[test]
fn the_program_registers_the_listeners_and_passes_what_the_proxy_dials() {
    // This process is the proxy: its listeners are in no map, its connects carry no mark.
    let Some(node) = Node::start_for("foreign", true) else { return };
    let proxy = node.proxy();
    proxy.expect_snapshot_sent();
    node.label(true);
    proxy.expect_add(&node);
    proxy.acknowledge("");
    node.until("pending", || node.annotation().as_deref() == Some("pending"));

    // It says that it serves, and does not listen: asked again until it does.
    let passthrough = node.lab.listen(PASSTHROUGH);
    let hbone = node.lab.listen(HBONE);
    proxy.expect_add(&node);
    proxy.acknowledge("");
    node.until("enabled", || node.annotation().as_deref() == Some("enabled"));
    let status = node.get("/enrolled").unwrap();
    assert!(status.contains("\"foreignProxy\":true") && status.contains("\"dnsCaptured\":false"), "{status}");

    let server = node.lab.in_world(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080)).unwrap());
    for v6 in [false, true] {
        for (port, listener) in [(80, &passthrough), (HBONE, &hbone)] {
            let _client = node.lab.in_world(|| TcpStream::connect_timeout(&SocketAddr::new(pod_ip(v6), port), WAIT).unwrap());
            let (accepted, peer) = accept(listener);
            assert_eq!(canonical(accepted.local_addr().unwrap()), SocketAddr::new(pod_ip(v6), port), "where it was going");
            assert_eq!(canonical(peer).ip(), world_ip(v6));
        }
        let _dialled = node.lab.in_pod(|| TcpStream::connect_timeout(&SocketAddr::new(world_ip(v6), 8080), WAIT).unwrap());
        accept(&server);
    }
    // A listener that is opened anew takes the place of the old one with the next snapshot.
    drop((proxy, passthrough));
    let passthrough = node.lab.listen(PASSTHROUGH);
    let proxy = node.proxy();
    proxy.expect_add(&node);
    proxy.acknowledge("");
    proxy.expect_snapshot_sent();
    let _client = node.lab.in_world(|| TcpStream::connect_timeout(&SocketAddr::new(pod_ip(true), 80), WAIT).unwrap());
    accept(&passthrough);
}
