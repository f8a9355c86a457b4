//! Where the pins of a node are, and who may open which.
//!
//! ```text
//! PINS/schema-N/maps/NAME     one file a map
//! PINS/schema-N/links/…       attached programs; the redirector's alone
//! ```
//! The node proxy owns the pins that it writes (listeners, socket storage) and the one it reads (resolvers); all others are root's, 0600.

use std::{
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tropis_abi::{SCHEMA, map};

/// The account that the node proxy runs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyAccount {
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

/// The pins of a node, at this schema version.
#[derive(Debug, Clone)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// All maps, in no particular order.
    pub const MAPS: [&'static str; 8] =
        [map::PODS, map::SOCKETS, map::HANDOVER, map::LISTENERS, map::RESOLVERS, map::OUTBOUND, map::INBOUND, map::PROXIES];

    /// The pins below `root`, a folder of a bpf filesystem.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder that holds the pins of all schema versions.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of this schema version.
    pub fn schema(&self) -> PathBuf {
        self.root.join(format!("schema-{SCHEMA}"))
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.schema().join("maps").join(name)
    }

    /// The folder of the links.
    pub fn links(&self) -> PathBuf {
        self.schema().join("links")
    }

    /// The pin of the link that captures what arrives at a namespace.
    pub fn inbound_link(&self, netns_cookie: u64) -> PathBuf {
        self.links().join(format!("netns-{netns_cookie}"))
    }

    /// Makes the folders: everybody may pass through to what he may open, nobody but us may list or change them.
    pub fn create_folders(&self) -> io::Result<()> {
        for (folder, mode) in [(self.schema(), 0o711), (self.schema().join("maps"), 0o711), (self.links(), 0o700)] {
            match std::fs::DirBuilder::new().mode(mode).create(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode))?,
            }
        }
        Ok(())
    }

    /// Gives each pin its owner and mode.
    pub fn set_owners(&self, proxy: ProxyAccount) -> io::Result<()> {
        for name in Self::MAPS {
            let (uid, gid, mode) = match name {
                map::LISTENERS | map::SOCKETS => (proxy.uid, proxy.gid, 0o600),
                map::RESOLVERS => (proxy.uid, proxy.gid, 0o400),
                _ => (0, 0, 0o600),
            };
            let path = self.map(name);
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}
