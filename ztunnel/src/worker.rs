//! A worker: a thread with a runtime of its own. A connection, its tunnel and its TLS state stay on the thread that accepted it.
//!
//! The control side says which pods to serve; each worker has listeners of its own for each. [`Node`] is what a journey finds here.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt, io,
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::{LocalSet, spawn_local},
};
use tropis_hbone::client::{Pool, PoolOptions};
use tropis_model::workload::WorkloadUid;
use tropis_net::accept;
use tropis_xds::current::Seen;

use crate::{
    app::Shared,
    connections::{ConnectionInfo, Connections},
    dns, inbound,
    metrics::CounterCache,
    node::{Pod, listeners::WorkerListeners},
    outbound, passthrough, view,
};

/// Commands that may wait for a worker: a snapshot of a full node and then some.
const COMMAND_QUEUE: usize = 1024;
/// How often bytes of open connections are added to the metrics.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// What the control side asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve a pod until it is drained.
    Serve {
        /// The pod.
        pod: Arc<Pod>,
        /// This worker's listeners in it.
        listeners: Box<WorkerListeners>,
    },
    /// List the open connections.
    List(oneshot::Sender<Vec<ConnectionInfo>>),
}

/// The worker has ended, so the process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the worker has ended")]
pub struct WorkerGone;

/// The control side's end of a worker. When the last one is dropped, the worker ends.
#[derive(Debug, Clone)]
pub struct WorkerHandle(mpsc::Sender<Command>);

impl WorkerHandle {
    /// Sends a command; waits while the worker has many.
    pub async fn send(&self, command: Command) -> Result<(), WorkerGone> {
        self.0.send(command).await.map_err(|_| WorkerGone)
    }
}

/// Starts a worker.
pub fn start(shared: Arc<Shared>, index: usize) -> io::Result<(WorkerHandle, JoinHandle<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sender, commands) = mpsc::channel(COMMAND_QUEUE);
    let thread = std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || LocalSet::new().block_on(&runtime, run(shared, commands)))?;
    Ok((WorkerHandle(sender), thread))
}

async fn run(shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>) {
    let node = Rc::new(Node::new(shared));
    spawn_local(revoke(node.clone()));
    spawn_local(count(node.clone()));
    while let Some(command) = commands.recv().await {
        match command {
            Command::Serve { pod, listeners } => {
                if let Err(error) = serve(&node, &pod, *listeners) {
                    tracing::error!(pod = %pod, %error, "a listener cannot be served");
                }
            }
            Command::List(answer) => {
                // Who asked may have given up.
                let _ = answer.send(node.connections.list());
            }
        }
    }
}

/// What a journey finds on its worker.
pub struct Node {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// This worker's tunnels.
    pub pool: Pool,
    /// This worker's open connections.
    pub connections: Connections,
    /// Workloads that failed lately.
    pub ejected: Ejections,
    /// Counters fetched lately.
    pub counters: CounterCache,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("connections", &self.connections).field("ejected", &self.ejected).finish_non_exhaustive()
    }
}

impl Node {
    /// An idle worker. Its tunnels want a `LocalSet`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            pool: Pool::new(shared.certificates.clone(), PoolOptions::default()),
            connections: Connections::default(),
            ejected: Ejections::default(),
            counters: CounterCache::default(),
            shared,
        }
    }

    /// The view in force, once it covers `pod` or the time to wait for that is over.
    pub async fn view_covering(&self, pod: &Pod) -> Seen {
        view::covering(&self.shared.view, &self.shared.config.node, pod).await
    }
}

/// Decides again about open connections whenever the view changes.
async fn revoke(node: Rc<Node>) {
    let mut changed = node.shared.view.subscribe();
    while changed.changed().await.is_ok() {
        // The number first: a policy that arrives in between is looked at again, never missed.
        let policy_version = node.shared.view.policy_version();
        let stopped = node.connections.recheck(&node.shared.view.load(), policy_version);
        if stopped > 0 {
            tracing::info!(stopped, "connections closed: policy no longer allows them");
        }
    }
}

