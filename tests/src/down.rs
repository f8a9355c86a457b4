//! Taking away what a run made, whether it ended well or not: processes, namespaces and their links, mounts and pins, files.
//!
//! Works from names alone, so it cleans after a SIGKILL too. Only what carries the run's name is touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::cgroup::{Groups, NoUnifiedHierarchy};
use crate::layout::{Layout, namespace_prefix};
use crate::network::namespace;
use crate::process::mount_points;

/// Something could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// Processes or their groups.
    #[error("control groups of the run")]
    Groups(#[source] io::Error),
    /// No place for groups, so nothing can run.
    #[error(transparent)]
    NoGroups(#[from] NoUnifiedHierarchy),
    /// A mount.
    #[error("cannot unmount {0}")]
    Mount(PathBuf, #[source] io::Error),
    /// A namespace's name.
    #[error("cannot remove the namespace {0}")]
    Namespace(PathBuf, #[source] io::Error),
    /// A file.
    #[error("cannot remove {0}")]
    File(PathBuf, #[source] io::Error),
}

/// What happens to the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// It goes.
    Remove,
    /// The logs stay, for whoever wants to know why the run ended.
    KeepLogs,
}

/// Takes away everything of the run. Nothing there is no error.
pub fn down(layout: &Layout, files: Files) -> Result<(), DownError> {
    Groups::of(layout.run())?.remove().map_err(DownError::Groups)?;
    unmount_below(layout.state())?;
    for path in namespace::named(&namespace_prefix(layout.run())) {
        namespace::remove(&path).map_err(|error| DownError::Namespace(path, error))?;
    }
    remove_files(layout, files)
}

/// Unmounts what is mounted below `folder`, innermost first. Pins go with their file system.
fn unmount_below(folder: &Path) -> Result<(), DownError> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut below: Vec<PathBuf> = mount_points(&table).filter(|point| point.starts_with(folder)).collect();
    below.reverse();
    for point in below {
        umount2(&point, MntFlags::MNT_DETACH).map_err(|error| DownError::Mount(point, error.into()))?;
    }
    Ok(())
}

fn remove_files(layout: &Layout, files: Files) -> Result<(), DownError> {
    let logs = layout.logs();
    let Ok(entries) = fs::read_dir(layout.state()) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if files == Files::KeepLogs && entry == logs {
            continue;
        }
        let removed = if entry.is_dir() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
        removed.map_err(|error| DownError::File(entry, error))?;
    }
    if files == Files::Remove {
        fs::remove_dir(layout.state()).map_err(|error| DownError::File(layout.state().to_path_buf(), error))?;
        if let Some(runs) = layout.state().parent().filter(|runs| runs.ends_with("tropis")) {
            // Fails while another run lives.
            let _ = fs::remove_dir(runs);
        }
    }
    Ok(())
}
