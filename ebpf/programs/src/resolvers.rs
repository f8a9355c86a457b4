//! Slots: a UDP question carries no trace of the resolver that was asked once it is rewritten, so each resolver that a pod asks has a
//! listener port of its own, and a map says which resolver that is.

use aya_ebpf::bindings::BPF_NOEXIST;
use tropis_abi::{Address, DNS_SLOTS, Pod, Resolver, ResolverKey};

use crate::{context, maps::RESOLVERS};

/// The slot of a resolver in a pod; takes a free one for a resolver that was not asked before. `None` when all are taken.
#[inline(always)]
pub(crate) fn slot(netns_cookie: u64, address: &Address, port: u16) -> Option<u16> {
    let wanted = Resolver { address: *address, port: u32::from(port) };
    let mut slot = 0;
    while slot < DNS_SLOTS {
        let key = ResolverKey { netns_cookie, slot: u32::from(slot), padding: 0 };
        if is(&key, &wanted) {
            return Some(slot);
        }
        // Two CPUs may want the same free slot: the kernel lets one of them have it, and the other one looks again.
        // SAFETY: the reference is not kept.
        if unsafe { RESOLVERS.get(key) }.is_none() && (RESOLVERS.insert(key, wanted, u64::from(BPF_NOEXIST)).is_ok() || is(&key, &wanted)) {
            return Some(slot);
        }
        slot += 1;
    }
    None
}

/// The resolver that a pod's DNS listener port stands for, if it is one.
#[inline(always)]
pub(crate) fn behind(netns_cookie: u64, pod: &Pod, port: u16) -> Option<Resolver> {
    let slot = port.wrapping_sub(pod.dns_port);
    if pod.dns_port == 0 || slot >= DNS_SLOTS {
        return None;
    }
    // SAFETY: copied before anything changes the map.
    unsafe { RESOLVERS.get(ResolverKey { netns_cookie, slot: u32::from(slot), padding: 0 }) }.copied()
}

#[inline(always)]
fn is(key: &ResolverKey, wanted: &Resolver) -> bool {
    // SAFETY: the reference is used before anything changes the map.
    match unsafe { RESOLVERS.get(key) } {
        Some(found) => found.port == wanted.port && context::same(&found.address, &wanted.address),
        None => false,
    }
}
