//! Enrols pods, and un-enrols them, in the order that loses no connection.
//!
//! *Enrol a live pod*: find its namespace → the node proxy listens in it (ZDS Add answered) → what arrives is captured → what it opens is
//! captured → annotation `enabled`, from which the control plane tells peers to use tunnels.
//! *Un-enrol a live pod*: what it opens passes → annotation withdrawn → a bounded wait until peers have heard → what arrives passes →
//! ZDS Del → entries removed. Connections that are open live on.
//! *A pod that is gone*: everything is removed at once, before its address is used again.
//!
//! One task does it all, a step at a time; whatever has to wait is due later.

mod member;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tropis_maps::PodEntry;
use tropis_source::{Report, Source, SourceEvent, Watch};
use tropis_telemetry::{chain, readiness::ReadinessTask};

use self::member::{Member, Phase};
use crate::{
    kernel::{Capture, CaptureError},
    namespaces::{LocateError, Place, Processes},
    pods::{Facts, PodFacts},
    zds::{Handed, Listen, Zds, ZdsEvent},
};

pub use self::member::PodStatus;

/// How long peers get to hear that a pod takes tunnels no more.
const LEAVING: Duration = Duration::from_secs(2);
/// How often pods are looked for again: a restarted pod may have another namespace under the same UID.
const SWEEP: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// The node proxy's listener for captured connections, as under istio-cni.
const OUTBOUND_PORT: u16 = 15001;
/// The first of its DNS listeners.
const DNS_PORT: u16 = 15053;
const ANNOTATION: &str = "ambient.istio.io/redirection";
const ENABLED: &str = "enabled";
const PENDING: &str = "pending";

/// What enrolling needs to know.
#[derive(Debug, Clone)]
pub struct EnrolmentSettings {
    /// This node's name.
    pub node: String,
    /// Capture DNS unless a pod says otherwise.
    pub dns_capture: bool,
    /// Labels of sidecar users enrol, too.
    pub sidecar_labels: bool,
}

/// What others may see of the pods that are enrolled.
#[derive(Debug, Clone)]
pub struct Status {
    pods: Arc<Mutex<BTreeMap<String, PodStatus>>>,
    capture: Arc<Capture>,
}

impl Status {
    /// The pods, by UID.
    pub fn pods(&self) -> BTreeMap<String, PodStatus> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The kernel side.
    pub fn capture(&self) -> &Capture {
        &self.capture
    }
}

/// The task.
pub struct Enroller {
    settings: EnrolmentSettings,
    capture: Arc<Capture>,
    source: Arc<dyn Source>,
    zds: Zds,
    zds_events: mpsc::UnboundedReceiver<ZdsEvent>,
    facts: Facts,
    members: BTreeMap<String, Member>,
    status: Status,
}

impl Enroller {
    /// Nothing happens before [`Self::run`].
    pub fn new(
        settings: EnrolmentSettings,
        capture: Capture,
        source: Arc<dyn Source>,
        zds: Zds,
        zds_events: mpsc::UnboundedReceiver<ZdsEvent>,
    ) -> Self {
        let capture = Arc::new(capture);
        let facts = Facts::new(&settings.node, settings.sidecar_labels);
        let status = Status { pods: Arc::default(), capture: Arc::clone(&capture) };
        Self { settings, capture, source, zds, zds_events, facts, members: BTreeMap::new(), status }
    }

