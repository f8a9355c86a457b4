//! `sendmsg4`, `sendmsg6`: a question sent from an unconnected UDP socket to port 53 goes to the pod's DNS listener.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use tropis_abi::kind;

use crate::{
    connect::{Decision, ECONNREFUSED, ENETUNREACH, PROCEED, decide, fail},
    context::{self, Family},
    counters, maps, resolvers,
};

const DNS: u16 = 53;

#[cgroup_sock_addr(sendmsg4)]
fn tropis_sendmsg4(context: SockAddrContext) -> i32 {
    sendmsg(&context, Family::Inet)
}

#[cgroup_sock_addr(sendmsg6)]
fn tropis_sendmsg6(context: SockAddrContext) -> i32 {
    sendmsg(&context, Family::Inet6)
}

#[inline(always)]
fn sendmsg(context: &SockAddrContext, family: Family) -> i32 {
    let port = context::port(context);
    if port != DNS {
        return PROCEED;
    }
    let cookie = context::netns_cookie(context);
    // SAFETY: the value is copied before anything changes the map.
    let Some(pod) = (unsafe { maps::PODS.get(cookie) }).copied() else { return PROCEED };
    if pod.dns_port == 0 {
        return PROCEED;
    }
    if maps::socket(context::socket(context)).is_some_and(|kept| kept.kind == kind::OWN) {
        return PROCEED;
    }
    let destination = context::address(context, family);
    match decide(cookie, &pod, &destination) {
        Decision::Capture { .. } => {}
        Decision::Pass => return PROCEED,
        Decision::Unreachable => return fail(ENETUNREACH),
    }
    let Some(slot) = resolvers::slot(cookie, &destination, port) else {
        counters::outbound(cookie, |count| &mut count.dns_refused);
        return fail(ECONNREFUSED);
    };
    counters::outbound(cookie, |count| &mut count.dns_captured);
    context::set_address(context, family, &context::loopback_for(&destination));
    context::set_port(context, pod.dns_port + slot);
    PROCEED
}
