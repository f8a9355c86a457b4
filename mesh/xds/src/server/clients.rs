//! Who is connected, and how far each one is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::table::Audience;
use crate::ResourceType;

/// How far a client is with one type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionState {
    /// Whether it asked for the type.
    pub subscribed: bool,
    /// Everything up to this generation of the table that concerns the client is acknowledged.
    pub acknowledged: u64,
    /// The generation of a response that waits for its acknowledgement.
    pub in_flight: Option<u64>,
    /// Resources that the client refused, with its reasons: an older version of each is in force there, or none.
    pub rejected: BTreeMap<String, String>,
}

/// A connected client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientState {
    /// What its credentials prove.
    pub client: String,
    /// Whose table it is told.
    pub audience: Audience,
    /// The xDS node that it says it is; empty before its first request.
    pub node: String,
    /// How far it is, by type; the types that its audience is served.
    pub subscriptions: BTreeMap<ResourceType, SubscriptionState>,
}

impl ClientState {
    /// Whether everything up to `generation` is in force at this client. What it did not ask for is not its concern.
    pub fn has(&self, generation: u64) -> bool {
        self.subscriptions.values().all(|state| !state.subscribed || (state.acknowledged >= generation && state.rejected.is_empty()))
    }

    /// Whether it asked for all that its audience is served and has answered everything up to `generation`, be it by refusing it.
    fn has_answered(&self, generation: u64) -> bool {
        let answered = |state: &SubscriptionState| state.subscribed && state.acknowledged >= generation;
        self.audience.types().iter().all(|wanted| self.subscriptions.get(wanted).is_some_and(answered))
    }

    /// Whether it asked for all that its audience is served and everything up to `generation` is in force.
    pub fn has_all(&self, generation: u64) -> bool {
        self.has(generation)
            && self.audience.types().iter().all(|wanted| self.subscriptions.get(wanted).is_some_and(|state| state.subscribed))
    }
}

/// The connected clients. Clones are handles to one register.
#[derive(Debug, Clone)]
pub struct Clients {
    register: Arc<Mutex<Register>>,
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Register {
    next: u64,
    clients: BTreeMap<u64, ClientState>,
    /// How often each name is registered.
    by_name: HashMap<String, usize>,
}

/// How many clients there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Altogether.
    pub(super) total: usize,
    /// Of one name: one that comes again may have ends of its earlier streams still here.
    pub(super) of_name: usize,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} clients, or {} of this name,", self.total, self.of_name)
    }
}

/// Longer names of xDS nodes are cut; Istio's have an address, a pod's and a namespace's name.
const MAX_NODE_BYTES: usize = 1024;

impl Default for Clients {
    fn default() -> Self {
        Self { register: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }
}

impl Clients {
    /// All clients, in the order in which they came.
    pub fn list(&self) -> Vec<ClientState> {
        self.lock().clients.values().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().clients.len()
    }

    /// The clients at which `generation` is not in force yet; none of them: the change is live everywhere.
    pub fn lagging(&self, generation: u64) -> Vec<ClientState> {
        self.lock().clients.values().filter(|client| !client.has(generation)).cloned().collect()
    }

    /// Whether everything up to `generation` is in force at every connected client of an audience. `None`: none is connected.
    pub fn everywhere(&self, audience: &Audience, generation: u64) -> Option<bool> {
        let register = self.lock();
        let mut clients = register.clients.values().filter(|client| client.audience == *audience).peekable();
        clients.peek()?;
        Some(clients.all(|client| client.has_all(generation)))
    }

