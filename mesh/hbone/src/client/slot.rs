//! The connections of one key, those being made, and who waits for them.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    connect::Connection,
    decide::{self, Decision, Room},
    error::TunnelError,
};

#[derive(Default)]
pub(super) struct Slot {
    connections: RefCell<Vec<Rc<Connection>>>,
    connecting: Cell<usize>,
    waiting: Cell<usize>,
    /// Counts connections that could not be made, so that who waited for them knows.
    failures: Cell<u64>,
    last_failure: RefCell<Option<TunnelError>>,
    /// The peer's limit, once known: what a new connection will take.
    learned: Cell<Option<usize>>,
    /// The slot was drained: what is being made for it is not kept.
    is_drained: Cell<bool>,
    news: Rc<Notify>,
}

impl Slot {
    /// Told when anything changed that a waiter may want to know.
    pub(super) fn news(&self) -> &Rc<Notify> {
        &self.news
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.get()
    }

    pub(super) fn last_failure(&self) -> Option<TunnelError> {
        self.last_failure.borrow().clone()
    }

    pub(super) fn decide(&self, most: usize) -> Decision<Rc<Connection>> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.takes_tunnels());
        let rooms = connections.iter().map(|connection| self.room(connection, most));
        let expected = self.learned.get().unwrap_or(most).min(most).max(1);
        match decide::decide(rooms, self.connecting.get(), self.waiting.get(), expected) {
            Decision::Use(index) => Decision::Use(Rc::clone(&connections[index])),
            Decision::Connect => Decision::Connect,
            Decision::Wait => Decision::Wait,
            Decision::Full => Decision::Full,
        }
    }

    pub(super) fn has_room(&self, most: usize) -> bool {
        matches!(self.decide(most), Decision::Use(_))
    }

    fn room(&self, connection: &Connection, most: usize) -> Room {
        let limit = connection.peer_limit();
        if let Some(limit) = limit {
            self.learned.set(Some(limit));
        }
        Room {
            streams: connection.load().streams(),
            limit: limit.map_or(1, |limit| limit.min(most)),
            is_new: limit.is_none(),
            is_stalled: connection.load().is_stalled(),
        }
    }

    /// Counts somebody who waits, until dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.set(self.waiting.get() + 1);
        Waiting { slot: self }
    }

    pub(super) fn connect_started(&self) {
        self.connecting.set(self.connecting.get() + 1);
    }

    pub(super) fn connect_ended(&self, made: Result<Rc<Connection>, TunnelError>) {
        self.connecting.set(self.connecting.get() - 1);
        match made {
            Ok(connection) => {
                // Who waits has forgotten nothing: it finds the connection here, also when the slot was drained meanwhile.
                if self.is_drained.get() && self.waiting.get() == 0 {
                    connection.retire();
                } else {
                    self.connections.borrow_mut().push(connection);
                }
            }
            Err(error) => {
                self.failures.set(self.failures.get() + 1);
                *self.last_failure.borrow_mut() = Some(error);
            }
        }
        self.news.notify_waiters();
    }

    pub(super) fn retire_all(&self) {
        self.is_drained.set(true);
        for connection in self.connections.borrow_mut().drain(..) {
            connection.retire();
        }
    }

    pub(super) fn release_unused(&self, after: Duration) {
        self.connections.borrow_mut().retain(|connection| {
            let is_unused = connection.load().idle_for().is_some_and(|idle| idle >= after);
            if is_unused {
                connection.retire();
            }
            connection.takes_tunnels()
        });
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.borrow().iter().filter(|connection| connection.takes_tunnels()).count()
    }

    pub(super) fn tunnels(&self) -> usize {
        self.connections.borrow().iter().map(|connection| connection.load().streams()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty() && self.connecting.get() == 0 && self.waiting.get() == 0
    }
}

pub(super) struct Waiting<'a> {
    slot: &'a Slot,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.slot.waiting.set(self.slot.waiting.get() - 1);
    }
}
