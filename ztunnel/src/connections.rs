//! The connections that a worker has open: for revoking permits, for counting bytes while they move, and for the dump.
//!
//! One table a worker, used by its thread only. What is in it ends with its [`Registered`].

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use serde::Serialize;
use tropis_model::{authorize::Permit, policy::PolicyKey, view::View, workload::Workload};
use tropis_net::relay::StopReason;
use tropis_telemetry::access::Direction;

use crate::stages::report::{Live, Report};

/// The table.
#[derive(Debug, Default)]
pub struct Connections {
    table: Rc<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: Cell<u64>,
    open: RefCell<HashMap<u64, Entry>>,
}

/// An open connection.
#[derive(Debug)]
pub struct Entry {
    live: Rc<Live>,
    permit: Permit,
    /// The workload that policy was decided for; `None` for outbound connections.
    workload: Option<Arc<Workload>>,
    policy_version: u64,
}

impl Entry {
    /// What a journey registers once it has a permit.
    pub fn new(report: &Report, permit: Permit, workload: Option<Arc<Workload>>, policy_version: u64) -> Self {
        Self { live: report.live(), permit, workload, policy_version }
    }
}

/// A place in the table; dropping it ends it.
#[derive(Debug)]
pub struct Registered {
    id: u64,
    table: Rc<Table>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.table.open.borrow_mut().remove(&self.id);
    }
}

impl Connections {
    /// Puts a connection into the table.
    pub fn register(&self, entry: Entry) -> Registered {
        let id = self.table.next.replace(self.table.next.get() + 1);
        self.table.open.borrow_mut().insert(id, entry);
        Registered { id, table: self.table.clone() }
    }

    /// Decides again about every connection that `view` may decide otherwise about, and stops those that are no longer allowed.
    /// Gives how many.
    pub fn recheck(&self, view: &View, policy_version: u64) -> usize {
        let mut stopped = 0;
        for entry in self.table.open.borrow_mut().values_mut() {
            let Some(workload) = &mut entry.workload else { continue };
            let current = view.workload(&workload.uid);
            let same = current.is_none_or(|current| Arc::ptr_eq(current, workload)) && entry.policy_version == policy_version;
            if same {
                continue;
            }
            if let Some(current) = current {
                *workload = current.clone();
            }
            entry.policy_version = policy_version;
            if let Err(denied) = entry.permit.check(view) {
                entry.live.revoked_by(denied.policies().to_vec());
                entry.live.control().stop(StopReason::PermitRevoked);
                stopped += 1;
            }
        }
        stopped
    }

    /// Counts what moved since it was counted last.
    pub fn count(&self) {
        for entry in self.table.open.borrow().values() {
            entry.live.count();
        }
    }

    /// All of them, for the dump.
    pub fn list(&self) -> Vec<ConnectionInfo> {
        self.table.open.borrow().values().map(|entry| entry.live.info()).collect()
    }
}

/// An open connection in the words of Istio's dump.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionInfo {
    /// The pod that we serve it for.
    #[serde(skip)]
    pub pod: Arc<str>,
    /// Which way.
    #[serde(skip)]
    pub inbound: bool,
    /// Where it came from.
    pub src: Option<SocketAddr>,
    /// Where it was going: an address (outbound), or the service that the caller named (inbound).
    pub original_dst: Option<String>,
    /// Where it goes.
    pub actual_dst: Option<SocketAddr>,
    /// `HBONE`, `TCP` or `DOUBLEHBONE`.
    pub protocol: &'static str,
    /// Bytes from the side that opened it.
    pub bytes_from_source: u64,
    /// Bytes to the side that opened it.
    pub bytes_to_source: u64,
}

impl ConnectionInfo {
    /// Whether it goes `direction`.
    pub fn goes(&self, direction: Direction) -> bool {
        self.inbound == (direction == Direction::Inbound)
    }
}

/// What revoked a permit.
#[derive(Debug, Default)]
pub struct Revocation(RefCell<Vec<PolicyKey>>);

impl Revocation {
    /// These policies did.
    pub fn set(&self, policies: Vec<PolicyKey>) {
        *self.0.borrow_mut() = policies;
    }

    /// The policies that did.
    pub fn take(&self) -> Vec<PolicyKey> {
        self.0.take()
    }
}
