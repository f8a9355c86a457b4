//! control/server.
fn main() {}
