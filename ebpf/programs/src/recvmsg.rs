//! `recvmsg4`, `recvmsg6`: an answer from a DNS listener shows the resolver that was asked, which its slot knows; so a socket that asks
//! several resolvers sees each one's answer from that one.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    connect::PROCEED,
    context::{self, Family},
    maps, resolvers,
};

#[cgroup_sock_addr(recvmsg4)]
fn tropis_recvmsg4(context: SockAddrContext) -> i32 {
    recvmsg(&context, Family::Inet)
}

#[cgroup_sock_addr(recvmsg6)]
fn tropis_recvmsg6(context: SockAddrContext) -> i32 {
    recvmsg(&context, Family::Inet6)
}

#[inline(always)]
fn recvmsg(context: &SockAddrContext, family: Family) -> i32 {
    let source = context::address(context, family);
    if !context::is_loopback(&source) {
        return PROCEED;
    }
    let cookie = context::netns_cookie(context);
    // SAFETY: the reference is used before anything changes the map.
    let Some(pod) = (unsafe { maps::PODS.get(cookie) }) else { return PROCEED };
    let Some(resolver) = resolvers::behind(cookie, pod, context::port(context)) else { return PROCEED };
    // A slot has a listener in each family; only the resolver's own family is its answer.
    if context::is_ipv4(&source) != context::is_ipv4(&resolver.address) {
        return PROCEED;
    }
    context::set_address(context, family, &resolver.address);
    context::set_port(context, resolver.port as u16);
    PROCEED
}
