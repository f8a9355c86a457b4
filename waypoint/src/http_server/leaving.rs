//! Whether what a connection addresses has another way now: its service is not, or no longer, attached to this waypoint, which knows it still
//! for what is under way. Then the connection ends with the response that it is about, and its caller's next one takes the other way.

use tropis_model::{attached::is_ours, view::View};

use crate::{entry::Entry, stages::resolve::Addressed};

/// Whether the caller had better open another connection. Looked up once a view.
pub(super) fn has_left(entry: &Entry) -> bool {
    let view = entry.worker.shared.view.load();
    let (version, left) = entry.left.get();
    if version == view.version() {
        return left;
    }
    let left = goes_elsewhere(entry, &view);
    entry.left.set((view.version(), left));
    left
}

fn goes_elsewhere(entry: &Entry, view: &View) -> bool {
    let Addressed::Service { name, .. } = &entry.addressed else { return false };
    let shared = &entry.worker.shared;
    let (Some(waypoint), Some(service)) = (view.waypoint(&shared.config.gateway), view.service(name)) else { return false };
    // Behind a listener of our own nobody is attached.
    let by_tunnel = entry.caller.identity.is_some();
    by_tunnel && !service.waypoint.as_ref().is_some_and(|own| is_ours(view, waypoint, &shared.config.network, own))
}
