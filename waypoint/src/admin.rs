//! The admin endpoint: what the proxy knows (`/config_dump`), who is ejected (`/clusters`), its log level, its end. A unix socket or
//! loopback; never the network.

mod dump;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::Value;
use tokio::sync::mpsc;
use tropis_telemetry::{admin::logging_routes, logs::LogControl};

use crate::app::Shared;

/// What the endpoint shows and changes.
#[derive(Clone)]
pub struct Admin {
    /// What all threads share.
    pub shared: Arc<Shared>,
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
        .route("/clusters", get(clusters))
        .route("/quitquitquit", post(quit))
        .with_state(admin)
        .merge(logging)
}

async fn index() -> &'static str {
    "GET  /config_dump    what this proxy knows: itself, hosts with routes, policies and pools, workloads, services, its certificate\n\
     GET  /clusters       the pools in use: endpoints, requests under way, ejections\n\
     GET  /metrics        what the metrics port shows, for who comes by this way\n\
     POST /logging        log level; ?level=FILTER changes it, ?reset restores it\n\
     POST /quitquitquit   drain and stop\n"
}

async fn config_dump(State(admin): State<Admin>) -> Response {
    json(&dump::config(&admin.shared))
}

async fn clusters(State(admin): State<Admin>) -> Response {
    json(&dump::pools(&admin.shared))
}

fn json(value: &Value) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn quit(State(admin): State<Admin>) -> &'static str {
    // A full channel means that it was asked before.
    let _ = admin.stop.try_send(());
    "shutdown now\n"
}
