//! Enrols pods, and un-enrols them, in the order that loses no connection.
//!
//! *Enrol a live pod*: find its namespace → the node proxy listens in it (ZDS Add answered; half a second at most, then it is captured
//! without, ADR 4) → what arrives is captured → what it opens is captured → annotation `enabled`, from which the control plane tells peers
//! to use tunnels.
//! *Un-enrol a live pod*: what it opens passes → annotation withdrawn → a bounded wait until peers have heard → what arrives passes →
//! the proxy has accepted what was on its way → ZDS Del → entries removed. Connections that are open live on.
//! *A pod that is gone*: ZDS Del at once, before its address is used again; entries stay until nothing runs in its namespace.
//! *A pod whose sandbox was made anew*: captured where it runs now as soon as it is seen, and where it ran until nothing does.
//!
//! One task does it all, a step at a time; whatever has to wait is due later. Only the proxy is asked by another one (`ask.rs`).

mod ask;
mod effects;
mod leave;
mod member;
mod take_over;

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tropis_source::{Source, SourceEvent};
use tropis_telemetry::{chain, readiness::ReadinessTask};

use self::{
    ask::Asking,
    leave::Retired,
    member::{Member, Phase},
};
use crate::{
    kernel::Capture,
    namespaces::{LocateError, Place, Processes},
    pods::{Facts, PodFacts},
    sandboxes::Sandboxes,
    zds::{Handed, Listen, Zds, ZdsEvent},
};

pub use self::member::PodStatus;

/// How often pods are looked for again, should their folders have told nothing; and where their folders are not watched.
const SWEEP: Duration = Duration::from_secs(10);
const SWEEP_UNHEARD: Duration = Duration::from_secs(1);
/// A pod that is just being made has no process yet; past so many looks something is wrong.
const PATIENCE: u32 = 4;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);
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
    /// The node proxy does not know our maps.
    pub foreign_proxy: bool,
}

/// What others may see of the pods that are enrolled.
#[derive(Debug, Clone)]
pub struct Status {
    pods: Arc<Mutex<Vec<(String, PodStatus)>>>,
    capture: Arc<Capture>,
}

