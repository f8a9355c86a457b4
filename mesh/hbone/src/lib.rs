//! HBONE: TCP connections carried as CONNECT streams of HTTP/2 over mutual TLS 1.3, on port 15008.
//!
//! One stream is one connection: DATA frames are its bytes, END_STREAM is its FIN (each direction by itself), RST_STREAM its reset.
//! [`client::Pool`] opens tunnels to other workloads, [`server`] accepts them for a workload here, and both give a
//! [`stream::TunnelStream`], which is a side of `tropis_net::relay`.
//!
//! Everything here lives on one thread, with its TLS and HTTP/2 state: nothing is `Send`, work is spawned with `spawn_local` (in a
//! `tokio::task::LocalSet` or a `LocalRuntime`), and a connection never changes its worker.

pub mod client;
mod connection;
pub mod frames;
pub mod headers;
pub mod server;
pub mod settings;
pub mod stream;
