//! Connections that a pod opens.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::{Families, Lab, OUTBOUND, WAIT, accept, canonical, destinations, is_idle, original, pod_ip, world_ip};

#[test]
fn connects_reach_the_proxy_and_addresses_stay_true() {
    let Some(lab) = Lab::start("out", Families::Both) else { return };
    let capture = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    lab.enrol(&capture, Families::Both, 0);
    for destination in destinations(80) {
        let client = lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
        let (accepted, peer) = accept(&proxy);
        assert_eq!(original(&accepted), Some(canonical(destination)), "{destination}");
        assert_eq!(client.peer_addr().unwrap(), destination, "the application sees whom it dialled, as it dialled");
        let v6 = canonical(destination).is_ipv6();
        assert_eq!(canonical(client.local_addr().unwrap()).ip(), pod_ip(v6), "the application sees the pod's address");
        assert!(canonical(peer).ip().is_loopback(), "the proxy sees what is really there");
        assert!(canonical(accepted.peer_addr().unwrap()).ip().is_loopback());
    }
    let counted = capture.maps().outbound(lab.pod.cookie()).unwrap();
    assert_eq!(counted.captured, 3);
}

#[test]
fn bound_sockets_and_sockets_that_do_not_block_are_captured() {
    let Some(lab) = Lab::start("bound", Families::Both) else { return };
    let capture = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    lab.enrol(&capture, Families::Both, 0);
    for v6 in [false, true] {
        let destination = SocketAddr::new(world_ip(v6), 80);
        let socket = lab.in_pod(|| Socket::new(Domain::for_address(destination), Type::STREAM, Some(Protocol::TCP)).unwrap());
        socket.bind(&SockAddr::from(SocketAddr::new(pod_ip(v6), 0))).unwrap();
        socket.set_nonblocking(true).unwrap();
        // Loopback may be through before the call returns.
        match socket.connect(&destination.into()) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS)),
        }
        let (accepted, peer) = accept(&proxy);
        assert_eq!(original(&accepted), Some(destination));
        assert_eq!(canonical(peer).ip(), pod_ip(v6), "the socket is bound to it");
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(destination));
    }
}

#[test]
fn a_socket_bound_to_a_device_is_captured() {
    let Some(lab) = Lab::start("device", Families::Both) else { return };
    let capture = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    lab.enrol(&capture, Families::Both, 0);
    for v6 in [false, true] {
        let destination = SocketAddr::new(world_ip(v6), 80);
        let socket = lab.in_pod(|| Socket::new(Domain::for_address(destination), Type::STREAM, Some(Protocol::TCP)).unwrap());
        lab.in_pod(|| socket.bind_device(Some(b"eth0")).unwrap());
        socket.connect_timeout(&destination.into(), WAIT).unwrap();
        let (accepted, _) = accept(&proxy);
        assert_eq!(original(&accepted), Some(destination));
    }
}

#[test]
fn a_pod_reaches_itself_directly() {
    let Some(lab) = Lab::start("self", Families::Both) else { return };
    let capture = lab.capture();
    let (proxy, application) = (lab.listen(OUTBOUND), lab.listen(8080));
    lab.enrol(&capture, Families::Both, 0);
    let loopback = |v6| if v6 { Ipv6Addr::LOCALHOST.into() } else { std::net::Ipv4Addr::LOCALHOST.into() };
    for destination in [pod_ip(false), pod_ip(true), loopback(false), loopback(true)].map(|ip| SocketAddr::new(ip, 8080)) {
        let client = lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
        let (_accepted, peer) = accept(&application);
        assert_eq!(canonical(peer), client.local_addr().unwrap(), "{destination}");
        assert!(is_idle(&proxy), "{destination}");
    }
    // From the pod's address to its loopback: sk_lookup sees two addresses that differ.
    let destination = SocketAddr::new(loopback(false), 8080);
    let socket = lab.in_pod(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap());
    socket.bind(&SockAddr::from(SocketAddr::new(pod_ip(false), 0))).unwrap();
    socket.connect_timeout(&destination.into(), WAIT).unwrap();
    accept(&application);
    assert_eq!(capture.maps().outbound(lab.pod.cookie()).unwrap().passed_self, 5);
}

#[test]
fn a_family_that_the_pods_status_lacks_is_unreachable_even_where_it_is_routed() {
    let Some(lab) = Lab::start("family", Families::Both) else { return };
    let capture = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    let server = lab.in_world(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
    let [ipv4, ipv6, mapped] = destinations(80);
    for (families, lacked) in [(Families::Ipv4, vec![ipv6]), (Families::Ipv6, vec![ipv4, mapped])] {
        lab.enrol(&capture, families, 0);
        for destination in lacked {
            let error = lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap_err());
            assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{destination}");
        }
        let _client = lab.in_pod(|| TcpStream::connect_timeout(if families == Families::Ipv4 { &ipv4 } else { &ipv6 }, WAIT).unwrap());
        accept(&proxy);
    }
    assert!(is_idle(&server), "nothing passed");
    let counted = capture.maps().outbound(lab.pod.cookie()).unwrap();
    assert_eq!((counted.refused_family, counted.captured), (3, 2));
}

