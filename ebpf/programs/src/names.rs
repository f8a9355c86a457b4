//! `getpeername4/6`, `getsockname4/6`: applications see true addresses. `accept` and io_uring's accept answer through the same hooks.
//!
//! Only sockets on the application's side are answered for: the node proxy sees what is really there.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use tropis_abi::kind;

use crate::{
    connect::PROCEED,
    context::{self, Family},
    maps,
};

#[cgroup_sock_addr(getpeername4)]
fn tropis_getpeername4(context: SockAddrContext) -> i32 {
    peer(&context, Family::Inet)
}

#[cgroup_sock_addr(getpeername6)]
fn tropis_getpeername6(context: SockAddrContext) -> i32 {
    peer(&context, Family::Inet6)
}

#[cgroup_sock_addr(getsockname4)]
fn tropis_getsockname4(context: SockAddrContext) -> i32 {
    local(&context, Family::Inet)
}

#[cgroup_sock_addr(getsockname6)]
fn tropis_getsockname6(context: SockAddrContext) -> i32 {
    local(&context, Family::Inet6)
}

/// Shows the destination that was dialled, or the client whose connection the proxy passes on.
#[inline(always)]
fn peer(context: &SockAddrContext, family: Family) -> i32 {
    let Some(kept) = maps::socket(context::socket(context)) else { return PROCEED };
    if kept.kind != kind::CAPTURED && kept.kind != kind::SHOWN && kept.kind != kind::RESOLVING {
        return PROCEED;
    }
    // An IPv4 socket has no room for an IPv6 address.
    if family == Family::Inet && !context::is_ipv4(&kept.address) {
        return PROCEED;
    }
    context::set_address(context, family, &kept.address);
    context::set_port(context, kept.port);
    PROCEED
}

/// Shows the pod's address instead of the loopback address that a captured connection has.
#[inline(always)]
fn local(context: &SockAddrContext, family: Family) -> i32 {
    let Some(kept) = maps::socket(context::socket(context)) else { return PROCEED };
    if kept.kind != kind::CAPTURED && kept.kind != kind::RESOLVING {
        return PROCEED;
    }
    if !context::is_loopback(&context::address(context, family)) {
        return PROCEED;
    }
    if family == Family::Inet && !context::is_ipv4(&kept.local) {
        return PROCEED;
    }
    context::set_address(context, family, &kept.local);
    PROCEED
}
