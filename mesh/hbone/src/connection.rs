//! What both ends of an HTTP/2 connection have in common: its load, its keepalive, its socket.

mod keepalive;
mod load;
mod socket;

pub(crate) use self::{
    keepalive::{Beat, Keepalive},
    load::{Load, StreamGuard},
    socket::{Output, TunnelSocket},
};
