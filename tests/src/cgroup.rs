//! Control groups of a run: `tropis/RUN/NODE/{agents,pods/pod<uid>}` below the version 2 hierarchy.
//!
//! Processes are placed when they start (`process`); killing a group reaches every one of them at once.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use crate::wait;

/// Where everything of ours is, below the root.
const OURS: &str = "tropis";
/// How long killed processes may take to go.
const EMPTY_DEADLINE: Duration = Duration::from_secs(10);

/// There is no version 2 hierarchy.
#[derive(Debug, thiserror::Error)]
#[error("no cgroup v2 hierarchy is mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified")]
pub struct NoUnifiedHierarchy;

/// The root of the version 2 hierarchy: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts.
pub fn root() -> Result<PathBuf, NoUnifiedHierarchy> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.controllers").exists())
        .ok_or(NoUnifiedHierarchy)
}

/// The groups of one run.
#[derive(Debug, Clone)]
pub struct Groups {
    run: PathBuf,
}

impl Groups {
    /// The groups of `run`; nothing is made yet.
    pub fn of(run: &str) -> Result<Self, NoUnifiedHierarchy> {
        Ok(Self { run: root()?.join(OURS).join(run) })
    }

    /// The run's own group.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// A node's group; the redirector attaches here.
    pub fn node(&self, node: &str) -> PathBuf {
        self.run.join(node)
    }

    /// Where a node's agents run.
    pub fn agents(&self, node: &str) -> PathBuf {
        self.node(node).join("agents")
    }

    /// Where a pod runs; its path holds the pod's UID, by which the redirector finds it.
    pub fn pod(&self, node: &str, uid: &str) -> PathBuf {
        self.node(node).join("pods").join(format!("pod{uid}"))
    }

    /// Kills and removes everything of the run, and our common folder when no other run uses it.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.run)?;
        if let Some(ours) = self.run.parent() {
            // Fails while another run lives.
            let _ = fs::remove_dir(ours);
        }
        Ok(())
    }
}

/// Makes a group.
pub fn create(group: &Path) -> io::Result<()> {
    fs::create_dir_all(group)
}

/// Kills every process below `group` and waits until they are gone.
pub fn kill(group: &Path) -> io::Result<()> {
    if !group.exists() {
        return Ok(());
    }
    fs::write(group.join("cgroup.kill"), "1")?;
    let empty = || populated(group).ok().is_none_or(|populated| !populated).then_some(());
    wait::until_blocking(EMPTY_DEADLINE, &format!("the processes of {} to end", group.display()), empty)
        .map_err(|error| io::Error::new(io::ErrorKind::TimedOut, error))
}

/// Kills every process below `group` and removes the folder with all below it.
pub fn remove(group: &Path) -> io::Result<()> {
    if !group.exists() {
        return Ok(());
    }
    kill(group)?;
    remove_tree(group)
}

/// Process ids in `group` and below it.
pub fn processes(group: &Path) -> Vec<u32> {
    let mut found: Vec<u32> =
        fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect();
    for below in folders(group) {
        found.extend(processes(&below));
    }
    found
}

/// Every group below `group`, itself first.
pub fn tree(group: &Path) -> Vec<PathBuf> {
    if !group.exists() {
        return Vec::new();
    }
    let mut all = vec![group.to_path_buf()];
    all.extend(folders(group).iter().flat_map(|below| tree(below)));
    all
}

fn remove_tree(group: &Path) -> io::Result<()> {
    for below in folders(group) {
        remove_tree(&below)?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn populated(group: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(group.join("cgroup.events"))?.lines().any(|line| line == "populated 1"))
}

fn folders(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_group_holds_its_uid() {
        let groups = Groups { run: PathBuf::from("/sys/fs/cgroup/tropis/demo") };
        assert!(groups.pod("a", "11-22").ends_with("tropis/demo/a/pods/pod11-22"));
        assert!(groups.pod("a", "11-22").starts_with(groups.node("a")));
        assert!(groups.agents("a").starts_with(groups.node("a")));
    }

    #[test]
    fn killing_what_does_not_exist_is_done_already() {
        kill(Path::new("/sys/fs/cgroup/tropis-nothing-here")).expect("nothing to do");
        remove(Path::new("/sys/fs/cgroup/tropis-nothing-here")).expect("nothing to do");
    }
}
