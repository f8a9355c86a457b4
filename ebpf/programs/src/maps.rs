//! The maps. Names, keys and values are explained in `ebpf/abi`.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{HashMap, LruHashMap, PerCpuHashMap, SkStorage},
    helpers::generated::{bpf_get_current_cgroup_id, bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::SockHash,
};
use tropis_abi::{
    Address, Connection, InboundCounters, ListenerKey, MAX_HANDOVERS, MAX_LISTENERS, MAX_PODS, MAX_PROXIES, MAX_RESOLVERS,
    OutboundCounters, Pod, Resolver, ResolverKey, Socket,
};

#[btf_map]
pub(crate) static PODS: HashMap<u64, Pod, MAX_PODS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static SOCKETS: SkStorage<Socket> = SkStorage::new();
#[btf_map]
pub(crate) static HANDOVER: LruHashMap<Connection, Socket, MAX_HANDOVERS> = LruHashMap::new();
#[map]
pub(crate) static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(MAX_LISTENERS as u32, 0);
#[btf_map]
pub(crate) static RESOLVERS: HashMap<ResolverKey, Resolver, MAX_RESOLVERS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
pub(crate) static OUTBOUND: PerCpuHashMap<u64, OutboundCounters, MAX_PODS, { BPF_F_NO_PREALLOC as usize }> = PerCpuHashMap::new();
#[btf_map]
pub(crate) static INBOUND: PerCpuHashMap<Address, InboundCounters, { MAX_PODS * 2 }, { BPF_F_NO_PREALLOC as usize }> = PerCpuHashMap::new();
#[btf_map]
static PROXIES: HashMap<u64, u32, MAX_PROXIES, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Whether the calling process is in a cgroup of a node proxy that cannot mark its sockets.
#[inline(always)]
pub(crate) fn called_by_proxy() -> bool {
    // SAFETY: a helper without arguments; the reference is not kept.
    unsafe { PROXIES.get(bpf_get_current_cgroup_id()) }.is_some()
}

/// What the kernel keeps with `socket`, if anything.
#[inline(always)]
pub(crate) fn socket(socket: *mut bpf_sock) -> Option<Socket> {
    // SAFETY: the verifier proves that `socket` is a socket of the running program's context.
    let value = unsafe { bpf_sk_storage_get(ptr::addr_of!(SOCKETS).cast_mut().cast(), socket.cast(), ptr::null_mut(), 0) }.cast::<Socket>();
    if value.is_null() {
        return None;
    }
    // SAFETY: not null, so it points to a value of this map, which lives as long as the socket.
    Some(unsafe { *value })
}

/// Keeps `value` with `socket`. False when there is no memory for it.
#[inline(always)]
pub(crate) fn keep(socket: *mut bpf_sock, value: &Socket) -> bool {
    // SAFETY: as above; the helper copies `value` when it makes a new entry.
    let kept = unsafe {
        bpf_sk_storage_get(
            ptr::addr_of!(SOCKETS).cast_mut().cast(),
            socket.cast(),
            ptr::from_ref(value).cast_mut().cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    }
    .cast::<Socket>();
    if kept.is_null() {
        return false;
    }
    // SAFETY: not null; an entry that was there before is overwritten.
    unsafe { *kept = *value };
    true
}

/// Forgets what was kept with `socket`.
#[inline(always)]
pub(crate) fn forget(socket: *mut bpf_sock) {
    // SAFETY: as above. That nothing was kept is no error.
    unsafe { bpf_sk_storage_delete(ptr::addr_of!(SOCKETS).cast_mut().cast(), socket.cast()) };
}
