//! The certificates of the workloads that run here: asked for once, shared by everybody who needs them, renewed in time.
//!
//! For each identity one task asks the authority, waits until half of the certificate's life is over, and asks again. When asking
//! fails, the old certificate stays until its last second. A certificate that is replaced lives on in the handshakes and tunnels
//! that have it. When to do what is decided in `schedule.rs`, who may ask first in `gate.rs`, how long it is kept in `lease.rs`.

mod gate;
mod lease;
mod schedule;

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use thiserror::Error;
use tokio::{runtime::Handle, sync::watch, task::AbortHandle, time::Instant};
use tropis_model::identity::Identity;

pub use self::lease::Lease;
use self::{
    gate::{Gate, Priority, Ticket},
    lease::unleased,
};
use crate::{
    authority::{CertificateAuthority, SignError},
    certificate::WorkloadCertificate,
};

/// The store. Cheap to clone; used from any thread.
#[derive(Clone)]
pub struct Certificates {
    shared: Arc<Shared>,
}

/// There is no certificate, and none came in time. The connection that needs it fails closed.
#[derive(Debug, Clone, Error)]
pub enum CertificateUnavailable {
    /// The authority was asked and gave none; it is asked again later.
    #[error("no certificate for {identity}")]
    Failed {
        /// For whom.
        identity: Identity,
        /// What the authority said last.
        #[source]
        source: Arc<SignError>,
    },
    /// The authority has not answered yet.
    #[error("no certificate for {identity} within {after:?}")]
    Timeout {
        /// For whom.
        identity: Identity,
        /// How long we waited.
        after: Duration,
    },
    /// The workload went away before we asked, so that the authority is not asked again.
    #[error("{identity} runs here no longer")]
    Forgotten {
        /// Who.
        identity: Identity,
    },
}

/// What the store knows about an identity, for the dump.
#[derive(Debug, Clone)]
pub struct CertificateStatus {
    /// Who.
    pub identity: Identity,
    /// The certificate in use, valid or not.
    pub certificate: Option<Arc<WorkloadCertificate>>,
    /// Why the last attempt failed, if it did.
    pub failure: Option<Arc<SignError>>,
}

impl CertificateStatus {
    /// The state in the words of Istio's dump: `Initializing`, `Available`, `Unavailable: WHY`.
    pub fn state(&self) -> String {
        match (&self.certificate, &self.failure) {
            (Some(_), _) => "Available".to_owned(),
            (None, None) => "Initializing".to_owned(),
            (None, Some(failure)) => format!("Unavailable: {failure}"),
        }
    }
}

/// How long [`Certificates::get`] waits: enough for two more attempts when the control plane does not know a new pod yet.
pub const WAIT_LIMIT: Duration = Duration::from_secs(5);
/// How long the authority may take to answer one request.
const SIGN_LIMIT: Duration = Duration::from_secs(10);
/// Requests under way at once: a restart with many pods must not storm the authority.
const SIGNING_AT_ONCE: usize = 8;
/// The longest sleep before the wall clock is looked at again: it may be set, and a laptop may have slept.
const NAP: Duration = Duration::from_secs(60);

struct Shared {
    authority: Arc<dyn CertificateAuthority>,
    gate: Gate,
    entries: Mutex<HashMap<Identity, Entry>>,
    runtime: Handle,
    clock: Clock,
}

struct Entry {
    known: watch::Receiver<Known>,
    leases: watch::Sender<usize>,
    ticket: Ticket,
    keeper: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

#[derive(Debug, Clone, Default)]
struct Known {
    certificate: Option<Arc<WorkloadCertificate>>,
    failure: Option<Failure>,
}

#[derive(Debug, Clone)]
struct Failure {
    error: Arc<SignError>,
    next_attempt: Instant,
}

type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

impl Certificates {
    /// A store that asks `authority`. To be called within the runtime that is to do the asking (the control side's).
    pub fn new(authority: Arc<dyn CertificateAuthority>) -> Self {
        Self::with_clock(authority, Arc::new(SystemTime::now))
    }

