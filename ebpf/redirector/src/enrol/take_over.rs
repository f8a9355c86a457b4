//! What an earlier process left: pods that it enrolled, and programs of another version.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tropis_maps::PodEntry;
use tropis_source::{SourceEvent, Watch};
use tropis_telemetry::chain;

use super::{
    ENABLED, Enroller, handed,
    leave::Retired,
    look,
    member::{Member, Phase},
};
use crate::{namespaces::Processes, pods::PodFacts};

/// How long programs of another version stay when they capture nothing new any more.
const OLDER_LINGERS: Duration = Duration::from_secs(2);

impl Enroller {
    /// Reads all that exists, then takes over or removes what is pinned. False when stopped meanwhile.
    pub(super) async fn first_look(&mut self, watch: &mut Watch, stop: &CancellationToken) -> bool {
        loop {
            tokio::select! {
                event = watch.recv() => match event {
                    Some(SourceEvent::Synced) => break,
                    Some(event) => self.take_in(event),
                    None => return false,
                },
                () = stop.cancelled() => return false,
            }
        }
        let pinned = self.capture.maps().pods().unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "the enrolled pods cannot be read");
            Vec::new()
        });
        let processes = look().await;
        let wanted = self.facts.wanted();
        for (cookie, entry) in &pinned {
            self.take_over(*cookie, entry, wanted.get(&entry.uid), &processes).await;
        }
        self.let_go_of_unwanted(&processes).await;
        let known: BTreeSet<u64> = pinned.iter().map(|(cookie, _)| *cookie).collect();
        for cookie in self.capture.inbound_links().unwrap_or_default().into_iter().filter(|cookie| !known.contains(cookie)) {
            if let Err(error) = self.capture.detach_inbound(cookie) {
                tracing::warn!(error = chain(&error), "a left-over link stays");
            }
        }
        self.decide().await;
        true
    }

    /// A pod that an earlier process enrolled: goes on as it is, leaves in order, or is removed because it is gone.
    async fn take_over(&mut self, cookie: u64, entry: &PodEntry, wanted: Option<&Arc<PodFacts>>, processes: &Processes) {
        if self.members.contains_key(&entry.uid) {
            return self.take_over_another(cookie, entry, processes);
        }
        let located = processes.locate(&entry.uid, &entry.addresses().collect::<Vec<_>>()).ok();
        let place = located.filter(|place| place.cookie() == cookie);
        match (wanted, &place) {
            (Some(facts), _) => {
                let mut member = Member::new(Arc::clone(facts));
                member.cookie = Some(cookie);
                member.captured = true;
                self.newer_proxy |= self.capture.has_older() && self.shares_maps(facts);
                self.zds.register(handed(facts, place.as_ref()));
                match place {
                    Some(place) => {
                        if let Err(error) = self.enrol_in_kernel(facts, &place) {
                            tracing::error!(pod = facts.name(), error = chain(&error), "an enrolled pod keeps an older program");
                        }
                        // Written again: the process before may have ended between capturing and saying so, and peers go by what is said.
                        let annotated = self.annotate(facts, ENABLED).await;
                        member.said = annotated.then_some(ENABLED);
                        member.place = Some(place);
                        if annotated {
                            member.phase = Phase::Enrolled;
                        } else {
                            member.retry();
                        }
                    }
                    // Its namespace will be found, or it will be another one: captured meanwhile as it was.
                    None => member.due = Some(Instant::now()),
                }
                tracing::info!(pod = facts.name(), found = member.place.is_some(), "took over an enrolled pod");
                self.members.insert(facts.uid.clone(), member);
            }
            (None, Some(_)) if let Some(facts) = self.facts.alive(&entry.uid) => {
                // Lost its label while nobody watched: part of the snapshot until it has left in order.
                self.zds.register(handed(&facts, place.as_ref()));
                let mut member = Member::new(facts);
                member.cookie = Some(cookie);
                member.place = place;
                self.members.insert(entry.uid.clone(), member);
                self.begin_leaving(&entry.uid).await;
            }
            (None, _) if self.facts.alive(&entry.uid).is_none() => {
                tracing::info!(uid = entry.uid, cookie, "a pod is gone");
                self.retired.insert(cookie, Retired::unknown(cookie, entry.clone()));
            }
            (None, _) => {
                tracing::info!(uid = entry.uid, cookie, "removing what is left of a pod");
                if let Some(facts) = self.facts.alive(&entry.uid) {
                    self.withdraw(&facts).await;
                }
                self.remove(&entry.uid, cookie, entry.addresses().collect());
            }
        }
    }

    /// A second namespace of one pod: it runs in one of them, the other is captured until it is empty.
    fn take_over_another(&mut self, cookie: u64, entry: &PodEntry, processes: &Processes) {
        let located = processes.locate(&entry.uid, &entry.addresses().collect::<Vec<_>>()).ok();
        let Some(member) = self.members.get_mut(&entry.uid) else { return };
        if matches!(member.phase, Phase::Leaving | Phase::Closing) {
            // As its owner wished.
            return self.remove_from_kernel(&entry.uid, cookie, Vec::new());
        }
        let mut other = cookie;
        if let Some(place) = located.filter(|place| place.cookie() == cookie) {
            other = member.cookie.replace(cookie).unwrap_or(cookie);
            self.zds.register(handed(&member.facts, Some(&place)));
            member.place = Some(place);
            member.phase = Phase::Waiting;
            member.due = Some(Instant::now());
        }
        let facts = Arc::clone(&member.facts);
        self.retire(other, &facts, self.entry(&facts, true));
    }

    /// What was said of pods that do not belong to the mesh any more, when nobody watched and whatever became of the pins. Those that the
    /// programs of another version capture leave in order.
    async fn let_go_of_unwanted(&mut self, processes: &Processes) {
        for facts in self.facts.wrongly_marked() {
            if self.members.contains_key(&facts.uid) {
                continue;
            }
            let place = processes.locate(&facts.uid, &facts.addresses).ok();
            if let Some(place) = place.filter(|place| self.capture.older_holds(place.cookie())) {
                self.zds.register(handed(&facts, Some(&place)));
                let mut member = Member::new(Arc::clone(&facts));
                member.place = Some(place);
                self.members.insert(facts.uid.clone(), member);
                self.begin_leaving(&facts.uid).await;
            } else {
                self.withdraw(&facts).await;
            }
        }
    }

    /// Whether the node proxy that serves a pod has put its listeners into our maps. One of another version puts them elsewhere, and marks
    /// its own connections elsewhere: our programs would capture them again without end.
    pub(super) fn shares_maps(&self, facts: &PodFacts) -> bool {
        self.capture.maps().has_listeners(&facts.addresses).unwrap_or_else(|error| {
            tracing::error!(pod = facts.name(), error = chain(&error), "the listeners cannot be read");
            false
        })
    }

    /// Removes the programs of another version a while after ours capture every pod, for a proxy that was seen to know them: connections
    /// that those captured are still to be asked for their destination.
    pub(super) fn let_older_go(&mut self) {
        let needed = !self.newer_proxy || self.members.values().any(Member::needs_older);
        if needed || !self.capture.has_older() {
            self.older_due = None;
            return;
        }
        let due = *self.older_due.get_or_insert_with(|| Instant::now() + OLDER_LINGERS);
        if due <= Instant::now() {
            self.older_due = None;
            if let Err(error) = self.capture.remove_older() {
                tracing::error!(%error, "programs of another version stay");
            }
        }
    }
}
