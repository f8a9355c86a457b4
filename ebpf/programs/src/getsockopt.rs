//! `getsockopt`: answers `SO_ORIGINAL_DST` on the node proxy's end of a captured connection, as netfilter would: level 0 (`SOL_IP`) with
//! a `sockaddr_in` for IPv4, level 41 (`SOL_IPV6`) with a `sockaddr_in6` for IPv6.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use tropis_abi::kind;

use crate::{context, maps};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
const SO_ORIGINAL_DST: i32 = 80;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// The kernel shows programs one page of an option; a longer one stays as it is when the program says length 0.
const PAGE: i32 = 4096;

#[cgroup_sockopt(getsockopt)]
fn tropis_getsockopt(context: SockoptContext) -> i32 {
    let raw: *mut bpf_sockopt = context.sockopt;
    // SAFETY: fields of the context.
    let (level, name, length) =
        unsafe { (read_volatile(addr_of!((*raw).level)), read_volatile(addr_of!((*raw).optname)), read_volatile(addr_of!((*raw).optlen))) };
    if name == SO_ORIGINAL_DST && (level == SOL_IP || level == SOL_IPV6) {
        answer(raw, level);
    } else if length > PAGE {
        // SAFETY: a field of the context, writable in this hook.
        unsafe { write_volatile(addr_of_mut!((*raw).optlen), 0) };
    }
    1
}

#[inline(always)]
fn answer(raw: *mut bpf_sockopt, level: i32) {
    // SAFETY: a field of the context; this hook always has a socket.
    let socket = unsafe { read_volatile(addr_of!((*raw).__bindgen_anon_1.sk)) };
    let Some(kept) = maps::socket(socket) else { return };
    if kept.kind != kind::ACCEPTED {
        return;
    }
    // SAFETY: fields of the context; the verifier knows the two as a packet's begin and end.
    let (begin, end) = unsafe {
        (
            read_volatile(addr_of!((*raw).__bindgen_anon_2.optval)).cast::<u8>(),
            read_volatile(addr_of!((*raw).__bindgen_anon_3.optval_end)).cast::<u8>(),
        )
    };
    let port = kept.port.to_be();
    if level == SOL_IP && context::is_ipv4(&kept.address) {
        let words = context::split(&kept.address);
        // SAFETY: 16 bytes are there.
        unsafe {
            if begin.add(16) > end {
                return;
            }
            write_volatile(begin.cast::<u16>(), AF_INET);
            write_volatile(begin.add(2).cast::<u16>(), port);
            write_volatile(begin.add(4).cast::<u32>(), words[3]);
            write_volatile(begin.add(8).cast::<u32>(), 0);
            write_volatile(begin.add(12).cast::<u32>(), 0);
        }
        succeed(raw, 16);
    } else if level == SOL_IPV6 && !context::is_ipv4(&kept.address) {
        let words = context::split(&kept.address);
        // SAFETY: 28 bytes are there.
        unsafe {
            if begin.add(28) > end {
                return;
            }
            write_volatile(begin.cast::<u16>(), AF_INET6);
            write_volatile(begin.add(2).cast::<u16>(), port);
            write_volatile(begin.add(4).cast::<u32>(), 0);
            write_volatile(begin.add(8).cast::<u32>(), words[0]);
            write_volatile(begin.add(12).cast::<u32>(), words[1]);
            write_volatile(begin.add(16).cast::<u32>(), words[2]);
            write_volatile(begin.add(20).cast::<u32>(), words[3]);
            write_volatile(begin.add(24).cast::<u32>(), 0);
        }
        succeed(raw, 28);
    }
}

#[inline(always)]
fn succeed(raw: *mut bpf_sockopt, length: i32) {
    // SAFETY: fields of the context, writable in this hook.
    unsafe {
        write_volatile(addr_of_mut!((*raw).optlen), length);
        write_volatile(addr_of_mut!((*raw).retval), 0);
    }
}
