//! tropisd as a process, over real TLS sockets, fed from a real folder of objects.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod certificates;
mod configuration;
mod connections;
mod credentials;
mod endpoints;
mod harness;
mod page;
mod waypoints;
