//! Two nodes of a mesh: library parts of the proxy, wired as `app` wires them, with the view fed by hand.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::runtime::Runtime;
use tropis_model::{
    address::NamespacedHostname,
    identity::Identity,
    policy::{Action, Clause, Match, Policy, PolicyKey, PolicyScope, Rule, StringMatch},
    service::{AppProtocol, Service, ServiceAddress, ServicePort},
    view::Change,
    workload::{TunnelProtocol, Workload},
};
use tropis_telemetry::{metrics::Metrics, readiness::Readiness};
use tropis_tls::{store::Certificates, testing::TestAuthority};
use tropis_ztunnel::{
    app::{Shared, start_workers},
    config::Config,
    node::{pods::Pods, zds},
};

use crate::{
    agent::{Agent, Connected},
    log,
    network::{Network, PodNetwork},
};

/// The port that applications listen on.
pub(crate) const PORT: u16 = 7000;

/// A node's proxy.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) shared: Arc<Shared>,
    pub(crate) agent: Connected,
    pub(crate) listener: Agent,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
    pub(crate) runtime: Runtime,
    _folder: tempfile::TempDir,
}

/// Everything that a test has.
pub(crate) struct Mesh {
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    /// Whom all of them trust.
    pub(crate) authority: Arc<TestAuthority>,
    /// Tells the pods of one test from those of another in the log.
    pub(crate) tag: String,
}

/// A pod of the mesh.
#[derive(Clone)]
pub(crate) struct MeshPod {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) network: PodNetwork,
    pub(crate) workload: Workload,
}

fn node(name: &'static str, authority: &Arc<TestAuthority>, settings: &[(&str, &str)]) -> Node {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("zds.sock");
    let listener = Agent::new(&socket);
    let mut variables: BTreeMap<String, String> = [
        ("NODE_NAME", name),
        ("INPOD_UDS", socket.to_str().unwrap()),
        ("ENABLE_ORIG_SRC", "false"),
        ("TROPIS_WORKERS", "2"),
        ("CONNECTION_TERMINATION_DEADLINE", "2s"),
    ]
    .iter()
    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
    .collect();
    variables.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let metrics = Metrics::default();
    let mut shared = runtime.block_on(async {
        let certificates = Certificates::new(authority.clone());
        Shared::new(Config::read(&variables).unwrap(), certificates, &metrics)
    });
    // The pod that plays a resolver.
    shared.resolvers = vec![SocketAddr::new("10.77.0.53".parse().unwrap(), 53)];
    let shared = Arc::new(shared);
    let (workers, _threads) = start_workers(&shared).unwrap();
    let readiness = Readiness::default();
    let pods = Pods::new(shared.clone(), workers, readiness.task("workload proxy manager"));
    runtime.spawn({
        let shared = shared.clone();
        async move { zds::run(&shared.config.zds_socket, pods).await }
    });
    let agent = listener.accept();
    Node { name, shared, agent, listener, readiness, metrics, runtime, _folder: folder }
}

impl Mesh {
    pub(crate) fn new(tag: &str) -> Self {
        Self::with_settings(tag, &[])
    }

    pub(crate) fn with_settings(tag: &str, settings: &[(&str, &str)]) -> Self {
        log::start();
        let authority = Arc::new(TestAuthority::new());
        let nodes = ["n1", "n2"].into_iter().map(|name| node(name, &authority, settings)).collect();
        Self { nodes, network: Network::new(), authority, tag: tag.to_owned() }
    }

    /// A pod outside the mesh.
    pub(crate) fn stranger(&mut self, number: u8) -> PodNetwork {
        self.network.pod(number)
    }

    /// A pod on a node, in the mesh and in the view.
    pub(crate) fn pod(&mut self, node: usize, name: &str, number: u8) -> MeshPod {
        let pod = self.unserved_pod(node, name, number);
        self.apply([Change::Workload(Arc::new(pod.workload.clone()))]);
        self.serve(node, &pod);
        pod
    }

