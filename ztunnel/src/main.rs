//! ztunnel.
fn main() {}
