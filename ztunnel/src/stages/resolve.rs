//! Resolve: where a connection goes. The decision is `model::resolve`'s; here it gets what it needs: our network, what failed lately,
//! and randomness.

pub use tropis_model::resolve::{inbound, passthrough};
use tropis_model::{
    address::OriginalDestination,
    resolve::{self, Draw, Plan, Question, ResolveError},
    view::View,
    workload::{Workload, WorkloadUid},
};

use crate::worker::Node;

/// Plans a connection that `caller` opened to `destination`, leaving out `failed` workloads where there are others.
pub fn outbound(
    node: &Node,
    view: &View,
    caller: &Workload,
    destination: OriginalDestination,
    failed: &[WorkloadUid],
) -> Result<Plan, ResolveError> {
    let mut tried = node.ejected.now();
    tried.extend_from_slice(failed);
    let question = Question { caller, destination, network: &node.shared.config.network, tried: &tried };
    resolve::outbound(view, &question, &mut Draw::new(rand::random()))
}