    fn with_clock(authority: Arc<dyn CertificateAuthority>, clock: Clock) -> Self {
        let gate = Gate::new(SIGNING_AT_ONCE);
        Self { shared: Arc::new(Shared { authority, gate, entries: Mutex::default(), runtime: Handle::current(), clock }) }
    }

    /// The certificate of `identity`: at once when there is a valid one, otherwise after asking for it, at most [`WAIT_LIMIT`] later.
    /// However many ask, the authority is asked once. Without a [`Lease`] the certificate is kept for a moment only.
    ///
    /// # Errors
    /// None came in time. When the last attempt failed and the next is too far away, it says so at once.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<WorkloadCertificate>, CertificateUnavailable> {
        let mut known = self.entry(identity, Priority::RealTime, |entry| entry.known.clone());
        let deadline = Instant::now() + WAIT_LIMIT;
        loop {
            {
                let known = known.borrow_and_update();
                if let Some(certificate) = usable(&known, (self.shared.clock)()) {
                    return Ok(certificate);
                }
                if let Some(failure) = known.failure.as_ref().filter(|failure| failure.next_attempt > deadline) {
                    return Err(CertificateUnavailable::Failed { identity: identity.clone(), source: Arc::clone(&failure.error) });
                }
            }
            match tokio::time::timeout_at(deadline, known.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(CertificateUnavailable::Forgotten { identity: identity.clone() }),
                Err(_) => return Err(late(identity, &known.borrow())),
            }
        }
    }

    /// Asks for the certificate of a workload that runs here, before a connection needs it, and keeps and renews it until the lease is
    /// dropped (by the last one, if there are several).
    pub fn lease(&self, identity: &Identity) -> Lease {
        self.entry(identity, Priority::Warmup, |entry| Lease::new(&entry.leases))
    }

    /// The certificate that is valid now, without asking or waiting.
    pub fn current(&self, identity: &Identity) -> Option<Arc<WorkloadCertificate>> {
        let known = self.entries().get(identity)?.known.clone();
        let known = known.borrow();
        usable(&known, (self.shared.clock)())
    }

    /// Follows the certificate of `identity`, asking for it if nobody has, from the one that there is now. It ends when nobody has leased
    /// the certificate for a while.
    pub fn subscribe(&self, identity: &Identity) -> Rotation {
        let known = self.entry(identity, Priority::Warmup, |entry| entry.known.clone());
        let last = known.borrow().certificate.clone();
        Rotation { known, last }
    }

