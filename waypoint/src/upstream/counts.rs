//! What a pool has under way, counted for all workers; the limits are decided by `model::limits`.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering, fence},
};

use tokio::sync::{Notify, futures::Notified};
use tropis_model::{
    limits::{self, Overflow, UnderWay},
    pool::Limits,
};

/// The counters of one pool.
#[derive(Debug, Default)]
pub struct Counts {
    connections: AtomicU32,
    pending_requests: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    /// Requests that wait because the pool may have no more connections.
    waiting: AtomicU32,
    /// Told when a connection has closed that others waited for.
    freed: Notify,
    /// Told when a request waits: idle connections are to close.
    wanted: Notify,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A connection.
    Connection,
    /// A request that waits for a connection.
    PendingRequest,
    /// A request that has one.
    Request,
    /// A retry.
    Retry,
}

/// A place among those counted; dropping it frees it.
#[derive(Debug)]
pub struct Held {
    counts: Arc<Counts>,
    kind: Kind,
}

impl Counts {
    /// What is under way now.
    pub fn under_way(&self) -> UnderWay {
        let read = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        UnderWay {
            connections: read(&self.connections),
            pending_requests: read(&self.pending_requests),
            requests: read(&self.requests),
            retries: read(&self.retries),
        }
    }

    /// Takes a place, if the limits leave one. A refusal counts nothing, not even for a moment: it keeps nobody else out, and nobody is
    /// told of a place that was never had.
    pub fn take(self: &Arc<Self>, kind: Kind, limits: &Limits) -> Result<Held, Overflow> {
        let decide = |counted: u32| {
            let under_way = self.under_way();
            match kind {
                Kind::Connection => limits::connection(limits, &UnderWay { connections: counted, ..under_way }),
                Kind::PendingRequest => limits::pending_request(limits, &UnderWay { pending_requests: counted, ..under_way }),
                Kind::Request => limits::request(limits, &UnderWay { requests: counted, ..under_way }),
                Kind::Retry => limits::retry(limits, &UnderWay { retries: counted, ..under_way }),
            }
        };
        let counter = self.counter(kind);
        let mut counted = counter.load(Ordering::Acquire);
        loop {
            decide(counted)?;
            // Decided and counted as one, so that two workers at the limit cannot both pass.
            match counter.compare_exchange_weak(counted, counted + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(Held { counts: self.clone(), kind }),
                Err(now) => counted = now,
            }
        }
    }

    /// Takes a place for a connection that there is room for nowhere else, beyond the limit if need be.
    pub fn take_first_connection(self: &Arc<Self>, limits: &Limits) -> Held {
        self.take(Kind::Connection, limits).unwrap_or_else(|_| {
            self.connections.fetch_add(1, Ordering::AcqRel);
            Held { counts: self.clone(), kind: Kind::Connection }
        })
    }

    /// Takes a place for a connection, waiting for as long as the pool may have no more: idle ones are asked to close.
    pub async fn take_connection(self: &Arc<Self>, limits: &Limits) -> Held {
        struct Waits<'a>(&'a AtomicU32);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
        if let Ok(held) = self.take(Kind::Connection, limits) {
            return held;
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waits = Waits(&self.waiting);
        // With the one in `Held::drop`: a place that was freed before somebody waited is found, one that is freed later is told of.
        fence(Ordering::SeqCst);
        loop {
            // Before trying, so that one that closes in between is heard of.
            let freed = self.freed.notified();
            if let Ok(held) = self.take(Kind::Connection, limits) {
                return held;
            }
            self.wanted.notify_waiters();
            freed.await;
        }
    }

    /// Says again that a connection is wanted, if one is.
    pub fn remind(&self) {
        if self.is_wanted() {
            self.wanted.notify_waiters();
        }
    }

    /// Waits for word that a connection is wanted, from now on, polled or not. Ask [`Self::is_wanted`] after this was made.
    pub fn heard(&self) -> Notified<'_> {
        self.wanted.notified()
    }

    /// Whether somebody waits for a connection of this pool to close.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    fn counter(&self, kind: Kind) -> &AtomicU32 {
        match kind {
            Kind::Connection => &self.connections,
            Kind::PendingRequest => &self.pending_requests,
            Kind::Request => &self.requests,
            Kind::Retry => &self.retries,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.counts.counter(self.kind).fetch_sub(1, Ordering::AcqRel);
        if self.kind != Kind::Connection {
            return;
        }
        fence(Ordering::SeqCst);
        if self.counts.is_wanted() {
            self.counts.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[test]
    fn a_place_that_is_refused_or_dropped_is_free() {
        let counts = Arc::new(Counts::default());
        let limits = Limits { max_requests: Some(1), ..Limits::default() };
        let held = counts.take(Kind::Request, &limits).unwrap();
        assert_eq!(counts.take(Kind::Request, &limits).unwrap_err(), Overflow::Requests);
        assert_eq!(counts.under_way().requests, 1);
        drop(held);
        assert_eq!(counts.under_way(), UnderWay::default());
        assert!(counts.take(Kind::Request, &limits).is_ok());
    }

    #[tokio::test]
    async fn who_is_refused_waits_without_waking_itself() {
        let counts = Arc::new(Counts::default());
        let limits = Limits { max_connections: Some(1), ..Limits::default() };
        let _held = counts.take(Kind::Connection, &limits).unwrap();
        let mut first = Box::pin(counts.take_connection(&limits));
        let mut second = Box::pin(counts.take_connection(&limits));
        for _ in 0..3 {
            // Without an end to its trying, this would never come back.
            let polled = std::future::poll_fn(|cx| Poll::Ready((first.as_mut().poll(cx), second.as_mut().poll(cx))));
            assert!(matches!(polled.await, (Poll::Pending, Poll::Pending)));
        }
        assert_eq!(counts.under_way().connections, 1);
    }

    #[test]
    fn no_place_is_freed_unheard_by_another_thread() {
        const TURNS: usize = 20_000;
        let counts = Arc::new(Counts::default());
        let limits = Limits { max_connections: Some(1), ..Limits::default() };
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (counts, limits) = (counts.clone(), limits.clone());
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    runtime.block_on(async {
                        for turn in 0..TURNS {
                            let taken = tokio::time::timeout(std::time::Duration::from_secs(10), counts.take_connection(&limits)).await;
                            drop(taken.unwrap_or_else(|_| panic!("nobody told of the free place in turn {turn}")));
                        }
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(counts.under_way(), UnderWay::default());
    }

    #[tokio::test]
    async fn who_waits_hears_of_a_connection_that_closes() {
        let counts = Arc::new(Counts::default());
        let limits = Limits { max_connections: Some(1), ..Limits::default() };
        let held = counts.take(Kind::Connection, &limits).unwrap();
        let waiting = tokio::spawn({
            let counts = counts.clone();
            async move { counts.take_connection(&limits).await }
        });
        counts.heard().await;
        assert!(counts.is_wanted() && !waiting.is_finished());
        drop(held);
        let held = waiting.await.unwrap();
        assert_eq!(counts.under_way().connections, 1);
        drop(held);
        assert!(!counts.is_wanted());
    }
}
