//! The user side of the pinned maps.
//!
//! Two doors: [`ProxyMaps`] for the node proxy, which opens by file permission what it may write and nothing else, and [`NodeMaps`] for
//! the redirector, which owns everything. [`Pins`] says where the pins are and whose; [`bpf`] is the bpf(2) calls that both make, here
//! because the proxy's seccomp filter allows only these: open a pin, and look up, update, delete an element.
//!
//! Layouts and names are in `ebpf/abi`. Who attaches programs is `ebpf/redirector`.

#![allow(unsafe_code, reason = "bpf(2) takes pointers; every call is in `bpf.rs`, and values are read by their repr(C) layout")]

pub mod bpf;
mod node;
mod pins;
mod proxy;
mod value;

pub use node::{InboundCount, NodeMaps, OutboundCount, PodEntry};
pub use pins::{Pins, ProxyAccount};
pub use proxy::{ListenerKind, ProxyMaps};
pub use tropis_abi::{DNS_SLOTS, HBONE_PORT, MAX_PROXIES, SCHEMA, map};

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a pinned map could not be used.
#[derive(Debug, Error)]
pub enum MapsError {
    /// The pin is not there, or may not be opened.
    #[error("open the pinned map {path} (bpf BPF_OBJ_GET; file permission from kernel 5.19, CAP_BPF before)")]
    Open {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An element could not be read or written.
    #[error("{call} on the map {map}")]
    Element {
        /// The bpf(2) command.
        call: &'static str,
        /// The map.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
