//! What only one run may have at a time: a state directory, and a set of address ranges.
//!
//! Both are held by names of abstract unix sockets: the kernel frees them with the process, and no file is left behind.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::Duration;

use crate::wait;

/// How many runs find address ranges of their own on one box.
pub const ADDRESS_SLOTS: u8 = 8;
/// How long a start waits for the clean-up of the run before it.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(20);

/// A name held until this, and every duplicate of its socket, is dropped.
#[derive(Debug)]
pub struct Held(UnixListener);

/// Somebody else holds the name.
#[derive(Debug, thiserror::Error)]
#[error("{what} is in use by another process")]
pub struct Taken {
    what: String,
    #[source]
    cause: io::Error,
}

impl Held {
    fn acquire(name: &str, what: &str) -> Result<Self, Taken> {
        SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .map(Self)
            .map_err(|cause| Taken { what: what.to_owned(), cause })
    }

    /// A second handle: the name stays held until both are gone.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }
}

/// Holds `state`, waiting a little for the clean-up of a run that just ended. Blocks.
pub fn state_directory(state: &Path) -> Result<Held, Taken> {
    let name = name_of(state);
    let what = format!("the state directory {}", state.display());
    let mut last = Held::acquire(&name, &what);
    let free = || {
        if last.is_err() {
            last = Held::acquire(&name, &what);
        }
        last.is_ok().then_some(())
    };
    // The reason is in `last`.
    let _ = wait::until_blocking(CLEANUP_DEADLINE, "the last run's clean-up", free);
    last
}

fn name_of(state: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    format!("tropis-state-{:016x}", hasher.finish())
}

/// Holds the first free set of address ranges; the number is the offset of `network::addresses`.
pub fn address_slot() -> Result<(Held, u8), Taken> {
    let mut last = None;
    for slot in 0..ADDRESS_SLOTS {
        match Held::acquire(&format!("tropis-addresses-{slot}"), "every set of address ranges") {
            Ok(held) => return Ok((held, slot)),
            Err(taken) => last = Some(taken),
        }
    }
    Err(last.expect("there is at least one slot"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_free_again_when_every_handle_is_gone() {
        let path = Path::new("/nowhere/lock-test");
        let held = state_directory(path).expect("free");
        let copy = held.duplicate().expect("a copy");
        drop(held);
        let name = name_of(path);
        assert!(Held::acquire(&name, "it").is_err());
        drop(copy);
        assert!(Held::acquire(&name, "it").is_ok());
    }

    #[test]
    fn two_runs_get_different_addresses() {
        let (first, one) = address_slot().expect("a slot");
        let (second, two) = address_slot().expect("another");
        assert_ne!(one, two);
        drop((first, second));
    }
}
