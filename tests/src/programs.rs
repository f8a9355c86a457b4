//! The mesh's own programs: started where they belong with the arguments that a cluster would give them, watched, killed, started again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cgroup::{self, Groups};
use crate::cluster::object::Key;
use crate::cluster::pods::{ContainerState, ContainerStatus, Origin, Phase, PodRecord, PodStatus};
use crate::cluster::seed::{CONTROL_NODE, SYSTEM_NAMESPACE};
use crate::cluster::{Cluster, Event, ids};
use crate::kubelet::{Kubelet, chain, volumes};
use crate::layout::{Layout, PROXY_UID};
use crate::network::Network;
use crate::network::addresses::AddressPair;
use crate::network::namespace::Namespace;
use crate::observe;
use crate::process::{self, Launch, LaunchError, Output, Process, User};
use crate::secret_file;
use crate::token_files::TokenFile;
use crate::tokens::{Bearer, MESH_AUDIENCE, TokenIssuer};
use crate::wait::{self, TimedOut};

/// Ten times what a program normally needs to get ready.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How long a program may take to end when asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long the tokens of agents are good (Istio's own charts ask for this).
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// linux/capability.h.
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// A program of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// The control plane, in the control namespace.
    Tropisd,
    /// The node agent.
    Redirector,
    /// The node proxy.
    Ztunnel,
}

