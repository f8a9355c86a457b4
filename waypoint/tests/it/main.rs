//! The proxy from outside: real tunnels with real certificates in, real HTTP servers behind, the view fed by hand. What the control
//! plane makes of objects is tested there; the whole way by the scenarios.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod flow_connections;
mod hostile_floods;
mod hostile_hosts;
mod hostile_paths;
mod hostile_smuggling;
mod log;
mod pools;
mod process;
mod protocols;
mod raw;
mod requests;
mod retries;
mod routes;
mod transparent;
mod witness;
mod world;
