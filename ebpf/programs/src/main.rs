//! The kernel side of capture: a file a hook, all state in `maps.rs`, all layouts in `ebpf/abi`.
//!
//! What a connection meets, in order: `connect.rs` (or `sendmsg.rs` for a question to a resolver) in the pod, `sock_ops.rs` at both ends
//! of the loopback connection that this makes, `getsockopt.rs` when the node proxy asks where it was going; `names.rs` when the
//! application asks who it talks to. A connection that arrives at a pod meets `sk_lookup.rs`.

#![no_std]
#![no_main]

mod connect;
mod context;
mod counters;
mod getsockopt;
mod maps;
mod names;
mod recvmsg;
mod resolvers;
mod sendmsg;
mod sk_lookup;
mod sock_ops;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are open to programs under a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
