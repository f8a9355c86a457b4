//! Where a run keeps its files: the state folder of docs/guide/embedded.md, and names that carry the run's name.
//!
//! Only paths and names are made here; who writes what stands beside each function.

use std::path::{Path, PathBuf};
use std::{fs, io};

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

/// Where runs live unless the user says otherwise.
const RUNS: &str = "/run/tropis";
/// A file that says: this folder is a run's own.
const MARKER: &str = ".tropis-run";
/// The user id that ztunnel runs under; it must reach its sockets and its token.
pub const PROXY_UID: u32 = 1337;

/// The folders of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    run: String,
    state: PathBuf,
}

impl Layout {
    /// The layout of `run`, in `state` or in `/run/tropis/RUN`.
    pub fn new(run: &str, state: Option<&Path>) -> Self {
        let state = state.map_or_else(|| Path::new(RUNS).join(run), Path::to_path_buf);
        // Mounts below it are found by their absolute path.
        let state = std::path::absolute(&state).unwrap_or(state);
        Self { run: run.to_owned(), state }
    }

    /// The run's name.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What the user wrote.
    pub fn objects(&self) -> PathBuf {
        self.state.join("objects")
    }

    /// What the harness wrote, as Kubernetes would.
    pub fn cluster(&self) -> PathBuf {
        self.state.join("cluster")
    }

    /// What the programs wrote back.
    pub fn reported(&self) -> PathBuf {
        self.state.join("reported")
    }

    /// Keys; readable by root only.
    pub fn secrets(&self) -> PathBuf {
        self.state.join("state")
    }

    /// What the cluster assigned, for the next run in this directory.
    pub fn memory(&self) -> PathBuf {
        self.secrets().join("assigned.json")
    }

    /// The file that says whose folder this is.
    pub fn marker(&self) -> PathBuf {
        self.state.join(MARKER)
    }

    /// Admin, debug and ZDS sockets.
    pub fn sockets(&self) -> PathBuf {
        self.state.join("sockets")
    }

    /// A program's socket: `<program>.<node>.sock`.
    pub fn socket(&self, program: &str, node: &str) -> PathBuf {
        self.sockets().join(format!("{program}.{node}.sock"))
    }

    /// The mounts of pinned maps, a folder a node.
    pub fn pins(&self) -> PathBuf {
        self.state.join("bpf")
    }

    /// One log file a process.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// What the kubelets keep: tokens and resolver files of pods.
    pub fn volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    /// The certificate that tropisd publishes for everybody to trust.
    pub fn root_certificate(&self) -> PathBuf {
        self.state.join("state").join("root-cert.pem")
    }

    /// The name of a network namespace of this run.
    pub fn namespace(&self, what: &str) -> String {
        format!("{}{what}", namespace_prefix(&self.run))
    }

    /// Whether the state directory holds nothing, or only what a run made: its marker, or the logs that a crash leaves.
    pub fn is_ours(&self) -> bool {
        let Ok(entries) = fs::read_dir(&self.state) else { return true };
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.iter().all(|name| name == "logs") || names.iter().any(|name| name == MARKER)
    }

    /// Makes the folders. `state/` is closed to everybody but root; `sockets/` lets ztunnel's user make its own.
    pub fn create(&self) -> io::Result<()> {
        for (folder, mode) in [
            (self.state.clone(), 0o755),
            (self.objects(), 0o755),
            (self.cluster(), 0o755),
            (self.reported(), 0o755),
            (self.secrets(), 0o700),
            (self.sockets(), 0o755),
            (self.pins(), 0o755),
            (self.logs(), 0o755),
            (self.volumes(), 0o711),
        ] {
            fs::DirBuilder::new().recursive(true).mode(mode).create(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?;
        }
        fs::write(self.marker(), "made by a run of the lab, which empties this folder\n")?;
        std::os::unix::fs::chown(self.sockets(), None, Some(PROXY_UID))?;
        fs::set_permissions(self.sockets(), fs::Permissions::from_mode(0o1775))
    }
}

/// What the names of a run's network namespaces begin with.
pub fn namespace_prefix(run: &str) -> String {
    format!("tropis-{run}-")
}

/// Whether `name` can name a run: it becomes part of namespace, cgroup and file names.
pub fn valid_run_name(name: &str) -> bool {
    (1..=24).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_lives_in_run_unless_told_otherwise() {
        assert_eq!(Layout::new("demo", None).state(), Path::new("/run/tropis/demo"));
        assert_eq!(Layout::new("demo", Some(Path::new("/x"))).objects(), Path::new("/x/objects"));
        assert_eq!(Layout::new("demo", None).namespace("a"), "tropis-demo-a");
    }

    #[test]
    fn a_folder_with_other_files_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new("demo", Some(folder.path()));
        assert!(layout.is_ours(), "empty");
        fs::write(folder.path().join("letter.txt"), "").unwrap();
        assert!(!layout.is_ours());
        fs::write(folder.path().join(MARKER), "").unwrap();
        assert!(layout.is_ours());
        assert!(Layout::new("demo", Some(&folder.path().join("absent"))).is_ours());
    }

    #[test]
    fn run_names_are_plain_words() {
        assert!(valid_run_name("demo2"));
        for bad in ["", "a/b", "a-b", "Demo", "a.b", "abcdefghijklmnopqrstuvwxyz"] {
            assert!(!valid_run_name(bad), "{bad}");
        }
    }
}