#[test]
fn a_family_that_the_pod_has_no_route_for_fails_as_without_us() {
    let Some(lab) = Lab::start("route", Families::Ipv4) else { return };
    let dial = || lab.in_pod(|| TcpStream::connect_timeout(&SocketAddr::new(world_ip(true), 80), WAIT).unwrap_err().raw_os_error());
    let capture = lab.capture();
    let _proxy = lab.listen(OUTBOUND);
    let before = dial();
    lab.enrol(&capture, Families::Ipv4, 0);
    assert_eq!((before, dial()), (Some(libc::ENETUNREACH), Some(libc::ENETUNREACH)));
}

#[test]
fn without_a_proxy_connects_are_refused() {
    let Some(lab) = Lab::start("refused", Families::Both) else { return };
    let capture = lab.capture();
    let server = lab.in_world(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
    lab.enrol(&capture, Families::Both, 0);
    for destination in destinations(80) {
        let error = lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{destination}");
    }
    assert!(is_idle(&server), "nothing passed");
}

#[test]
fn who_dials_the_listener_has_no_original_destination() {
    let Some(lab) = Lab::start("loop", Families::Both) else { return };
    let capture = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    lab.enrol(&capture, Families::Both, 0);
    for ip in [pod_ip(false), pod_ip(true), "127.0.0.1".parse().unwrap(), "::1".parse().unwrap()] {
        let _client = lab.in_pod(|| TcpStream::connect_timeout(&SocketAddr::new(ip, OUTBOUND), WAIT).unwrap());
        let (accepted, _) = accept(&proxy);
        assert_eq!(original(&accepted), None, "{ip}");
    }
}

#[test]
fn a_socket_that_connects_again_shows_its_new_peer() {
    let Some(lab) = Lab::start("stale", Families::Both) else { return };
    let capture = lab.capture();
    let (proxy, application) = (lab.listen(OUTBOUND), lab.listen(8080));
    lab.enrol(&capture, Families::Both, 0);
    for v6 in [false, true] {
        let (first, second) = (SocketAddr::new(world_ip(v6), 80), SocketAddr::new(pod_ip(v6), 8080));
        let socket = lab.in_pod(|| Socket::new(Domain::for_address(first), Type::STREAM, Some(Protocol::TCP)).unwrap());
        socket.connect_timeout(&first.into(), WAIT).unwrap();
        let (accepted, _) = accept(&proxy);
        assert_eq!(original(&accepted), Some(first));
        disconnect(&socket);
        socket.connect_timeout(&second.into(), WAIT).unwrap();
        accept(&application);
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(second));
        // And to the listener itself: the old destination must not go with it.
        disconnect(&socket);
        socket.connect_timeout(&SocketAddr::new(pod_ip(v6), OUTBOUND).into(), WAIT).unwrap();
        let (accepted, _) = accept(&proxy);
        assert_eq!(original(&accepted), None);
    }
}

#[test]
fn the_proxys_own_sockets_pass() {
    let Some(lab) = Lab::start("own", Families::Both) else { return };
    let capture = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    let server = lab.in_world(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
    lab.enrol(&capture, Families::Both, 0);
    let maps = lab.proxy_maps();
    for destination in destinations(80) {
        let socket = lab.in_pod(|| Socket::new(Domain::for_address(destination), Type::STREAM, Some(Protocol::TCP)).unwrap());
        maps.mark_own(std::os::fd::AsFd::as_fd(&socket)).unwrap();
        socket.connect_timeout(&destination.into(), WAIT).unwrap();
        let (_accepted, peer) = accept(&server);
        assert_eq!(canonical(peer).ip(), pod_ip(canonical(destination).is_ipv6()));
        assert!(is_idle(&proxy));
    }
}

#[test]
fn other_namespaces_are_not_captured() {
    let Some(lab) = Lab::start("others", Families::Both) else { return };
    let capture = lab.capture();
    lab.enrol(&capture, Families::Both, 0);
    let server = lab.in_world(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
    let client = lab.in_world(|| TcpStream::connect_timeout(&SocketAddr::new(world_ip(false), 80), WAIT).unwrap());
    let (_accepted, peer) = accept(&server);
    assert_eq!(canonical(peer), client.local_addr().unwrap());
}

/// What connect(2) with AF_UNSPEC does: the socket may connect elsewhere.
fn disconnect(socket: &Socket) {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: a whole sockaddr is passed with its length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, size_of::<libc::sockaddr>() as u32) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