impl Status {
    /// The namespaces of pods that are, or are to be, captured, each with its pod's UID.
    pub fn pods(&self) -> Vec<(String, PodStatus)> {
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
    /// Namespaces that are captured although their pod is gone or runs elsewhere, by cookie. At most as many as the kernel's map holds.
    retired: BTreeMap<u64, Retired>,
    /// When to look whether those are empty, and how long to wait then.
    retired_due: Instant,
    retired_wait: Duration,
    sandboxes: Sandboxes,
    asking: Asking,
    /// How many times a proxy has connected.
    connections: u64,
    /// A proxy has put listeners into our maps beside programs of another version: those may go.
    newer_proxy: bool,
    /// When the programs of another version go.
    older_due: Option<Instant>,
    status: Status,
}

impl Enroller {
    /// Nothing happens before [`Self::run`]. Needs a runtime.
    pub fn new(
        settings: EnrolmentSettings,
        cgroup: &Path,
        capture: Capture,
        source: Arc<dyn Source>,
        zds: Zds,
        zds_events: mpsc::UnboundedReceiver<ZdsEvent>,
    ) -> Self {
        let capture = Arc::new(capture);
        let asking = Asking::start(zds.clone());
        let facts = Facts::new(&settings.node, settings.sidecar_labels);
        let status = Status { pods: Arc::default(), capture: Arc::clone(&capture) };
        Self {
            settings,
            capture,
            source,
            zds,
            zds_events,
            facts,
            members: BTreeMap::new(),
            retired: BTreeMap::new(),
            retired_due: Instant::now(),
            retired_wait: RETRY_FIRST,
            sandboxes: Sandboxes::new(cgroup),
            asking,
            connections: 0,
            newer_proxy: false,
            older_due: None,
            status,
        }
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
        let mut swept = Instant::now();
        loop {
            self.look_at_changed().await;
            self.run_due().await;
            self.show();
            self.tend_retired().await;
            self.let_older_go();
            let captured = self.members.iter().filter(|(_, member)| member.is_captured());
            let captured = captured.map(|(uid, _)| uid.clone()).collect();
            self.sandboxes.follow(captured).await;
            self.show();
            let sweep = swept + if self.sandboxes.hears_all() { SWEEP } else { SWEEP_UNHEARD };
            let retired = (!self.retired.is_empty()).then_some(self.retired_due);
            let due = self.members.values().filter_map(|member| member.due);
            let due = due.chain(retired).chain(self.older_due).chain(self.sandboxes.due()).min().unwrap_or(sweep);
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
                answer = self.asking.answer() => if let Some(answer) = answer { self.heed_answer(answer).await },
                () = self.sandboxes.changed() => {}
                () = sleep_until(due) => {}
                () = sleep_until(sweep) => {
                    self.look_again().await;
                    swept = Instant::now();
                }
                ended = &mut server => return ended.unwrap_or_else(|error| Err(io::Error::other(error))),
                () = stop.cancelled() => return Ok(()),
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
                self.connections += 1;
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
                Some(member) if matches!(member.phase, Phase::Leaving | Phase::Closing) => {
                    member.facts = Arc::clone(facts);
                    member.phase = Phase::Waiting;
                    member.due = Some(Instant::now());
                }
                Some(member) if member.facts != *facts => {
                    let enrolled_otherwise = !member.facts.enrols_like(facts);
                    member.facts = Arc::clone(facts);
                    changed = true;
                    if enrolled_otherwise {
                        member.asked = None;
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
            } else if self.members.get(&uid).is_some_and(|member| !matches!(member.phase, Phase::Leaving | Phase::Closing)) {
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
                Some(member) if member.phase == Phase::Leaving => self.stop_inbound(&uid),
                Some(member) if member.phase == Phase::Closing => self.finish_leaving(&uid),
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
            self.retire(before, &facts, self.entry(&facts, true));
            if let Some(member) = self.members.get_mut(uid) {
                member.place = Some(place.clone());
            }
            // At once, before the proxy serves it there: refused for a moment, never plain. Its peers take it for enrolled.
            self.capture_in_kernel(uid);
        }
        self.retired.remove(&place.cookie());
        self.ask_to_serve(uid, &place).await;
    }

    fn not_located(&mut self, uid: &str, facts: &PodFacts, error: &LocateError) {
        let Some(member) = self.members.get_mut(uid) else { return };
        if member.attempts > PATIENCE {
            tracing::warn!(pod = facts.name(), error = chain(error), "its network namespace is not found");
        }
        member.retry();
    }

    /// Looks whether pods are still where they are captured.
    async fn look_again(&mut self) {
        self.sandboxes.search_again();
        self.notice_moves(&look().await);
    }

    /// The same for the pods whose folders something happened in.
    async fn look_at_changed(&mut self) {
        let pods = self.sandboxes.to_look_at(Instant::now());
        if !pods.is_empty() {
            let processes = tokio::task::spawn_blocking(move || Processes::of_folders(&pods)).await.unwrap_or_default();
            self.notice_moves(&processes);
        }
    }

    fn notice_moves(&mut self, processes: &Processes) {
        for (uid, member) in self.members.iter_mut().filter(|(_, member)| member.is_captured()) {
            if let Ok(place) = processes.locate(uid, &member.facts.addresses)
                && Some(place.cookie()) != member.cookie
            {
                member.phase = Phase::Waiting;
                member.due = Some(Instant::now());
            }
        }
    }

    fn show(&self) {
        let retired = self.retired.values().map(|retired| (retired.entry.uid.clone(), retired.status.clone()));
        let mut pods: Vec<_> = retired.chain(self.members.iter().map(|(uid, member)| (uid.clone(), member.status()))).collect();
        pods.sort_by(|(one, _), (other, _)| one.cmp(other));
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
        addresses: facts.addresses.clone(),
        netns: place.map(Place::descriptor),
    }
}