    /// What others may see.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Takes over what an earlier process enrolled, then follows the source until stopped. Capture stays when it returns.
    ///
    /// # Errors
    /// The socket for the node proxy cannot be made.
    pub async fn run(mut self, listen: Listen, ready: ReadinessTask, stop: CancellationToken) -> io::Result<()> {
        let mut watch = self.source.watch();
        if !self.first_look(&mut watch, &stop).await {
            return Ok(());
        }
        // Only now: a proxy that connects takes pods that its snapshot lacks for gone.
        let mut server = tokio::spawn(self.zds.clone().serve(listen, stop.clone()));
        ready.ready();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sweep.reset();
        loop {
            self.run_due().await;
            self.show();
            let due = self.members.values().filter_map(|member| member.due).min().unwrap_or_else(|| Instant::now() + SWEEP);
            tokio::select! {
                event = watch.recv() => {
                    let Some(event) = event else { return Err(io::Error::other("the object source ended")) };
                    self.take_in(event);
                    while let Some(event) = watch.try_recv() {
                        self.take_in(event);
                    }
                    self.decide().await;
                }
                event = self.zds_events.recv() => if let Some(event) = event { self.heed(event) },
                () = sleep_until(due) => {}
                _ = sweep.tick() => self.look_again().await,
                ended = &mut server => return ended.unwrap_or_else(|error| Err(io::Error::other(error))),
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Reads all that exists, then takes over or removes what is pinned. False when stopped meanwhile.
    async fn first_look(&mut self, watch: &mut Watch, stop: &CancellationToken) -> bool {
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
        let located = processes.locate(&entry.uid, &entry.addresses().collect::<Vec<_>>()).ok();
        let place = located.filter(|place| place.cookie() == cookie);
        match (wanted, &place) {
            (Some(facts), _) => {
                let mut member = Member::new(Arc::clone(facts));
                member.cookie = Some(cookie);
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
            (None, _) => {
                tracing::info!(uid = entry.uid, cookie, "removing a pod that is gone");
                self.remove(&entry.uid, cookie, entry.addresses().collect()).await;
            }
        }
    }

    fn take_in(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Applied(object) => self.facts.apply(&object),
            SourceEvent::Deleted(object) => self.facts.remove(&object),
            SourceEvent::Findings { .. } | SourceEvent::Synced => {}
        }
    }

    fn heed(&mut self, event: ZdsEvent) {
        match event {
            ZdsEvent::Connected => {
                for member in self.members.values_mut().filter(|member| member.phase == Phase::Waiting) {
                    member.due = Some(Instant::now());
                    member.attempts = 0;
                }
            }
            ZdsEvent::Refused { uid, .. } => {
                if let Some(member) = self.members.get_mut(&uid).filter(|member| member.phase == Phase::Enrolled) {
                    // Stays captured (its connections are refused, not let through) until the proxy can serve it.
                    member.phase = Phase::Waiting;
                    member.retry();
                }
            }
        }
    }

    /// Compares who should be enrolled with who is.
    async fn decide(&mut self) {
        let wanted = self.facts.wanted();
        let mut changed = false;
        for (uid, facts) in &wanted {
            match self.members.get_mut(uid) {
                None => {
                    let mut member = Member::new(Arc::clone(facts));
                    member.due = Some(Instant::now());
                    self.members.insert(uid.clone(), member);
                }
                Some(member) if member.phase == Phase::Leaving => {
                    member.facts = Arc::clone(facts);
                    member.phase = Phase::Waiting;
                    member.due = Some(Instant::now());
                }
                Some(member) if member.facts != *facts => {
                    let enrolled_otherwise = !member.facts.enrols_like(facts);
                    member.facts = Arc::clone(facts);
                    changed = true;
                    if enrolled_otherwise {
                        member.phase = Phase::Waiting;
                        member.due = Some(Instant::now());
                    }
                }
                Some(_) => {}
            }
        }
        if changed {
            self.look_again().await;
        }
        let gone: Vec<String> = self.members.keys().filter(|uid| !wanted.contains_key(*uid)).cloned().collect();
        for uid in gone {
            if self.facts.alive(&uid).is_none() {
                self.forget(&uid).await;
            } else if self.members.get(&uid).is_some_and(|member| member.phase != Phase::Leaving) {
                self.begin_leaving(&uid).await;
            }
        }
    }

    /// Does what is due.
    async fn run_due(&mut self) {
        let now = Instant::now();
        let due: Vec<String> =
            self.members.iter().filter(|(_, member)| member.due.is_some_and(|due| due <= now)).map(|(uid, _)| uid.clone()).collect();
        if due.is_empty() {
            return;
        }
        let processes = look().await;
        for uid in due {
            match self.members.get_mut(&uid) {
                Some(member) if member.phase == Phase::Leaving => {
                    tracing::info!(pod = member.facts.name(), "un-enrolled");
                    self.forget(&uid).await;
                }
                Some(member) => {
                    member.due = None;
                    self.enrol(&uid, &processes).await;
                }
                None => {}
            }
        }
    }

    /// Enrols a pod, or tries again later.
    async fn enrol(&mut self, uid: &str, processes: &Processes) {
        let Some(member) = self.members.get(uid) else { return };
        let facts = Arc::clone(&member.facts);
        let place = match processes.locate(uid, &facts.addresses) {
            Ok(place) => place,
            Err(error) => return self.not_located(uid, &facts, &error),
        };
        if let Some(before) = member.cookie.filter(|before| *before != place.cookie()) {
            tracing::info!(pod = facts.name(), "the pod has another network namespace now");
            self.remove_from_kernel(uid, before, Vec::new());
            if let Some(member) = self.members.get_mut(uid) {
                member.cookie = None;
            }
        }
        if let Err(error) = self.zds.add(handed(&facts, Some(&place))).await {
            // A pod that is captured is still served: saying `pending` would send its peers to it in plaintext.
            let first = self.members.get(uid).is_some_and(|member| member.cookie.is_none() && member.said != Some(PENDING));
            if first {
                tracing::warn!(pod = facts.name(), error = chain(&error), "waiting for the node proxy");
            }
            // Marked for the mesh: until a proxy serves it, its connections are refused, never plain (ADR 4).
            self.capture_in_kernel(uid, &facts, &place);
            let said = first && self.annotate(&facts, PENDING).await;
            if let Some(member) = self.members.get_mut(uid) {
                member.said = if said { Some(PENDING) } else { member.said };
                member.retry();
            }
            return;
        }
        if !self.capture_in_kernel(uid, &facts, &place) {
            if let Some(member) = self.members.get_mut(uid) {
                member.retry();
            }
            return;
        }
        let annotated = self.annotate(&facts, ENABLED).await;
        tracing::info!(pod = facts.name(), netns_cookie = place.cookie(), addresses = ?facts.addresses, "enrolled");
        if let Some(member) = self.members.get_mut(uid) {
            member.cookie = Some(place.cookie());
            member.place = Some(place);
            member.phase = Phase::Enrolled;
            member.attempts = 0;
            member.said = annotated.then_some(ENABLED);
            if !annotated {
                member.phase = Phase::Waiting;
                member.retry();
            }
        }
    }

    /// Captures a pod. False when the kernel refused; what half of it succeeded goes with the pod.
    fn capture_in_kernel(&mut self, uid: &str, facts: &PodFacts, place: &Place) -> bool {
        if let Some(member) = self.members.get_mut(uid) {
            // Before the kernel hears of it, so that it is removed whatever happens.
            member.cookie = Some(place.cookie());
        }
        let captured = self.enrol_in_kernel(facts, place);
        if let Err(error) = &captured {
            tracing::error!(pod = facts.name(), error = chain(error), "the pod cannot be captured");
        }
        captured.is_ok()
    }

    fn not_located(&mut self, uid: &str, facts: &PodFacts, error: &LocateError) {
        let Some(member) = self.members.get_mut(uid) else { return };
        // A pod that is just being made has no process yet.
        if member.attempts > 4 {
            tracing::warn!(pod = facts.name(), error = chain(error), "its network namespace is not found");
        }
        member.retry();
    }

    /// What arrives first, then what it opens: the proxy listens already.
    fn enrol_in_kernel(&self, facts: &PodFacts, place: &Place) -> Result<(), CaptureError> {
        if facts.bypass_inbound {
            self.capture.detach_inbound(place.cookie())?;
        } else {
            self.capture.attach_inbound(place.as_fd(), place.cookie())?;
        }
        self.capture.maps().enrol(place.cookie(), &self.entry(facts, true))?;
        Ok(())
    }

    fn entry(&self, facts: &PodFacts, captures: bool) -> PodEntry {
        PodEntry {
            uid: facts.uid.clone(),
            ipv4: facts.addresses.iter().find_map(|ip| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            }),
            ipv6: facts.addresses.iter().find_map(|ip| match ip {
                IpAddr::V6(ip) => Some(*ip),
                IpAddr::V4(_) => None,
            }),
            outbound_port: OUTBOUND_PORT,
            dns_port: if facts.dns_capture.unwrap_or(self.settings.dns_capture) { DNS_PORT } else { 0 },
            captures,
        }
    }

    /// The first half of un-enrolling a live pod.
    async fn begin_leaving(&mut self, uid: &str) {
        let Some(member) = self.members.get_mut(uid) else { return };
        member.phase = Phase::Leaving;
        member.due = Some(Instant::now() + LEAVING);
        member.said = None;
        let (facts, cookie) = (Arc::clone(&member.facts), member.cookie);
        tracing::info!(pod = facts.name(), "un-enrolling");
        match cookie {
            Some(cookie) => {
                if let Err(error) = self.capture.maps().enrol(cookie, &self.entry(&facts, false)) {
                    tracing::error!(pod = facts.name(), error = chain(&error), "outbound capture stays on");
                }
            }
            // Never captured anything.
            None => member.due = Some(Instant::now()),
        }
        self.withdraw(&facts).await;
    }

    /// Removes a pod: it is gone, or has left in order.
    async fn forget(&mut self, uid: &str) {
        let Some(member) = self.members.remove(uid) else { return };
        self.withdraw(&member.facts).await;
        match member.cookie {
            Some(cookie) => self.remove(uid, cookie, member.facts.addresses.clone()).await,
            None => self.zds.delete(uid).await,
        }
        self.show();
    }

    /// What arrives passes, then the proxy lets go, then the entries go: never an entry that leads to a listener which is closed.
    async fn remove(&mut self, uid: &str, cookie: u64, addresses: Vec<IpAddr>) {
        if let Err(error) = self.capture.detach_inbound(cookie) {
            tracing::error!(uid, error = chain(&error), "inbound capture stays on");
        }
        self.zds.delete(uid).await;
        self.remove_from_kernel(uid, cookie, addresses);
    }

    /// Addresses that another pod has by now stay that one's.
    fn remove_from_kernel(&self, uid: &str, cookie: u64, addresses: Vec<IpAddr>) {
        let taken = |ip: &IpAddr| self.members.iter().any(|(other, member)| other != uid && member.facts.addresses.contains(ip));
        let free: Vec<IpAddr> = addresses.into_iter().filter(|ip| !taken(ip)).collect();
        if let Err(error) = self.capture.remove(cookie, free) {
            tracing::error!(uid, error = chain(&error), "entries of a pod stay");
        }
    }

    /// Looks whether enrolled pods are still where they were.
    async fn look_again(&mut self) {
        let processes = look().await;
        for (uid, member) in self.members.iter_mut().filter(|(_, member)| member.phase == Phase::Enrolled) {
            if let Ok(place) = processes.locate(uid, &member.facts.addresses)
                && Some(place.cookie()) != member.cookie
            {
                member.phase = Phase::Waiting;
                member.due = Some(Instant::now());
            }
        }
    }

    async fn annotate(&self, facts: &PodFacts, value: &str) -> bool {
        let fields = json!({"metadata": {"uid": facts.uid, "annotations": {ANNOTATION: value}}});
        match self.source.report(Report::new(self.writer(), facts.reference.clone(), fields)).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(pod = facts.name(), error = chain(&error), "the annotation could not be written");
                false
            }
        }
    }

    async fn withdraw(&self, facts: &PodFacts) {
        if let Err(error) = self.source.withdraw(&self.writer(), &facts.reference).await {
            tracing::error!(pod = facts.name(), error = chain(&error), "the annotation could not be withdrawn");
        }
    }

    fn writer(&self) -> String {
        format!("redirector.{}", self.settings.node)
    }

    fn show(&self) {
        let pods = self.members.iter().map(|(uid, member)| (uid.clone(), member.status())).collect();
        *self.status.pods.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }
}

/// One look at all processes, off this thread: it reads a file or two for each.
async fn look() -> Processes {
    tokio::task::spawn_blocking(Processes::look).await.unwrap_or_default()
}

fn handed(facts: &PodFacts, place: Option<&Place>) -> Handed {
    Handed {
        uid: facts.uid.clone(),
        name: facts.reference.name.clone(),
        namespace: facts.reference.namespace.clone(),
        service_account: facts.service_account.clone(),
        netns: place.map(Place::descriptor),
    }
}
