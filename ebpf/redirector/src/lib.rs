//! The node agent: it loads and pins the eBPF programs, watches the pods of its node, enrols those that belong to the mesh, and hands
//! them to the node proxy.
//!
//! [`kernel`] is everything below: programs, links, pins, probes. [`pods`] says which pods belong to the mesh, [`namespaces`] finds where
//! they run, [`sandboxes`] hears when that changes, [`zds`] hands them to the proxy ([`foreign`]: another mesh's), [`enrol`] does it all in the order that loses no
//! connection. Capture outlives this process: what is pinned works without it, and a new process takes it over without touching traffic.

#![allow(unsafe_code, reason = "descriptors from system calls without a safe wrapper; each block says why it is sound")]

pub mod admin;
pub mod config;
pub mod enrol;
pub mod foreign;
pub mod kernel;
pub mod namespaces;
pub mod pods;
pub mod sandboxes;
pub mod zds;
