//! Counting what happened, per pod. A pod without an entry is not counted: entries are made at enrolment.

use tropis_abi::{Address, InboundCounters, OutboundCounters};

use crate::maps::{INBOUND, OUTBOUND};

/// Counts something that a pod did.
#[inline(always)]
pub(crate) fn outbound(netns_cookie: u64, count: impl FnOnce(&mut OutboundCounters) -> &mut u64) {
    if let Some(counters) = OUTBOUND.get_ptr_mut(netns_cookie) {
        // SAFETY: a per-CPU value of the map; only this CPU writes it.
        *count(unsafe { &mut *counters }) += 1;
    }
}

/// Counts something that was done to a pod.
#[inline(always)]
pub(crate) fn inbound(pod: &Address, count: impl FnOnce(&mut InboundCounters) -> &mut u64) {
    if let Some(counters) = INBOUND.get_ptr_mut(pod) {
        // SAFETY: as above.
        *count(unsafe { &mut *counters }) += 1;
    }
}