    /// A pod that neither the control plane nor the node agent has told of yet.
    pub(crate) fn unserved_pod(&mut self, node: usize, name: &str, number: u8) -> MeshPod {
        let network = self.network.pod(number);
        self.network.capture(number);
        let name = format!("{}-{name}", self.tag);
        let mut workload =
            Workload::new(format!("Kubernetes//Pod/shop/{name}"), name.as_str(), Identity::new("cluster.local", "shop", name.as_str()));
        workload.addresses = vec![network.v4, network.v6];
        workload.node = self.nodes[node].name.into();
        workload.tunnel_protocol = TunnelProtocol::Hbone;
        MeshPod { uid: format!("uid-{name}"), name, network, workload }
    }

    /// The node agent hands a pod over.
    pub(crate) fn serve(&self, node: usize, pod: &MeshPod) {
        let netns = descriptor(&pod.network);
        assert_eq!(self.nodes[node].agent.add(&pod.uid, "shop", &pod.name, &pod.name, &netns), "");
    }

    /// Puts changes in force on both nodes.
    pub(crate) fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let changes: Vec<_> = changes.into_iter().collect();
        for node in &self.nodes {
            node.shared.view.apply(changes.clone());
        }
    }
}

/// A descriptor of the pod's namespace, as the agent has it.
pub(crate) fn descriptor(network: &PodNetwork) -> OwnedFd {
    network.namespace.run(|| std::fs::File::open("/proc/thread-self/ns/net").unwrap()).unwrap().into()
}

/// A policy that denies `principal`; with `None`, peers without an identity.
pub(crate) fn deny(name: &str, scope: PolicyScope, principal: Option<&str>) -> Change {
    let one = match principal {
        Some(account) => {
            Match { principals: vec![StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into())], ..Match::default() }
        }
        None => Match { not_principals: vec![StringMatch::Presence], ..Match::default() },
    };
    Change::Policy(Arc::new(Policy {
        key: PolicyKey(format!("shop/{name}").into()),
        namespace: "shop".into(),
        scope,
        action: Action::Deny,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![one] }] }],
        dry_run: false,
    }))
}

/// A service with one virtual address, port 80 → [`PORT`].
pub(crate) fn service(name: &str, address: &str) -> Service {
    let hostname = NamespacedHostname { namespace: "shop".into(), hostname: format!("{name}.shop.svc.cluster.local").into() };
    let mut service = Service::new(name, hostname);
    let length = if address.contains(':') { 128 } else { 32 };
    service.addresses.push(ServiceAddress { network: "".into(), block: format!("{address}/{length}").parse().unwrap() });
    service.ports.insert(80, ServicePort { target_port: Some(PORT), app_protocol: AppProtocol::Tcp });
    service
}

/// Serves echo in a pod on [`PORT`], both families.
pub(crate) fn echo(network: &PodNetwork) {
    let listener = network.namespace.run(|| TcpListener::bind(("::", PORT)).unwrap()).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Connects from a pod.
pub(crate) fn connect(from: &PodNetwork, to: IpAddr, port: u16) -> std::io::Result<TcpStream> {
    let stream = from.namespace.run(|| TcpStream::connect((to, port))).unwrap()?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    Ok(stream)
}

/// Sends a text and reads it back.
pub(crate) fn ping(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, text.as_bytes());
    Ok(())
}

/// Whether the connection is reset (now, or when it is used).
pub(crate) fn is_reset(stream: std::io::Result<TcpStream>) -> bool {
    // The kernel says it once, to whichever call comes first.
    let used = stream.and_then(|mut stream| {
        stream.write_all(b"x")?;
        stream.read(&mut [0])
    });
    let reset =
        |error: std::io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused | ErrorKind::BrokenPipe);
    used.err().is_some_and(reset)
}
