//! The addresses that a waypoint asks for besides its table: who calls it from outside of that. No I/O and no clock.
//!
//! What is asked for is told as if it stood in the waypoint's table, for as long as it is asked for; where it does stand there, that
//! counts. An address that nobody has is told as removed, once, and is told should somebody get it.

use std::{collections::BTreeSet, sync::Arc};

use tropis_proto::xds::DeltaDiscoveryRequest;

use super::{
    subscriber::{BadRequest, WILDCARD},
    table::{Entries, Snapshot},
};

/// Addresses that one client may ask for at a time. Our waypoints ask for 1024 at most.
const MAX_NAMES: usize = 4096;
/// Longest of them, in bytes: a network's name and an address.
const MAX_NAME_BYTES: usize = 320;

/// What a client asks for by name.
#[derive(Debug, Default)]
pub(super) struct Named {
    asked: BTreeSet<Arc<str>>,
    /// Asked for since the table was looked at last.
    new: BTreeSet<Arc<str>>,
    /// To be told as removed.
    absent: Vec<Arc<str>>,
    /// The generation of the last table, and what it was with what is asked for.
    last: Option<(u64, Entries)>,
}

impl Named {
    /// Takes the names of a request.
    pub(super) fn request(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), BadRequest> {
        for name in &request.resource_names_unsubscribe {
            self.asked.remove(name.as_str());
            self.new.remove(name.as_str());
            self.last = None;
        }
        for name in request.resource_names_subscribe.iter().filter(|name| *name != WILDCARD) {
            if self.asked.len() >= MAX_NAMES || name.len() > MAX_NAME_BYTES {
                return Err(BadRequest::TooMany { limit: MAX_NAMES, bytes: MAX_NAME_BYTES });
            }
            let name: Arc<str> = name.as_str().into();
            self.asked.insert(name.clone());
            self.new.insert(name);
            self.last = None;
        }
        Ok(())
    }

    /// The client's own table of workloads and services with what it asks for.
    pub(super) fn complete(&mut self, own: Entries, snapshot: &Snapshot) -> Entries {
        if self.asked.is_empty() {
            return own;
        }
        if let Some((_, last)) = self.last.as_ref().filter(|(generation, _)| *generation == snapshot.generation) {
            return last.clone();
        }
        let mut all = own.clone();
        for (name, entry) in self.asked.iter().flat_map(|address| snapshot.callers(address)) {
            if !own.contains_key(name) {
                all.insert(name.clone(), entry.clone());
            }
        }
        let new = std::mem::take(&mut self.new).into_iter();
        self.absent.extend(new.filter(|address| snapshot.callers(address).next().is_none()));
        self.last = Some((snapshot.generation, all.clone()));
        all
    }

    /// Whether there is something to be told as removed that never was there.
    pub(super) fn has_absent(&self) -> bool {
        !self.absent.is_empty()
    }

    /// Takes what is to be told as removed that never was there.
    pub(super) fn take_absent(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.absent)
    }
}
