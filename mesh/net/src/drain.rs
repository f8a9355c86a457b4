//! Draining: accept nothing new, finish what is open, give up at a deadline.
//!
//! One [`Drain`] per thing that drains (a process, a pod); everything that must finish holds a [`DrainSignal`], and dropping it says
//! "finished". The signal has three phases, each reached once: running, draining, cut.

use std::time::Duration;

use tokio::sync::watch;

/// How far a drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing is drained: accept and serve.
    Running,
    /// Accept nothing new; finish what is open.
    Draining,
    /// The time to finish ran out: close what is open.
    Cut,
}

/// The side that decides. Dropping it without draining means nothing will ever be drained.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
}

/// The side that obeys; each clone counts as unfinished work until it is dropped.
#[derive(Debug, Clone)]
pub struct DrainSignal {
    phase: watch::Receiver<Phase>,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything finished by itself.
    Finished,
    /// Something was still open at the deadline and was told to close.
    Cut,
}

impl Drain {
    /// A new drain, running.
    pub fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Running) }
    }

    /// A signal for one more piece of work.
    pub fn signal(&self) -> DrainSignal {
        DrainSignal { phase: self.phase.subscribe() }
    }

    /// Whether it has started.
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Starts draining without waiting for it.
    pub fn start(&self) {
        self.raise(Phase::Draining);
    }

    /// Starts draining, waits until all signals are dropped, and at `limit` tells what is left to close and waits for that too
    /// (bounded by `CUT_LIMIT`, after which whatever is left is the runtime's to abort).
    pub async fn finish(&self, limit: Duration) -> Drained {
        self.start();
        if tokio::time::timeout(limit, self.phase.closed()).await.is_ok() {
            return Drained::Finished;
        }
        self.raise(Phase::Cut);
        let _ = tokio::time::timeout(CUT_LIMIT, self.phase.closed()).await;
        Drained::Cut
    }

    fn raise(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let raised = *phase < to;
            *phase = (*phase).max(to);
            raised
        });
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

/// How long closing at once may take: resets only have to be handed to the kernel.
const CUT_LIMIT: Duration = Duration::from_secs(1);

impl DrainSignal {
    /// A signal that never comes, for tests and for things that nobody drains.
    pub fn never() -> Self {
        Drain::new().signal()
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until draining begins (at once when it has).
    pub async fn draining(&mut self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits until the time to finish has run out (at once when it has).
    pub async fn cut(&mut self) {
        self.reached(Phase::Cut).await;
    }

    async fn reached(&mut self, wanted: Phase) {
        if self.phase.wait_for(|phase| *phase >= wanted).await.is_err() {
            // The deciding side is gone without having decided: it never will.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn finishes_when_the_last_signal_is_dropped() {
        let drain = Drain::new();
        let mut signal = drain.signal();
        let work = tokio::spawn(async move {
            signal.draining().await;
            assert_eq!(signal.phase(), Phase::Draining);
        });
        assert_eq!(drain.finish(Duration::from_secs(5)).await, Drained::Finished);
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn cuts_what_is_left_at_the_deadline() {
        let drain = Drain::new();
        let mut signal = drain.signal();
        let work = tokio::spawn(async move { signal.cut().await });
        assert_eq!(drain.finish(Duration::from_secs(5)).await, Drained::Cut);
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_drain_never_drains() {
        let mut signal = DrainSignal::never();
        assert!(tokio::time::timeout(Duration::from_secs(60), signal.draining()).await.is_err());
    }
}
