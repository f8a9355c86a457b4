//! Programs of another schema version, pinned beside ours by an earlier process: they capture until ours do, or until their pod leaves.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use tropis_maps::{
    MapsError, Pins,
    bpf::{self, Access},
    map,
};

use super::{Capture, CaptureError, links, links_below};

impl Capture {
    /// Whether the programs of another version capture a namespace. They go on beside ours, after them: what ours have rewritten is
    /// loopback to them.
    pub fn older_holds(&self, netns_cookie: u64) -> bool {
        let older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        older.as_ref().is_some_and(|held| held.contains(&netns_cookie))
    }

    /// Whether there are programs of another version.
    pub fn has_older(&self) -> bool {
        self.older.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What a namespace opens passes the programs of other versions from now on: they hold it no more. In every version a pod's entry is found by the cookie of
    /// its namespace, and without an entry nothing is rewritten.
    pub fn pass_older_outbound(&self, netns_cookie: u64) -> Result<(), CaptureError> {
        for schema in self.other_schemas()? {
            let path = schema.join("maps").join(map::PODS);
            let pods = match bpf::open_pin(&path, Access::ReadWrite) {
                Ok(pods) => pods,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(MapsError::Open { path, source }.into()),
            };
            bpf::delete(pods.as_fd(), &netns_cookie.to_ne_bytes()).map_err(|source| MapsError::Element {
                call: "BPF_MAP_DELETE_ELEM",
                map: map::PODS,
                source,
            })?;
        }
        if let Some(held) = self.older.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            held.remove(&netns_cookie);
        }
        Ok(())
    }

    /// What arrives at a namespace passes the programs of other versions, too.
    pub fn detach_older_inbound(&self, netns_cookie: u64) -> Result<(), CaptureError> {
        for schema in self.other_schemas()? {
            links::detach(&schema.join("links").join(format!("netns-{netns_cookie}")))?;
        }
        Ok(())
    }

    /// Removes the programs of other versions, if there are any: what they alone capture passes from now on.
    pub fn remove_older(&self) -> io::Result<()> {
        let mut older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        if older.take().is_some() {
            for path in other_schemas(&self.pins)? {
                tracing::warn!(pins = %path.display(), "removing the pins of another version");
                fs::remove_dir_all(&path)?;
            }
        }
        Ok(())
    }

    fn other_schemas(&self) -> Result<Vec<PathBuf>, CaptureError> {
        other_schemas(&self.pins).map_err(|source| CaptureError::Filesystem { path: self.pins.root().to_owned(), source })
    }
}

/// The namespaces that programs of other versions capture; `None` where there are no such programs.
pub(super) fn held(pins: &Pins) -> io::Result<Option<BTreeSet<u64>>> {
    let schemas = other_schemas(pins)?;
    let held = schemas.iter().map(|schema| links_below(&schema.join("links"))).collect::<io::Result<Vec<_>>>()?;
    Ok((!schemas.is_empty()).then(|| held.into_iter().flatten().collect()))
}

/// The folders of other schema versions.
fn other_schemas(pins: &Pins) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(pins.root())? {
        let path = entry?.path();
        if is_schema(&path) && path != pins.schema() {
            folders.push(path);
        }
    }
    Ok(folders)
}

/// Whether a folder holds the pins of a schema version.
pub(super) fn is_schema(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("schema-"))
}
