//! Tunnels over real sockets: both ends of this crate, with applications at the outer ends.

mod connections;
mod fixture;
mod transparency;
mod trust;
