//! The program itself: objects in a folder, a pod's process in its cgroup, and a node proxy that speaks ZDS.

use std::{
    fs,
    io::{IoSliceMut, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg, send, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use prost::Message as _;
use serde_json::{Value, json};
use tropis_net::namespace::NetworkNamespace;
use tropis_proto::zds::{Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request::Payload, workload_response};

use crate::lab::{Families, Lab, OUTBOUND, PROXY, WAIT, ip, original, world_ip};

pub(crate) const UID: &str = "6d1f2a50-9a2b-4a8e-8f57-1d0c6f7b9e11";

/// The program, with the folders and the pod that it watches.
pub(crate) struct Node {
    pub(crate) lab: Lab,
    server: TcpListener,
    pub(crate) proxy: TcpListener,
    redirector: Option<Child>,
    application: Child,
    foreign_proxy: bool,
}

impl Node {
    /// The pod is enrolled.
    pub(crate) fn start_enrolled(name: &str) -> Option<(Self, Proxy)> {
        let node = Self::start(name)?;
        let proxy = node.proxy();
        proxy.expect_snapshot_sent();
        node.label(true);
        proxy.expect_add(&node);
        proxy.acknowledge("");
        node.until("enabled", || node.annotation().as_deref() == Some("enabled"));
        Some((node, proxy))
    }

    pub(crate) fn start(name: &str) -> Option<Self> {
        Self::start_for(name, false)
    }

    /// For a proxy that knows our maps, or for another one.
    pub(crate) fn start_for(name: &str, foreign_proxy: bool) -> Option<Self> {
        let lab = Lab::start(name, Families::Both)?;
        let group = lab.cgroup.join("pods").join(format!("pod{UID}"));
        fs::create_dir_all(&group).unwrap();
        let application = lab.in_pod(|| application(&group));
        let server = lab.in_world(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
        let proxy = lab.listen(OUTBOUND);
        for folder in ["state/objects", "state/cluster", "state/reported"] {
            fs::create_dir_all(lab.folder.path().join(folder)).unwrap();
        }
        let mut node = Self { lab, server, proxy, redirector: None, application, foreign_proxy };
        node.label(false);
        node.write_pod();
        node.run();
        Some(node)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.lab.folder.path().join(name)
    }

    pub(crate) fn run(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_redirector"))
            .args(["run", "--node", "a", "--dns-capture", "false"])
            .args(["--foreign-proxy", if self.foreign_proxy { "true" } else { "false" }])
            .arg("--source")
            .arg(format!("dir:{}", self.path("state").display()))
            .arg("--cgroup")
            .arg(&self.lab.cgroup)
            .arg("--pins")
            .arg(self.lab.pins())
            .arg("--zds")
            .arg(self.path("zds.sock"))
            .arg("--admin")
            .arg(self.path("admin.sock"))
            .args(["--proxy-uid", &PROXY.uid.to_string()])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.redirector = Some(child);
        self.until("the program is ready", || self.get("/healthz/ready").is_some_and(|text| text.starts_with("HTTP/1.1 200")));
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.redirector.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The last process of the pod ends.
    fn end_application(&mut self) {
        self.application.kill().unwrap();
        self.application.wait().unwrap();
    }

    /// The namespaces that are captured.
    pub(crate) fn captured_namespaces(&self) -> Vec<u64> {
        let maps = tropis_maps::NodeMaps::open(&tropis_maps::Pins::new(self.lab.pins())).unwrap();
        maps.pods().unwrap().into_iter().map(|(cookie, _)| cookie).collect()
    }

    pub(crate) fn label(&self, ambient: bool) {
        let labels = if ambient { json!({"istio.io/dataplane-mode": "ambient"}) } else { json!({}) };
        self.put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "uid": "n", "labels": labels}}));
    }

    pub(crate) fn write_pod(&self) {
        self.put(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "cart", "namespace": "shop", "uid": UID},
            "spec": {"nodeName": "a", "serviceAccountName": "cart", "containers": [{"name": "app", "image": "app"}]},
            "status": {"phase": "Running", "podIP": "10.251.1.2", "podIPs": [{"ip": "10.251.1.2"}, {"ip": "fd51:1::2"}]},
        }));
    }

    fn delete_pod(&self) {
        let pod = tropis_crds::ObjectRef::new(tropis_crds::Kind::Pod, "shop", "cart");
        tropis_source::write::remove(&self.path("state"), &pod).unwrap();
    }

    fn put(&self, object: &Value) {
        tropis_source::write::put(&self.path("state"), object).unwrap();
    }

    /// What the program says of the pod.
    pub(crate) fn annotation(&self) -> Option<String> {
        let found = find(&self.path("state/reported/redirector.a"))?;
        let report: Value = serde_json::from_str(&fs::read_to_string(found).ok()?).ok()?;
        report["metadata"]["annotations"]["ambient.istio.io/redirection"].as_str().map(str::to_owned)
    }

    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.path("admin.sock")).ok()?;
        stream.set_read_timeout(Some(WAIT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Whether a new connection of the pod goes to the proxy.
    pub(crate) fn is_captured(&self) -> bool {
        let destination = SocketAddr::new(world_ip(false), 80);
        let _client = self.lab.in_pod(|| TcpStream::connect_timeout(&destination, WAIT).unwrap());
        self.server.set_nonblocking(true).unwrap();
        self.proxy.set_nonblocking(true).unwrap();
        let start = Instant::now();
        while start.elapsed() < WAIT {
            if self.server.accept().is_ok() {
                return false;
            }
            if let Ok((stream, _)) = self.proxy.accept() {
                assert_eq!(original(&stream), Some(destination));
                return true;
            }
        }
        panic!("the connection arrived nowhere");
    }

    pub(crate) fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{what}: not so\n{}",
                fs::read_to_string(self.path("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn proxy(&self) -> Proxy {
        let descriptor = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        self.until("the socket for the proxy is there", || {
            connect(descriptor.as_raw_fd(), &UnixAddr::new(&self.path("zds.sock")).unwrap()).is_ok()
        });
        setsockopt(&descriptor, ReceiveTimeout, &nix::sys::time::TimeVal::new(10, 0)).unwrap();
        let proxy = Proxy(descriptor);
        proxy.send(&ZdsHello { version: Version::V1.into() }.encode_to_vec());
        proxy
    }
}

/// A process of the pod, in the network namespace of this thread.
pub(crate) fn application(group: &Path) -> Child {
    let mut sleep = Command::new("sleep");
    sleep.arg("600");
    let procs = group.join("cgroup.procs");
    // SAFETY: one write to a file between fork and exec.
    unsafe { sleep.pre_exec(move || fs::write(&procs, "0")) };
    sleep.spawn().unwrap()
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.redirector.take() {
            drop(child.kill());
            drop(child.wait());
        }
        drop(self.application.kill());
        drop(self.application.wait());
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.path("log")).unwrap_or_default());
        }
    }
}

