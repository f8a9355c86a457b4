//! Faults put in on purpose: a wait, and an answer in place of the endpoint's. Both are drawn by themselves; the wait comes first.

use tropis_model::route::AbortStatus;

use super::{Answer, Exchange};
use crate::{
    reply::Reply,
    stages::report::{Report, flags::Flags},
};

/// Shares are of so many requests.
const ALL_PPM: u64 = 1_000_000;
/// Envoy's body of an abort.
const BODY: &str = "fault filter abort";

pub(super) async fn request(exchange: &Exchange<'_>, report: &mut Report) -> Option<Answer> {
    let fault = exchange.route().fault.as_ref()?;
    let worker = &exchange.journey.entry.worker;
    let hits = |share_ppm: u32| worker.draw(|draw| draw.below(ALL_PPM)) < u64::from(share_ppm);
    if let Some(delay) = fault.delay.as_ref().filter(|delay| hits(delay.share_ppm)) {
        report.flag(Flags::DELAY_INJECTED);
        tokio::time::sleep(delay.duration).await;
    }
    let abort = fault.abort.as_ref().filter(|abort| hits(abort.share_ppm))?;
    report.fault_injected();
    let reply = match abort.status {
        AbortStatus::Http(status) => Reply::text(status, BODY),
        // Who does not speak gRPC reads the status all the same, in the headers.
        AbortStatus::Grpc(status) => Reply { grpc_status: Some(status), ..Reply::text(200, BODY) },
    };
    Some(Answer { reply, flags: Flags::FAULT_INJECTED, details: "fault_filter_abort" })
}
