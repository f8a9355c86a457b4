//! A whole mesh on this box: wires, cluster, and the programs of the mesh, in start order; and what a test or a demo does with it.

pub mod objects;
pub mod options;
pub mod pod;
mod possible;
mod records;
pub mod waypoint;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tropis_source::DirSource;

use crate::capture::Capture;
use crate::cgroup::{self, Groups};
use crate::cluster::memory::Memory;
use crate::cluster::object::Key;
use crate::cluster::pods::{Origin, PodRecord};
use crate::cluster::store::Store;
use crate::cluster::user::{self, OWNED_BY_TROPISD, Whose};
use crate::cluster::{Cluster, Event, Snapshot, State, seed};
use crate::down::{self, Files};
use crate::kubelet::images::Images;
use crate::kubelet::{Kubelet, chain};
use crate::layout::{Layout, valid_run_name};
use crate::lock::{self, Held, RunLock};
use crate::network::Network;
use crate::network::addresses::AddressPlan;
use crate::network::commands;
use crate::observe::{self, AccessLine, Metrics};
use crate::programs::{Program, Programs};
use crate::progress::Progress;
use crate::tokens::TokenIssuer;
use crate::wait;
use crate::{dns, kube_proxy};
pub use options::{LabError, LabOptions};
pub use pod::{PodHandle, PodProcess};

/// Ten times what a pod normally needs from its object to readiness.
const POD_DEADLINE: Duration = Duration::from_secs(30);

/// A running lab. Whatever ends this process ends everything in it; [`Lab::down`] waits for that.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    /// The wires.
    pub network: Arc<Network>,
    /// The cluster's state.
    pub cluster: Cluster,
    kubelet: Arc<Kubelet>,
    programs: Programs,
    source: DirSource,
    services_in_force: watch::Receiver<Arc<Snapshot>>,
    manifests: Option<PathBuf>,
    /// The user chose the state directory.
    own_directory: bool,
    tasks: Vec<JoinHandle<()>>,
    janitor: Mutex<Option<Child>>,
    _address_slot: Held,
    _lock: RunLock,
}

impl Lab {
    /// Says why a lab cannot run here, if it cannot: one line, with what to do.
    pub fn impossible() -> Option<String> {
        possible::box_lacks()
    }

