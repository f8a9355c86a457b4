//! `sk_lookup`: a connection that arrives at an enrolled pod goes to the node proxy's listener in the pod, on whatever port.
//!
//! It runs for a SYN that belongs to no connection yet. It has neither the namespace's cookie nor the socket's storage, so everything is
//! looked up by the pod's own address. No listener: refused (the kernel answers with RST), never handed to the application.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action::SK_DROP, sk_action::SK_PASS},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use tropis_abi::{HBONE_PORT, ListenerKey, listener};

use crate::{context, counters, maps::LISTENERS};

const IPPROTO_TCP: u32 = 6;

#[sk_lookup]
fn tropis_sk_lookup(context: SkLookupContext) -> u32 {
    let raw: *const bpf_sk_lookup = context.lookup;
    // SAFETY: a field of the context.
    if unsafe { read_volatile(addr_of!((*raw).protocol)) } != IPPROTO_TCP {
        return SK_PASS;
    }
    let (local, remote) = context::ends!(raw);
    // SAFETY: a field of the context, in host order.
    let port = unsafe { read_volatile(addr_of!((*raw).local_port)) } as u16;
    // The pod to itself, and the proxy to the application. Not by interface: a connection from the pod to its own address comes in on the
    // pod's interface, as the proxy's to the application does, which would be captured again without end. What is sent to loopback, even
    // from a socket bound to the pod's address, comes from inside the pod.
    if context::is_loopback(&remote) || context::is_loopback(&local) || context::same(&remote, &local) {
        return SK_PASS;
    }
    let kind = if port == HBONE_PORT { listener::HBONE } else { listener::INBOUND };
    if LISTENERS.redirect_sk_lookup(&context, ListenerKey { pod: local, kind }, 0).is_err() {
        counters::inbound(&local, |count| &mut count.refused);
        return SK_DROP;
    }
    if kind == listener::HBONE {
        counters::inbound(&local, |count| &mut count.hbone);
    } else {
        counters::inbound(&local, |count| &mut count.captured);
    }
    SK_PASS
}
