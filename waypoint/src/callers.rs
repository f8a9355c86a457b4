//! Who calls from outside of what this waypoint is told: asked of the control plane by address, one by one, while tunnels come from there.
//!
//! Logs and metrics wait for no answer: what the tunnel says of its source stands in for it ([`described`]). A route that asks callers for
//! labels waits, for [`WAIT`] at most. An answer that nobody has the address is kept as long as the question, so that nobody asks again
//! and again. Whose address it is is hearsay: who asks checks the identity that the caller proved.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tropis_hbone::headers::Baggage;
use tropis_model::{
    address::{Network, NetworkAddress},
    identity::Identity,
    view::Change,
    workload::Workload,
};

/// How long after a question a request waits for its answer: the control plane has it at hand.
pub const WAIT: Duration = Duration::from_secs(1);
/// Addresses that are asked for at a time. Beyond that callers are known as far as their tunnels describe them.
const MAX_ASKED: usize = 1024;
/// How long an address is asked for after its last tunnel has ended: who calls now and then is not asked about each time.
const LINGER: Duration = Duration::from_secs(60);
/// Longest name that a tunnel may give its source, in bytes (that of a Kubernetes object): it becomes a label.
const MAX_NAME_BYTES: usize = 253;

/// The addresses that are asked for.
#[derive(Debug)]
pub struct Callers {
    network: Network,
    asked: Mutex<HashMap<IpAddr, Asked>>,
    /// Their names, as the control plane knows them.
    names: watch::Sender<BTreeSet<Arc<str>>>,
}

/// An address that is asked for.
#[derive(Debug)]
struct Asked {
    name: Arc<str>,
    /// Tunnels from there.
    tunnels: usize,
    /// When the last one ended, or the question was asked.
    idle_since: Instant,
    at: Instant,
    /// Who it is was known to the tunnel before.
    was_known: bool,
    is_nobodys: Arc<AtomicBool>,
}

impl Callers {
    /// Nobody is asked for. Callers are on `network`.
    pub fn new(network: Network) -> Self {
        Self { network, asked: Mutex::default(), names: watch::Sender::default() }
    }

    /// What is asked for, as it changes: `network/address`.
    pub fn names(&self) -> watch::Receiver<BTreeSet<Arc<str>>> {
        self.names.subscribe()
    }

    /// Asks who `address` is, until the question is dropped and some time after. `None` where there is nothing to ask: it is known, or too
    /// much is asked already.
    pub fn ask(self: &Arc<Self>, address: IpAddr, is_known: bool) -> Option<Question> {
        let now = Instant::now();
        let mut asked = self.lock();
        if !asked.contains_key(&address) {
            if is_known || !self.has_room(&mut asked) {
                return None;
            }
            let name: Arc<str> = NetworkAddress { network: self.network.clone(), address }.to_string().into();
            self.names.send_modify(|names| _ = names.insert(name.clone()));
            asked.insert(address, Asked { name, tunnels: 0, idle_since: now, at: now, was_known: false, is_nobodys: Arc::default() });
        }
        let found = asked.get_mut(&address)?;
        if is_known {
            found.was_known = true;
            found.is_nobodys.store(false, Ordering::Release);
        } else if std::mem::take(&mut found.was_known) {
            // It is another one's by now, who is told of as the one before was.
            found.at = now;
        }
        found.tunnels += 1;
        Some(Question { callers: self.clone(), address, until: found.at + WAIT, is_nobodys: found.is_nobodys.clone() })
    }

    /// Makes room for one more, if need be by forgetting who has not called for the longest time.
    fn has_room(&self, asked: &mut HashMap<IpAddr, Asked>) -> bool {
        if asked.len() < MAX_ASKED {
            return true;
        }
        let idle = asked.iter().filter(|(_, asked)| asked.tunnels == 0).min_by_key(|(_, asked)| asked.idle_since);
        let Some(oldest) = idle.map(|(address, _)| *address) else {
            tracing::debug!(limit = MAX_ASKED, "too many callers from elsewhere; another one stays unknown");
            return false;
        };
        self.forget(asked, |address, _| *address == oldest);
        true
    }

    /// Forgets who has not called for a while.
    pub fn sweep(&self, now: Instant) {
        self.forget(&mut self.lock(), |_, asked| asked.tunnels == 0 && now.saturating_duration_since(asked.idle_since) >= LINGER);
    }

    fn forget(&self, asked: &mut HashMap<IpAddr, Asked>, which: impl Fn(&IpAddr, &Asked) -> bool) {
        let gone: Vec<Arc<str>> = asked.extract_if(|address, asked| which(address, asked)).map(|(_, asked)| asked.name).collect();
        if !gone.is_empty() {
            self.names.send_modify(|names| gone.iter().for_each(|name| _ = names.remove(name)));
        }
    }

