//! What to do for somebody who wants a tunnel: use a connection, make one, wait for one, or say that there are too many. Pure.

/// Connections of one key at most. With peers that take 100 streams each that is 100 000 tunnels between two pods.
pub const CONNECTIONS_LIMIT: usize = 1000;
/// Connections of one key being made at once.
const CONNECTING_AT_ONCE: usize = 8;

/// What counts about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Streams open.
    pub(super) streams: usize,
    /// Streams that it may have. One until the peer's settings are known.
    pub(super) limit: usize,
    /// The peer's settings are not known yet.
    pub(super) is_new: bool,
    /// A stream on it stalls: nobody else should be put beside it.
    pub(super) is_stalled: bool,
}

/// What to do. `C` is how a connection is named.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision<C> {
    /// Open a stream on this one.
    Use(C),
    /// Make another connection, then look again.
    Connect,
    /// Look again when something changes: a connection is on its way.
    Wait,
    /// The limit is reached.
    Full,
}

/// Decides for one more stream. `connecting` connections are being made, `waiting` others wait, and a new connection is expected to
/// take `expected` streams.
pub(super) fn decide(rooms: impl Iterator<Item = Room>, connecting: usize, waiting: usize, expected: usize) -> Decision<usize> {
    let (mut coming, mut count) = (connecting, connecting);
    for (index, room) in rooms.enumerate() {
        if room.streams < room.limit && !room.is_stalled {
            return Decision::Use(index);
        }
        coming += usize::from(room.is_new);
        count += 1;
    }
    if coming.saturating_mul(expected) > waiting {
        return Decision::Wait;
    }
    match (count >= CONNECTIONS_LIMIT, connecting) {
        (true, 0) => Decision::Full,
        (true, _) => Decision::Wait,
        (false, connecting) if connecting >= CONNECTING_AT_ONCE => Decision::Wait,
        (false, _) => Decision::Connect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn room(streams: usize, limit: usize) -> Room {
        Room { streams, limit, is_new: false, is_stalled: false }
    }

    #[test]
    fn each_case_has_its_answer() {
        let new = Room { is_new: true, ..room(1, 1) };
        let stalled = Room { is_stalled: true, ..room(1, 100) };
        let full = vec![room(1, 1); CONNECTIONS_LIMIT];
        for (name, rooms, connecting, waiting, expected, decision) in [
            ("nothing yet", vec![], 0, 0, 100, Decision::Connect),
            ("one on its way", vec![], 1, 0, 100, Decision::Wait),
            ("one on its way is enough for 100", vec![], 1, 99, 100, Decision::Wait),
            ("but not for 101", vec![], 1, 100, 100, Decision::Connect),
            ("room on the first", vec![room(5, 100), room(0, 100)], 0, 0, 100, Decision::Use(0)),
            ("room on the second", vec![room(100, 100), room(99, 100)], 0, 0, 100, Decision::Use(1)),
            ("no room", vec![room(100, 100)], 0, 0, 100, Decision::Connect),
            ("settings not known", vec![new], 0, 0, 100, Decision::Wait),
            ("settings not known, many wait", vec![new], 0, 100, 100, Decision::Connect),
            ("stalled", vec![stalled], 0, 0, 100, Decision::Connect),
            ("stalled and another", vec![stalled, room(3, 100)], 0, 0, 100, Decision::Use(1)),
            ("a peer that takes one stream", vec![room(1, 1)], 2, 2, 1, Decision::Connect),
            ("not all at once", vec![room(1, 1)], CONNECTING_AT_ONCE, 50, 1, Decision::Wait),
            ("the limit", full.clone(), 0, 0, 1, Decision::Full),
            ("the limit, one on its way", full[1..].to_vec(), 1, 5, 1, Decision::Wait),
        ] {
            assert_eq!(decide(rooms.into_iter(), connecting, waiting, expected), decision, "{name}");
        }
    }
}
