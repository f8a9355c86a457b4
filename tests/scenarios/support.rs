//! The lab that all scenarios share, and the cast of pods that most of them use.

use std::future::Future;
use std::pin::Pin;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};
use tropis_tests::observe::AccessLine;
use tropis_tests::testkit::Exchange;
use tropis_tests::{Family, Lab, LabOptions, PodHandle, Progress, wait};

/// The run's name unless `TROPIS_RUN` gives another; scenarios of another checkout at the same time would collide, and then the state
/// directory's lock says so.
const RUN: &str = "scenarios";

/// Ten times what listeners need to open or to close.
const LISTENERS: Duration = Duration::from_secs(30);

/// One runtime for all: the lab's tasks must outlive the scenario that happened to start it.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads can be started"));
static LAB: OnceCell<Result<Lab, String>> = OnceCell::const_new();
/// Scenarios that kill agents run alone.
static TURN: RwLock<()> = RwLock::const_new(());

/// Ports of every server of the cast.
pub(crate) mod port {
    /// Echoes.
    pub(crate) const ECHO: u16 = 7000;
    /// Speaks first.
    pub(crate) const SERVER_FIRST: u16 = 7001;
    /// Answers after the client's end.
    pub(crate) const HALF_CLOSE: u16 = 7002;
    /// Finishes first.
    pub(crate) const FAREWELL: u16 = 7003;
    /// Takes bytes and answers with their digest.
    pub(crate) const SINK: u16 = 7004;
    /// Echoes too, where resolvers listen.
    pub(crate) const DOMAIN: u16 = 53;
    /// HTTP.
    pub(crate) const HTTP: u16 = 8080;
}

/// Whether other scenarios may run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// They may.
    Welcome,
    /// This one kills what the others need.
    Alone,
}

/// The future of a scenario that borrows the lab.
pub(crate) type Played<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// Plays a scenario in the shared lab.
pub(crate) fn play(company: Company, scenario: impl for<'a> FnOnce(&'a Lab) -> Played<'a>) {
    if !possible() {
        return;
    }
    RUNTIME.block_on(async {
        let (_shared, _alone) = match company {
            Company::Welcome => (Some(TURN.read().await), None),
            Company::Alone => (None, Some(TURN.write().await)),
        };
        let lab = LAB.get_or_init(start).await.as_ref();
        let lab = lab.unwrap_or_else(|error| panic!("the lab did not start: {error}"));
        if let Err(error) = scenario(lab).await {
            panic!("{error:?}\n(logs are in {})", lab.layout().logs().display());
        }
    });
}

/// Runs a scenario that makes labs of its own.
pub(crate) fn play_apart(scenario: impl Future<Output = anyhow::Result<()>>) {
    if !possible() {
        return;
    }
    RUNTIME.block_on(async {
        let _shared = TURN.read().await;
        if let Err(error) = scenario.await {
            panic!("{error:?}");
        }
    });
}

fn possible() -> bool {
    let Some(reason) = Lab::impossible() else { return true };
    assert_ne!(std::env::var("TROPIS_E2E").as_deref(), Ok("require"), "scenarios cannot run here: {reason}");
    eprintln!("SKIPPED, nothing was shown: {reason}");
    false
}

async fn start() -> Result<Lab, String> {
    let run = std::env::var("TROPIS_RUN").unwrap_or_else(|_| RUN.to_owned());
    let options = LabOptions { progress: Progress::stderr(), log_level: "info".to_owned(), ..LabOptions::new(&run) };
    Lab::start(options).await.map_err(|error| tropis_tests::kubelet::chain(&error))
}

/// A namespace with a client and another client on node `a`, and a server on each node.
pub(crate) struct Cast<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) namespace: String,
    /// Runs as account `client`, on node `a`.
    pub(crate) client: PodHandle,
    /// Runs as account `other`, on node `a`.
    pub(crate) other: PodHandle,
    servers: [PodHandle; 2],
}

/// How two pods lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) family: Family,
    pub(crate) across_nodes: bool,
}

impl Case {
    /// IPv4 and IPv6, on one node and across nodes.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Family::BOTH.into_iter().flat_map(|family| [false, true].map(|across_nodes| Self { family, across_nodes }))
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.across_nodes { "across nodes" } else { "on one node" };
        write!(formatter, "{} {place}", self.family)
    }
}

impl<'a> Cast<'a> {
    /// Makes the namespace, enrolled or not, and waits for its pods.
    pub(crate) async fn gather(lab: &'a Lab, namespace: &str, enrolled: bool) -> anyhow::Result<Self> {
        lab.apply(&objects(namespace, enrolled))?;
        let (client, other, near, far) = tokio::try_join!(
            lab.pod(namespace, "client"),
            lab.pod(namespace, "other"),
            lab.pod(namespace, "server-a"),
            lab.pod(namespace, "server-b"),
        )?;
        let cast = Self { lab, namespace: namespace.to_owned(), client, other, servers: [near, far] };
        if enrolled {
            cast.wait_enrolled(true).await?;
        }
        Ok(cast)
    }

    /// The server of a case.
    pub(crate) fn server(&self, case: Case) -> &PodHandle {
        &self.servers[usize::from(case.across_nodes)]
    }

    /// Every pod.
    pub(crate) fn pods(&self) -> [&PodHandle; 4] {
        [&self.client, &self.other, &self.servers[0], &self.servers[1]]
    }

    /// Waits until every pod is in the mesh, or out of it; and until tunnels to them work, so that what follows is not a race.
    pub(crate) async fn wait_enrolled(&self, enrolled: bool) -> anyhow::Result<()> {
        for pod in self.pods() {
            self.lab.wait_enrolled(pod, enrolled).await?;
            // A pod that leaves keeps its listeners until its peers have heard of it.
            let what = format!("{} to have the mesh's listeners: {enrolled}", pod.key());
            wait::until(LISTENERS, &what, async || (pod.listening().contains(&15008) == enrolled).then_some(())).await?;
        }
        Ok(())
    }