fn find(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| if entry.path().is_dir() { find(&entry.path()) } else { Some(entry.path()) })
}

/// The node proxy's end of ZDS.
pub(crate) struct Proxy(OwnedFd);

impl Proxy {
    fn send(&self, packet: &[u8]) {
        send(self.0.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    pub(crate) fn acknowledge(&self, error: &str) {
        let ack = Ack { error: error.to_owned() };
        self.send(&WorkloadResponse { payload: Some(workload_response::Payload::Ack(ack)) }.encode_to_vec());
    }

    /// The next message with its descriptor; `None` when the other end is gone.
    pub(crate) fn receive(&self) -> Option<(Payload, Option<NetworkNamespace>)> {
        let mut buffer = [0; 1024];
        let mut control = nix::cmsg_space!([i32; 4]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        let length = received.bytes;
        let mut descriptors = Vec::new();
        for message in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(rights) = message {
                // SAFETY: the kernel has just made these descriptors for us.
                descriptors.extend(rights.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        assert!(descriptors.len() <= 1);
        let namespace = descriptors.pop().map(|descriptor| NetworkNamespace::from_fd(descriptor).unwrap());
        (length > 0).then(|| (WorkloadRequest::decode(&buffer[..length]).unwrap().payload.unwrap(), namespace))
    }

    pub(crate) fn expect_add(&self, node: &Node) {
        self.expect_add_of(node.lab.pod.cookie());
    }

    fn expect_add_of(&self, netns_cookie: u64) {
        let (message, namespace) = self.receive().expect("connected");
        let Payload::Add(add) = message else { panic!("{message:?}") };
        let info = add.workload_info.unwrap();
        assert_eq!(
            (add.uid.as_str(), info.name.as_str(), info.namespace.as_str(), info.service_account.as_str()),
            (UID, "cart", "shop", "cart")
        );
        assert_eq!(namespace.expect("a namespace").cookie(), netns_cookie);
    }

    pub(crate) fn expect_snapshot_sent(&self) {
        let (message, namespace) = self.receive().expect("connected");
        assert!(matches!(message, Payload::SnapshotSent(_)) && namespace.is_none(), "{message:?}");
        self.acknowledge("");
    }

    pub(crate) fn expect_del(&self) {
        let (message, namespace) = self.receive().expect("connected");
        assert!(matches!(&message, Payload::Del(del) if del.uid == UID) && namespace.is_none(), "{message:?}");
        self.acknowledge("");
    }
}

#[test]
fn a_label_enrols_a_live_pod_and_its_removal_lets_it_go() {
    let Some(node) = Node::start("program") else { return };
    let proxy = node.proxy();
    proxy.expect_snapshot_sent();
    assert!(!node.is_captured());

    let labelled = Instant::now();
    node.label(true);
    proxy.expect_add(&node);
    let (captured, said) = (node.is_captured(), node.annotation());
    // A proxy gets half a second to listen.
    assert!(!captured && said.is_none() || labelled.elapsed() >= Duration::from_millis(500), "not before the proxy listens");
    proxy.acknowledge("");
    node.until("enabled", || node.annotation().as_deref() == Some("enabled"));
    assert!(node.is_captured());
    let shown = node.get("/enrolled").unwrap();
    assert!(shown.contains("\"phase\":\"enrolled\"") && shown.contains("\"captured\":1"), "{shown}");
    let metrics = node.get("/metrics").unwrap();
    assert!(metrics.contains("ztunnel_connected 1"), "{metrics}");
    assert!(metrics.contains("tropis_redirector_connections_total{direction=\"outbound\",result=\"captured\"} 1"), "{metrics}");

    let start = Instant::now();
    node.label(false);
    node.until("withdrawn", || node.annotation().is_none());
    assert!(!node.is_captured(), "what it opens passes first");
    let link = tropis_maps::Pins::new(node.lab.pins()).inbound_link(node.lab.pod.cookie());
    assert!(link.exists(), "peers have not heard yet");
    // The last moment at which it was surely there: what is late here only makes the time longer.
    let attached = std::cell::Cell::new(Instant::now());
    node.until("what arrives passes", || {
        let before = Instant::now();
        if link.exists() {
            attached.set(before);
        }
        !link.exists()
    });
    proxy.expect_del();
    let waited = attached.get().elapsed();
    assert!(waited >= Duration::from_millis(500), "the proxy had time to accept what was queued: {waited:?}");
    assert!(start.elapsed() > Duration::from_millis(1500), "peers had time to hear");
    node.until("removed", || node.get("/enrolled").is_some_and(|text| text.ends_with("[]")));
    assert!(!node.is_captured());
}

#[test]
fn killed_and_started_again_it_goes_on_where_it_was() {
    let Some(mut node) = Node::start("killed") else { return };
    let proxy = node.proxy();
    proxy.expect_snapshot_sent();
    node.label(true);
    proxy.expect_add(&node);
    proxy.acknowledge("");
    node.until("enabled", || node.annotation().as_deref() == Some("enabled"));

    node.kill();
    assert!(node.is_captured());
    assert!(proxy.receive().is_none());
    node.run();
    assert!(node.is_captured());
    let proxy = node.proxy();
    proxy.expect_add(&node);
    proxy.acknowledge("");
    proxy.expect_snapshot_sent();
    assert!(node.is_captured());

    // The label goes while nobody watches.
    node.kill();
    node.label(false);
    assert!(node.is_captured());
    node.run();
    node.until("let go", || !node.is_captured());
    node.until("withdrawn", || node.annotation().is_none());

    // And the pod goes while nobody watches.
    node.label(true);
    let proxy = node.proxy();
    let serving = std::thread::spawn(move || {
        while proxy.receive().is_some() {
            proxy.acknowledge("");
        }
    });
    node.until("enabled", || node.annotation().as_deref() == Some("enabled"));
    node.kill();
    serving.join().unwrap();
    node.delete_pod();
    node.run();
    assert!(node.is_captured(), "a process of it runs");
    node.end_application();
    node.until("let go", || !node.is_captured());
}

#[test]
fn without_a_proxy_a_pod_waits_and_a_late_answer_costs_the_connection() {
    let Some(mut node) = Node::start("waits") else { return };
    node.label(true);
    node.until("pending", || node.annotation().as_deref() == Some("pending"));
    assert!(node.is_captured(), "its connections are refused until a proxy serves it");

    let proxy = node.proxy();
    proxy.expect_add(&node);
    proxy.acknowledge("cannot bind");
    proxy.expect_snapshot_sent();
    proxy.expect_add(&node);
    // No answer: dropped after five seconds, and tried again with the next proxy.
    let start = Instant::now();
    assert!(proxy.receive().is_none());
    assert!((4..8).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    let proxy = node.proxy();
    proxy.expect_add(&node);
    proxy.acknowledge("");
    proxy.expect_snapshot_sent();
    proxy.expect_add(&node);
    proxy.acknowledge("");
    node.until("enabled", || node.annotation().as_deref() == Some("enabled"));
    assert!(node.is_captured());

    node.delete_pod();
    proxy.expect_del();
    node.until("it is ending", || node.get("/enrolled").is_some_and(|text| text.contains("\"phase\":\"ending\"")));
    std::thread::sleep(Duration::from_millis(300));
    assert!(node.is_captured(), "deleted, but a process of it runs");
    node.end_application();
    node.until("removed", || node.get("/enrolled").is_some_and(|text| text.ends_with("[]")));
}

#[test]
fn a_pod_that_starts_again_elsewhere_is_enrolled_there_and_sigterm_leaves_it_so() {
    let Some(mut node) = Node::start("again") else { return };
    let proxy = node.proxy();
    proxy.expect_snapshot_sent();
    node.label(true);
    proxy.expect_add(&node);
    proxy.acknowledge("");
    node.until("enabled", || node.annotation().as_deref() == Some("enabled"));
    let before = node.lab.pod.cookie();

    // The sandbox is made anew: same UID, same address, another namespace.
    let name = format!("{}-new", node.lab.name);
    ip(&["netns", "add", &name]);
    ip(&["-n", &name, "link", "set", "lo", "up"]);
    ip(&["-n", &name, "addr", "add", "10.251.1.2/32", "dev", "lo"]);
    let again = NetworkNamespace::open(Path::new(&format!("/run/netns/{name}"))).unwrap();
    let group = node.lab.cgroup.join("pods").join(format!("pod{UID}"));
    let start = Instant::now();
    let application = again.run(|| application(&group)).unwrap();
    ip(&["netns", "del", &name]);
    node.until("captured there before the proxy serves it", || node.captured_namespaces().contains(&again.cookie()));
    println!("a new sandbox is captured after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    proxy.expect_add_of(again.cookie());
    proxy.acknowledge("");
    std::thread::sleep(Duration::from_millis(300));
    assert!(node.is_captured() && node.captured_namespaces().len() == 2, "a process still runs where it was");
    let shown = node.get("/enrolled").unwrap();
    let both = [(before, "ending"), (again.cookie(), "enrolled")].map(|(cookie, phase)| {
        let (phase, cookie) = (format!("\"phase\":\"{phase}\""), format!("\"netnsCookie\":{cookie},"));
        shown.split("\"uid\"").any(|pod| pod.contains(&phase) && pod.contains(&cookie))
    });
    assert_eq!(both, [true, true], "both are shown: {shown}");
    std::mem::replace(&mut node.application, application).kill().unwrap();
    node.until("no longer captured where it was", || node.captured_namespaces() == [again.cookie()]);
    assert_ne!(again.cookie(), before);

    let mut child = node.redirector.take().expect("it runs");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    let maps = tropis_maps::NodeMaps::open(&tropis_maps::Pins::new(node.lab.pins())).unwrap();
    assert_eq!(maps.pods().unwrap().len(), 1, "SIGTERM ends the process, not the capture");
}
