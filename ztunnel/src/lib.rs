//! The node proxy (L4): captured connections of a node's pods go through HBONE tunnels, tunnels that arrive go to the pods.
//!
//! A connection's journey is [`outbound`], [`inbound`] or [`passthrough`]; its steps are the [`stages`]. What runs is in [`app`]. This
//! library exists for the tests; the program is `main.rs`.

pub mod admin;
pub mod app;
pub mod capture;
pub mod config;
pub mod confine;
pub mod connections;
pub mod dns;
pub mod inbound;
pub mod metrics;
pub mod node;
pub mod outbound;
pub mod passthrough;
pub mod stages;
pub mod view;
pub mod worker;
