//! The admin endpoint (`/enrolled`) and the metrics of this program.

use std::{collections::BTreeSet, fmt};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, response::Response, routing::get};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use serde::Serialize;
use serde_json::json;
use tropis_maps::{InboundCount, OutboundCount};
use tropis_telemetry::chain;

use crate::{
    enrol::{PodStatus, Status},
    zds::Zds,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    uid: String,
    #[serde(flatten)]
    pod: PodStatus,
    dns_captured: bool,
    foreign_proxy: bool,
    connections: serde_json::Value,
}

/// `/enrolled`: each pod with what the kernel counted for it. `/healthz`: this process lives.
pub fn routes(status: Status) -> Router {
    Router::new().route("/enrolled", get(enrolled)).route("/healthz", get(async || "ok\n")).with_state(status)
}

async fn enrolled(State(status): State<Status>) -> Response {
    let maps = status.capture().maps();
    let shown: Result<Vec<Shown>, _> = status
        .pods()
        .into_iter()
        .map(|(uid, pod)| {
            let (entry, outbound) = match pod.netns_cookie {
                Some(cookie) => (maps.pod(cookie)?, maps.outbound(cookie)?),
                None => (None, OutboundCount::default()),
            };
            let mut inbound = serde_json::Map::new();
            for ip in &pod.addresses {
                inbound.insert(ip.to_string(), json_of_inbound(&maps.inbound(*ip)?));
            }
            let connections = json!({"outbound": json_of_outbound(&outbound), "inbound": inbound});
            let dns_captured = entry.as_ref().is_some_and(|entry| entry.dns_port != 0);
            let foreign_proxy = entry.is_some_and(|entry| entry.foreign_proxy);
            Ok::<_, tropis_maps::MapsError>(Shown { uid, pod, dns_captured, foreign_proxy, connections })
        })
        .collect();
    match shown {
        Ok(shown) => Json(shown).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", chain(&error))).into_response(),
    }
}

fn json_of_outbound(count: &OutboundCount) -> serde_json::Value {
    outbound_results(count).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect::<serde_json::Map<_, _>>().into()
}

fn json_of_inbound(count: &InboundCount) -> serde_json::Value {
    inbound_results(count).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect::<serde_json::Map<_, _>>().into()
}

/// The closed set of what may become of a connection that a pod opens.
fn outbound_results(count: &OutboundCount) -> [(&'static str, u64); 7] {
    [
        ("captured", count.captured),
        ("dns_captured", count.dns_captured),
        ("dns_refused", count.dns_refused),
        ("passed_self", count.passed_self),
        ("refused_family", count.refused_family),
        ("passed_leaving", count.passed_leaving),
        ("passed_proxy", count.passed_proxy),
    ]
}

/// The same for one that a pod is sent.
fn inbound_results(count: &InboundCount) -> [(&'static str, u64); 3] {
    [("hbone", count.hbone), ("captured", count.captured), ("refused", count.refused)]
}

/// Registers the metrics of this program; they are read when asked for.
pub fn register(registry: &mut Registry, status: &Status, zds: &Zds) {
    registry.register_collector(Box::new(Scrape { status: status.clone(), zds: zds.clone() }));
}

struct Scrape {
    status: Status,
    zds: Zds,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let connected = ConstGauge::new(i64::try_from(self.zds.connected()).unwrap_or(i64::MAX));
        let metric = encoder.encode_descriptor("ztunnel_connected", "Node proxies that are connected", None, connected.metric_type())?;
        connected.encode(metric)?;
        let pods = self.status.pods().into_iter().map(|(uid, _)| uid).collect::<BTreeSet<_>>().len();
        let pods = ConstGauge::new(i64::try_from(pods).unwrap_or(i64::MAX));
        let metric =
            encoder.encode_descriptor("tropis_redirector_pods", "Pods that are, or are to be, enrolled", None, pods.metric_type())?;
        pods.encode(metric)?;
        let totals = match self.status.capture().totals() {
            Ok(totals) => totals,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the kernel's counters cannot be read");
                return Ok(());
            }
        };
        let results = outbound_results(&totals.outbound).map(|(name, value)| ("outbound", name, value)).into_iter();
        let results = results.chain(inbound_results(&totals.inbound).map(|(name, value)| ("inbound", name, value)));
        let counter = ConstCounter::new(0_u64);
        let mut family = encoder.encode_descriptor(
            "tropis_redirector_connections",
            "What became of connections and resolver questions of enrolled pods, as the kernel counted it",
            None,
            counter.metric_type(),
        )?;
        for (direction, result, value) in results {
            let labels = [("direction", direction), ("result", result)];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