    /// Takes the answers that nobody has an address; before the changes are put in force, so that who waits for them sees these.
    pub fn answered(&self, changes: &[Change]) {
        let removed = changes.iter().filter_map(|change| match change {
            Change::RemoveAddress(name) => Some(name),
            _ => None,
        });
        let removed: BTreeSet<&Arc<str>> = removed.collect();
        if !removed.is_empty() {
            let asked = self.lock();
            let nobodys = asked.values().filter(|asked| removed.contains(&asked.name));
            nobodys.for_each(|asked| asked.is_nobodys.store(true, Ordering::Release));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Asked>> {
        // Nothing panics while holding it.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tunnel's question who is at the other end.
#[derive(Debug)]
pub struct Question {
    callers: Arc<Callers>,
    address: IpAddr,
    until: Instant,
    is_nobodys: Arc<AtomicBool>,
}

impl Question {
    /// Until when an answer is worth waiting for; `None`: no longer.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.is_nobodys.load(Ordering::Acquire) && self.until > Instant::now()).then_some(self.until)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if let Some(asked) = self.callers.lock().get_mut(&self.address) {
            asked.tunnels -= 1;
            asked.idle_since = Instant::now();
        }
    }
}

/// The workload that a tunnel's `baggage` describes: for logs and metrics, never for decisions. It is not believed where it names another
/// namespace than the identity that the tunnel proved.
pub fn described(baggage: Option<&str>, identity: &Identity) -> Option<Arc<Workload>> {
    let said = Baggage::parse(baggage?);
    if said.namespace.as_deref() != Some(&*identity.namespace) {
        return None;
    }
    let name = |said: Option<String>| -> Arc<str> { said.filter(|name| name.len() <= MAX_NAME_BYTES).unwrap_or_default().into() };
    let mut workload = Workload::new("", "", identity.clone());
    if let Some((kind, owner)) = said.workload {
        workload.workload_kind = kind;
        workload.workload_name = name(Some(owner));
    }
    workload.canonical_name = name(said.canonical_name);
    workload.canonical_revision = name(said.canonical_revision);
    workload.cluster_id = name(said.cluster);
    Some(Arc::new(workload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn names(callers: &Callers) -> Vec<String> {
        callers.names().borrow().iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn an_address_is_asked_for_while_tunnels_come_from_it_and_a_while_after() {
        let callers = Arc::new(Callers::new("n".into()));
        assert!(callers.ask(address(1), true).is_none() && names(&callers).is_empty(), "who is known is not asked for");
        let first = callers.ask(address(1), false).unwrap();
        let second = callers.ask(address(1), true).unwrap();
        assert_eq!(names(&callers), ["n/10.0.0.1"]);
        drop(first);
        callers.sweep(Instant::now() + 2 * LINGER);
        assert_eq!(names(&callers).len(), 1, "a tunnel is open, though it would not have asked");
        drop(second);
        callers.sweep(Instant::now() + LINGER / 2);
        assert_eq!(names(&callers).len(), 1);
        callers.sweep(Instant::now() + LINGER);
        assert!(names(&callers).is_empty() && callers.lock().is_empty());
    }

    #[test]
    fn strangers_take_no_more_room_than_there_is() {
        let callers = Arc::new(Callers::new("".into()));
        let mut open: Vec<Question> = (0..MAX_ASKED as u32).map(|number| callers.ask(address(number), false).unwrap()).collect();
        assert!(callers.ask(address(9999), false).is_none());
        assert!(callers.ask(address(5), false).is_some(), "whom there is a question about already");
        open.remove(7);
        assert!(callers.ask(address(9999), false).is_some(), "one that has gone makes room");
        assert_eq!((names(&callers).len(), callers.lock().len()), (MAX_ASKED, MAX_ASKED));
        assert!(!names(&callers).contains(&"/10.0.0.7".to_owned()));
    }

    #[test]
    fn that_nobody_has_an_address_is_remembered() {
        let callers = Arc::new(Callers::new("".into()));
        let (one, other) = (callers.ask(address(1), false).unwrap(), callers.ask(address(2), false).unwrap());
        callers.answered(&[Change::RemoveAddress("/10.0.0.1".into()), Change::RemoveAddress("k//Pod/ns/a".into())]);
        assert!(one.deadline().is_none() && other.deadline().is_some());
        drop(one);
        assert!(callers.ask(address(1), false).unwrap().deadline().is_none(), "nobody waits for an answer that has come");
        drop(callers.ask(address(1), true));
        assert!(callers.ask(address(1), false).unwrap().deadline().is_some(), "it was somebody's since");
    }

    #[test]
    fn another_pod_at_the_address_of_one_that_went_is_waited_for_as_long() {
        let callers = Arc::new(Callers::new("".into()));
        let until = |is_known| callers.ask(address(1), is_known).unwrap().until;
        let first = until(false);
        assert_eq!([until(false), until(true)], [first; 2], "who stays unknown is not waited for again");
        let another = until(false);
        assert!(another > first);
        assert_eq!(until(false), another);
    }

    #[test]
    fn a_tunnel_describes_its_source_as_far_as_its_identity_does() {
        let identity = Identity::new("cluster.local", "shop", "cart");
        let said = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,service.version=v1";
        let found = described(Some(said), &identity).unwrap();
        let shown = [&found.workload_name, &found.canonical_name, &found.canonical_revision, &found.cluster_id];
        assert_eq!((shown.map(|part| &**part), &found.identity), (["cart", "cart", "v1", "Kubernetes"], &identity));
        assert_eq!(described(Some(said), &Identity::new("cluster.local", "bank", "cart")), None, "of another namespace");
        assert_eq!(described(Some("service.name=cart"), &identity), None, "of none");
        assert_eq!(described(None, &identity), None);
        let long = format!("k8s.namespace.name=shop,service.name={},service.version=v1", "x".repeat(MAX_NAME_BYTES + 1));
        let found = described(Some(&long), &identity).unwrap();
        assert_eq!((&*found.canonical_name, &*found.canonical_revision), ("", "v1"));
    }
}
