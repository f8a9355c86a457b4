//! What a connection addresses may get another way while the connection is open: its service is not, or no longer, attached to this
//! waypoint, which knows it still for what is under way; then it is forgotten. The connection ends, also when nobody asks anything on it,
//! and its caller's next one takes the other way.

use std::{future::pending, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::entry::{Entry, Way};

/// Waits until what the connection addresses has had another way for so long; no longer once it is forgotten, since what still comes is
/// refused.
pub(super) async fn left(entry: &Entry, quiet: Duration) {
    let changes = entry.worker.shared.view.concern(&entry.addressed.name());
    let mut since = None;
    loop {
        let changed = changes.notified();
        match entry.way() {
            Way::Here => since = None,
            Way::Elsewhere => _ = since.get_or_insert_with(Instant::now),
            Way::Nowhere => return,
        }
        let is_over = async {
            match since {
                Some(since) => sleep_until(since + quiet).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = is_over => return,
            () = changed => {}
        }
    }
}

#[cfg(test)]
mod tests;
