//! Enrolment of live pods, the end and the return of the redirector, and who may open which pin.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
};

use tropis_maps::{ListenerKind, MapsError, NodeMaps, Pins, ProxyMaps, map};

use crate::lab::{Families, Lab, OUTBOUND, PASSTHROUGH, PROXY, WAIT, accept, canonical, destinations, original, pod_ip, world_ip};

#[test]
fn one_write_enrols_a_live_pod_and_open_connections_stay() {
    let Some(lab) = Lab::start("live", Families::Both) else { return };
    let capture = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    let server = lab.in_world(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
    let destination = SocketAddr::new(world_ip(false), 80);
    let connect = || lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());

    let mut before = connect();
    let (mut before_accepted, _) = accept(&server);
    capture.maps().enrol(lab.pod.cookie(), &lab.entry(Families::Both, 0)).unwrap();
    let mut during = connect();
    let (mut during_accepted, _) = accept(&proxy);
    assert_eq!(original(&during_accepted), Some(destination));

    // On its way out: what it opens passes; names of what is open stay true.
    let mut leaving = lab.entry(Families::Both, 0);
    leaving.captures = false;
    capture.maps().enrol(lab.pod.cookie(), &leaving).unwrap();
    let after = connect();
    let (_after_accepted, peer) = accept(&server);
    assert_eq!(canonical(peer), after.local_addr().unwrap());
    capture.remove(lab.pod.cookie(), [pod_ip(false), pod_ip(true)]).unwrap();
    assert_eq!(during.peer_addr().unwrap(), destination);
    assert_eq!(during.local_addr().unwrap().ip(), pod_ip(false));
    for (client, accepted) in [(&mut before, &mut before_accepted), (&mut during, &mut during_accepted)] {
        client.write_all(b"still here").unwrap();
        let mut buffer = [0; 10];
        accepted.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"still here");
    }
}

#[test]
fn capture_outlives_the_redirector_and_the_next_one_takes_it_over() {
    let Some(lab) = Lab::start("restart", Families::Both) else { return };
    let first = lab.capture();
    let (proxy, passthrough) = (lab.listen(OUTBOUND), lab.listen(PASSTHROUGH));
    for v6 in [false, true] {
        lab.proxy_maps().add_listener(pod_ip(v6), ListenerKind::Inbound, passthrough.as_fd()).unwrap();
    }
    lab.enrol(&first, Families::Both, 0);
    let check = |when: &str| {
        for destination in destinations(80) {
            let _client = lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
            assert_eq!(original(&accept(&proxy).0), Some(canonical(destination)), "{when}");
        }
        let _client = lab.in_world(|| TcpStream::connect_timeout(&SocketAddr::new(pod_ip(true), 80), WAIT).unwrap());
        accept(&passthrough);
    };
    check("at first");
    // All of its descriptors close, as when it is killed.
    drop(first);
    check("without a redirector");
    let second = lab.capture();
    check("with a new one, before it looked at pods");
    assert_eq!(second.maps().pods().unwrap(), [(lab.pod.cookie(), lab.entry(Families::Both, 0))]);
    assert_eq!(second.inbound_links().unwrap(), [lab.pod.cookie()]);
    second.attach_inbound(lab.pod.as_fd(), lab.pod.cookie()).unwrap();
    check("with a new one");
    assert_eq!(second.maps().outbound(lab.pod.cookie()).unwrap().captured, 12);
}

#[test]
fn a_new_redirector_exchanges_programs_under_load_without_a_gap() {
    let Some(lab) = Lab::start("exchange", Families::Both) else { return };
    let first = lab.capture();
    let proxy = lab.listen(OUTBOUND);
    lab.enrol(&first, Families::Both, 0);
    let destination = SocketAddr::new(world_ip(false), 80);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            for count in 0..2000 {
                let _client = lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
                assert_eq!(original(&accept(&proxy).0), Some(destination), "connection {count}");
            }
        });
        while !load.is_finished() {
            lab.capture();
        }
        load.join().unwrap();
    });
}

#[test]
fn the_proxys_account_opens_its_pins_and_no_others() {
    let Some(lab) = Lab::start("account", Families::Both) else { return };
    let capture = lab.capture();
    let passthrough = lab.listen(PASSTHROUGH);
    lab.enrol(&capture, Families::Both, 0);
    let pins = lab.pins();
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            become_account(PROXY.uid, PROXY.gid);
            let maps = ProxyMaps::open(&pins).unwrap();
            maps.add_listener(pod_ip(false), ListenerKind::Inbound, passthrough.as_fd()).unwrap();
            assert_eq!(maps.resolver(lab.pod.cookie(), 0), None);
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            maps.mark_own(socket.as_fd()).unwrap();
            maps.show_peer(socket.as_fd(), "10.0.0.1:80".parse().unwrap()).unwrap();
            let refused = NodeMaps::open(&Pins::new(&pins)).unwrap_err();
            assert!(matches!(&refused, MapsError::Open { path, .. } if path.ends_with(map::PODS)), "{refused}");
            for name in [map::PODS, map::HANDOVER, map::OUTBOUND, map::INBOUND] {
                let opened = tropis_maps::bpf::open_pin(&Pins::new(&pins).map(name), tropis_maps::bpf::Access::Read);
                assert_eq!(opened.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied, "{name}");
            }
            let written = tropis_maps::bpf::open_pin(&Pins::new(&pins).map(map::RESOLVERS), tropis_maps::bpf::Access::ReadWrite);
            assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied, "resolvers are for reading");
            assert!(std::fs::read_dir(Pins::new(&pins).links()).is_err(), "links are hidden");
        });
        work.join().unwrap();
        let other = scope.spawn(|| {
            become_account(PROXY.uid + 1, PROXY.gid + 1);
            assert!(ProxyMaps::open(&pins).is_err());
        });
        other.join().unwrap();
    });
    let _client = lab.in_world(|| TcpStream::connect_timeout(&SocketAddr::new(pod_ip(false), 80), WAIT).unwrap());
    accept(&passthrough);
}

/// This thread alone, with all capabilities gone: the kernel's calls act on threads, libc's wrappers on the process.
fn become_account(uid: u32, gid: u32) {
    // SAFETY: plain numbers; no groups are passed.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()), 0);
        assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
    }
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(status.lines().any(|line| line == "CapEff:\t0000000000000000"), "capabilities are gone");
}