    /// Everything that is known, ordered by identity.
    pub fn snapshot(&self) -> Vec<CertificateStatus> {
        let mut all: Vec<_> = self
            .entries()
            .iter()
            .map(|(identity, entry)| {
                let known = entry.known.borrow().clone();
                let failure = known.failure.map(|failure| failure.error);
                CertificateStatus { identity: identity.clone(), certificate: known.certificate, failure }
            })
            .collect();
        all.sort_by(|one, other| one.identity.cmp(&other.identity));
        all
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Identity, Entry>> {
        // Nothing can panic between two changes of the map, so a poisoned one is whole.
        self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `part` of the entry, which is made if it is not there: under the lock, so that it cannot go in between.
    fn entry<T>(&self, identity: &Identity, priority: Priority, part: impl FnOnce(&Entry) -> T) -> T {
        let mut entries = self.entries();
        let entry = entries.entry(identity.clone()).or_insert_with(|| {
            let (publish, known) = watch::channel(Known::default());
            let leases = watch::Sender::new(0);
            let ticket = self.shared.gate.ticket(priority);
            let keeper = keep(self.clone(), identity.clone(), ticket.clone(), publish, leases.subscribe());
            Entry { known, leases, ticket, keeper: self.shared.runtime.spawn(keeper).abort_handle() }
        });
        if usable(&entry.known.borrow(), (self.shared.clock)()).is_none() {
            self.shared.gate.raise(&entry.ticket, priority);
        }
        part(entry)
    }

    /// Drops the entry unless somebody has leased it just now.
    fn drop_unleased(&self, identity: &Identity) -> bool {
        let mut entries = self.entries();
        let unleased = entries.get(identity).is_none_or(|entry| *entry.leases.borrow() == 0);
        if unleased {
            entries.remove(identity);
        }
        unleased
    }
}

/// Follows the certificate of one identity.
#[derive(Debug, Clone)]
pub struct Rotation {
    known: watch::Receiver<Known>,
    last: Option<Arc<WorkloadCertificate>>,
}

impl Rotation {
    /// Waits for a certificate other than the last one. `None` when it is kept no longer.
    pub async fn next(&mut self) -> Option<Arc<WorkloadCertificate>> {
        loop {
            let now = self.known.borrow_and_update().certificate.clone();
            if now.as_ref().map(Arc::as_ptr) != self.last.as_ref().map(Arc::as_ptr) {
                self.last.clone_from(&now);
                return now;
            }
            self.known.changed().await.ok()?;
        }
    }
}

fn usable(known: &Known, now: SystemTime) -> Option<Arc<WorkloadCertificate>> {
    known.certificate.as_ref().filter(|certificate| now < certificate.not_after()).cloned()
}

fn late(identity: &Identity, known: &Known) -> CertificateUnavailable {
    match &known.failure {
        Some(failure) => CertificateUnavailable::Failed { identity: identity.clone(), source: Arc::clone(&failure.error) },
        None => CertificateUnavailable::Timeout { identity: identity.clone(), after: WAIT_LIMIT },
    }
}

/// Keeps one identity supplied, until nobody leases it.
async fn keep(store: Certificates, identity: Identity, ticket: Ticket, publish: watch::Sender<Known>, leases: watch::Receiver<usize>) {
    let supplied = supply(Arc::clone(&store.shared), &identity, ticket, publish);
    tokio::pin!(supplied);
    loop {
        tokio::select! {
            never = &mut supplied => match never {},
            () = unleased(leases.clone()) => if store.drop_unleased(&identity) { return },
        }
    }
}

/// Keeps one identity supplied, for ever.
async fn supply(shared: Arc<Shared>, identity: &Identity, ticket: Ticket, publish: watch::Sender<Known>) -> Infallible {
    let mut failures = 0;
    loop {
        let answer = {
            let _turn = shared.gate.enter(&ticket).await;
            tokio::time::timeout(SIGN_LIMIT, shared.authority.sign(identity)).await
        };
        let now = (shared.clock)();
        match answer.unwrap_or(Err(SignError::Timeout { after: SIGN_LIMIT })) {
            Ok(certificate) => {
                failures = 0;
                let next = schedule::refresh_at(certificate.not_before(), certificate.not_after(), now, rand::random());
                tracing::debug!(%identity, serial = certificate.serial(), "certificate installed");
                publish.send_replace(Known { certificate: Some(Arc::new(certificate)), failure: None });
                sleep_until(&shared, next).await;
            }
            Err(error) => {
                failures += 1;
                let error = Arc::new(error);
                let expiry = publish.borrow().certificate.as_ref().map(|certificate| certificate.not_after());
                let left = expiry.and_then(|expiry| expiry.duration_since(now).ok());
                let delay = schedule::retry_after(failures, left, rand::random());
                warn_of_failure(identity, &error, failures, left, delay);
                let next_attempt = Instant::now() + delay;
                publish.send_modify(|known| known.failure = Some(Failure { error, next_attempt }));
                tokio::time::sleep_until(next_attempt).await;
            }
        }
        ticket.reset(Priority::Background);
    }
}

fn warn_of_failure(identity: &Identity, error: &SignError, failures: u32, left: Option<Duration>, delay: Duration) {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let valid_for_s = left.map_or(0, |left| left.as_secs());
    tracing::warn!(%identity, %error, cause, failures, valid_for_s, retry_in_ms = delay.as_millis() as u64, "no certificate from the authority");
}

async fn sleep_until(shared: &Shared, wake: SystemTime) {
    while let Ok(left) = wake.duration_since((shared.clock)()) {
        tokio::time::sleep(left.min(NAP)).await;
        if left.is_zero() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
