//! What the cross-process tests stand on.

pub mod testkit;
