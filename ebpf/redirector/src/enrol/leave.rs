//! How pods leave: in order while they live, and from the kernel's maps when nothing of them runs any more.

use std::{net::IpAddr, os::fd::AsFd as _, sync::Arc, time::Duration};

use tokio::time::Instant;
use tropis_maps::PodEntry;
use tropis_telemetry::chain;

use super::{
    Enroller, RETRY_FIRST,
    ask::Removal,
    member::{Phase, PodStatus},
};
use crate::{
    kernel::CaptureError,
    namespaces::{self, Place, Processes},
    pods::PodFacts,
};

/// How long peers get to hear that a pod takes tunnels no more.
const LEAVING: Duration = Duration::from_secs(2);
/// How long the node proxy gets to accept what its listeners have queued, before it closes them.
const CLOSING: Duration = Duration::from_millis(500);
/// How often at least it is looked whether a namespace is empty.
const RETIRED_LAST: Duration = Duration::from_secs(1);

/// A namespace that is captured although its pod is gone or runs elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Retired {
    pub(super) entry: PodEntry,
    pub(super) status: PodStatus,
}

impl Retired {
    /// Of a pod that nothing but its entry tells about.
    pub(super) fn unknown(cookie: u64, entry: PodEntry) -> Self {
        let addresses = entry.addresses().collect();
        let status =
            PodStatus { name: String::new(), namespace: String::new(), phase: Phase::Ending, netns_cookie: Some(cookie), addresses };
        Self { entry, status }
    }
}

impl Enroller {
    /// The first half of un-enrolling a live pod.
    pub(super) async fn begin_leaving(&mut self, uid: &str) {
        let Some(member) = self.members.get_mut(uid) else { return };
        member.phase = Phase::Leaving;
        member.due = Some(Instant::now() + LEAVING);
        member.said = None;
        member.asked = None;
        let older = member.place.as_ref().map(Place::cookie).filter(|cookie| self.capture.older_holds(*cookie));
        member.held_by_older = older.is_some();
        let (facts, cookie) = (Arc::clone(&member.facts), member.cookie);
        tracing::info!(pod = facts.name(), "un-enrolling");
        let ours = cookie.map_or(Ok(()), |cookie| Ok(self.capture.maps().enrol(cookie, &self.entry(&facts, false))?));
        let theirs = older.map_or(Ok(()), |cookie| self.capture.pass_older_outbound(cookie));
        for error in [ours, theirs].into_iter().filter_map(Result::<(), CaptureError>::err) {
            tracing::error!(pod = facts.name(), error = chain(&error), "outbound capture stays on");
        }
        if cookie.or(older).is_none()
            && let Some(member) = self.members.get_mut(uid)
        {
            // Never captured anything.
            member.due = Some(Instant::now());
        }
        self.withdraw(&facts).await;
    }

    /// The second half begins when peers have heard: what arrives passes. What the proxy's listeners have queued is theirs to accept.
    pub(super) fn stop_inbound(&mut self, uid: &str) {
        let Some(member) = self.members.get(uid) else { return };
        let older = member.place.as_ref().map(Place::cookie).filter(|_| member.held_by_older);
        if member.cookie.or(older).is_none() {
            return self.finish_leaving(uid);
        }
        let ours = member.cookie.map_or(Ok(()), |cookie| Ok(self.capture.detach_inbound(cookie)?));
        let theirs = older.map_or(Ok(()), |cookie| self.capture.detach_older_inbound(cookie));
        for error in [ours, theirs].into_iter().filter_map(Result::<(), CaptureError>::err) {
            tracing::error!(uid, error = chain(&error), "inbound capture stays on");
        }
        if let Some(member) = self.members.get_mut(uid) {
            member.phase = Phase::Closing;
            member.due = Some(Instant::now() + CLOSING);
        }
    }

    /// The end of un-enrolling a live pod.
    pub(super) fn finish_leaving(&mut self, uid: &str) {
        let Some(member) = self.members.remove(uid) else { return };
        tracing::info!(pod = member.facts.name(), "un-enrolled");
        match member.cookie {
            Some(cookie) => self.remove(uid, cookie, member.facts.addresses.clone()),
            None => self.ask_to_let_go(uid, None),
        }
    }

