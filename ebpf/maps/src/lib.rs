//! ebpf/maps.
