//! Handshakes under way: bounded in number, so that callers who begin them and go on no further keep nobody else out.
//!
//! Over the limit one ends for the newest: the oldest of the address that has most. Where every address has one, as when all proxies of
//! a large mesh come back at once, further connections wait in the kernel's queue.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::task::AbortHandle;

/// Handshakes at a time; one takes a millisecond or two of a core, and some 20 KiB.
const MAX_HANDSHAKES: usize = 512;

/// The handshakes under way. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handshakes(Arc<Mutex<Vec<UnderWay>>>);

#[derive(Debug)]
struct UnderWay {
    peer: SocketAddr,
    task: AbortHandle,
}

/// Whether another handshake may begin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It may; the handshake of this peer was ended for it, if one was.
    Made(Option<SocketAddr>),
    /// It may not yet: every address has one.
    None,
}

impl Handshakes {
    /// Room for one more.
    pub(crate) fn room(&self) -> Room {
        // What a list of handles is left as by a panic is a list of handles.
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() < MAX_HANDSHAKES {
            return Room::Made(None);
        }
        open.retain(|handshake| !handshake.task.is_finished());
        if open.len() < MAX_HANDSHAKES {
            return Room::Made(None);
        }
        let addresses: Vec<_> = open.iter().map(|handshake| handshake.peer.ip().to_canonical()).collect();
        let Some(place) = of_busiest(&addresses) else { return Room::None };
        let ended = open.remove(place);
        ended.task.abort();
        Room::Made(Some(ended.peer))
    }

    /// Runs a handshake of `peer`.
    pub(crate) fn start(&self, peer: SocketAddr, handshake: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(handshake).abort_handle();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(UnderWay { peer, task });
    }
}

/// The first of the address that is there most often; `None` when each is there once.
fn of_busiest(addresses: &[IpAddr]) -> Option<usize> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    addresses.iter().for_each(|address| *counts.entry(*address).or_default() += 1);
    let most = counts.values().copied().max().filter(|most| *most > 1)?;
    addresses.iter().position(|address| counts[address] == most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: u16, port: u16) -> SocketAddr {
        let [high, low] = address.to_be_bytes();
        SocketAddr::from(([10, 0, high, low], port))
    }

    #[tokio::test]
    async fn who_began_most_makes_room_and_nobody_else() {
        let handshakes = Handshakes::default();
        handshakes.start(peer(1, 1), std::future::pending());
        for port in 0..MAX_HANDSHAKES as u16 - 1 {
            assert_eq!(handshakes.room(), Room::Made(None));
            handshakes.start(peer(2 + port % 8, port), std::future::pending());
        }
        for port in 1000..2000 {
            let Room::Made(Some(ended)) = handshakes.room() else { panic!("no room was made") };
            assert_ne!(ended, peer(1, 1), "it has one only");
            handshakes.start(peer(2, port), std::future::pending());
        }
    }

    #[tokio::test]
    async fn a_mesh_that_comes_back_waits_in_place_of_ending_its_own() {
        let handshakes = Handshakes::default();
        for address in 0..MAX_HANDSHAKES as u16 - 1 {
            handshakes.start(peer(address, 1), std::future::pending());
        }
        let (done, finished) = tokio::sync::oneshot::channel::<()>();
        handshakes.start(peer(60_000, 1), async move { drop(finished.await) });
        assert_eq!(handshakes.room(), Room::None);
        done.send(()).unwrap();
        while handshakes.room() == Room::None {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn mapped_addresses_are_what_they_stand_for() {
        let addresses = ["10.0.0.1", "fd00::1", "10.0.0.2", "fd00::1"].map(|text| text.parse().unwrap());
        assert_eq!(of_busiest(&addresses), Some(1));
        assert_eq!(of_busiest(&addresses[..3]), None);
    }
}
