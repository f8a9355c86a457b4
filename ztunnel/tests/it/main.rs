//! The proxy from outside: two nodes' proxies, pods in network namespaces of their own, a node agent that speaks ZDS, captured by the
//! packet rules of istio-cni. What our own hooks do is tested by the scenarios.
//!
//! Needs root, `ip` and `nft`; where they are missing each test says so and fails only under `TROPIS_E2E=require`.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod agent;
mod claims;
mod confinement;
mod dns;
mod failures;
mod journeys;
mod load;
mod log;
mod mesh;
mod network;
mod process;
mod size;
mod tunnels;
