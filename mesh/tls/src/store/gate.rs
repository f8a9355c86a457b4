//! How many requests are under way at once, and who goes first: a connection that waits before a workload that may come into use,
//! before a certificate that is only due for renewal.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use tokio::sync::oneshot;

/// Why a certificate is wanted; the first goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// A connection waits for it.
    RealTime = 0,
    /// A workload that runs here may soon need it.
    Warmup = 1,
    /// It is due for renewal.
    Background = 2,
}

impl Priority {
    const ALL: [Priority; 3] = [Self::RealTime, Self::Warmup, Self::Background];
}

/// Somebody who may queue at the gate again and again. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    number: u64,
    priority: Arc<AtomicU8>,
}

impl Ticket {
    fn priority(&self) -> Priority {
        Priority::ALL[usize::from(self.priority.load(Ordering::Relaxed))]
    }

    /// Sets the priority of the next visit.
    pub(super) fn reset(&self, priority: Priority) {
        self.priority.store(priority as u8, Ordering::Relaxed);
    }
}

/// Lets a fixed number through at once.
pub(super) struct Gate {
    state: Arc<Mutex<State>>,
}

struct State {
    free: usize,
    next_number: u64,
    queue: BTreeMap<(Priority, u64), oneshot::Sender<Turn>>,
}

/// Being inside. Dropping it lets the next one in.
pub(super) struct Turn {
    state: Arc<Mutex<State>>,
}

impl Gate {
    pub(super) fn new(at_once: usize) -> Self {
        Self { state: Arc::new(Mutex::new(State { free: at_once, next_number: 0, queue: BTreeMap::new() })) }
    }

    pub(super) fn ticket(&self, priority: Priority) -> Ticket {
        let mut state = lock(&self.state);
        state.next_number += 1;
        Ticket { number: state.next_number, priority: Arc::new(AtomicU8::new(priority as u8)) }
    }

    /// Moves a ticket forward, also while it queues. A ticket never goes back.
    pub(super) fn raise(&self, ticket: &Ticket, priority: Priority) {
        let mut state = lock(&self.state);
        let before = ticket.priority();
        if priority < before {
            ticket.reset(priority);
            if let Some(waiting) = state.queue.remove(&(before, ticket.number)) {
                state.queue.insert((priority, ticket.number), waiting);
            }
        }
    }

    /// Waits for a turn.
    pub(super) async fn enter(&self, ticket: &Ticket) -> Turn {
        let waiting = {
            let mut state = lock(&self.state);
            if state.free > 0 {
                state.free -= 1;
                return Turn { state: Arc::clone(&self.state) };
            }
            let (sender, receiver) = oneshot::channel();
            state.queue.insert((ticket.priority(), ticket.number), sender);
            receiver
        };
        match waiting.await {
            Ok(turn) => turn,
            // The sender is only dropped with the gate, which this borrows, or when a ticket queues twice, which its one keeper never does.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut state = lock(&self.state);
            let next = state.queue.pop_first();
            if next.is_none() {
                state.free += 1;
            }
            next
        };
        if let Some((_, waiting)) = next {
            // Who gave up waiting gives the turn back: dropping it comes here again.
            drop(waiting.send(Turn { state: Arc::clone(&self.state) }));
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing can panic between two changes, so a poisoned state is whole.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;

    #[tokio::test]
    async fn who_waits_in_earnest_goes_first_and_who_leaves_is_skipped() {
        let gate = Arc::new(Gate::new(1));
        let inside = gate.enter(&gate.ticket(Priority::Background)).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let queue = |name: &'static str, priority| {
            let (gate, order) = (Arc::clone(&gate), Arc::clone(&order));
            let ticket = gate.ticket(priority);
            let visitor = ticket.clone();
            let task = tokio::spawn(async move {
                let _turn = gate.enter(&visitor).await;
                order.lock().unwrap().push(name);
            });
            (task, ticket)
        };
        let (renewal, _) = queue("renewal", Priority::Background);
        let (raised, raised_ticket) = queue("raised", Priority::Background);
        let (leaver, _) = queue("leaver", Priority::RealTime);
        let (warm, _) = queue("warm", Priority::Warmup);
        let (waiting, _) = queue("waiting", Priority::RealTime);
        tokio::task::yield_now().await;
        gate.raise(&raised_ticket, Priority::RealTime);
        leaver.abort();
        assert!(leaver.await.is_err());
        drop(inside);
        for task in [renewal, raised, warm, waiting] {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["raised", "waiting", "warm", "renewal"]);
        assert_eq!(lock(&gate.state).free, 1);
    }

    #[tokio::test]
    async fn a_turn_handed_to_somebody_who_left_is_not_lost() {
        let gate = Gate::new(1);
        let first = gate.enter(&gate.ticket(Priority::RealTime)).await;
        let ticket = gate.ticket(Priority::RealTime);
        let mut second = Box::pin(gate.enter(&ticket));
        std::future::poll_fn(|cx| {
            assert!(second.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        drop(first);
        drop(second);
        assert_eq!(lock(&gate.state).free, 1);
    }
}
