//! ebpf/redirector.
fn main() {}