    /// Starts a lab, after taking away what an earlier one of this name left.
    pub async fn start(options: LabOptions) -> Result<Self, LabError> {
        if !valid_run_name(&options.run) {
            return Err(LabError::Name(options.run));
        }
        if let Some(reason) = Self::impossible() {
            return Err(LabError::Impossible(reason));
        }
        let progress = options.progress.clone();
        let layout = Layout::new(&options.run, options.state.as_deref());
        let locking = layout.clone();
        let lock = tokio::task::spawn_blocking(move || RunLock::acquire(&locking)).await;
        let lock = lock.map_err(|error| LabError::Impossible(error.to_string()))??;
        let (address_slot, slot) = lock::address_slot()?;
        let plan = AddressPlan::new(slot);
        let folder = options.programs.clone().map_or_else(programs_folder, Ok)?;
        // Processes of pods start at the root.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        let groups = Groups::of(&options.run).map_err(|error| LabError::Impossible(error.to_string()))?;

        if let Some(reason) = possible::kernel_lacks(&folder).filter(|_| options.mesh) {
            return Err(LabError::Impossible(reason));
        }
        own_state(&layout)?;
        down::down(&layout, Files::KeepAssigned)?;
        make_folders(&layout, options.manifests.as_deref())?;
        let janitor = start_janitor(&folder, &layout, &lock, &progress);
        progress.step(format!("network: a router, {} nodes, a control namespace", options.nodes.len()));
        let (wiring, nodes) = (layout.clone(), options.nodes.clone());
        let network = tokio::task::spawn_blocking(move || Network::create(&wiring, plan, &nodes)).await;
        let network = Arc::new(network.map_err(|error| LabError::Impossible(error.to_string()))??);
        for node in options.nodes.iter().map(String::as_str).chain([seed::CONTROL_NODE]) {
            cgroup::create(&groups.agents(node)).map_err(|error| LabError::File("making control groups".to_owned(), error))?;
        }

        progress.step("cluster: API server, controllers, kubelets, kube-proxy, DNS");
        let tokens = Arc::new(TokenIssuer::create(&layout.secrets())?);
        let (records, ranges) = records::nodes(&network, plan);
        let memory = Memory::open(layout.memory(), SystemTime::now());
        let state = State::new(plan, records, ranges, SystemTime::now()).remembering(memory);
        let (cluster, task) = Cluster::start(state, Store::new(layout.state().to_path_buf()), progress.clone());
        let mut tasks = vec![task];
        let owned = layout.reported().join(OWNED_BY_TROPISD);
        for (whose, folder, nothing) in [(Whose::User, layout.objects(), "no-layers"), (Whose::Program, owned, "no-layers-either")] {
            let nothing = layout.volumes().join(nothing);
            let following = user::start(whose, &folder, &nothing, cluster.clone(), progress.clone());
            tasks.push(following.map_err(|error| LabError::File(chain(&error), io::Error::other("objects cannot be followed")))?);
        }
        let (running, _) = watch::channel(Default::default());
        let kubelet = Arc::new(Kubelet {
            network: network.clone(),
            groups: groups.clone(),
            layout: layout.clone(),
            images: Images::new(&folder, options.images.clone())
                .with_log_level(&options.log_level)
                .with_waypoint_environment(&options.waypoint_environment),
            tokens,
            cluster: cluster.clone(),
            progress: progress.clone(),
            running,
        });
        tasks.push(kubelet.clone().start());
        let namespaces = network.nodes.values().map(|node| node.namespace.clone()).collect();
        let (services_in_force, task) = kube_proxy::start(namespaces, cluster.watch(), progress.clone());
        tasks.push(task);
        let dns = dns::start(&network.control, &plan.control_sockets(dns::PORT), cluster.watch());
        tasks.extend(dns.map_err(|error| LabError::File("starting the cluster DNS".to_owned(), error))?);
        let (key, record) = records::dns_pod(plan);
        cluster.tell(Event::Agent(key, record));

        let source = DirSource::open(layout.state(), None);
        let source = source.map_err(|error| LabError::File(chain(&error), io::Error::other("objects cannot be followed")))?;
        let mut programs = Programs::new(folder, &kubelet, options.log_level.clone());
        programs.foreign_proxy = options.foreign_proxy;
        let lab = Self {
            layout,
            network,
            cluster,
            kubelet,
            programs,
            source,
            services_in_force,
            manifests: options.manifests,
            own_directory: options.state.is_some(),
            tasks,
            janitor: Mutex::new(janitor),
            _address_slot: address_slot,
            _lock: lock,
        };
        if options.mesh {
            lab.start_mesh(&progress).await?;
        }
        Ok(lab)
    }

    async fn start_mesh(&self, progress: &Progress) -> Result<(), LabError> {
        let took = self.start_program(Program::Tropisd, seed::CONTROL_NODE).await?;
        progress.step(format!("tropisd: ready after {} ms", took.as_millis()));
        for program in [Program::Redirector, Program::Ztunnel] {
            let starts = self.network.nodes.keys().map(|node| self.start_program(program, node));
            let took = futures_util::future::try_join_all(starts).await?;
            let took: Vec<String> = took.iter().map(|time| format!("{} ms", time.as_millis())).collect();
            progress.step(format!("{program} on each node: ready after {}", took.join(", ")));
        }
        Ok(())
    }

    /// Where this run keeps its files.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Starts a program; tropisd's node is `control`. Gives the time until it was ready.
    pub async fn start_program(&self, program: Program, node: &str) -> Result<Duration, LabError> {
        Ok(self.programs.start(program, node).await?)
    }

    /// Sends a signal to a program.
    pub async fn kill(&self, program: Program, node: &str, signal: Signal) -> Result<(), LabError> {
        let killed = self.programs.kill(program, node, signal).await;
        killed.map_err(|error| LabError::File(format!("{signal} to {program} on {node}"), error))
    }

