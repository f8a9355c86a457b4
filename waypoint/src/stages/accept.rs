//! Accept: a listener gives a connection, a tunnel gives a request; we see whether there is room for it, and whether its peer is worth it.

use std::{cell::Cell, rc::Rc};

use thiserror::Error;
use tropis_hbone::frames::Excess;
use tropis_model::outcome::{Reason, Side};

/// There is no room, or none any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AcceptError {
    /// As many as we take.
    #[error("{limit} {what} are open on this worker already")]
    LimitReached {
        /// Connections or requests.
        what: &'static str,
        /// How many we take.
        limit: usize,
    },
    /// A connection of HTTP/2 costs more than it is good for.
    #[error(transparent)]
    Flood(Excess),
    /// The requests of a connection of HTTP/2 cost an endpoint each, and are good for nobody.
    #[error("requests that are given up as soon as they are made")]
    GivenUp,
}

impl AcceptError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::LimitReached { .. } => (Reason::LimitReached, Side::Mesh),
            Self::Flood(_) | Self::GivenUp => (Reason::LimitReached, Side::Downstream),
        }
    }
}

/// How many of something a worker has open.
#[derive(Debug, Default)]
pub struct Room {
    taken: Cell<usize>,
}

/// A place; dropping it frees it.
#[derive(Debug)]
pub struct Place {
    room: Rc<Room>,
}

impl Room {
    /// Takes a place if fewer than `limit` are taken.
    pub fn take(self: &Rc<Self>, what: &'static str, limit: usize) -> Result<Place, AcceptError> {
        if self.taken.get() >= limit {
            return Err(AcceptError::LimitReached { what, limit });
        }
        self.taken.set(self.taken.get() + 1);
        Ok(Place { room: self.clone() })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.taken.set(self.room.taken.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let room = Rc::new(Room::default());
        let place = room.take("requests", 1).unwrap();
        assert_eq!(room.take("requests", 1).unwrap_err().to_string(), "1 requests are open on this worker already");
        drop(place);
        assert!(room.take("requests", 1).is_ok());
    }
}
