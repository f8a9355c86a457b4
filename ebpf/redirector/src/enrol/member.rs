//! A pod on its way into the mesh, in it, or on its way out.

use std::{net::IpAddr, sync::Arc};

use serde::Serialize;
use tokio::time::Instant;

use super::{RETRY_FIRST, RETRY_LAST};
use crate::{namespaces::Place, pods::PodFacts};

/// Where a pod is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// For its namespace, for the node proxy, or for a second try.
    Waiting,
    /// Captured, and served by the node proxy.
    Enrolled,
    /// What it opens passes; peers are hearing of it.
    Leaving,
    /// What arrives passes, too; the node proxy finishes what it has accepted.
    Closing,
    /// Its object is gone; captured until its processes are.
    Ending,
}

/// A pod that is, or is to be, enrolled.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) facts: Arc<PodFacts>,
    pub(super) phase: Phase,
    pub(super) place: Option<Place>,
    /// The namespace that has an entry, which may be another one than it is in by now.
    pub(super) cookie: Option<u64>,
    /// When something is to be done about it.
    pub(super) due: Option<Instant>,
    pub(super) attempts: u32,
    /// Captured by the programs of an older version, for a node proxy of that version.
    pub(super) held_by_older: bool,
    /// What its annotation says, as far as this process wrote it.
    pub(super) said: Option<&'static str>,
}

impl Member {
    pub(super) fn new(facts: Arc<PodFacts>) -> Self {
        Self { facts, phase: Phase::Waiting, place: None, cookie: None, due: None, attempts: 0, held_by_older: false, said: None }
    }

    /// Tries again: soon at first, then less and less often.
    pub(super) fn retry(&mut self) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.attempts.min(10)).min(RETRY_LAST);
        self.attempts += 1;
        self.due = Some(Instant::now() + wait);
    }

    /// It has, or may have, connections that must not pass.
    pub(super) fn is_captured(&self) -> bool {
        self.cookie.is_some() && matches!(self.phase, Phase::Waiting | Phase::Enrolled)
    }

    pub(super) fn status(&self) -> PodStatus {
        PodStatus {
            name: self.facts.reference.name.clone(),
            namespace: self.facts.reference.namespace.clone(),
            phase: self.phase,
            netns_cookie: self.cookie,
            addresses: self.facts.addresses.clone(),
        }
    }
}

/// What others may see of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Where it is on its way.
    pub phase: Phase,
    /// Its network namespace, once there is an entry for it.
    pub netns_cookie: Option<u64>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}
