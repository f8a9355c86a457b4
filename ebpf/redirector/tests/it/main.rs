//! Capture on the real kernel: real programs, namespaces, cgroups and pins, all named `tropis-ebpf-*` and removed afterwards.
//!
//! Needs root. Without it a test says so and passes; under `TROPIS_E2E=require` it fails.

#![allow(unsafe_code, clippy::unwrap_used, reason = "system calls that std does not wrap; tests may panic")]

mod dns;
mod faults;
mod foreign;
mod hostile;
mod inbound;
mod lab;
mod lifecycle;
mod outbound;
mod program;
mod upgrade;
