//! What the mesh does for its users, shown with real processes on real wires: one behaviour a file, one lab for all of them.
//!
//! Needs root. Where that is not given the scenarios say so and pass without having shown anything, or fail under
//! `TROPIS_E2E=require`. The programs must be built (`cargo build`); `cargo xtask test` does both.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod absent_waypoint;
mod automatic_waypoint;
mod bad_input;
mod callers;
mod canary;
mod circuit_breaking;
mod encryption;
mod enrolment;
mod explain;
mod failure;
mod foreign_proxy;
mod hostile_http;
mod http_transparency;
mod identity;
mod l7_policy;
mod large_bodies;
mod page;
mod rollout;
mod runs;
mod shop;
mod support;
mod transparency;
mod waypoint_per_account;
mod wiring;
