//! The other side: pools and the connections to their endpoints.
//!
//! What a pool counts, whom it has ejected and whose turn it is belongs to the process ([`pools`], shared by all workers); a connection
//! belongs to the worker that opened it ([`connections`]).

pub mod connections;
pub mod counts;
pub mod members;
pub mod pools;
