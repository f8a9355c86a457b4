//! `sock_ops`: carries what is kept with the one end of a loopback connection to the other end, inside the kernel.
//!
//! The end that connects writes it under the connection's addresses before its SYN leaves; the end that accepts takes it from there. Both
//! ends are in one network namespace, whose cookie is part of the key: no pod can write for another one.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use tropis_abi::{Address, Connection, Socket, kind};

use crate::{
    context,
    maps::{self, HANDOVER},
};

#[sock_ops]
fn tropis_sock_ops(context: SockOpsContext) -> u32 {
    let raw: *mut bpf_sock_ops = context.ops;
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => give(raw),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => take(raw),
        BPF_SOCK_OPS_STATE_CB if context.arg(1) == BPF_TCP_CLOSE => withdraw(raw),
        _ => {}
    }
    1
}

/// Before the SYN: what is kept with this socket waits for the other end.
#[inline(always)]
fn give(raw: *mut bpf_sock_ops) {
    let Some(socket) = socket(raw) else { return };
    let Some(kept) = maps::socket(socket) else { return };
    let kind = match kept.kind {
        kind::CAPTURED => kind::ACCEPTED,
        kind::SHOW_PEER => kind::SHOWN,
        _ => return,
    };
    let (local, remote) = ends(raw);
    // A full map evicts its oldest entry; that this one fails is left to the proxy, which refuses what has no destination.
    let _ = HANDOVER.insert(connection(raw, local, remote), Socket { kind, ..kept }, u64::from(BPF_ANY));
    // SAFETY: the context is the one that the kernel passed.
    unsafe { bpf_sock_ops_cb_flags_set(raw, BPF_SOCK_OPS_STATE_CB_FLAG as i32) };
}

/// A connection was accepted: what waits for this end is kept with its socket.
#[inline(always)]
fn take(raw: *mut bpf_sock_ops) {
    let (local, remote) = ends(raw);
    let key = connection(raw, remote, local);
    // SAFETY: copied before the entry is removed.
    let Some(waiting) = (unsafe { HANDOVER.get(key) }).copied() else { return };
    let Some(socket) = socket(raw) else { return };
    maps::keep(socket, &waiting);
    let _ = HANDOVER.remove(key);
}

/// The connection ended: nobody will come for what still waits.
#[inline(always)]
fn withdraw(raw: *mut bpf_sock_ops) {
    let (local, remote) = ends(raw);
    let _ = HANDOVER.remove(connection(raw, local, remote));
}

struct End {
    address: Address,
    port: u16,
}

#[inline(always)]
fn connection(raw: *mut bpf_sock_ops, local: End, remote: End) -> Connection {
    Connection {
        // SAFETY: the context is the one that the kernel passed.
        netns_cookie: unsafe { bpf_get_netns_cookie(raw.cast()) },
        local: local.address,
        remote: remote.address,
        local_port: local.port,
        remote_port: remote.port,
        padding: 0,
    }
}

/// This end and the other one.
#[inline(always)]
fn ends(raw: *mut bpf_sock_ops) -> (End, End) {
    let (local, remote) = context::ends!(raw);
    // SAFETY: fields of the context.
    let (local_port, remote_port) = unsafe { (read_volatile(addr_of!((*raw).local_port)), read_volatile(addr_of!((*raw).remote_port))) };
    // `remote_port` is in network order in the upper half of the word, `local_port` in host order.
    let remote_port = u32::from_be(remote_port) as u16;
    (End { address: local, port: local_port as u16 }, End { address: remote, port: remote_port })
}

#[inline(always)]
fn socket(raw: *mut bpf_sock_ops) -> Option<*mut bpf_sock> {
    // SAFETY: a field of the context.
    let socket = unsafe { read_volatile(addr_of!((*raw).__bindgen_anon_2.sk)) };
    (!socket.is_null()).then_some(socket)
}
