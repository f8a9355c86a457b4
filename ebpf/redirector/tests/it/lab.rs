//! A pod, and the world outside it: two network namespaces joined by a veth pair, and this process in the cgroup that is captured.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tropis_maps::{PodEntry, ProxyAccount, ProxyMaps};
use tropis_net::namespace::NetworkNamespace;
use tropis_redirector::{
    kernel::{self, Capture, CaptureSettings},
    namespaces::Place,
};

pub(crate) const OUTBOUND: u16 = 15001;
pub(crate) const PASSTHROUGH: u16 = 15006;
pub(crate) const HBONE: u16 = 15008;
pub(crate) const DNS: u16 = 15053;
/// No node proxy of this box has it.
pub(crate) const PROXY: ProxyAccount = ProxyAccount { uid: 61337, gid: 61337 };
pub(crate) const WAIT: Duration = Duration::from_secs(5);

/// A process is in one cgroup at a time, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Everything a test has; removed when it drops.
pub(crate) struct Lab {
    pub(crate) name: String,
    pub(crate) pod: Place,
    pub(crate) world: NetworkNamespace,
    pub(crate) cgroup: PathBuf,
    pub(crate) folder: tempfile::TempDir,
    home: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

/// The families of a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Families {
    Both,
    Ipv4,
    Ipv6,
}

impl Lab {
    /// `None` where the test cannot run; panics where it must.
    pub(crate) fn start(name: &str, families: Families) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        if !nix::unistd::geteuid().is_root() {
            let required = std::env::var("TROPIS_E2E").is_ok_and(|value| value == "require");
            assert!(!required, "{name}: needs root, and TROPIS_E2E=require");
            eprintln!("{name}: NOT RUN, it needs root");
            return None;
        }
        let root =
            ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().map(PathBuf::from).find(|path| path.join("cgroup.procs").exists());
        let root = root.expect("a cgroup v2 hierarchy");
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let home = own.lines().find_map(|line| line.strip_prefix("0::/")).map_or(root.clone(), |path| root.join(path));
        let name = format!("tropis-ebpf-{name}-{}", std::process::id());
        let cgroup = root.join(&name);
        fs::create_dir_all(cgroup.join("agents")).unwrap();
        fs::write(cgroup.join("agents/cgroup.procs"), "0").unwrap();
        let (pod, world) = (format!("{name}-pod"), format!("{name}-world"));
        ip(&["netns", "add", &pod]);
        ip(&["netns", "add", &world]);
        ip(&["-n", &pod, "link", "set", "lo", "up"]);
        ip(&["-n", &world, "link", "set", "lo", "up"]);
        ip(&["-n", &pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &world]);
        for (namespace, v4, v6) in [(&pod, "10.251.1.2/24", "fd51:1::2/64"), (&world, "10.251.1.1/24", "fd51:1::1/64")] {
            ip(&["-n", namespace, "addr", "add", v4, "dev", "eth0"]);
            if families != Families::Ipv4 {
                ip(&["-n", namespace, "addr", "add", v6, "dev", "eth0", "nodad"]);
            }
            ip(&["-n", namespace, "link", "set", "eth0", "up"]);
        }
        let open = |name: &str| PathBuf::from(format!("/run/netns/{name}"));
        let (pod, world) = (Place::open(&open(&pod)).unwrap(), NetworkNamespace::open(&open(&world)).unwrap());
        let folder = tempfile::Builder::new().prefix("tropis-ebpf-").tempdir().unwrap();
        // The proxy's account must be able to pass through to the pins.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Some(Self { name, pod, world, cgroup, folder, home, _turn: turn })
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.folder.path().join("bpf")
    }

    pub(crate) fn capture(&self) -> Capture {
        Capture::open(&CaptureSettings { pins: self.pins(), cgroup: self.cgroup.clone(), proxy: PROXY }).unwrap()
    }

    pub(crate) fn proxy_maps(&self) -> ProxyMaps {
        ProxyMaps::open(&self.pins()).unwrap()
    }

    /// Enrols the pod: both directions, DNS at `dns_port`.
    pub(crate) fn enrol(&self, capture: &Capture, families: Families, dns_port: u16) {
        capture.attach_inbound(self.pod.as_fd(), self.pod.cookie()).unwrap();
        capture.maps().enrol(self.pod.cookie(), &self.entry(families, dns_port)).unwrap();
    }

    pub(crate) fn entry(&self, families: Families, dns_port: u16) -> PodEntry {
        PodEntry {
            uid: "uid-of-the-pod".to_owned(),
            ipv4: (families != Families::Ipv6).then(|| Ipv4Addr::new(10, 251, 1, 2)),
            ipv6: (families != Families::Ipv4).then(|| "fd51:1::2".parse().unwrap()),
            outbound_port: OUTBOUND,
            dns_port,
            captures: true,
            foreign_proxy: false,
        }
    }

    /// Runs inside the pod.
    pub(crate) fn in_pod<T>(&self, work: impl FnOnce() -> T) -> T {
        self.pod.namespace().run(work).unwrap()
    }

    /// Runs outside the pod.
    pub(crate) fn in_world<T>(&self, work: impl FnOnce() -> T) -> T {
        self.world.run(work).unwrap()
    }

    /// A dual-stack listener inside the pod.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        self.in_pod(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let removed = [kernel::cleanup(&self.pins()), fs::write(self.home.join("cgroup.procs"), "0"), remove_groups(&self.cgroup)];
        for end in ["pod", "world"] {
            ip(&["netns", "del", &format!("{}-{end}", self.name)]);
        }
        if !std::thread::panicking() {
            removed.into_iter().for_each(|result| result.unwrap());
        }
    }
}

/// Empty groups, inner ones first; what ran in them has been killed, and is gone a moment later.
fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_groups(&entry.path())?;
    }
    drop(fs::write(group.join("cgroup.kill"), "1"));
    let mut last = Ok(());
    for _ in 0..100 {
        last = fs::remove_dir(group);
        if last.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    last
}

pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("`ip` of iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn pod_ip(v6: bool) -> IpAddr {
    if v6 { "fd51:1::2".parse().unwrap() } else { "10.251.1.2".parse().unwrap() }
}

pub(crate) fn world_ip(v6: bool) -> IpAddr {
    if v6 { "fd51:1::1".parse().unwrap() } else { "10.251.1.1".parse().unwrap() }
}

/// The ways in which an application can dial: IPv4, IPv6, and IPv4 through an IPv6 socket.
pub(crate) fn destinations(port: u16) -> [SocketAddr; 3] {
    let mapped = Ipv4Addr::new(10, 251, 1, 1).to_ipv6_mapped();
    [SocketAddr::new(world_ip(false), port), SocketAddr::new(world_ip(true), port), SocketAddr::new(mapped.into(), port)]
}

pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Accepts, but not for ever.
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let start = std::time::Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(WAIT)).unwrap();
                return (stream, peer);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && start.elapsed() < WAIT => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("nothing to accept: {error}"),
        }
    }
}

/// Nothing has come to a listener.
pub(crate) fn is_idle(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    listener.accept().is_err()
}

/// Where a connection was going, as the node proxy asks.
pub(crate) fn original(stream: &TcpStream) -> Option<SocketAddr> {
    let found = tropis_net::original_destination::original_destination(&stream.as_fd()).unwrap();
    found.map(|found| found.0)
}
