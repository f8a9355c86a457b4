//! Named network namespaces: made, entered for the time of a call, removed. Never by `ip netns exec`, which hides cgroups.
//!
//! A namespace is kept by a bind mount below `/run/netns`, so `ip netns` shows it and it outlives the harness until `down`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where named namespaces are mounted.
pub const NAMESPACES: &str = "/run/netns";

/// A network namespace of the run, or the host's.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
    /// The inode that tells namespaces apart.
    inode: u64,
}

/// A call about a namespace failed.
#[derive(Debug, thiserror::Error)]
#[error("network namespace {name}: {call}")]
pub struct NamespaceError {
    name: String,
    call: &'static str,
    #[source]
    cause: io::Error,
}

impl Namespace {
    /// Makes a new namespace and mounts it under its name.
    pub fn create(name: &str) -> Result<Self, NamespaceError> {
        let failed = |call| move |cause| NamespaceError { name: name.to_owned(), call, cause };
        fs::create_dir_all(NAMESPACES).map_err(failed("mkdir /run/netns"))?;
        let path = Path::new(NAMESPACES).join(name);
        File::create(&path).map_err(failed("create its mount point"))?;
        let target = path.clone();
        // A thread of its own: the change of namespace ends with it.
        let made = thread::spawn(move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        });
        made.join().expect("the thread does not panic").map_err(failed("unshare(CLONE_NEWNET) (needs CAP_SYS_ADMIN)"))?;
        Self::open(name, &path).map_err(failed("open"))
    }

    /// The namespace that this process runs in.
    pub fn host() -> io::Result<Self> {
        Self::open("host", Path::new("/proc/self/ns/net"))
    }

    fn open(name: &str, path: &Path) -> io::Result<Self> {
        let handle = File::open(path)?;
        let inode = handle.metadata()?.ino();
        Ok(Self { name: name.to_owned(), handle, inode })
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inode number, as in `/proc/PID/ns/net`.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` inside. Blocks; what it opens stays in this namespace, children that it starts run there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> io::Result<T> {
                setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside, for threads that stay.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }
}

/// The mounted namespaces whose names begin with `prefix`.
pub fn named(prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Removes a name; the namespace itself goes when its last process and socket are gone.
pub fn remove(path: &Path) -> io::Result<()> {
    // Detached as often as it was mounted: a failed start may have left two.
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