    /// The programs, for their process ids and logs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// A pod of that name, or a ready one of the Deployment of that name; waits until it is ready and service addresses lead to it.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<PodHandle, LabError> {
        let what = format!("pod {namespace}/{name} to be ready");
        let mut last = String::from("it does not exist");
        let found = wait::until(POD_DEADLINE, &what, async || {
            let snapshot = self.cluster.snapshot();
            let mut candidates = snapshot.pods.iter().filter(|(key, record)| key.namespace == namespace && is_called(key, record, name));
            let (key, record) = candidates.find(|(_, record)| record.status.ready()).or_else(|| {
                last = snapshot.problems.iter().map(|(key, problem)| format!("{key}: {problem}")).collect::<Vec<_>>().join("; ");
                None
            })?;
            if !record.status.ready() {
                last = format!("{:?}", record.status);
                return None;
            }
            // Its services lead to it, too.
            let served = self.services_in_force.borrow().pods.get(key).is_some_and(|record| record.status.ready());
            let running = self.kubelet.running.borrow().get(key).cloned().filter(|_| served)?;
            Some(PodHandle::new(running, self.kubelet.clone()))
        });
        found.await.map_err(|cause| LabError::TimedOut { what: format!("{namespace}/{name} is not ready: {last}"), cause })
    }

    /// Every ready pod of a Deployment.
    pub fn pods(&self, namespace: &str, deployment: &str) -> Vec<PodHandle> {
        let snapshot = self.cluster.snapshot();
        let running = self.kubelet.running.borrow();
        let of = snapshot.pods.iter().filter(|(key, record)| key.namespace == namespace && is_called(key, record, deployment));
        of.filter(|(_, record)| record.status.ready())
            .filter_map(|(key, _)| Some(PodHandle::new(running.get(key)?.clone(), self.kubelet.clone())))
            .collect()
    }

    /// The address of a service in a family.
    pub fn service_address(&self, namespace: &str, name: &str, family: crate::Family) -> Option<std::net::IpAddr> {
        let snapshot = self.cluster.snapshot();
        let service = snapshot.services.iter().find(|service| service.key.namespace == namespace && service.key.name == name)?;
        service.addresses.iter().copied().find(|address| crate::Family::of(*address) == family)
    }

    /// Waits until the redirector of a pod's node says that it is captured (or no longer is).
    pub async fn wait_enrolled(&self, pod: &PodHandle, enrolled: bool) -> Result<Duration, LabError> {
        let begun = std::time::Instant::now();
        let what = format!("{} to be {}", pod.key(), if enrolled { "enrolled" } else { "un-enrolled" });
        let done =
            wait::until(POD_DEADLINE, &what, async || ((self.redirection(pod).as_deref() == Some("enabled")) == enrolled).then_some(()));
        done.await.map_err(|cause| LabError::TimedOut { what: format!("redirection is {:?}", self.redirection(pod)), cause })?;
        Ok(begun.elapsed())
    }

    /// Sees what passes between `node` and everybody else.
    pub fn capture_link(&self, node: &str) -> Result<Capture, LabError> {
        let link = &self.network.node(node)?.link;
        Capture::start(&self.network.router, link).map_err(|error| LabError::File(format!("capturing {link}"), error))
    }

    /// The access log of a node's ztunnel.
    pub fn access_log(&self, node: &str) -> Vec<AccessLine> {
        observe::access_log(&self.programs.log(Program::Ztunnel, node))
    }

    /// Waits for an access log line on `node` that `matches`.
    pub async fn wait_access_line(&self, node: &str, what: &str, matches: impl Fn(&AccessLine) -> bool) -> Result<AccessLine, LabError> {
        let found = wait::until(Duration::from_secs(10), what, async || self.access_log(node).into_iter().rev().find(|line| matches(line)));
        found.await.map_err(|cause| LabError::TimedOut {
            what: format!("no such line in {}", self.programs.log(Program::Ztunnel, node).display()),
            cause,
        })
    }

    /// The metrics of a node's ztunnel.
    pub async fn metrics(&self, node: &str) -> Result<Metrics, LabError> {
        let namespace = self.network.node(node)?.namespace.clone();
        let address = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 15020);
        let asked = tokio::task::spawn_blocking(move || observe::get(&namespace, address, "/metrics")).await;
        let answer = asked.map_err(io::Error::other).and_then(|answer| answer);
        let (_, text) = answer.map_err(|error| LabError::File(format!("metrics of ztunnel on {node}"), error))?;
        Ok(Metrics::parse(&text))
    }

    /// Every netfilter rule in every namespace of the run, and of the host.
    pub async fn rulesets(&self) -> Result<Vec<(String, String)>, LabError> {
        let host = crate::network::namespace::Namespace::host()
            .map_err(|error| LabError::File("opening the host's namespace".to_owned(), error))?;
        let mut namespaces = vec![Arc::new(host), self.network.router.clone(), self.network.control.clone()];
        namespaces.extend(self.network.nodes.values().map(|node| node.namespace.clone()));
        namespaces.extend(self.kubelet.running.borrow().values().map(|pod| pod.network.namespace.clone()));
        let look = move || namespaces.iter().map(|namespace| Ok((namespace.name().to_owned(), commands::ruleset(namespace)?))).collect();
        let looked: Result<_, commands::CommandError> =
            tokio::task::spawn_blocking(look).await.map_err(|error| LabError::Impossible(error.to_string()))?;
        Ok(looked?)
    }

    /// Ends everything and takes it away, files and all; a state directory of the user's own keeps what was assigned.
    pub async fn down(self) -> Result<(), LabError> {
        let files = self.files_at_the_end();
        self.end(files).await
    }

    /// What stays of the files when the run ends well: nothing below `/run`, in the user's own directory what its next run goes on with.
    pub fn files_at_the_end(&self) -> Files {
        if self.own_directory { Files::KeepAssigned } else { Files::Remove }
    }

    /// Ends everything and takes it away.
    pub async fn end(mut self, files: Files) -> Result<(), LabError> {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        let layout = self.layout.clone();
        let gone = tokio::task::spawn_blocking(move || down::down(&layout, files)).await;
        gone.map_err(|error| LabError::Impossible(error.to_string()))??;
        let janitor = self.janitor.lock().expect("never poisoned: nothing panics under it").take();
        if let Some(mut janitor) = janitor {
            // It finds nothing to do; once it has ended, nobody holds the run's name.
            drop(janitor.stdin.take());
            let _ = tokio::task::spawn_blocking(move || janitor.wait()).await;
        }
        Ok(())
    }

    /// Takes away what a run left that nobody ended. A run that is alive is refused: whoever started it ends it. Blocks.
    pub fn clean(run: &str, state: Option<&Path>) -> Result<(), LabError> {
        if !valid_run_name(run) {
            return Err(LabError::Name(run.to_owned()));
        }
        let layout = Layout::new(run, state);
        let _alone = RunLock::acquire(&layout)?;
        own_state(&layout)?;
        Ok(down::down(&layout, Files::Remove)?)
    }
}

