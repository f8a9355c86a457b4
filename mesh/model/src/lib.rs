//! Nouns (identity, workload, service, policy, route, pool) and decisions (resolve, authorize, match, pick) of the mesh.
//!
//! Pure: no I/O, no clock, no async, no randomness of its own (it is passed in). What arrives on the wire becomes these types in
//! `tropis-xds`; what a user wrote becomes them in `tropis-compile`; the proxies decide with them. Start with [`view`], then
//! [`resolve`] and [`authorize`] for connections; for requests with [`request`], [`matching`], [`authorize::request`] and [`pick`], around
//! which [`rewrite`], [`retry`], [`outlier`] and [`limits`] stand.

pub mod address;
pub mod attached;
pub mod authorize;
pub mod bounds;
pub mod describe;
pub mod enrolment;
pub mod identity;
pub mod limits;
pub mod matching;
pub mod outcome;
pub mod outlier;
pub mod pick;
pub mod policy;
pub mod pool;
pub mod reach;
pub mod request;
pub mod request_policy;
pub mod resolve;
pub mod retry;
pub mod rewrite;
pub mod route;
pub mod service;
pub mod view;
pub mod waypoint;
pub mod workload;
