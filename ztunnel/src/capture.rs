//! Our side of the capture: the pinned maps of our redirector, if it is the one that captures.
//!
//! The maps may come later than we do, and be replaced when the redirector is; so they are opened when the node agent connects. Without
//! them nothing is dialled: a socket that is not marked as ours would be captured and come back to us.

use std::{io, net::SocketAddr, os::fd::BorrowedFd, path::PathBuf, sync::Arc};

use arc_swap::ArcSwapOption;
use tropis_maps::{MapsError, ProxyMaps};

use crate::config::Capture;

/// The maps, once they are open.
#[derive(Debug)]
pub struct CaptureMaps {
    pins: Option<PathBuf>,
    open: ArcSwapOption<ProxyMaps>,
}

impl CaptureMaps {
    /// For this kind of capture. Nothing is opened yet.
    pub fn new(capture: &Capture) -> Self {
        let pins = match capture {
            Capture::Hooks { pins } => Some(pins.clone()),
            Capture::Netfilter { .. } => None,
        };
        Self { pins, open: ArcSwapOption::empty() }
    }

    /// Whether there are maps to open.
    pub fn wanted(&self) -> bool {
        self.pins.is_some()
    }

    /// Opens the maps, again if they are open. Those that were open before stay when this fails.
    pub fn reopen(&self) -> Result<(), MapsError> {
        if let Some(pins) = &self.pins {
            self.open.store(Some(Arc::new(ProxyMaps::open(pins)?)));
        }
        Ok(())
    }

    /// The maps, if there are any and they are open.
    pub fn get(&self) -> Option<Arc<ProxyMaps>> {
        self.open.load_full()
    }

    /// Marks a socket as ours, before it connects or sends: it is never captured. Nothing to do where netfilter captures.
    pub fn mark_own(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.with(|maps| maps.mark_own(socket))
    }

    /// Makes the application that `socket` will connect to see `client` as its peer. Nothing to do where netfilter captures.
    pub fn show_peer(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        self.with(|maps| maps.show_peer(socket, client))
    }

    fn with(&self, work: impl FnOnce(&ProxyMaps) -> Result<(), MapsError>) -> io::Result<()> {
        match (&self.pins, &*self.open.load()) {
            (None, _) => Ok(()),
            (Some(_), Some(maps)) => work(maps).map_err(io::Error::other),
            (Some(pins), None) => Err(io::Error::other(format!("the capture's maps in {} are not there yet", pins.display()))),
        }
    }
}
