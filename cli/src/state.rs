//! The state directory, where everything of a mesh without a cluster is found: objects, reports, sockets, logs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use tropis_source::{Snapshot, dir::snapshot};

/// Where the runs' state directories are.
const RUNS: &str = "/run/tropis";
/// The socket over which a node proxy is handed pods; nothing can be asked there.
const ZDS: &str = "zds";

/// Which mesh.
#[derive(Debug, clap::Args)]
pub(crate) struct StateOptions {
    /// State directory of the mesh.
    #[arg(long, global = true, env = "TROPIS_STATE", value_name = "DIR", conflicts_with = "run")]
    state: Option<PathBuf>,
    /// Name of the run: its state directory is /run/tropis/NAME.
    #[arg(long, global = true, default_value = "demo", value_name = "NAME")]
    run: String,
}

/// A state directory that exists.
#[derive(Debug)]
pub(crate) struct State {
    folder: PathBuf,
}

/// The admin or debug socket of a program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Socket {
    /// The program (`ztunnel`, `redirector`, `tropisd`, a waypoint's name).
    pub(crate) program: String,
    /// The node that it runs on.
    pub(crate) node: String,
    /// The socket.
    pub(crate) path: PathBuf,
}

impl State {
    /// The state directory that the options name.
    pub(crate) fn open(options: &StateOptions) -> anyhow::Result<Self> {
        let folder = options.state.clone().unwrap_or_else(|| Path::new(RUNS).join(&options.run));
        if !folder.is_dir() {
            let known: Vec<String> = names(Path::new(RUNS)).unwrap_or_default();
            let known = if known.is_empty() { "none is there".to_owned() } else { format!("there is: {}", known.join(", ")) };
            bail!(
                "no mesh has its state in {}\nStart one with `cargo xtask demo --keep`, or name another with --run NAME ({known}) or --state DIR",
                folder.display()
            );
        }
        Ok(Self { folder })
    }

    /// Everything that the mesh is made of, as its programs read it.
    pub(crate) fn snapshot(&self) -> Snapshot {
        snapshot::of_state(&self.folder)
    }

    /// The folder that the user's objects are in.
    pub(crate) fn objects(&self) -> PathBuf {
        self.folder.join(tropis_source::dir::OBJECTS)
    }

    /// The user's own folder, if the mesh was started on one (`--manifests DIR`).
    pub(crate) fn manifests(&self) -> Option<PathBuf> {
        fs::read_link(self.objects()).ok()
    }

    /// The folder of objects, if it may be written: a folder of the user's own only if they say so.
    pub(crate) fn writable(&self, into_manifests: bool) -> anyhow::Result<PathBuf> {
        match self.manifests() {
            Some(folder) if !into_manifests => bail!(
                "this mesh reads its objects from {}, a folder of your own\nEdit the files there, or let this command do it with --into-manifests",
                folder.display()
            ),
            Some(folder) => Ok(folder),
            None => Ok(self.objects()),
        }
    }

    /// The sockets of programs, by program and node.
    pub(crate) fn sockets(&self) -> anyhow::Result<Vec<Socket>> {
        let folder = self.folder.join("sockets");
        let names = names(&folder).with_context(|| format!("list {}", folder.display()))?;
        let socket = |name: &String| {
            let (program, node) = name.strip_suffix(".sock")?.split_once('.')?;
            let socket = Socket { program: program.to_owned(), node: node.to_owned(), path: folder.join(name) };
            (program != ZDS).then_some(socket)
        };
        Ok(names.iter().filter_map(socket).collect())
    }

    /// The sockets of one program; an error if it has none.
    pub(crate) fn sockets_of(&self, program: &str) -> anyhow::Result<Vec<Socket>> {
        let mut sockets = self.sockets()?;
        sockets.retain(|socket| socket.program == program);
        if sockets.is_empty() {
            bail!(
                "no {program} has a socket in {}\nIs the mesh running? `tropis version` lists what is",
                self.folder.join("sockets").display()
            );
        }
        Ok(sockets)
    }

    /// The folder of logs, a file a process.
    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }
}

/// The names in a folder, in order.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_named_by_program_and_node() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir_all(state.path().join("sockets")).unwrap();
        for name in ["ztunnel.node.b.sock", "ztunnel.a.sock", "zds.a.sock", "tropisd.control.sock", "other"] {
            fs::write(state.path().join("sockets").join(name), "").unwrap();
        }
        let state = State::open(&StateOptions { state: Some(state.path().to_path_buf()), run: String::new() }).unwrap();
        let names: Vec<_> = state.sockets().unwrap().into_iter().map(|socket| (socket.program, socket.node)).collect();
        let named = |program: &str, node: &str| (program.to_owned(), node.to_owned());
        assert_eq!(names, [named("tropisd", "control"), named("ztunnel", "a"), named("ztunnel", "node.b")]);
        assert!(state.sockets_of("redirector").unwrap_err().to_string().contains("tropis version"));
    }

    #[test]
    fn a_folder_of_the_users_own_is_written_only_when_told() {
        let (state, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(own.path(), state.path().join("objects")).unwrap();
        let state = State::open(&StateOptions { state: Some(state.path().to_path_buf()), run: String::new() }).unwrap();
        assert!(state.writable(false).unwrap_err().to_string().contains("--into-manifests"));
        assert_eq!(state.writable(true).unwrap(), own.path());
    }

    #[test]
    fn a_mesh_that_is_not_there_is_said_so() {
        let error = State::open(&StateOptions { state: Some("/nonexistent/mesh".into()), run: String::new() }).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/mesh") && error.contains("xtask demo --keep"), "{error}");
    }
}
