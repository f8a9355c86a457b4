//! A pod on its way into the mesh, in it, or on its way out.

use std::{net::IpAddr, sync::Arc};

use serde::Serialize;
use tokio::time::Instant;

use super::{PATIENCE, RETRY_FIRST, RETRY_LAST};
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
    /// Its object is gone, or it runs elsewhere by now; captured until nothing runs there.
    Ending,
}

/// A pod that is, or is to be, enrolled.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) facts: Arc<PodFacts>,
    pub(super) phase: Phase,
    /// Where it was found last.
    pub(super) place: Option<Place>,
    /// The namespace that has an entry, which may be another one than it is in by now.
    pub(super) cookie: Option<u64>,
    /// That namespace is captured by our programs.
    pub(super) captured: bool,
    /// What the node proxy is being asked.
    pub(super) asked: Option<Asked>,
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
        Self {
            facts,
            phase: Phase::Waiting,
            place: None,
            cookie: None,
            captured: false,
            asked: None,
            due: None,
            attempts: 0,
            held_by_older: false,
            said: None,
        }
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

    /// Without the programs of another version it might be plain: they hold it, or ours do not capture it yet. One that cannot be found is
    /// not waited for without end.
    pub(super) fn needs_older(&self) -> bool {
        let is_found = self.cookie.is_some() || self.asked.is_some();
        self.held_by_older || (self.phase == Phase::Waiting && !self.captured && (is_found || self.attempts <= PATIENCE))
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

/// A question to the node proxy that is not answered yet: to serve a pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) number: u64,
    /// Where it is to be served.
    pub(super) cookie: u64,
    /// From when on it is captured without an answer.
    pub(super) late: Instant,
    /// How many proxies had connected before.
    pub(super) connections: u64,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Facts;

    #[tokio::test]
    async fn programs_of_another_version_are_needed_until_ours_capture() {
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "b", "uid": "u"},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"},
        });
        let mut facts = Facts::new("n", false);
        facts.apply(&tropis_crds::decode(object).unwrap().0);
        let mut member = Member::new(facts.alive("u").unwrap());
        assert!(member.needs_older(), "nobody has looked for it yet");
        member.attempts = PATIENCE + 1;
        assert!(!member.needs_older(), "it cannot be found");
        member.cookie = Some(7);
        assert!(member.needs_older(), "found, and the kernel refused ours");
        member.captured = true;
        assert!(!member.needs_older());
        member.held_by_older = true;
        for phase in [Phase::Waiting, Phase::Enrolled, Phase::Leaving, Phase::Closing] {
            member.phase = phase;
            assert!(member.needs_older(), "{phase:?}");
        }
    }
}
