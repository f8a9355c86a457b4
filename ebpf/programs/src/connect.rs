//! `connect4`, `connect6`: an enrolled pod's connect goes to the node proxy's listener on the pod's loopback.
//!
//! The destination that was dialled is kept with the socket; `sock_ops.rs` carries it to the other end. Nothing is guessed: what has no
//! value there is refused by the proxy.

use core::{
    mem::size_of_val,
    ptr::{addr_of, from_ref, read_volatile},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{bpf_set_retval, bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use tropis_abi::{Address, POD_CAPTURES_OUTBOUND, POD_FOREIGN_PROXY, POD_HAS_IPV4, POD_HAS_IPV6, Pod, Socket, kind};

use crate::{
    context::{self, Family},
    counters, maps, resolvers,
};

/// The call goes on.
pub(crate) const PROCEED: i32 = 1;
/// The call fails.
const FAIL: i32 = 0;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_MPTCP: u32 = 262;
const DNS: u16 = 53;
pub(crate) const ENETUNREACH: i32 = 101;
pub(crate) const ECONNREFUSED: i32 = 111;
const ENOMEM: i32 = 12;

#[cgroup_sock_addr(connect4)]
fn tropis_connect4(context: SockAddrContext) -> i32 {
    connect(&context, Family::Inet)
}

#[cgroup_sock_addr(connect6)]
fn tropis_connect6(context: SockAddrContext) -> i32 {
    connect(&context, Family::Inet6)
}

#[inline(always)]
fn connect(context: &SockAddrContext, family: Family) -> i32 {
    let socket = context::socket(context);
    let cookie = context::netns_cookie(context);
    match maps::socket(socket) {
        Some(kept) if kept.kind == kind::OWN || kept.kind == kind::SHOW_PEER => {
            counters::outbound(cookie, |count| &mut count.passed_proxy);
            return PROCEED;
        }
        // What is left of an earlier connection of the same socket (AF_UNSPEC disconnects): it must not name this one's peer.
        Some(_) => maps::forget(socket),
        None => {}
    }
    // SAFETY: the value is copied before anything changes the map.
    let Some(pod) = (unsafe { maps::PODS.get(cookie) }).copied() else { return PROCEED };
    if pod.flags & POD_FOREIGN_PROXY != 0 && maps::called_by_proxy() {
        counters::outbound(cookie, |count| &mut count.passed_proxy);
        return PROCEED;
    }
    let (destination, port) = (context::address(context, family), context::port(context));
    // SAFETY: a field of the context.
    let protocol = unsafe { read_volatile(addr_of!((*context.sock_addr).protocol)) };
    match protocol {
        IPPROTO_TCP | IPPROTO_MPTCP => {}
        IPPROTO_UDP if port == DNS && pod.dns_port != 0 => {}
        _ => return PROCEED,
    }
    let local = match decide(cookie, &pod, &destination) {
        Decision::Capture { local } => local,
        Decision::Pass => return PROCEED,
        Decision::Unreachable => return fail(ENETUNREACH),
    };
    let (target_port, kind) = if protocol == IPPROTO_UDP {
        match resolvers::slot(cookie, &destination, port) {
            Some(slot) => {
                counters::outbound(cookie, |count| &mut count.dns_captured);
                (pod.dns_port + slot, kind::RESOLVING)
            }
            None => {
                counters::outbound(cookie, |count| &mut count.dns_refused);
                return fail(ECONNREFUSED);
            }
        }
    } else {
        counters::outbound(cookie, |count| &mut count.captured);
        let port = if port == DNS && pod.dns_port != 0 { pod.dns_port } else { pod.outbound_port };
        (port, kind::CAPTURED)
    };
    if !maps::keep(socket, &Socket { address: destination, local, port, padding: 0, kind }) {
        return fail(ENOMEM);
    }
    release_device(context, socket);
    context::set_address(context, family, &context::loopback_for(&destination));
    context::set_port(context, target_port);
    PROCEED
}

/// What becomes of something that a pod sends.
pub(crate) enum Decision {
    /// It goes to the node proxy.
    Capture {
        /// The pod's own address of the destination's family.
        local: Address,
    },
    /// It goes on as it is.
    Pass,
    /// The call fails as it does where there is no route.
    Unreachable,
}

/// Decides about something that `pod` sends to `destination`, and counts what is not captured.
///
/// A family that the pod has no address of cannot be reached: passing would be plaintext past the mesh wherever the pod's namespace does
/// route that family, rewriting would turn the error that applications fall back on into success (ADR 5).
#[inline(always)]
pub(crate) fn decide(cookie: u64, pod: &Pod, destination: &Address) -> Decision {
    if pod.flags & POD_CAPTURES_OUTBOUND == 0 {
        counters::outbound(cookie, |count| &mut count.passed_leaving);
        return Decision::Pass;
    }
    if context::is_loopback(destination) || context::is_own(pod, destination) {
        counters::outbound(cookie, |count| &mut count.passed_self);
        return Decision::Pass;
    }
    let (has, local) = if context::is_ipv4(destination) { (POD_HAS_IPV4, pod.ipv4) } else { (POD_HAS_IPV6, pod.ipv6) };
    if pod.flags & has == 0 {
        counters::outbound(cookie, |count| &mut count.refused_family);
        return Decision::Unreachable;
    }
    Decision::Capture { local }
}

/// Makes the call fail with `error`.
#[inline(always)]
pub(crate) fn fail(error: i32) -> i32 {
    // SAFETY: a helper without arguments in memory; kernels from 5.18 have it.
    unsafe { bpf_set_retval(-error) };
    FAIL
}

/// A socket bound to a device (`SO_BINDTODEVICE`) cannot reach loopback: its connect would hang.
#[inline(always)]
fn release_device(context: &SockAddrContext, socket: *mut bpf_sock) {
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTOIFINDEX: i32 = 62;
    // SAFETY: a field of the socket, readable in these hooks.
    if unsafe { read_volatile(addr_of!((*socket).bound_dev_if)) } == 0 {
        return;
    }
    let none = 0_i32;
    // SAFETY: the helper reads four bytes at `none`.
    unsafe { bpf_setsockopt(context.as_ptr(), SOL_SOCKET, SO_BINDTOIFINDEX, from_ref(&none).cast_mut().cast(), size_of_val(&none) as i32) };
}
