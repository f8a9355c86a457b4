//! A queue that keeps the newest event of each object: bounded by how much exists, however slow its reader is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::Notify;
use tropis_crds::ObjectRef;

use crate::SourceEvent;

/// The reading end. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
}

/// The writing end. Dropping it ends the watch once what is queued was read.
#[derive(Debug)]
pub(crate) struct WatchSender {
    shared: Weak<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    pending: BTreeMap<u64, SourceEvent>,
    /// Where in `pending` the event about something is.
    places: HashMap<About, u64>,
    next: u64,
    closed: bool,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum About {
    Object(ObjectRef),
    File(String),
    Source,
}

/// A connected pair.
pub(crate) fn channel() -> (WatchSender, Watch) {
    let shared = Arc::new(Shared::default());
    (WatchSender { shared: Arc::downgrade(&shared) }, Watch { shared })
}

impl Shared {
    /// The queue is consistent after every statement, so a panic elsewhere while it was locked does no harm.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// The next event; `None` when the source is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<SourceEvent> {
        loop {
            {
                let mut queue = self.shared.queue();
                if let Some(event) = queue.pop() {
                    return Some(event);
                }
                if queue.closed {
                    return None;
                }
            }
            // A permit is kept when the push came between the look and this wait: there is one reader.
            self.shared.wake.notified().await;
        }
    }

    /// The next event if there is one now.
    pub fn try_recv(&mut self) -> Option<SourceEvent> {
        self.shared.queue().pop()
    }
}

impl Queue {
    fn pop(&mut self) -> Option<SourceEvent> {
        let (_, event) = self.pending.pop_first()?;
        self.places.remove(&about(&event));
        Some(event)
    }
}

impl WatchSender {
    /// Queues an event in place of an older one about the same; `false` when nobody reads any more. What was queued before
    /// [`SourceEvent::Synced`] stays before it: whoever reads `Synced` has read everything that existed.
    pub(crate) fn send(&self, event: SourceEvent) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        {
            let mut queue = shared.queue();
            let about = about(&event);
            let synced = queue.places.get(&About::Source).copied();
            let old = queue.places.get(&about).copied();
            if let Some(old) = old.filter(|old| synced.is_some_and(|synced| *old < synced)) {
                queue.pending.insert(old, event);
            } else {
                let place = queue.next;
                queue.next += 1;
                if let Some(old) = queue.places.insert(about, place) {
                    queue.pending.remove(&old);
                }
                queue.pending.insert(place, event);
            }
        }
        shared.wake.notify_one();
        true
    }
}

impl Drop for WatchSender {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.queue().closed = true;
            shared.wake.notify_one();
        }
    }
}

fn about(event: &SourceEvent) -> About {
    match event {
        SourceEvent::Applied(object) => About::Object(object.reference()),
        SourceEvent::Deleted(object) => About::Object(object.clone()),
        SourceEvent::Findings { file, .. } => About::File(file.clone()),
        SourceEvent::Synced => About::Source,
    }
}

#[cfg(test)]
mod tests {
    use tropis_crds::Kind;

    use super::*;

    fn deleted(name: &str) -> SourceEvent {
        SourceEvent::Deleted(ObjectRef::new(Kind::Pod, "shop", name))
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_last_state_once() {
        let (sender, mut watch) = channel();
        for _ in 0..1000 {
            assert!(sender.send(deleted("a")) && sender.send(deleted("b")));
        }
        sender.send(SourceEvent::Synced);
        drop(sender);
        let mut read = Vec::new();
        while let Some(event) = watch.recv().await {
            read.push(format!("{event:?}"));
        }
        assert_eq!(read.len(), 3, "{read:?}");
        assert!(read[0].contains("\"a\"") && read[1].contains("\"b\"") && read[2] == "Synced");
    }

    #[tokio::test]
    async fn what_existed_is_read_before_synced_even_if_it_changed_meanwhile() {
        let (sender, mut watch) = channel();
        for event in [deleted("a"), deleted("b"), SourceEvent::Synced, deleted("a"), deleted("c")] {
            assert!(sender.send(event));
        }
        let read: Vec<String> = std::iter::from_fn(|| watch.try_recv()).map(|event| format!("{event:?}")).collect();
        assert!(read[0].contains("\"a\"") && read[1].contains("\"b\"") && read[2] == "Synced" && read[3].contains("\"c\""), "{read:?}");
        assert_eq!(read.len(), 4);
    }

    #[tokio::test]
    async fn a_waiting_reader_wakes_and_a_gone_one_is_noticed() {
        let (sender, mut watch) = channel();
        let reader = tokio::spawn(async move { watch.recv().await.map(|event| format!("{event:?}")) });
        tokio::task::yield_now().await;
        assert!(sender.send(SourceEvent::Synced));
        assert_eq!(reader.await.unwrap().as_deref(), Some("Synced"));
        assert!(!sender.send(SourceEvent::Synced));
    }
}
