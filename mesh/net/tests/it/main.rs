//! Sockets and the relay over the loopback, on both families.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "an allocator that counts, and leaving a network namespace for a thread of its own")]

mod allocations;
mod namespaces;
mod relaying;
