//! A worker: a thread with a runtime of its own, and listeners of its own (`SO_REUSEPORT`). A connection, what it carries and its
//! connections to endpoints stay on the thread that accepted it.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use hyper::rt::Executor;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};
use tropis_hbone::{
    client::{Pool, PoolOptions},
    settings::Windows,
};
use tropis_model::{resolve::Draw, workload::Workload};
use tropis_net::{accept, drain::DrainSignal};

use crate::{
    app::Shared,
    body::Budget,
    config::PlainListener,
    metrics::CounterCache,
    stages::{accept::Room, report::format::Formats},
    tunnel,
    upstream::connections::Connections,
};

/// How often idle connections to endpoints are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A worker's listeners, bound before it starts: a port that is taken stops the start.
#[derive(Debug)]
pub struct Listeners {
    /// For tunnels.
    pub hbone: std::net::TcpListener,
    /// For plain connections.
    pub plain: Vec<(std::net::TcpListener, PlainListener)>,
}

/// What a journey finds on its worker.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// This worker's tunnels to endpoints.
    pub tunnels: Pool,
    /// This worker's HTTP connections to endpoints.
    pub connections: Connections,
    /// Counters fetched lately.
    pub counters: CounterCache,
    /// Formats of the access log that were read.
    pub formats: Formats,
    /// Connections that are served.
    pub open_connections: Rc<Room>,
    /// Requests under way.
    pub open_requests: Rc<Room>,
    /// Copies of requests under way.
    pub open_mirrors: Rc<Room>,
    /// What requests under way keep of their bodies.
    pub kept_bodies: Rc<Budget>,
    /// The workload that we are, once the control plane has said so.
    pub own: RefCell<Option<Arc<Workload>>>,
    own_version: Cell<u64>,
    draw: RefCell<Draw>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl Worker {
    /// An idle worker. Its tunnels want a `LocalSet`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            tunnels: Pool::new(shared.certificates.clone(), PoolOptions { windows: Windows::WAYPOINT, ..PoolOptions::default() }),
            connections: Connections::default(),
            counters: CounterCache::default(),
            formats: Formats::default(),
            open_connections: Rc::default(),
            open_requests: Rc::default(),
            open_mirrors: Rc::default(),
            kept_bodies: Rc::new(Budget::new(shared.config.http.kept_bytes)),
            own: RefCell::default(),
            own_version: Cell::new(u64::MAX),
            draw: RefCell::new(Draw::new(rand::random())),
            shared,
        }
    }

    /// Draws.
    pub fn draw<T>(&self, with: impl FnOnce(&mut Draw) -> T) -> T {
        with(&mut self.draw.borrow_mut())
    }

    /// The workload that we are, as this view has it.
    pub fn own(&self, view: &tropis_model::view::View) -> Option<Arc<Workload>> {
        if self.own_version.replace(view.version()) != view.version() {
            let config = &self.shared.config;
            let found = view.local_workload("", &config.pod_namespace, &config.pod_name, &config.identity.service_account);
            *self.own.borrow_mut() = found.cloned();
        }
        self.own.borrow().clone()
    }
}

/// Spawns on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// Starts a worker.
pub fn start(shared: Arc<Shared>, index: usize, listeners: Listeners) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || LocalSet::new().block_on(&runtime, run(shared, listeners)))
}

async fn run(shared: Arc<Shared>, listeners: Listeners) {
    let drain = shared.drain.signal();
    let worker = Rc::new(Worker::new(shared));
    spawn_local(sweep(worker.clone()));
    if let Err(error) = serve(&worker, listeners, &drain) {
        tracing::error!(%error, "a listener cannot be served");
    }
    // Connections outlive the listeners; the runtime lives until the process ends.
    drop(drain);
    std::future::pending::<()>().await;
}

async fn sweep(worker: Rc<Worker>) {
    let mut tick = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tick.tick().await;
        worker.connections.sweep(Instant::now());
        worker.shared.callers.sweep(Instant::now());
    }
}

fn serve(worker: &Rc<Worker>, listeners: Listeners, drain: &DrainSignal) -> io::Result<()> {
    spawn_local(each(TcpListener::from_std(listeners.hbone)?, drain.clone(), {
        let (worker, drain) = (worker.clone(), drain.clone());
        move |stream, from| drop(spawn_local(tunnel::serve(worker.clone(), drain.clone(), stream, from)))
    }));
    for (listener, plain) in listeners.plain {
        spawn_local(each(TcpListener::from_std(listener)?, drain.clone(), {
            let (worker, drain) = (worker.clone(), drain.clone());
            move |stream, from| drop(spawn_local(tunnel::serve_plain(worker.clone(), drain.clone(), plain.clone(), stream, from)))
        }));
    }
    Ok(())
}

/// Hands each connection of a listener to `take` until the process is drained; then those that wait already, since their callers have
/// been told that they are connected.
async fn each(listener: TcpListener, mut drain: DrainSignal, take: impl Fn(TcpStream, SocketAddr)) {
    loop {
        tokio::select! {
            biased;
            () = drain.draining() => break,
            next = accept::next(&listener) => match next {
                Ok((stream, from)) => take(stream, from),
                Err(error) => {
                    tracing::error!(%error, "a listener broke");
                    return;
                }
            },
        }
    }
    while let Some(Ok((stream, from))) = accept::next(&listener).now_or_never() {
        take(stream, from);
    }
}
