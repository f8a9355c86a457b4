//! Connections that a pod is sent.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
};

use socket2::{Domain, Protocol, Socket, Type};
use tropis_maps::{ListenerKind, ProxyMaps};

use crate::lab::{Families, HBONE, Lab, PASSTHROUGH, WAIT, accept, canonical, is_idle, pod_ip};

fn register(maps: &ProxyMaps, kind: ListenerKind, listener: &TcpListener) {
    for v6 in [false, true] {
        maps.add_listener(pod_ip(v6), kind, listener.as_fd()).unwrap();
    }
}

#[test]
fn any_port_goes_to_the_passthrough_listener_and_tunnels_to_theirs() {
    let Some(lab) = Lab::start("in", Families::Both) else { return };
    let capture = lab.capture();
    let (passthrough, hbone, application) = (lab.listen(PASSTHROUGH), lab.listen(HBONE), lab.listen(8080));
    let maps = lab.proxy_maps();
    register(&maps, ListenerKind::Inbound, &passthrough);
    register(&maps, ListenerKind::Hbone, &hbone);
    lab.enrol(&capture, Families::Both, 0);
    for v6 in [false, true] {
        for (port, listener) in [(8080, &passthrough), (9999, &passthrough), (PASSTHROUGH, &passthrough), (HBONE, &hbone)] {
            let destination = SocketAddr::new(pod_ip(v6), port);
            let client = lab.in_world(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
            let (accepted, peer) = accept(listener);
            assert_eq!(canonical(accepted.local_addr().unwrap()), destination, "the port asked for is the original destination");
            assert_eq!(canonical(peer), client.local_addr().unwrap());
            assert!(is_idle(&application));
        }
        let counted = capture.maps().inbound(pod_ip(v6)).unwrap();
        assert_eq!((counted.captured, counted.hbone, counted.refused), (3, 1, 0));
    }
}

#[test]
fn without_a_listener_the_application_is_not_reached() {
    let Some(lab) = Lab::start("in-closed", Families::Both) else { return };
    let capture = lab.capture();
    let (application, tunnels) = (lab.listen(8080), lab.listen(HBONE));
    lab.enrol(&capture, Families::Both, 0);
    for v6 in [false, true] {
        for port in [8080, HBONE] {
            let error = lab.in_world(|| TcpStream::connect_timeout(&SocketAddr::new(pod_ip(v6), port), WAIT).unwrap_err());
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
        assert_eq!(capture.maps().inbound(pod_ip(v6)).unwrap().refused, 2);
    }
    assert!(is_idle(&application) && is_idle(&tunnels));
}

#[test]
fn a_listener_leaves_when_it_closes_and_a_later_one_takes_its_place() {
    let Some(lab) = Lab::start("in-replace", Families::Both) else { return };
    let capture = lab.capture();
    let maps = lab.proxy_maps();
    let reusing = || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PASSTHROUGH).into()).unwrap();
        socket.listen(16).unwrap();
        TcpListener::from(socket)
    };
    let (first, second) = lab.in_pod(|| (reusing(), reusing()));
    lab.enrol(&capture, Families::Both, 0);
    register(&maps, ListenerKind::Inbound, &first);
    register(&maps, ListenerKind::Inbound, &second);
    drop(first);
    let destination = SocketAddr::new(pod_ip(false), 8080);
    let _client = lab.in_world(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
    accept(&second);
    drop(second);
    assert!(lab.in_world(|| TcpStream::connect_timeout(&destination, WAIT)).is_err());
}

#[test]
fn the_application_sees_the_client_and_the_proxy_is_not_captured_again() {
    let Some(lab) = Lab::start("in-peer", Families::Both) else { return };
    let capture = lab.capture();
    let passthrough = lab.listen(PASSTHROUGH);
    let dual = lab.listen(8080);
    let single = lab.in_pod(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8081)).unwrap());
    let maps = lab.proxy_maps();
    register(&maps, ListenerKind::Inbound, &passthrough);
    lab.enrol(&capture, Families::Both, 0);
    for (v6, port, application) in [(false, 8080, &dual), (true, 8080, &dual), (false, 8081, &single)] {
        let destination = SocketAddr::new(pod_ip(v6), port);
        let client: SocketAddr = if v6 { "[fd51:9::7]:40001".parse().unwrap() } else { "10.99.3.7:40001".parse().unwrap() };
        let upstream = lab.in_pod(|| Socket::new(Domain::for_address(destination), Type::STREAM, Some(Protocol::TCP)).unwrap());
        maps.show_peer(upstream.as_fd(), client).unwrap();
        upstream.connect_timeout(&destination.into(), WAIT).unwrap();
        let (accepted, peer) = accept(application);
        assert_eq!(canonical(peer), client, "accept");
        assert_eq!(canonical(accepted.peer_addr().unwrap()), client, "getpeername");
        assert_eq!(canonical(accepted.local_addr().unwrap()), destination);
        assert_eq!(upstream.peer_addr().unwrap().as_socket(), Some(destination), "the proxy sees what is really there");
        assert!(is_idle(&passthrough));
    }
}
