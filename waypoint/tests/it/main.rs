//! The proxy from outside: real tunnels with real certificates in, real HTTP servers behind, the view fed by hand. In the files `api_*`
//! it is fed with objects as users write them, compiled by the control plane's code; the whole way is tested by the scenarios.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod access_log;
mod api_actions;
mod api_connections;
mod api_guides;
mod api_matches;
mod api_mesh;
mod api_policies;
mod api_pools;
mod api_semantics;
mod api_tries;
mod callers;
mod flow_brought;
mod flow_connections;
mod flow_connects;
mod flow_leaving;
mod flow_pools;
mod hostile_floods;
mod hostile_hosts;
mod hostile_paths;
mod hostile_responses;
mod hostile_smuggling;
mod log;
mod measures;
mod pools;
mod process;
mod protocols;
mod raw;
mod requests;
mod retries;
mod routes;
mod transparent;
mod tries;
mod witness;
mod world;
