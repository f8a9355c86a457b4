//! A folder of YAML as a source of objects: `objects/`, `cluster/` and `reported/` of a state directory, merged and watched.
//!
//! `store` holds what the files say and what follows from it; `follow` is the thread that hears of changes and reads files;
//! [`snapshot`] reads the same once, without a thread.

mod follow;
pub mod snapshot;
mod store;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use thiserror::Error;
use tropis_crds::{Object, ObjectRef};

use crate::{
    Report, ReportError, Source, SourceEvent, Watch, merge,
    watch::{self, WatchSender},
    write,
};
use follow::Follower;
use store::Store;

pub use store::EFFECT_NEVER;

/// The user's folder in a state directory.
pub const OBJECTS: &str = "objects";
/// The cluster's folder in a state directory.
pub const CLUSTER: &str = "cluster";
/// The programs' folder in a state directory.
pub const REPORTED: &str = "reported";
/// Last good versions of the user's documents that are refused now, a file for each of the user's: they outlive the programs.
const KEPT: &str = "state/kept";

/// The folder cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// A folder is missing and cannot be made.
    #[error("create the folder {path}")]
    Create {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The kernel does not watch it (`inotify_add_watch`; is `fs.inotify.max_user_watches` reached?).
    #[error("watch {path} by inotify")]
    Inotify {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        cause: notify::Error,
    },
    /// The thread that follows the folder could not be started.
    #[error("start the thread that follows the folder")]
    Thread(#[source] io::Error),
}

/// The source behind `dir:PATH`. Dropping it ends its watches.
#[derive(Debug)]
pub struct DirSource {
    state: PathBuf,
    shared: Arc<Shared>,
    follower: Follower,
}

/// What the following thread and the source share.
#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    watches: Vec<WatchSender>,
}

impl Shared {
    /// The store is replaced field by field, so a panic while it was locked leaves at worst an object that is told again.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tell(&mut self, events: Vec<SourceEvent>) {
        for event in events {
            self.watches.retain(|watch| watch.send(event.clone()));
        }
    }
}

impl DirSource {
    /// Opens a state directory; makes the folders that are missing. `manifests` replaces its `objects/`. When this returns, everything
    /// that is there was read.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn open(state: &Path, manifests: Option<&Path>) -> Result<Self, WatchError> {
        let objects = manifests.map_or_else(|| state.join(OBJECTS), Path::to_path_buf);
        let roots = [objects, state.join(CLUSTER), state.join(REPORTED)];
        for path in &roots {
            fs::create_dir_all(path).map_err(|cause| WatchError::Create { path: path.clone(), cause })?;
        }
        let shared = Arc::new(Shared { inner: Mutex::new(Inner { store: Store::default(), watches: Vec::new() }) });
        let follower = Follower::start(roots, state.join(KEPT), shared.clone())?;
        Ok(Self { state: state.to_path_buf(), shared, follower })
    }

    /// Every object that exists now.
    pub fn objects(&self) -> Vec<Arc<Object>> {
        self.shared.lock().store.objects().cloned().collect()
    }

    /// An object as it is now.
    pub fn get(&self, object: &ObjectRef) -> Option<Arc<Object>> {
        self.shared.lock().store.object(object).cloned()
    }

    fn path_of(&self, writer: &str, object: &ObjectRef, owned: bool) -> PathBuf {
        let folder = self.state.join(REPORTED).join(writer);
        write::file(&if owned { folder.join(write::OWNED) } else { folder }, object)
    }

    /// The file that a report becomes.
    fn document(&self, report: &Report) -> Result<Value, ReportError> {
        let Report { writer, object, fields, owned } = report;
        let mut document = json!({
            "apiVersion": object.kind.api_version(),
            "kind": object.kind.as_str(),
            "metadata": {"name": object.name},
        });
        if !object.namespace.is_empty() {
            document["metadata"]["namespace"] = object.namespace.clone().into();
        }
        let inner = self.shared.lock();
        if let (false, Some(current)) = (owned, inner.store.object(object)) {
            // What is said about this object must not stick to a later one of the same name.
            if !current.metadata.uid.is_empty() {
                document["metadata"]["uid"] = current.metadata.uid.clone().into();
            }
        }
        merge::merge(&mut document, fields);
        if let Some((field, owner)) = inner.store.conflict(writer, object, &document) {
            return Err(ReportError::Conflict { object: object.clone(), field, owner });
        }
        Ok(document)
    }
}

impl Source for DirSource {
    fn watch(&self) -> Watch {
        let (sender, watch) = watch::channel();
        let mut inner = self.shared.lock();
        for event in inner.store.everything() {
            sender.send(event);
        }
        inner.watches.push(sender);
        watch
    }

    fn report(&self, report: Report) -> BoxFuture<'_, Result<(), ReportError>> {
        Box::pin(async move {
            if !is_writer(&report.writer) {
                return Err(ReportError::Writer { writer: report.writer });
            }
            let document = self.document(&report)?;
            let path = self.path_of(&report.writer, &report.object, report.owned);
            // A small file on a local (mostly memory) file system: not worth another thread.
            write::write_object(&path, &document).map_err(|cause| ReportError::Store { object: report.object, cause })?;
            self.follower.hint(path);
            Ok(())
        })
    }

    fn withdraw<'a>(&'a self, writer: &'a str, object: &'a ObjectRef) -> BoxFuture<'a, Result<(), ReportError>> {
        Box::pin(async move {
            if !is_writer(writer) {
                return Err(ReportError::Writer { writer: writer.to_owned() });
            }
            for owned in [false, true] {
                let path = self.path_of(writer, object, owned);
                write::remove_file(&path).map_err(|cause| ReportError::Store { object: object.clone(), cause })?;
                self.follower.hint(path);
            }
            Ok(())
        })
    }
}

fn is_writer(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// How deep folders are followed; also ends a loop of symbolic links.
const FOLDERS_MAX_DEPTH: usize = 32;

/// The files that a path of a user's means: those of a folder, in the order in which they are read, or the file itself.
pub fn manifests(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() { files(path) } else { vec![path.to_path_buf()] }
}

/// All files of a folder that hold objects, in the order in which `kubectl apply -R` takes them.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(folder, 0, &mut found);
    found
}

fn collect(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| !is_hidden(path)).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if depth < FOLDERS_MAX_DEPTH {
                collect(&path, depth + 1, found);
            }
        } else if is_manifest(&path) {
            found.push(path);
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_manifest(path: &Path) -> bool {
    !is_hidden(path) && path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}
