//! Sockets of the mesh: network namespaces, original destinations, listening, dialling, moving bytes, draining.
//!
//! The owner of socket options and namespaces; it knows nothing of TLS or HTTP. What it moves bytes between is anything that is a
//! [`relay::RelayStream`], which a TCP socket and a tunnel both are. Start with [`relay`] for the data path, [`listen`] and [`dial`]
//! for the ends of it.
#![allow(unsafe_code, reason = "two system calls without a safe wrapper (namespace.rs), and reads into uninitialised buffers (block.rs)")]

pub mod accept;
mod block;
pub mod dial;
pub mod drain;
pub mod listen;
pub mod namespace;
pub mod original_destination;
pub mod relay;
pub mod sockets;
