//! What only one run may have at a time: its name, a state directory, and a set of address ranges.
//!
//! All are held by names of abstract unix sockets: the kernel frees them with the process, and no file is left behind.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::Duration;

use crate::layout::Layout;
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

/// What a run holds for its whole life, and its janitor after it: its name, which namespaces, links and groups carry, and its state
/// directory. Either alone would let a second run take away what the first one made.
#[derive(Debug)]
pub struct RunLock {
    name: Held,
    state: Held,
}

impl RunLock {
    /// Holds both, waiting a little for the clean-up of a run that just ended. Blocks.
    pub fn acquire(layout: &Layout) -> Result<Self, Taken> {
        let name = wait_for(&format!("tropis-run-{}", layout.run()), &format!("the run name {}", layout.run()))?;
        let state = wait_for(&name_of(layout.state()), &format!("the state directory {}", layout.state().display()))?;
        Ok(Self { name, state })
    }

    /// Second handles of name and state directory.
    pub fn duplicate(&self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.name.duplicate()?, self.state.duplicate()?])
    }
}

fn wait_for(name: &str, what: &str) -> Result<Held, Taken> {
    let mut last = Held::acquire(name, what);
    let free = || {
        if last.is_err() {
            last = Held::acquire(name, what);
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
        let held = Held::acquire("tropis-lock-test", "it").expect("free");
        let copy = held.duplicate().expect("a copy");
        drop(held);
        assert!(Held::acquire("tropis-lock-test", "it").is_err());
        drop(copy);
        assert!(Held::acquire("tropis-lock-test", "it").is_ok());
    }

    #[test]
    fn neither_the_name_nor_the_directory_of_a_run_can_be_had_twice() {
        let layout = |run: &str, state: &str| Layout::new(run, Some(Path::new(state)));
        let held = RunLock::acquire(&layout("locktest", "/nowhere/one")).expect("free");
        let janitor = held.duplicate().expect("copies");
        let taken = |layout: &Layout| {
            let name = Held::acquire(&format!("tropis-run-{}", layout.run()), "the name");
            let state = Held::acquire(&name_of(layout.state()), "the directory");
            (name.is_err(), state.is_err())
        };
        assert_eq!(taken(&layout("locktest", "/nowhere/other")), (true, false));
        assert_eq!(taken(&layout("locktestother", "/nowhere/one")), (false, true));
        drop(held);
        assert_eq!(taken(&layout("locktest", "/nowhere/one")), (true, true), "the janitor still works");
        drop(janitor);
        assert!(RunLock::acquire(&layout("locktest", "/nowhere/one")).is_ok());
    }

    #[test]
    fn two_runs_get_different_addresses() {
        let (first, one) = address_slot().expect("a slot");
        let (second, two) = address_slot().expect("another");
        assert_ne!(one, two);
        drop((first, second));
    }
}
