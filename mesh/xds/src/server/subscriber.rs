//! What one client has, and what it is sent next. No I/O and no clock.
//!
//! The order matters. A workload that names a policy which is not there is denied everything: new policies go first, then workloads and
//! services, then removed policies. A waypoint whose route names a service that is not there answers 503: new workloads and services go
//! first, then routes, then removed workloads and services. [`Step`] says it for each audience. One response of a type is under way at a
//! time.
//!
//! A waypoint selects workloads by labels that it is told as far as its routes and policies name them. Between a response with the ones and
//! a response with the others a policy might select nobody; so to waypoints the responses that belong together say so (`continued`).

use std::{collections::BTreeMap, sync::Arc};

use imbl::ordmap::DiffItem;
use thiserror::Error;
use tropis_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

use super::{
    clients::SubscriptionState,
    named::Named,
    table::{Audience, Entries, Entry, Snapshot},
};
use crate::ResourceType;

pub(super) const WILDCARD: &str = "*";

/// Longer reasons why a client refused something are cut: they are kept, logged and told in statuses.
const MAX_REFUSAL_BYTES: usize = 16 << 10;

/// As much of a client's reason as is kept.
pub(super) fn shortened(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REFUSAL_BYTES)]
}

/// A request that cannot be served; the stream ends with it.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum BadRequest {
    // Served by need alone a node proxy would also want the workloads of its node and the endpoints of services that it names: an index
    // of addresses, nodes and services beside the table, and a table for each such client.
    #[error("only wildcard subscriptions are served, with addresses besides to waypoints, not one to {0:?}; unset XDS_ON_DEMAND")]
    Named(String),
    #[error("more than {limit} addresses are asked for, or one that is longer than {bytes} bytes")]
    TooMany { limit: usize, bytes: usize },
}

/// A client's subscriptions.
#[derive(Debug)]
pub(super) struct Subscriber {
    audience: Audience,
    subscriptions: BTreeMap<ResourceType, Subscription>,
    nonces: u64,
    /// The last response said that another one follows.
    is_continued: bool,
}

#[derive(Debug, Default)]
struct Subscription {
    /// Named by the client in its first request; becomes `has` with the first snapshot.
    reported: Option<BTreeMap<String, String>>,
    /// What the client has once it processed all that was sent; shares its structure with the table.
    has: Entries,
    /// The first response is due even if it is empty: the client waits for it to become ready.
    owes_first: bool,
    /// What it asks for besides; `None` where there is no such thing.
    named: Option<Named>,
    in_flight: Option<InFlight>,
    state: SubscriptionState,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    generation: u64,
    names: Vec<Arc<str>>,
}

/// Which differences a response carries.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Everything,
    Updates,
    Removals,
}

/// What goes to a client of an audience, in this order. The last step of a type takes away what nothing sent before needs any more.
struct Step(ResourceType, Part);

const NODE_PROXY_STEPS: &[Step] = &[
    Step(ResourceType::Authorization, Part::Updates),
    Step(ResourceType::Address, Part::Everything),
    Step(ResourceType::Authorization, Part::Removals),
];
const WAYPOINT_STEPS: &[Step] = &[
    Step(ResourceType::Address, Part::Updates),
    Step(ResourceType::Waypoint, Part::Everything),
    Step(ResourceType::Host, Part::Everything),
    Step(ResourceType::Address, Part::Removals),
];

impl Subscriber {
    /// A client that asked for nothing yet.
    pub(super) fn new(audience: Audience) -> Self {
        let takes_names = |served| matches!(audience, Audience::Waypoint(_)) && served == ResourceType::Address;
        let subscription = |served| Subscription { named: takes_names(served).then(Named::default), ..Subscription::default() };
        let subscriptions = audience.types().iter().map(|served| (*served, subscription(*served))).collect();
        Self { audience, subscriptions, nonces: 0, is_continued: false }
    }

    /// How far the client is.
    pub(super) fn state(&self) -> impl Iterator<Item = (ResourceType, &SubscriptionState)> {
        self.subscriptions.iter().map(|(served, subscription)| (*served, &subscription.state))
    }

