//! Upgrades (WebSocket and the like): after 101 the connection is the applications', and bytes are relayed.
//!
//! HTTP/1.1 hands a connection over only when its own work on it has ended, on both sides: the request leaves here what is to be relayed
//! ([`UpgradeSlot::leave`]), and the caller's connection finds it when it is free ([`go_on`]).

use std::cell::RefCell;

use tokio::sync::oneshot;
use tropis_net::relay::{RelayOptions, relay};

use crate::{
    stages::report::Report,
    stream::Stream,
    upstream::{counts::Held, pools::Active},
};

/// What a connection goes on with after its last request.
#[derive(Default)]
pub struct UpgradeSlot {
    left: RefCell<Option<Upgrade>>,
}

/// An upgrade that both sides agreed to.
pub struct Upgrade {
    /// The endpoint's side, when HTTP/1.1 has let go of it.
    pub upstream: oneshot::Receiver<Stream>,
    /// Its request's report.
    pub report: Box<Report>,
    /// Its places in the pool.
    pub held: (Held, Held, Active),
}

impl UpgradeSlot {
    /// The request was answered with 101.
    pub fn leave(&self, upgrade: Upgrade) {
        *self.left.borrow_mut() = Some(upgrade);
    }
}

/// HTTP/1.1 has let go of the caller's connection: relays, if it was upgraded, or else waits for the caller to finish as well.
pub async fn go_on(slot: &UpgradeSlot, downstream: Stream) {
    let left = slot.left.borrow_mut().take();
    let Some(upgrade) = left else { return downstream.linger().await };
    let Upgrade { upstream, mut report, held } = upgrade;
    let Ok(upstream) = upstream.await else { return };
    let options = RelayOptions { control: report.control() };
    let outcome = relay(downstream, upstream, &options).await;
    drop(held);
    report.relayed(&outcome);
}