    /// A pod's object is gone: the proxy lets go of it, the kernel once nothing runs in its namespace.
    pub(super) async fn forget(&mut self, uid: &str) {
        let Some(member) = self.members.remove(uid) else { return };
        self.withdraw(&member.facts).await;
        match member.cookie {
            // What it opens passes already, as its owner wished.
            Some(cookie) if matches!(member.phase, Phase::Leaving | Phase::Closing) => {
                return self.remove(uid, cookie, member.facts.addresses.clone());
            }
            Some(cookie) => self.retire(cookie, &member.facts, self.entry(&member.facts, true)),
            None => {}
        }
        self.ask_to_let_go(uid, None);
    }

    /// Leaves a namespace captured until nothing runs in it.
    pub(super) fn retire(&mut self, cookie: u64, facts: &PodFacts, entry: PodEntry) {
        let status = PodStatus {
            name: facts.reference.name.clone(),
            namespace: facts.reference.namespace.clone(),
            phase: Phase::Ending,
            netns_cookie: Some(cookie),
            addresses: facts.addresses.clone(),
        };
        self.retired.insert(cookie, Retired { entry, status });
        (self.retired_due, self.retired_wait) = (Instant::now(), RETRY_FIRST);
    }

    /// Lets go of the namespaces that are empty: no process is in them, nor is any of a pod that is gone left elsewhere.
    pub(super) async fn tend_retired(&mut self) {
        if self.retired.is_empty() || self.retired_due > Instant::now() {
            return;
        }
        self.retired_due = Instant::now() + self.retired_wait;
        self.retired_wait = (self.retired_wait * 2).min(RETIRED_LAST);
        let looked = tokio::task::spawn_blocking(|| namespaces::inhabited().map(|inhabited| (inhabited, Processes::look()))).await;
        let (inhabited, processes) = match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err(error)) => return tracing::error!(%error, "nobody knows which namespaces are empty: all stay captured"),
            Err(_) => return,
        };
        for (cookie, retired) in self.retired.clone() {
            let uid = &retired.entry.uid;
            let elsewhere = self.members.contains_key(uid);
            if !elsewhere && let Ok(place) = processes.locate(uid, &retired.status.addresses) {
                self.capture_what_is_left(&retired, &place);
            }
            if !inhabited.contains(&cookie) && (elsewhere || !processes.any_of(uid)) {
                self.retired.remove(&cookie);
                // The pod's addresses are in use where it runs now.
                let addresses = if elsewhere { Vec::new() } else { retired.status.addresses.clone() };
                self.remove_from_kernel(uid, cookie, addresses);
                tracing::info!(uid, cookie, "nothing runs in its namespace any more");
            }
        }
    }

    /// A pod whose object is gone, and whose processes run in another namespace than they did.
    fn capture_what_is_left(&mut self, retired: &Retired, place: &Place) {
        let cookie = place.cookie();
        if self.retired.contains_key(&cookie) {
            return;
        }
        let attached = self.capture.attach_inbound(place.as_fd(), cookie).map_err(CaptureError::from);
        if let Err(error) = attached.and_then(|()| Ok(self.capture.maps().enrol(cookie, &retired.entry)?)) {
            tracing::error!(uid = retired.entry.uid, error = chain(&error), "what is left of a pod cannot be captured");
        }
        self.retired
            .insert(cookie, Retired { status: PodStatus { netns_cookie: Some(cookie), ..retired.status.clone() }, ..retired.clone() });
    }

    /// What arrives passes, then the proxy lets go, then the entries go: never an entry that leads to a listener which is closed.
    pub(super) fn remove(&self, uid: &str, cookie: u64, addresses: Vec<IpAddr>) {
        if let Err(error) = self.capture.detach_inbound(cookie) {
            tracing::error!(uid, error = chain(&error), "inbound capture stays on");
        }
        self.ask_to_let_go(uid, Some(Removal { cookie, addresses }));
    }

    /// Addresses that a pod has by now stay that one's.
    pub(super) fn remove_from_kernel(&self, uid: &str, cookie: u64, addresses: Vec<IpAddr>) {
        let taken = |ip: &IpAddr| {
            self.members.values().any(|member| member.facts.addresses.contains(ip))
                || self.retired.iter().any(|(other, retired)| *other != cookie && retired.status.addresses.contains(ip))
        };
        let free: Vec<IpAddr> = addresses.into_iter().filter(|ip| !taken(ip)).collect();
        if let Err(error) = self.capture.remove(cookie, free) {
            tracing::error!(uid, error = chain(&error), "entries of a pod stay");
        }
    }
}