async fn count(node: Rc<Node>) {
    let mut tick = tokio::time::interval(COUNT_INTERVAL);
    loop {
        tick.tick().await;
        node.connections.count();
    }
}

/// Serves a pod's listeners until it is drained.
fn serve(node: &Rc<Node>, pod: &Arc<Pod>, listeners: WorkerListeners) -> io::Result<()> {
    let transparent = listeners.transparent;
    spawn_local(each(TcpListener::from_std(listeners.outbound)?, pod.clone(), {
        let (node, pod) = (node.clone(), pod.clone());
        move |stream, from| drop(spawn_local(outbound::serve(node.clone(), pod.clone(), stream, from)))
    }));
    spawn_local(each(TcpListener::from_std(listeners.passthrough)?, pod.clone(), {
        let (node, pod) = (node.clone(), pod.clone());
        move |stream, from| drop(spawn_local(passthrough::serve(node.clone(), pod.clone(), transparent, stream, from)))
    }));
    spawn_local(each(TcpListener::from_std(listeners.hbone)?, pod.clone(), {
        let (node, pod) = (node.clone(), pod.clone());
        move |stream, from| drop(spawn_local(inbound::serve(node.clone(), pod.clone(), transparent, stream, from)))
    }));
    for slot in listeners.dns {
        dns::serve(node, pod, slot)?;
    }
    spawn_local(end_tunnels(node.clone(), pod.clone()));
    Ok(())
}

/// Hands each connection of a listener to `take` until the pod is drained; then those that are on their way already, since their
/// applications have been told that they are connected.
async fn each(listener: TcpListener, pod: Arc<Pod>, take: impl Fn(TcpStream, std::net::SocketAddr)) {
    let mut drain = pod.drain_signal();
    loop {
        tokio::select! {
            biased;
            () = drain.draining() => break,
            next = accept::next(&listener) => match next {
                Ok((stream, from)) => take(stream, from),
                Err(error) => {
                    tracing::error!(pod = %pod, %error, "a listener broke");
                    return;
                }
            },
        }
    }
    tokio::select! {
        () = accept::finish(listener, take) => {}
        () = drain.cut() => {}
    }
}

/// Tells the peers of a pod's tunnels when the pod is drained, before its address is used by another.
async fn end_tunnels(node: Rc<Node>, pod: Arc<Pod>) {
    let mut drain = pod.drain_signal();
    drain.draining().await;
    if let Some(uid) = pod.known_as() {
        node.pool.drain_source(uid);
    }
}

/// Workloads that refused lately: others are tried first for a while.
#[derive(Debug, Default)]
pub struct Ejections {
    until: RefCell<HashMap<WorkloadUid, Instant>>,
}

/// How long a workload that refused comes last. Long enough to spare its callers, short enough for a restart.
const EJECTED_FOR: Duration = Duration::from_secs(5);
/// Workloads remembered; more at once means that the fault is on our side.
const MAX_EJECTED: usize = 1024;

impl Ejections {
    /// It refused.
    pub fn add(&self, workload: WorkloadUid) {
        let mut until = self.until.borrow_mut();
        if until.len() < MAX_EJECTED || until.contains_key(&workload) {
            until.insert(workload, Instant::now() + EJECTED_FOR);
        }
    }

    /// It answered.
    pub fn forgive(&self, workload: &WorkloadUid) {
        let mut until = self.until.borrow_mut();
        if !until.is_empty() {
            until.remove(workload);
        }
    }

    /// Those that come last now.
    pub fn now(&self) -> Vec<WorkloadUid> {
        let mut until = self.until.borrow_mut();
        if until.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        until.retain(|_, until| *until > now);
        until.keys().cloned().collect()
    }
}
