//! What tropisd says about itself: health and metrics to everybody who can reach port 15014, the rest over a unix socket of mode 0600;
//! the page that people look at is in `debug/page.rs`.

pub(crate) mod page;

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tropis_compile::Settings;
use tropis_telemetry::{admin, metrics::Metrics as Registry, readiness::Readiness};
use tropis_xds::server::{Audience, ClientState, Clients, Resources, SubscriptionState};

use crate::watch::Findings;

/// `/metrics`, `/healthz` (the process answers) and `/readyz` (all objects were read); nothing else.
pub(crate) fn monitoring(registry: Registry, readiness: Readiness) -> Router {
    async fn ready(State(readiness): State<Readiness>) -> Response {
        let pending = readiness.pending();
        match pending.is_empty() {
            true => (StatusCode::OK, "ready\n").into_response(),
            false => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready, pending: {}\n", pending.join(", "))).into_response(),
        }
    }
    let health = Router::new().route("/readyz", get(ready)).route("/ready", get(ready)).with_state(readiness);
    Router::new().route("/healthz", get(|| async { "ok\n" })).merge(health).merge(admin::metrics_routes(registry))
}

/// What the debug endpoint shows.
#[derive(Clone)]
pub(crate) struct Debug {
    resources: Resources,
    clients: Clients,
    findings: Findings,
    settings: Settings,
}

impl Debug {
    /// Shows these.
    pub(crate) fn new(resources: Resources, clients: Clients, findings: Findings, settings: Settings) -> Self {
        Self { resources, clients, findings, settings }
    }
}

/// `/debug/clients`, `/debug/resources`, `/debug/findings`, `/debug/settings` (what compiling goes by besides the objects), and
/// `/debug/live?generation=N`: whether a change is in force everywhere.
pub(crate) fn routes(debug: Debug) -> Router {
    async fn clients(State(debug): State<Debug>) -> Json<Value> {
        Json(debug.clients.list().iter().map(client).collect())
    }
    async fn resources(State(debug): State<Debug>) -> Json<Value> {
        let Some(snapshot) = debug.resources.snapshot() else {
            return Json(json!({ "generation": 0, "version": "", "audiences": {} }));
        };
        let table = |audience: &Audience| -> BTreeMap<&str, BTreeMap<&str, &str>> {
            audience.types().iter().map(|served| (served.word(), snapshot.resources(audience, *served).collect())).collect()
        };
        let audiences: BTreeMap<String, _> = snapshot.audiences().map(|audience| (audience.to_string(), table(audience))).collect();
        Json(json!({ "generation": snapshot.generation, "version": snapshot.version(), "audiences": audiences }))
    }
    async fn findings(State(debug): State<Debug>) -> Json<Value> {
        Json(debug.findings.list().iter().map(|finding| json!({ "finding": finding, "text": finding.to_string() })).collect())
    }
    async fn settings(State(debug): State<Debug>) -> Json<Settings> {
        Json(debug.settings)
    }
    async fn live(State(debug): State<Debug>, Query(query): Query<BTreeMap<String, u64>>) -> Json<Value> {
        let present = debug.resources.snapshot().map_or(0, |snapshot| snapshot.generation);
        let generation = query.get("generation").copied().unwrap_or(present);
        let lagging = debug.clients.lagging(generation);
        let live = present >= generation && lagging.is_empty();
        Json(json!({
            "generation": generation,
            "live": live,
            "clients": debug.clients.list().len(),
            "lagging": lagging.iter().map(client).collect::<Value>(),
        }))
    }
    Router::new()
        .route("/debug/clients", get(clients))
        .route("/debug/resources", get(resources))
        .route("/debug/findings", get(findings))
        .route("/debug/settings", get(settings))
        .route("/debug/live", get(live))
        .with_state(debug)
}

fn client(state: &ClientState) -> Value {
    let subscriptions: BTreeMap<&str, Value> =
        state.subscriptions.iter().map(|(known, state)| (known.word(), subscription(state))).collect();
    json!({
        "client": state.client,
        "audience": state.audience.to_string(),
        "node": state.node,
        "subscriptions": subscriptions,
    })
}

fn subscription(state: &SubscriptionState) -> Value {
    json!({
        "subscribed": state.subscribed,
        "acknowledged": state.acknowledged,
        "inFlight": state.in_flight,
        "rejected": state.rejected,
    })
}
