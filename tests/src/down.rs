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
    /// The logs stay, for whoever wants to know why the run ended; and what [`Self::KeepAssigned`] keeps.
    KeepLogs,
    /// What the cluster assigned stays (uids, service addresses), for the next run in the same directory.
    KeepAssigned,
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
    let kept: &[PathBuf] = match files {
        Files::Remove => &[],
        Files::KeepLogs => &[layout.logs(), layout.memory(), layout.marker()],
        Files::KeepAssigned => &[layout.memory(), layout.marker()],
    };
    remove_but(layout.state(), kept)?;
    if let Some(runs) = layout.state().parent().filter(|runs| runs.ends_with("tropis")) {
        // Fails while another run lives.
        let _ = fs::remove_dir(runs);
    }
    Ok(())
}

/// Removes `folder` and what is in it, but for `kept` and the folders on the way there.
fn remove_but(folder: &Path, kept: &[PathBuf]) -> Result<(), DownError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if kept.contains(&path) {
            continue;
        }
        let removed = match (is_folder, kept.iter().any(|kept| kept.starts_with(&path))) {
            (true, true) => {
                remove_but(&path, kept)?;
                continue;
            }
            (true, false) => fs::remove_dir_all(&path),
            (false, _) => fs::remove_file(&path),
        };
        removed.map_err(|error| DownError::File(path, error))?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(DownError::File(folder.to_path_buf(), error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shall_stay_stays_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new("x", Some(&folder.path().join("state")));
        let fill = || {
            for file in [layout.memory(), layout.marker(), layout.logs().join("a.log"), layout.secrets().join("token.key")] {
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, "").unwrap();
            }
        };
        let left = || {
            [layout.memory(), layout.marker(), layout.logs().join("a.log"), layout.secrets().join("token.key")].map(|file| file.exists())
        };
        fill();
        remove_files(&layout, Files::KeepLogs).unwrap();
        assert_eq!(left(), [true, true, true, false]);
        assert!(layout.is_ours());
        fill();
        remove_files(&layout, Files::KeepAssigned).unwrap();
        assert_eq!(left(), [true, true, false, false]);
        remove_files(&layout, Files::Remove).unwrap();
        assert!(!layout.state().exists());
    }
}
