//! The admin endpoint: what the proxy knows (`/config_dump`), its log level, its end. A unix socket or loopback; never the network.

mod dump;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::sync::{mpsc, oneshot};
use tropis_telemetry::{
    admin::{logging_routes, version_routes},
    logs::LogControl,
};

use crate::{
    app::Shared,
    connections::ConnectionInfo,
    worker::{Command, WorkerHandle},
};

/// What the endpoint shows and changes.
#[derive(Clone)]
pub struct Admin {
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// Who knows the open connections.
    pub workers: Vec<WorkerHandle>,
    /// The log level.
    pub log: LogControl,
    /// Ends the process.
    pub stop: mpsc::Sender<()>,
}

/// The routes, at Istio's paths.
pub fn routes(admin: Admin) -> Router {
    let logging = logging_routes(admin.log.clone());
    Router::new()
        .route("/", get(index))
        .route("/config_dump", get(config_dump))
        .route("/quitquitquit", post(quit))
        .with_state(admin)
        .merge(logging)
        .merge(version_routes(env!("CARGO_PKG_VERSION")))
}

async fn index() -> &'static str {
    "GET  /config_dump    what this proxy knows: workloads, services, policies, certificates, pods and their connections\n\
     GET  /metrics        what the metrics port shows, for who comes by this way\n\
     GET  /version        this program's version\n\
     POST /logging        log level; ?level=FILTER changes it, ?reset restores it\n\
     POST /quitquitquit   drain and stop\n"
}

async fn config_dump(State(admin): State<Admin>) -> Response {
    let dump = dump::dump(&admin.shared, &connections(&admin.workers).await);
    match serde_json::to_string_pretty(&dump) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn quit(State(admin): State<Admin>) -> &'static str {
    // A full channel means that it was asked before.
    let _ = admin.stop.try_send(());
    "shutdown now\n"
}

/// The open connections of all workers; a worker that ended has none.
async fn connections(workers: &[WorkerHandle]) -> Vec<ConnectionInfo> {
    let mut all = Vec::new();
    for worker in workers {
        let (answer, listed) = oneshot::channel();
        if worker.send(Command::List(answer)).await.is_ok() {
            all.extend(listed.await.unwrap_or_default());
        }
    }
    all
}
