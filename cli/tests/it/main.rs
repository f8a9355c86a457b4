//! The program itself, on a state directory made by hand and on sockets that speak the programs' own HTTP.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agreement;
mod logs;
mod mesh;
mod mistakes;
mod objects;
mod programs;
