//! The L7 proxy: tunnels that arrive are ended, the requests in them are routed, and sent on through tunnels of our own.
//!
//! A request's journey is [`request`], a connection's that is not HTTP [`connection`]; their steps are the [`stages`]. What arrives is
//! made one of both in [`tunnel`]. What runs is in [`app`]. This library exists for the tests; the program is `main.rs`.

pub mod admin;
pub mod app;
pub mod body;
pub mod callers;
pub mod config;
pub mod connection;
pub mod entry;
pub mod filters;
pub mod http_server;
pub mod metrics;
pub mod reply;
pub mod request;
pub mod stages;
pub mod stream;
pub mod tunnel;
pub mod upgrade;
pub mod upstream;
pub mod worker;
