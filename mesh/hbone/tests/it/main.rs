//! Tunnels over real sockets: both ends of this crate, with applications at the outer ends.
#![allow(clippy::unwrap_used, reason = "tests")]

mod connections;
mod fixture;
mod floods;
mod transparency;
mod trust;