    /// Turns the mesh on or off for the namespace.
    pub(crate) async fn enrol(&self, enrolled: bool) -> anyhow::Result<()> {
        let value = enrolled.then_some("ambient");
        self.lab.label("Namespace", "", &self.namespace, &[("istio.io/dataplane-mode", value)])?;
        self.wait_enrolled(enrolled).await
    }

    /// Echoes `text` through `target`, as `pod`.
    pub(crate) async fn echo(&self, pod: &PodHandle, target: &str, text: &str) -> anyhow::Result<Exchange> {
        Ok(pod.run(&["echo", target, text]).await?)
    }

    /// Echoes until it goes through tunnels: the control plane tells peers a moment after the pod. Gives the line that says so.
    pub(crate) async fn wait_tunnelled(&self, case: Case) -> anyhow::Result<AccessLine> {
        self.wait_tunnelled_between(&self.client, self.server(case), case.family).await.with_context(|| case.to_string())
    }

    /// The same from any pod to any other.
    pub(crate) async fn wait_tunnelled_between(&self, from: &PodHandle, to: &PodHandle, family: Family) -> anyhow::Result<AccessLine> {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let error = match self.tunnelled(from, to, family).await {
                Ok(line) => return Ok(line),
                Err(error) => error,
            };
            ensure!(std::time::Instant::now() < deadline, "{error:#}, and no later connection either");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// One echo, an error unless it went through a tunnel: what it opened is told from every other connection by its own address and port.
    pub(crate) async fn tunnelled(&self, from: &PodHandle, to: &PodHandle, family: Family) -> anyhow::Result<AccessLine> {
        let target = to.socket(family, port::ECHO);
        let said = self.echo(from, &target, "are you there").await?;
        ensure!(said.ok, "{target} does not echo: {said:?}");
        let opened_by = said.local.context("the client's own address")?;
        let of_this =
            [("direction", "outbound"), ("src.workload", from.name()), ("src.namespace", &self.namespace), ("src.addr", &opened_by)];
        let what = format!("the line of a connection from {opened_by} to {target}");
        let line = self.lab.wait_access_line(from.node(), &what, |line| line.has(&of_this)).await?;
        let tunnelled = line.field("dst.hbone_addr") == target && !line.field("dst.identity").is_empty();
        ensure!(tunnelled, "the connection from {opened_by} to {target} was not tunnelled: {}", line.0);
        Ok(line)
    }

    /// The address of a service of the cast, as it stands before a port.
    pub(crate) fn service(&self, name: &str, family: Family) -> anyhow::Result<String> {
        let address = self.lab.service_address(&self.namespace, name, family).with_context(|| format!("{name} has no {family} address"))?;
        Ok(if address.is_ipv6() { format!("[{address}]") } else { address.to_string() })
    }

    /// Takes the namespace away.
    pub(crate) fn leave(&self) -> anyhow::Result<()> {
        for kind in ["Pod", "Service"] {
            for name in ["client", "other", "server-a", "server-b", "servers"] {
                // Not every name is of every kind.
                let _ = self.lab.delete(kind, &self.namespace, name);
            }
        }
        self.lab.delete("Namespace", "", &self.namespace).context("taking the namespace away")
    }
}

fn objects(namespace: &str, enrolled: bool) -> String {
    let labels = if enrolled { "istio.io/dataplane-mode: ambient" } else { "" };
    let mut yaml = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels: {{{labels}}}\n");
    for account in ["client", "other", "server"] {
        yaml += &format!("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: {namespace}}}\n");
    }
    for (name, account, node) in
        [("client", "client", "a"), ("other", "other", "a"), ("server-a", "server", "a"), ("server-b", "server", "b")]
    {
        yaml += &pod(namespace, name, account, node);
    }
    for (service, selector, headless) in
        [("server-a", "app: server-a", ""), ("server-b", "app: server-b", ""), ("servers", "role: server", "  clusterIP: None\n")]
    {
        yaml += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: {namespace}}}\nspec:\n{headless}  selector: {{{selector}}}\n  ports:\n"
        );
        for (name, number) in [
            ("tcp-echo", port::ECHO),
            ("tcp-first", port::SERVER_FIRST),
            ("tcp-half", port::HALF_CLOSE),
            ("tcp-sink", port::SINK),
            ("http", port::HTTP),
        ] {
            yaml += &format!("  - {{name: {name}, port: {number}}}\n");
        }
    }
    yaml
}

/// A pod with every role of the testkit.
pub(crate) fn pod(namespace: &str, name: &str, account: &str, node: &str) -> String {
    let roles = [
        ("--tcp-echo", port::ECHO),
        ("--tcp-echo", port::DOMAIN),
        ("--server-first", port::SERVER_FIRST),
        ("--half-close", port::HALF_CLOSE),
        ("--farewell", port::FAREWELL),
        ("--sink", port::SINK),
        ("--http", port::HTTP),
    ];
    let arguments: Vec<String> = roles.iter().map(|(role, port)| format!("\"{role}\", \"{port}\"")).collect();
    let ports: Vec<String> = roles.iter().map(|(_, port)| format!("{{containerPort: {port}}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{app: {name}, role: {account}}}\nspec:\n  serviceAccountName: {account}\n  \
         nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: testkit\n    image: tropis/testkit\n    args: [\"serve\", {}]\n    ports: [{}]\n",
        arguments.join(", "),
        ports.join(", ")
    )
}