    /// Takes a subscription, an acknowledgement or a refusal.
    pub(super) fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), BadRequest> {
        let wanted = ResourceType::from_url(&request.type_url).and_then(|known| self.subscriptions.get_mut(&known));
        match wanted {
            Some(subscription) => subscription.request(request),
            None => {
                tracing::debug!(type_url = request.type_url, audience = %self.audience, "subscription to a type that is not served");
                Ok(())
            }
        }
    }

    /// The next response, or `None` when the client has everything or must acknowledge first. `patient_enough`: the client had its time
    /// to ask for all its types, so that what is taken away need not wait for what comes before it.
    pub(super) fn next(&mut self, snapshot: &Snapshot, patient_enough: bool) -> Option<DeltaDiscoveryResponse> {
        let table = snapshot.table(&self.audience)?;
        let everything_asked = self.subscriptions.values().all(|subscription| subscription.state.subscribed);
        let mut tables = BTreeMap::new();
        for (served, subscription) in &mut self.subscriptions {
            let own = table.entries(*served);
            let all = match &mut subscription.named {
                Some(named) => named.complete(own, snapshot),
                None => own,
            };
            subscription.begin(&all, *served);
            tables.insert(*served, all);
        }
        self.nonces += 1;
        let steps = match self.audience {
            Audience::NodeProxies => NODE_PROXY_STEPS,
            Audience::Waypoint(_) => WAYPOINT_STEPS,
        };
        let is_asking = !everything_asked && !patient_enough;
        let has_pending = |subscriptions: &BTreeMap<ResourceType, Subscription>, Step(r#type, part): &Step| {
            subscriptions.get(r#type).zip(tables.get(r#type)).is_some_and(|(subscription, entries)| subscription.pending(entries, *part))
        };
        for (place, step @ Step(r#type, part)) in steps.iter().enumerate() {
            let later = || steps[place + 1..].iter().filter(|Step(_, part)| *part != Part::Removals);
            // What was to follow may not differ any more: that is told as well.
            let is_last = *part != Part::Removals && later().next().is_none();
            let is_pending = has_pending(&self.subscriptions, step) || (is_last && self.is_continued && !is_asking);
            let is_continued = *part != Part::Removals && (is_asking || later().any(|step| has_pending(&self.subscriptions, step)));
            let (Some(subscription), Some(entries)) = (self.subscriptions.get_mut(r#type), tables.get(r#type)) else { continue };
            if is_pending && subscription.state.subscribed {
                if *part == Part::Removals && is_asking {
                    return None;
                }
                let nonce = format!("{}/{}", snapshot.version(), self.nonces);
                let mut response = subscription.respond(*r#type, entries, *part, snapshot, nonce)?;
                response.continued = is_continued && matches!(self.audience, Audience::Waypoint(_));
                self.is_continued = response.continued;
                return Some(response);
            }
            if *part != Part::Updates {
                subscription.settle(entries, snapshot.generation);
            }
        }
        None
    }
}

impl Subscription {
    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), BadRequest> {
        let names = &request.resource_names_subscribe;
        let everything_too = self.state.subscribed || names.iter().any(|name| name == WILDCARD);
        if let Some(name) = names.iter().find(|name| *name != WILDCARD && !(self.named.is_some() && everything_too)) {
            return Err(BadRequest::Named(name.clone()));
        }
        if request.resource_names_unsubscribe.iter().any(|name| name == WILDCARD) {
            *self = Self { named: self.named.take().map(|_| Named::default()), ..Self::default() };
            return Ok(());
        }
        if let Some(named) = &mut self.named {
            named.request(&request)?;
        }
        if !self.state.subscribed {
            self.state.subscribed = true;
            self.owes_first = true;
            self.reported = Some(request.initial_resource_versions);
            return Ok(());
        }
        // An answer to anything but the response under way is late, and means nothing.
        if let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.nonce == request.response_nonce) {
            let refusal = request.error_detail.map(|error| error.message).unwrap_or_default();
            self.state.in_flight = None;
            self.state.acknowledged = self.state.acknowledged.max(in_flight.generation);
            for name in &in_flight.names {
                self.state.rejected.remove(&**name);
            }
            if !refusal.is_empty() {
                self.refused(&in_flight.names, shortened(&refusal));
            }
        }
        Ok(())
    }

    /// A refusal reads `name: reason; name: reason`; what names nothing that was sent stands for the whole response.
    fn refused(&mut self, names: &[Arc<str>], refusal: &str) {
        let before = self.state.rejected.len();
        for part in refusal.split("; ") {
            if let Some((name, reason)) = part.split_once(": ")
                && names.iter().any(|sent| &**sent == name)
            {
                self.state.rejected.insert(name.to_owned(), reason.to_owned());
            }
        }
        if self.state.rejected.len() == before {
            self.state.rejected.insert(String::new(), refusal.to_owned());
        }
    }

    /// Compares what the client named with the table. An entry that differs is kept under a version that no content has.
    fn begin(&mut self, table: &Entries, r#type: ResourceType) {
        let Some(reported) = self.reported.take() else { return };
        // A policy in a version that is not ours may apply to everybody.
        let unknown = || Entry { resource: Arc::default(), broad: r#type == ResourceType::Authorization };
        // Starting from the table keeps the shared structure where a client is up to date, as most are after a reconnect.
        let mut has = table.clone();
        for (name, entry) in table {
            match reported.get(&**name) {
                Some(version) if *version == entry.resource.version => {}
                Some(_) => _ = has.insert(name.clone(), unknown()),
                None => _ = has.remove(name),
            }
        }
        for name in reported.into_keys().filter(|name| !table.contains_key(name.as_str())) {
            has.insert(name.into(), unknown());
        }
        self.has = has;
    }

    fn pending(&self, table: &Entries, part: Part) -> bool {
        let owes = self.owes_first || self.named.as_ref().is_some_and(Named::has_absent);
        self.state.subscribed && ((owes && part != Part::Removals) || self.has.diff(table).any(|item| wanted(&item, part)))
    }

    /// `None` if another response has to be acknowledged first.
    fn respond(
        &mut self,
        r#type: ResourceType,
        table: &Entries,
        part: Part,
        snapshot: &Snapshot,
        nonce: String,
    ) -> Option<DeltaDiscoveryResponse> {
        if self.in_flight.is_some() {
            return None;
        }
        let (mut updated, mut removed) = (Vec::new(), Vec::new());
        for item in self.has.diff(table).filter(|item| wanted(item, part)) {
            match item {
                DiffItem::Add(name, entry) | DiffItem::Update { new: (name, entry), .. } => updated.push((name.clone(), entry.clone())),
                DiffItem::Remove(name, _) => removed.push(name.clone()),
            }
        }
        let resources: Vec<Resource> = updated.iter().map(|(_, entry)| Resource::clone(&entry.resource)).collect();
        let names = updated.iter().map(|(name, _)| name).chain(&removed).cloned().collect();
        let absent = self.named.as_mut().filter(|_| part != Part::Removals).map(Named::take_absent).unwrap_or_default();
        let removed_resources = removed.iter().chain(&absent).map(|name| name.to_string()).collect();
        for (name, entry) in updated {
            self.has.insert(name, entry);
        }
        for name in &removed {
            self.has.remove(name);
        }
        self.owes_first = false;
        self.in_flight = Some(InFlight { nonce: nonce.clone(), generation: snapshot.generation, names });
        self.state.in_flight = Some(snapshot.generation);
        Some(DeltaDiscoveryResponse {
            system_version_info: snapshot.version().to_owned(),
            resources,
            type_url: r#type.url().to_owned(),
            nonce,
            removed_resources,
            continued: false,
        })
    }

    /// Nothing differs: share the table's structure again, and if nothing is under way, the client is up to date.
    fn settle(&mut self, table: &Entries, generation: u64) {
        if !self.state.subscribed {
            return;
        }
        self.has = table.clone();
        if self.in_flight.is_none() {
            self.state.acknowledged = generation;
        }
    }
}

/// What takes something away comes late: a removal, and a policy that applied to everybody in its scope and now only to those who name
/// it.
fn wanted(item: &DiffItem<'_, '_, Arc<str>, Entry>, part: Part) -> bool {
    let late = match item {
        DiffItem::Remove(..) => true,
        DiffItem::Update { old: (_, old), new: (_, new) } => old.broad && !new.broad,
        DiffItem::Add(..) => false,
    };
    match part {
        Part::Everything => true,
        Part::Updates => !late,
        Part::Removals => late,
    }
}

#[cfg(test)]
mod tests;
