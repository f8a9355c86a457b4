//! deploy/samples/bookinfo/app.
fn main() {}