impl Program {
    /// The name of its binary, and of its sockets and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tropisd => "tropisd",
            Self::Redirector => "redirector",
            Self::Ztunnel => "ztunnel",
        }
    }

    /// The service account, and the owner of its pods: `(account, owner kind, owner)`.
    fn owner(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Tropisd => ("istiod", "ReplicaSet", "istiod-5c8f7d9b6d"),
            Self::Redirector => ("istio-cni", "DaemonSet", "istio-cni-node"),
            Self::Ztunnel => ("ztunnel", "DaemonSet", "ztunnel"),
        }
    }

    fn labels(self) -> Value {
        let app = match self {
            Self::Tropisd => return json!({ "app": "istiod", "istio": "pilot", "istio.io/dataplane-mode": "none" }),
            Self::Redirector => "istio-cni-node",
            Self::Ztunnel => "ztunnel",
        };
        json!({ "app": app, "k8s-app": app, "istio.io/dataplane-mode": "none", "sidecar.istio.io/inject": "false" })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not built.
    #[error("{program} is not built: {path} does not exist (cargo build -p {program})")]
    NotBuilt {
        /// Which.
        program: Program,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Its folder, token or group could not be made.
    #[error("cannot prepare {program}")]
    Prepare {
        /// Which.
        program: Program,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It ended, or did not get ready in time.
    #[error("{program} on {node} did not get ready: {said}; its log is {log}")]
    NotReady {
        /// Which.
        program: Program,
        /// Where.
        node: String,
        /// What it said last.
        said: String,
        /// Its log.
        log: PathBuf,
    },
}

/// Starts and stops programs.
#[derive(Debug)]
pub struct Programs {
    /// The folder of the binaries.
    pub folder: PathBuf,
    /// Files of the run.
    pub layout: Layout,
    /// The wires.
    pub network: Arc<Network>,
    /// Control groups.
    pub groups: Groups,
    /// Where their pods are shown.
    pub cluster: Cluster,
    /// Who signs their tokens.
    pub tokens: Arc<TokenIssuer>,
    /// Their own log level, as `RUST_LOG`.
    pub log_level: String,
    /// The node proxy is another mesh's: it gets the environment that Istio documents, and nothing of ours.
    pub foreign_proxy: bool,
    running: Mutex<BTreeMap<(Program, String), Running>>,
}

#[derive(Debug)]
struct Running {
    process: Process,
    pod: Key,
    record: PodRecord,
}

impl Programs {
    /// Programs of `folder`, of which none runs yet, in the lab of these kubelets.
    pub fn new(folder: PathBuf, kubelet: &Kubelet, log_level: String) -> Self {
        Self {
            folder,
            layout: kubelet.layout.clone(),
            network: kubelet.network.clone(),
            groups: kubelet.groups.clone(),
            cluster: kubelet.cluster.clone(),
            tokens: kubelet.tokens.clone(),
            log_level,
            foreign_proxy: false,
            running: Mutex::default(),
        }
    }

    /// Starts `program` on `node` and waits until it is ready. The node of tropisd is `control`.
    pub async fn start(&self, program: Program, node: &str) -> Result<Duration, ProgramError> {
        let begun = std::time::Instant::now();
        let path = self.folder.join(program.name());
        if !path.is_file() {
            return Err(ProgramError::NotBuilt { program, path });
        }
        let (namespace, addresses) = self.place(node);
        let before = self.lock().remove(&(program, node.to_owned()));
        // A program that ended is a container that starts again in its pod.
        let (pod, record) = before.map_or_else(|| self.pod_of(program, node, addresses), |ended| (ended.pod, ended.record));
        self.cluster.tell(Event::Agent(pod.clone(), record.clone()));
        let failed = |cause| ProgramError::Prepare { program, cause };
        let token = self.token(program, &pod, &record).map_err(failed)?;
        let launch = self.prepare(program, node, &pod, &record).map_err(failed)?;
        let launch = Launch { program: path, namespace: namespace.clone(), ..launch };
        let process = process::start(launch)?;
        if let Some((token, bearer)) = token {
            tokio::spawn(keep_fresh(token, bearer, self.tokens.clone(), process.clone()));
        }
        self.lock().insert((program, node.to_owned()), Running { process: process.clone(), pod: pod.clone(), record: record.clone() });
        self.wait_ready(program, node, &namespace, &process).await?;
        self.tell_status(&pod, &record, true);
        Ok(begun.elapsed())
    }

    /// Sends a signal to `program` on `node`. After SIGKILL and SIGTERM it waits for the end.
    pub async fn kill(&self, program: Program, node: &str, signal: Signal) -> io::Result<()> {
        let (process, pod, record) = match self.lock().get(&(program, node.to_owned())) {
            Some(running) => (running.process.clone(), running.pod.clone(), running.record.clone()),
            None => return Err(io::Error::new(io::ErrorKind::NotFound, format!("{program} does not run on {node}"))),
        };
        process.signal(signal)?;
        if matches!(signal, Signal::SIGKILL | Signal::SIGTERM) {
            let ended = tokio::time::timeout(STOP_DEADLINE, process.ended()).await;
            ended.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{program} on {node} did not end")))?;
            self.tell_status(&pod, &record, false);
        }
        Ok(())
    }

    /// Whether it runs.
    pub fn runs(&self, program: Program, node: &str) -> bool {
        self.lock().get(&(program, node.to_owned())).is_some_and(|running| running.process.status().is_none())
    }

    /// The process id.
    pub fn process_id(&self, program: Program, node: &str) -> Option<u32> {
        self.lock().get(&(program, node.to_owned())).map(|running| running.process.id())
    }

    /// Its log file.
    pub fn log(&self, program: Program, node: &str) -> PathBuf {
        self.layout.logs().join(format!("{program}.{node}.log"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Program, String), Running>> {
        self.running.lock().expect("never poisoned: nothing panics under it")
    }

    fn place(&self, node: &str) -> (Arc<Namespace>, AddressPair) {
        match self.network.nodes.get(node) {
            Some(network) => (network.namespace.clone(), network.addresses),
            None => (self.network.control.clone(), self.network.plan.control()),
        }
    }

    /// The pod that the cluster shows for a program.
    fn pod_of(&self, program: Program, node: &str, addresses: AddressPair) -> (Key, PodRecord) {
        let (account, owner_kind, owner) = program.owner();
        let ports: &[(&str, u16)] = match program {
            Program::Tropisd => &[("grpc-xds", 15012), ("http-monitoring", 15014)],
            Program::Ztunnel => &[("ztunnel-stats", 15020)],
            Program::Redirector => &[],
        };
        let ports: Vec<Value> =
            ports.iter().map(|(name, port)| json!({ "name": name, "containerPort": port, "protocol": "TCP" })).collect();
        let record = PodRecord {
            origin: Origin::Agent { owner_kind, owner: owner.to_owned() },
            uid: ids::random_uid(),
            created: SystemTime::now(),
            template: json!({
                "metadata": { "labels": program.labels() },
                "spec": {
                    "hostNetwork": true, "serviceAccountName": account,
                    "containers": [{ "name": program.name(), "image": format!("tropis/{program}"), "ports": ports }],
                },
            }),
            node: Some(node.to_owned()),
            status: status(program, addresses, false),
            deleting: None,
        };
        (Key::pod(SYSTEM_NAMESPACE, &format!("{owner}-{}", ids::suffix())), record)
    }

    fn tell_status(&self, pod: &Key, record: &PodRecord, ready: bool) {
        let mut now = record.status.clone();
        for container in &mut now.containers {
            container.ready = ready;
        }
        self.cluster.tell(Event::Status(pod.clone(), record.uid.clone(), now));
    }

    /// The token that `program` shows, written, if it has one.
    fn token(&self, program: Program, pod: &Key, record: &PodRecord) -> io::Result<Option<(TokenFile, Bearer)>> {
        if program != Program::Ztunnel {
            return Ok(None);
        }
        let mut token = TokenFile::new(self.token_path(record), MESH_AUDIENCE, TOKEN_LIFETIME, PROXY_UID);
        let bearer = volumes::bearer(pod, record, &self.cluster.snapshot());
        token.refresh(&self.tokens, || bearer.clone(), SystemTime::now()).map_err(io::Error::other)?;
        Ok(Some((token, bearer)))
    }

    fn token_path(&self, record: &PodRecord) -> PathBuf {
        self.layout.volumes().join(&record.uid).join("istio-token")
    }

    /// Folder and group; and the whole launch but program and namespace.
    fn prepare(&self, program: Program, node: &str, pod: &Key, record: &PodRecord) -> io::Result<Launch> {
        let group = self.groups.agents(node);
        cgroup::create(&group)?;
        let namespace = self.network.control.clone();
        let (arguments, environment, user) = match program {
            Program::Tropisd => (self.tropisd_arguments(), Vec::new(), User::Root),
            Program::Redirector => (self.redirector_arguments(node), Vec::new(), User::Root),
            Program::Ztunnel => {
                let root = self.layout.volumes().join(&record.uid).join("root-cert.pem");
                secret_file::replace(&root, &fs::read(self.layout.root_certificate())?, PROXY_UID)?;
                let user = User::Limited { id: PROXY_UID, capabilities: CAP_NET_ADMIN | CAP_SYS_ADMIN };
                (vec!["proxy".into(), "ztunnel".into()], self.ztunnel_environment(node, pod, &self.token_path(record), &root), user)
            }
        };
        let mut all = vec![
            ("RUST_LOG".to_owned(), self.log_level.clone()),
            ("LOG_FORMAT".to_owned(), "json".to_owned()),
            ("RUST_BACKTRACE".to_owned(), "1".to_owned()),
            ("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ];
        all.extend(environment);
        let log = self.log(program, node);
        Ok(Launch {
            program: PathBuf::new(),
            arguments,
            environment: all,
            namespace,
            group,
            user,
            sandbox: None,
            output: Output::File(log),
        })
    }

    fn tropisd_arguments(&self) -> Vec<OsString> {
        let state = self.layout.secrets();
        let sockets = |port: u16| self.network.plan.control_sockets(port).map(|socket| socket.to_string()).join(",");
        vec![
            "--source".into(),
            source(&self.layout),
            "--state".into(),
            state.clone().into(),
            "--listen".into(),
            sockets(15012).into(),
            "--monitoring".into(),
            sockets(15014).into(),
            "--debug-socket".into(),
            self.layout.socket("tropisd", CONTROL_NODE).into(),
            "--proxy-sockets".into(),
            self.layout.sockets().into(),
            "--token-key".into(),
            state.join("token.pub").into(),
            "--root-cert-out".into(),
            self.layout.root_certificate().into(),
        ]
    }

    fn redirector_arguments(&self, node: &str) -> Vec<OsString> {
        vec![
            "run".into(),
            "--node".into(),
            node.into(),
            "--source".into(),
            source(&self.layout),
            "--cgroup".into(),
            self.groups.node(node).into(),
            "--pins".into(),
            self.layout.pins().join(node).into(),
            "--zds".into(),
            self.layout.socket("zds", node).into(),
            "--admin".into(),
            self.layout.socket("redirector", node).into(),
            "--proxy-uid".into(),
            PROXY_UID.to_string().into(),
            "--foreign-proxy".into(),
            self.foreign_proxy.to_string().into(),
        ]
    }

    fn ztunnel_environment(&self, node: &str, pod: &Key, token: &Path, root: &Path) -> Vec<(String, String)> {
        let text = |path: PathBuf| path.display().to_string();
        let address = format!("https://{}", SocketAddr::new(self.network.plan.control().v4.into(), 15012));
        let host = format!("istiod.{SYSTEM_NAMESPACE}.svc");
        let entries = [
            ("NODE_NAME", node.to_owned()),
            ("POD_NAME", pod.name.clone()),
            ("POD_NAMESPACE", pod.namespace.clone()),
            ("SERVICE_ACCOUNT", "ztunnel".to_owned()),
            ("INSTANCE_IP", self.place(node).1.v4.to_string()),
            ("CLUSTER_ID", "Kubernetes".to_owned()),
            ("XDS_ADDRESS", address.clone()),
            ("CA_ADDRESS", address),
            ("ALT_XDS_HOSTNAME", host.clone()),
            ("ALT_CA_HOSTNAME", host),
            ("XDS_ROOT_CA", root.display().to_string()),
            ("CA_ROOT_CA", root.display().to_string()),
            ("AUTH_TOKEN", token.display().to_string()),
            ("INPOD_UDS", text(self.layout.socket("zds", node))),
        ];
        let capture = if self.foreign_proxy {
            // Sending from the caller's own address needs rules that there are not.
            vec![("ENABLE_ORIG_SRC", "false".to_owned())]
        } else {
            let (pins, admin) = (self.layout.pins().join(node), self.layout.socket("ztunnel", node));
            vec![("TROPIS_PINS", text(pins)), ("TROPIS_ADMIN_SOCKET", text(admin))]
        };
        entries.into_iter().chain(capture).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    async fn wait_ready(&self, program: Program, node: &str, namespace: &Arc<Namespace>, process: &Process) -> Result<(), ProgramError> {
        let log = self.log(program, node);
        let mut said = String::from("it said nothing");
        let ready = wait::until(READY_DEADLINE, "readiness", async || {
            if let Some(status) = process.status() {
                said = format!("it ended with {status}");
                return Some(false);
            }
            let (looking, layout) = (namespace.clone(), self.layout.clone());
            let (control, on) = (self.network.plan.control(), node.to_owned());
            let answer = tokio::task::spawn_blocking(move || match program {
                Program::Tropisd => observe::get(&looking, SocketAddr::new(control.v4.into(), 15014), "/ready"),
                Program::Redirector => observe::get_unix(&layout.socket("redirector", &on), "/healthz/ready"),
                Program::Ztunnel => observe::get(&looking, SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 15021), "/healthz/ready"),
            });
            match answer.await {
                Ok(Ok((200, _))) => return Some(true),
                Ok(Ok((_, text))) => said = text.trim().to_owned(),
                Ok(Err(error)) => said = error.to_string(),
                Err(_) => {}
            }
            None
        });
        match ready.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(TimedOut { .. }) => Err(ProgramError::NotReady { program, node: node.to_owned(), said, log }),
        }
    }
}

fn source(layout: &Layout) -> OsString {
    let mut source = OsString::from("dir:");
    source.push(layout.state());
    source
}

fn status(program: Program, addresses: AddressPair, ready: bool) -> PodStatus {
    let container = ContainerStatus {
        name: program.name().to_owned(),
        image: format!("tropis/{program}"),
        ready,
        restarts: 0,
        state: ContainerState::Running(SystemTime::now()),
    };
    PodStatus {
        phase: Phase::Running,
        addresses: Some(addresses),
        host: Some(addresses),
        started: Some(SystemTime::now()),
        containers: vec![container],
        message: None,
    }
}

/// Renews a token for as long as the process that shows it lives.
async fn keep_fresh(mut token: TokenFile, bearer: Bearer, issuer: Arc<TokenIssuer>, process: Process) {
    loop {
        let wait = token.renew_at().duration_since(SystemTime::now()).unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = process.ended() => return,
        }
        if let Err(error) = token.refresh(&issuer, || bearer.clone(), SystemTime::now()) {
            tracing::warn!(error = chain(&error), "a program's token is not renewed; it is tried again");
        }
    }
}
