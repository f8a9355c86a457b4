//! Reading and writing the addresses of a program's context.
//!
//! The verifier accepts a context field only at a constant offset from the unmodified context pointer. LLVM merges reads from two
//! branches into one at a computed offset, which is refused ("dereference of modified ctx ptr"); volatile reads are left alone.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::bpf_get_netns_cookie,
    programs::SockAddrContext,
};
use tropis_abi::{Address, Pod, mapped};

/// IPv4 or IPv6, as the hook is: also for IPv4 over an IPv6 socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// An `AF_INET` socket.
    Inet,
    /// An `AF_INET6` socket; its address may be IPv4-mapped.
    Inet6,
}

/// The network namespace of the socket that the program runs for.
#[inline(always)]
pub(crate) fn netns_cookie(context: &SockAddrContext) -> u64 {
    // SAFETY: the context is the one that the kernel passed.
    unsafe { bpf_get_netns_cookie(context.sock_addr.cast()) }
}

/// The socket that the call is made on.
#[inline(always)]
pub(crate) fn socket(context: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: a field of the context; these hooks always have a socket.
    unsafe { read_volatile(addr_of!((*context.sock_addr).__bindgen_anon_1.sk)) }
}

/// The local and the remote address of a connection, from a raw context that has both in both families (`bpf_sock_ops`,
/// `bpf_sk_lookup`). A macro, because the two share their fields' names and nothing else. All fields are read before one is chosen.
macro_rules! ends {
    ($raw:expr) => {{
        let raw = $raw;
        // SAFETY: fields of the context at constant offsets.
        let (family, local4, remote4, local6, remote6) = unsafe {
            (
                read_volatile(addr_of!((*raw).family)),
                read_volatile(addr_of!((*raw).local_ip4)),
                read_volatile(addr_of!((*raw).remote_ip4)),
                [
                    read_volatile(addr_of!((*raw).local_ip6[0])),
                    read_volatile(addr_of!((*raw).local_ip6[1])),
                    read_volatile(addr_of!((*raw).local_ip6[2])),
                    read_volatile(addr_of!((*raw).local_ip6[3])),
                ],
                [
                    read_volatile(addr_of!((*raw).remote_ip6[0])),
                    read_volatile(addr_of!((*raw).remote_ip6[1])),
                    read_volatile(addr_of!((*raw).remote_ip6[2])),
                    read_volatile(addr_of!((*raw).remote_ip6[3])),
                ],
            )
        };
        $crate::context::choose(family, [local4, remote4], [local6, remote6])
    }};
}
pub(crate) use ends;

/// A pair of addresses of the family (`AF_INET`, `AF_INET6`) that a context names.
#[inline(always)]
pub(crate) fn choose(family: u32, ipv4: [u32; 2], ipv6: [[u32; 4]; 2]) -> (Address, Address) {
    const AF_INET: u32 = 2;
    if family == AF_INET { (mapped(ipv4[0].to_ne_bytes()), mapped(ipv4[1].to_ne_bytes())) } else { (join(ipv6[0]), join(ipv6[1])) }
}

/// The address that the call is about.
#[inline(always)]
pub(crate) fn address(context: &SockAddrContext, family: Family) -> Address {
    let raw: *const bpf_sock_addr = context.sock_addr;
    match family {
        // SAFETY: fields of the context at constant offsets.
        Family::Inet => mapped(unsafe { read_volatile(addr_of!((*raw).user_ip4)) }.to_ne_bytes()),
        Family::Inet6 => {
            // SAFETY: as above, a word at a time as the verifier wants it.
            let words = unsafe {
                [
                    read_volatile(addr_of!((*raw).user_ip6[0])),
                    read_volatile(addr_of!((*raw).user_ip6[1])),
                    read_volatile(addr_of!((*raw).user_ip6[2])),
                    read_volatile(addr_of!((*raw).user_ip6[3])),
                ]
            };
            join(words)
        }
    }
}

/// Replaces the address that the call is about.
#[inline(always)]
pub(crate) fn set_address(context: &SockAddrContext, family: Family, address: &Address) {
    let raw: *mut bpf_sock_addr = context.sock_addr;
    let words = split(address);
    match family {
        // SAFETY: fields of the context at constant offsets, writable in these hooks.
        Family::Inet => unsafe { write_volatile(addr_of_mut!((*raw).user_ip4), words[3]) },
        // SAFETY: as above.
        Family::Inet6 => unsafe {
            write_volatile(addr_of_mut!((*raw).user_ip6[0]), words[0]);
            write_volatile(addr_of_mut!((*raw).user_ip6[1]), words[1]);
            write_volatile(addr_of_mut!((*raw).user_ip6[2]), words[2]);
            write_volatile(addr_of_mut!((*raw).user_ip6[3]), words[3]);
        },
    }
}

/// The port that the call is about, in host order.
#[inline(always)]
pub(crate) fn port(context: &SockAddrContext) -> u16 {
    // SAFETY: a field of the context.
    let port = unsafe { read_volatile(addr_of!((*context.sock_addr).user_port)) };
    u16::from_be(port as u16)
}

/// Replaces the port that the call is about.
#[inline(always)]
pub(crate) fn set_port(context: &SockAddrContext, port: u16) {
    // SAFETY: a field of the context, writable in these hooks.
    unsafe { write_volatile(addr_of_mut!((*context.sock_addr).user_port), u32::from(port.to_be())) };
}

/// Four words in network order as an address.
#[inline(always)]
pub(crate) fn join(words: [u32; 4]) -> Address {
    // SAFETY: both are 16 bytes without padding.
    unsafe { core::mem::transmute(words) }
}

/// An address as four words in network order.
#[inline(always)]
pub(crate) fn split(address: &Address) -> [u32; 4] {
    // SAFETY: both are 16 bytes without padding.
    unsafe { core::mem::transmute(*address) }
}

/// Whether an address is IPv4-mapped.
#[inline(always)]
pub(crate) fn is_ipv4(address: &Address) -> bool {
    let words = split(address);
    words[0] == 0 && words[1] == 0 && words[2] == 0xffff_u32.to_be()
}

/// Whether an address is of the loopback interface, or the "any" address, which means the same to connect.
#[inline(always)]
pub(crate) fn is_loopback(address: &Address) -> bool {
    let words = split(address);
    if words[0] != 0 || words[1] != 0 {
        return false;
    }
    if words[2] == 0 {
        let last = u32::from_be(words[3]);
        return last <= 1;
    }
    words[2] == 0xffff_u32.to_be() && (address[12] == 127 || words[3] == 0)
}

/// The loopback address of the family that `address` is of.
#[inline(always)]
pub(crate) fn loopback_for(address: &Address) -> Address {
    if is_ipv4(address) { mapped([127, 0, 0, 1]) } else { [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] }
}

/// Whether two addresses are the same.
#[inline(always)]
pub(crate) fn same(one: &Address, other: &Address) -> bool {
    let (one, other) = (split(one), split(other));
    one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3]
}

/// Whether an address is one of the pod's own.
#[inline(always)]
pub(crate) fn is_own(pod: &Pod, address: &Address) -> bool {
    same(address, &pod.ipv4) || same(address, &pod.ipv6)
}
