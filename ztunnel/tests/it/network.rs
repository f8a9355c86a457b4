//! A network of a test's own: pods' namespaces on one bridge.

use std::{
    net::IpAddr,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use tropis_net::namespace::NetworkNamespace;

/// The namespaces; they go away with it.
pub(crate) struct Network {
    prefix: String,
    names: Vec<String>,
}

/// A pod's namespace and addresses.
#[derive(Clone)]
pub(crate) struct PodNetwork {
    pub(crate) namespace: NetworkNamespace,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

/// Whether networks can be made here. `false` is said aloud, and fails under `TROPIS_E2E=require`.
pub(crate) fn available() -> bool {
    let works = |program: &str| Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let root = nix::unistd::geteuid().is_root();
    let available = root && works("ip") && works("nft");
    if !available {
        assert!(std::env::var("TROPIS_E2E").as_deref() != Ok("require"), "needs root, ip and nft");
        eprintln!("skipped: needs root, ip and nft");
    }
    available
}

fn run(program: &str, arguments: &str) {
    let done = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Network {
    pub(crate) fn new() -> Self {
        let prefix = format!("ztunnel-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut network = Self { prefix, names: Vec::new() };
        let bridge = network.add("bridge");
        run("ip", &format!("-n {bridge} link add br0 type bridge"));
        run("ip", &format!("-n {bridge} link set br0 up"));
        network
    }

    fn add(&mut self, name: &str) -> String {
        let name = format!("{}-{name}", self.prefix);
        run("ip", &format!("netns add {name}"));
        self.names.push(name.clone());
        run("ip", &format!("-n {name} link set lo up"));
        name
    }

    /// A pod's namespace with the addresses `10.77.0.N` and `fd00:77::N`.
    pub(crate) fn pod(&mut self, number: u8) -> PodNetwork {
        let (bridge, name) = (self.names[0].clone(), self.add(&format!("pod{number}")));
        run("ip", &format!("-n {name} link add eth0 type veth peer name pod{number} netns {bridge}"));
        run("ip", &format!("-n {bridge} link set pod{number} master br0 up"));
        run("ip", &format!("-n {name} addr add 10.77.0.{number}/24 dev eth0"));
        run("ip", &format!("-n {name} addr add fd00:77::{number}/64 dev eth0 nodad"));
        run("ip", &format!("-n {name} link set eth0 up"));
        run("ip", &format!("-n {name} route add default via 10.77.0.254"));
        run("ip", &format!("-n {name} -6 route add default via fd00:77::fe"));
        let namespace = NetworkNamespace::open(format!("/run/netns/{name}").as_ref()).unwrap();
        PodNetwork { namespace, v4: format!("10.77.0.{number}").parse().unwrap(), v6: format!("fd00:77::{number}").parse().unwrap() }
    }

    /// Gives a pod one more address, on its loopback interface: as a pod with NET_ADMIN can.
    pub(crate) fn claim(&self, number: u8, address: IpAddr) {
        let length = if address.is_ipv4() { 32 } else { 128 };
        run("ip", &format!("-n {}-pod{number} addr add {address}/{length} dev lo", self.prefix));
    }

    /// What istio-cni puts into an enrolled pod, in short: outbound to 15001, inbound to 15006, but what the proxy marks.
    pub(crate) fn capture(&self, number: u8) {
        let name = format!("{}-pod{number}", self.prefix);
        let rules = "table inet capture {
            chain output {
                type nat hook output priority -100;
                meta mark 1337 accept
                oifname \"lo\" accept
                meta l4proto tcp redirect to :15001
            }
            chain input {
                type nat hook prerouting priority -100;
                meta mark 1337 accept
                ip daddr 127.0.0.1 accept
                ip6 daddr ::1 accept
                tcp dport 15008 accept
                meta l4proto tcp redirect to :15006
            }
        }";
        let mut nft = Command::new("ip").args(["netns", "exec", &name, "nft", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut nft.stdin.take().unwrap(), rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            // Another failure is being reported already, or nothing is left to remove.
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}