fn is_called(key: &Key, record: &PodRecord, name: &str) -> bool {
    record.deleting.is_none()
        && match &record.origin {
            Origin::Deployment { name: deployment, .. } => deployment == name || key.name == name,
            Origin::Bare | Origin::Agent { .. } => key.name == name,
        }
}

/// Refuses a state directory that holds anything but a run's own files: it is emptied at the start and at the end.
fn own_state(layout: &Layout) -> Result<(), LabError> {
    if layout.is_ours() {
        return Ok(());
    }
    let state = layout.state().display();
    Err(LabError::Impossible(format!(
        "{state} holds files that no run made, and a state directory is emptied (choose an empty or new one)"
    )))
}

fn make_folders(layout: &Layout, manifests: Option<&Path>) -> Result<(), LabError> {
    layout.create().map_err(|error| LabError::File(format!("making {}", layout.state().display()), error))?;
    let Some(manifests) = manifests else { return Ok(()) };
    // Everybody reads STATE/objects; the user's own folder stands there.
    let objects = layout.objects();
    let linked = std::fs::canonicalize(manifests)
        .and_then(|folder| std::fs::remove_dir(&objects).and_then(|()| std::os::unix::fs::symlink(folder, &objects)));
    linked.map_err(|error| LabError::File(format!("using {} as objects folder", manifests.display()), error))
}

/// `TROPIS_BIN`, or the folder of this program; tests and examples lie one deeper.
pub fn programs_folder() -> Result<PathBuf, LabError> {
    if let Some(folder) = std::env::var_os("TROPIS_BIN") {
        return Ok(PathBuf::from(folder));
    }
    let own = std::env::current_exe().map_err(|error| LabError::File("finding this program's own folder".to_owned(), error))?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let deeper = folder.ends_with("deps") || folder.ends_with("examples");
    Ok(if deeper { folder.parent().unwrap_or(folder) } else { folder }.to_path_buf())
}

/// Starts the process that cleans up when this one is gone, however it goes. It shares the run's lock.
fn start_janitor(folder: &Path, layout: &Layout, lock: &RunLock, progress: &Progress) -> Option<Child> {
    use std::os::unix::process::CommandExt;
    let spawned = lock.duplicate().and_then(|[name, state]| {
        Command::new(folder.join("tropis-lab"))
            .args(["janitor", "--run", layout.run(), "--state"])
            .arg(layout.state())
            .stdin(Stdio::piped())
            // Not for writing: they hold the run's name and its folder for as long as the janitor lives.
            .stdout(Stdio::from(name))
            .stderr(Stdio::from(state))
            // Ctrl-C at the terminal is for the lab; the janitor must survive it.
            .process_group(0)
            .spawn()
    });
    match spawned {
        Ok(child) => Some(child),
        Err(error) => {
            progress.step(format!("no janitor ({}): after a crash, `down` has to be called", chain(&error)));
            None
        }
    }
}
