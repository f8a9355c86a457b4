//! Tunnels over real sockets: both ends of this crate, with applications at the outer ends.
#![allow(clippy::unwrap_used, reason = "tests")]

mod connections;
mod fixture;
mod transparency;
mod trust;
