//! What a pod asks resolvers.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use tropis_maps::DNS_SLOTS;

use crate::lab::{DNS, Families, Lab, OUTBOUND, WAIT, accept, canonical, destinations, is_idle, original, world_ip};

/// The proxy's sockets, one for each slot.
fn listeners(lab: &Lab) -> Vec<UdpSocket> {
    let open = |slot| {
        let socket = lab.in_pod(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, DNS + slot)).unwrap());
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket
    };
    (0..DNS_SLOTS).map(open).collect()
}

/// Answers one question as the proxy; gives the resolver that its slot stands for.
fn answer(lab: &Lab, listeners: &[UdpSocket], text: &[u8]) -> SocketAddr {
    let maps = lab.proxy_maps();
    let mut buffer = [0; 64];
    let start = std::time::Instant::now();
    while start.elapsed() < WAIT {
        for (slot, socket) in (0_u8..).zip(listeners) {
            socket.set_nonblocking(true).unwrap();
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            assert_eq!(&buffer[..length], b"question");
            socket.send_to(text, from).unwrap();
            return maps.resolver(lab.pod.cookie(), slot).expect("the slot was taken by this question");
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("no question came");
}

fn ask(lab: &Lab, destination: SocketAddr) -> UdpSocket {
    let any: SocketAddr = if destination.is_ipv6() { "[::]:0".parse().unwrap() } else { "0.0.0.0:0".parse().unwrap() };
    let socket = lab.in_pod(|| UdpSocket::bind(any).unwrap());
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket
}

#[test]
fn questions_over_udp_reach_the_proxy_and_answers_come_from_the_resolver_asked() {
    let Some(lab) = Lab::start("dns", Families::Both) else { return };
    let capture = lab.capture();
    let listeners = listeners(&lab);
    lab.enrol(&capture, Families::Both, DNS);
    let mut buffer = [0; 64];
    for destination in destinations(53) {
        let socket = ask(&lab, destination);
        socket.send_to(b"question", destination).unwrap();
        assert_eq!(answer(&lab, &listeners, b"unconnected"), canonical(destination));
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (b"unconnected".as_slice(), destination));

        let socket = ask(&lab, destination);
        socket.connect(destination).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), destination);
        socket.send(b"question").unwrap();
        assert_eq!(answer(&lab, &listeners, b"connected"), canonical(destination));
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (b"connected".as_slice(), destination));
    }
    assert_eq!(capture.maps().outbound(lab.pod.cookie()).unwrap().dns_captured, 6);
}

#[test]
fn one_socket_may_ask_several_resolvers() {
    let Some(lab) = Lab::start("dns-two", Families::Both) else { return };
    let capture = lab.capture();
    let listeners = listeners(&lab);
    lab.enrol(&capture, Families::Both, DNS);
    let resolvers: [SocketAddr; 2] = ["10.251.1.1:53".parse().unwrap(), "10.251.1.9:53".parse().unwrap()];
    let socket = ask(&lab, resolvers[0]);
    for resolver in resolvers {
        socket.send_to(b"question", resolver).unwrap();
    }
    let mut asked = [answer(&lab, &listeners, b"a"), answer(&lab, &listeners, b"b")];
    asked.sort();
    assert_eq!(asked, resolvers);
    let mut answered = [0, 1].map(|_| socket.recv_from(&mut [0; 64]).unwrap().1);
    answered.sort();
    assert_eq!(answered, resolvers, "each answer from the one asked");
}

#[test]
fn more_resolvers_than_slots_are_refused_and_counted() {
    let Some(lab) = Lab::start("dns-full", Families::Both) else { return };
    let capture = lab.capture();
    let _listeners = listeners(&lab);
    lab.enrol(&capture, Families::Both, DNS);
    let socket = ask(&lab, "10.251.1.1:53".parse().unwrap());
    for last in 0..DNS_SLOTS {
        socket.send_to(b"question", format!("10.251.1.{}:53", 100 + last).parse::<SocketAddr>().unwrap()).unwrap();
    }
    let ninth: SocketAddr = "10.251.1.200:53".parse().unwrap();
    assert_eq!(socket.send_to(b"question", ninth).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(ask(&lab, ninth).connect(ninth).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(capture.maps().outbound(lab.pod.cookie()).unwrap().dns_refused, 2);
    // Slots go with the pod.
    capture.remove(lab.pod.cookie(), []).unwrap();
    lab.enrol(&capture, Families::Both, DNS);
    socket.send_to(b"question", ninth).unwrap();
}

#[test]
fn resolvers_of_a_family_that_the_pods_status_lacks_are_unreachable() {
    let Some(lab) = Lab::start("dns-family", Families::Both) else { return };
    let capture = lab.capture();
    let resolver = lab.in_world(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)).unwrap());
    let [ipv4, ipv6, mapped] = destinations(53);
    for (families, lacked) in [(Families::Ipv4, vec![ipv6]), (Families::Ipv6, vec![ipv4, mapped])] {
        lab.enrol(&capture, families, DNS);
        for destination in lacked {
            let socket = ask(&lab, destination);
            assert_eq!(socket.send_to(b"question", destination).unwrap_err().raw_os_error(), Some(libc::ENETUNREACH), "{destination}");
            assert_eq!(socket.connect(destination).unwrap_err().raw_os_error(), Some(libc::ENETUNREACH), "{destination}");
        }
    }
    resolver.set_nonblocking(true).unwrap();
    assert!(resolver.recv_from(&mut [0; 64]).is_err(), "nothing passed");
    assert_eq!(capture.maps().outbound(lab.pod.cookie()).unwrap().refused_family, 6);
}

#[test]
fn dns_over_tcp_reaches_the_dns_listener_with_its_resolver() {
    let Some(lab) = Lab::start("dns-tcp", Families::Both) else { return };
    let capture = lab.capture();
    let (proxy, dns) = (lab.listen(OUTBOUND), lab.listen(DNS));
    lab.enrol(&capture, Families::Both, DNS);
    for destination in destinations(53) {
        let client = lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
        let (accepted, _) = accept(&dns);
        assert_eq!(original(&accepted), Some(canonical(destination)));
        assert_eq!(client.peer_addr().unwrap(), destination);
    }
    assert!(is_idle(&proxy));
}

#[test]
fn without_dns_ports_questions_pass_and_tcp_53_is_ordinary() {
    let Some(lab) = Lab::start("dns-off", Families::Both) else { return };
    let capture = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    let resolver = lab.in_world(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)).unwrap());
    let _tcp = lab.in_world(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 53)).unwrap());
    resolver.set_read_timeout(Some(WAIT)).unwrap();
    lab.enrol(&capture, Families::Both, 0);
    let destination = SocketAddr::new(world_ip(false), 53);
    ask(&lab, destination).send_to(b"question", destination).unwrap();
    resolver.recv_from(&mut [0; 64]).unwrap();
    let _client = lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
    let (accepted, _) = accept(&proxy);
    assert_eq!(original(&accepted), Some(destination));
}

#[test]
fn datagrams_to_other_ports_pass() {
    let Some(lab) = Lab::start("udp", Families::Both) else { return };
    let capture = lab.capture();
    let server = lab.in_world(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 5353)).unwrap());
    server.set_read_timeout(Some(WAIT)).unwrap();
    lab.enrol(&capture, Families::Both, DNS);
    for v6 in [false, true] {
        let destination = SocketAddr::new(world_ip(v6), 5353);
        let socket = ask(&lab, destination);
        socket.send_to(b"question", destination).unwrap();
        let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
        server.send_to(b"answer", from).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 64]).unwrap().1, destination);
    }
}