    /// What some client of an audience refused, by type, when every connected one has answered everything up to `generation`. All the rest
    /// is in force at all of them then. `None`: none is connected, or not all have answered.
    pub fn answered(&self, audience: &Audience, generation: u64) -> Option<BTreeMap<ResourceType, BTreeSet<String>>> {
        let register = self.lock();
        let mut clients = register.clients.values().filter(|client| client.audience == *audience).peekable();
        clients.peek()?;
        let mut refused: BTreeMap<ResourceType, BTreeSet<String>> = BTreeMap::new();
        for client in clients {
            if !client.has_answered(generation) {
                return None;
            }
            for (r#type, state) in client.subscriptions.iter().filter(|(_, state)| !state.rejected.is_empty()) {
                refused.entry(*r#type).or_default().extend(state.rejected.keys().cloned());
            }
        }
        Some(refused)
    }

    /// Resources of a type that some client refused, by resource name, each with the first such client and its reason.
    pub fn refused(&self, r#type: ResourceType) -> BTreeMap<String, (String, String)> {
        let mut refused = BTreeMap::new();
        for client in self.lock().clients.values() {
            for (name, reason) in client.subscriptions.get(&r#type).into_iter().flat_map(|state| &state.rejected) {
                refused.entry(name.clone()).or_insert_with(|| (client.client.clone(), reason.clone()));
            }
        }
        refused
    }

    /// Wakes when a client comes, goes or gets further.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// `None` when there are too many clients already.
    pub(super) fn register(&self, client: &str, audience: &Audience, limits: Limits) -> Option<Registration> {
        let id = {
            let mut register = self.lock();
            let of_name = register.by_name.get(client).copied().unwrap_or_default();
            if register.clients.len() >= limits.total || of_name >= limits.of_name {
                return None;
            }
            register.by_name.insert(client.to_owned(), of_name + 1);
            let id = register.next;
            register.next += 1;
            let (client, audience) = (client.to_owned(), audience.clone());
            register.clients.insert(id, ClientState { client, audience, node: String::new(), subscriptions: BTreeMap::new() });
            id
        };
        self.wake();
        Some(Registration { clients: self.clone(), id })
    }

    fn lock(&self) -> MutexGuard<'_, Register> {
        // Nothing panics while holding it, and a state more or less would harm nobody.
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

/// A client's place in the register, until dropped.
#[derive(Debug)]
pub(super) struct Registration {
    clients: Clients,
    id: u64,
}

impl Registration {
    pub(super) fn name(&self, node: &str) {
        if let Some(client) = self.clients.lock().clients.get_mut(&self.id) {
            node[..node.floor_char_boundary(MAX_NODE_BYTES)].clone_into(&mut client.node);
        }
    }

    pub(super) fn update<'a>(&self, states: impl Iterator<Item = (ResourceType, &'a SubscriptionState)>) {
        let mut changed = false;
        if let Some(client) = self.clients.lock().clients.get_mut(&self.id) {
            for (r#type, state) in states {
                let known = client.subscriptions.entry(r#type).or_default();
                if known != state {
                    known.clone_from(state);
                    changed = true;
                }
            }
        }
        if changed {
            self.clients.wake();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        {
            let mut register = self.clients.lock();
            let name = register.clients.remove(&self.id).map(|client| client.client).unwrap_or_default();
            if let Some(of_name) = register.by_name.get_mut(&name) {
                *of_name -= 1;
                if *of_name == 0 {
                    register.by_name.remove(&name);
                }
            }
        }
        self.clients.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_the_places_of_all() {
        let clients = Clients::default();
        let register = |client: &str| clients.register(client, &Audience::NodeProxies, Limits { total: 3, of_name: 2 });
        let first = [register("z-a").unwrap(), register("z-a").unwrap()];
        assert!(register("z-a").is_none());
        let other = register("z-b").unwrap();
        assert!(register("z-c").is_none());
        drop(first);
        let again = register("z-a").unwrap();
        assert_eq!(clients.list().len(), 2);
        drop((other, again));
        assert!(clients.lock().by_name.is_empty() && clients.list().is_empty());
    }

    #[test]
    fn who_refuses_something_has_answered_all_the_same() {
        let clients = Clients::default();
        let audience = Audience::Waypoint("shop/gw".into());
        let limits = Limits { total: 3, of_name: 2 };
        let (one, other) = (clients.register("a", &audience, limits).unwrap(), clients.register("b", &audience, limits).unwrap());
        let state = |acknowledged, rejected: &[&str]| SubscriptionState {
            subscribed: true,
            acknowledged,
            in_flight: None,
            rejected: rejected.iter().map(|name| ((*name).to_owned(), "why".to_owned())).collect(),
        };
        let all = |registration: &Registration, acknowledged, hosts: &[&str]| {
            let of = |r#type: &ResourceType| state(acknowledged, if *r#type == ResourceType::Host { hosts } else { &[] });
            let states: Vec<_> = audience.types().iter().map(|r#type| (*r#type, of(r#type))).collect();
            registration.update(states.iter().map(|(r#type, state)| (*r#type, state)));
        };
        all(&one, 7, &["shop/web"]);
        assert_eq!(clients.answered(&audience, 7), None, "the other one has asked for nothing yet");
        all(&other, 6, &[]);
        assert_eq!(clients.answered(&audience, 7), None);
        all(&other, 8, &["shop/db"]);
        let refused = [(ResourceType::Host, ["shop/db".to_owned(), "shop/web".to_owned()].into())].into();
        assert_eq!(clients.answered(&audience, 7), Some(refused), "what one of them refuses is in force nowhere for sure");
        assert_eq!(clients.everywhere(&audience, 7), Some(false));
        assert_eq!(clients.answered(&Audience::NodeProxies, 7), None);
    }

    #[test]
    fn a_long_name_of_a_node_is_cut() {
        let clients = Clients::default();
        let registration = clients.register("z", &Audience::NodeProxies, Limits { total: 1, of_name: 1 }).unwrap();
        registration.name(&"ü".repeat(100_000));
        assert_eq!(clients.list()[0].node.len(), MAX_NODE_BYTES);
    }
}
