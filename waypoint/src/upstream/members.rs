//! Who is in a pool, and what is counted about each. Whom a pool has is `model::reach`'s decision.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

pub use tropis_model::reach::{Found, Reach, Tunnel, find};

/// An endpoint of a pool, for as long as it is the same one: what is counted about it outlives changes of the view.
#[derive(Debug)]
pub struct Member {
    /// Unique in the process: connections are found by it.
    pub id: u64,
    /// Where and how it is reached.
    pub reach: Reach,
    /// Requests under way to it.
    pub active: AtomicU32,
    /// When it became a member, on the pools' clock; `None` was there from the beginning.
    pub since: Option<Duration>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The members for `found`: those that were there before, and new ones.
pub fn members(before: &[Arc<Member>], found: &[Found], since: Option<Duration>) -> Vec<Arc<Member>> {
    let member = |found: &Found| {
        let known = before.iter().find(|member| member.reach == found.reach).cloned();
        known.unwrap_or_else(|| {
            let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
            Arc::new(Member { id, reach: found.reach.clone(), active: AtomicU32::new(0), since })
        })
    };
    found.iter().map(member).collect()
}
