//! Resolve: what a tunnel addresses, and the routes, policies and pools of it. The decisions are `model::attached`'s; only what is attached
//! to this waypoint is served.

pub use tropis_model::attached::{Addressed, AttachmentError as ResolveError, addressed, service, stands_for_a_workload, workload};
