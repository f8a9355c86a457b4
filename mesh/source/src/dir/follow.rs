//! The thread that hears of changes (inotify), waits until they are whole, reads the files and tells the store.
//!
//! Changes that come together are told together: after [`QUIET`] without another, at the latest after [`PATIENCE`]. A file that is
//! being written is read when its writer closes it; where that takes long, what it holds so far is read as an unfinished file, of which
//! nothing that is missing is taken away. What inotify may miss (a folder that was swapped, a queue that ran over) is found by
//! looking again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind},
};

use super::{
    Shared, WatchError, files, is_hidden, is_manifest,
    store::{FileChange, FileKey, Kept, Layer},
};
use crate::{write, yaml};

/// So long nothing may happen before what happened is told.
const QUIET: Duration = Duration::from_millis(10);
/// So long a change waits at most for others.
const PATIENCE: Duration = Duration::from_millis(40);
/// So long a file may be open for writing before what it holds so far is read; it is read again when it is closed.
const WRITING_MAX: Duration = Duration::from_secs(2);
/// So long an unfinished file may stay as it is before it counts as whole after all: that it was closed may have been missed, as
/// inotify's queue is bounded.
const UNFINISHED_MAX: Duration = Duration::from_secs(600);
/// So long a file that was created is awaited to be closed (a hard link never is).
const CREATING_MAX: Duration = Duration::from_millis(300);
/// A new folder is read again after this, for files that came before it was watched.
const FOLDER_AGAIN: Duration = Duration::from_millis(200);
/// How often the roots are looked at, as inotify follows a folder and not its name.
const ROOTS_PERIOD: Duration = Duration::from_secs(2);
/// How often all files are looked at.
const EVERYTHING_PERIOD: Duration = Duration::from_secs(60);

/// What the file of last good versions is called besides its manifest's name.
const KEPT_ENDING: &str = ".kept.json";

/// Handle of the thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Follower {
    sender: Sender<Message>,
}

enum Message {
    Heard(notify::Result<notify::Event>),
    Hint(PathBuf),
    Stop,
}

impl Follower {
    /// Reads everything once, and starts the thread. `roots` are the folders of objects, cluster and reports.
    /// `kept` is the folder of last good versions.
    pub(super) fn start(roots: [PathBuf; 3], kept: PathBuf, shared: Arc<Shared>) -> Result<Self, WatchError> {
        let (sender, receiver) = mpsc::channel();
        let heard = sender.clone();
        let watcher = notify::recommended_watcher(move |event| {
            // The thread is gone only when nobody listens any more.
            let _ = heard.send(Message::Heard(event));
        })
        .map_err(|cause| WatchError::Inotify { path: roots[0].clone(), cause })?;
        let mut thread = Following {
            roots: roots.map(|path| Root { path, identity: None }),
            kept,
            shared,
            watcher,
            stamps: HashMap::new(),
            dirty: BTreeSet::new(),
            folders: BTreeSet::new(),
            since: None,
            held: HashMap::new(),
            unfinished: HashMap::new(),
            again: BTreeMap::new(),
            roots_looked: Instant::now(),
            everything_looked: Instant::now(),
        };
        let remembered = thread.remember();
        thread.watch_roots()?;
        thread.look_everywhere();
        thread.settle();
        // Of files that are gone.
        thread.keep(remembered.into_iter().collect());
        thread::Builder::new().name("dir-source".to_owned()).spawn(move || thread.run(&receiver)).map_err(WatchError::Thread)?;
        Ok(Self { sender })
    }

    /// Says that a file changed, for whom inotify is not fast enough.
    pub(super) fn hint(&self, path: PathBuf) {
        let _ = self.sender.send(Message::Hint(path));
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.sender.send(Message::Stop);
    }
}

struct Root {
    path: PathBuf,
    /// Device and inode that are watched.
    identity: Option<(u64, u64)>,
}

/// What tells two versions of a file apart without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    identity: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

/// A file that is awaited to be closed.
#[derive(Debug, Clone, Copy)]
struct Hold {
    until: Instant,
    /// Something was written into it: it is not whole when the wait is over.
    written: bool,
}

struct Following {
    roots: [Root; 3],
    kept: PathBuf,
    shared: Arc<Shared>,
    watcher: RecommendedWatcher,
    /// Files as they were read last.
    stamps: HashMap<PathBuf, Stamp>,
    /// Files to read.
    dirty: BTreeSet<PathBuf>,
    /// Folders to look through.
    folders: BTreeSet<PathBuf>,
    /// When the first of them became so.
    since: Option<Instant>,
    /// Files that are being written, and until when to wait.
    held: HashMap<PathBuf, Hold>,
    /// Files that were read while they were being written, and when they were last found to have changed.
    unfinished: HashMap<PathBuf, Instant>,
    /// Folders to look through once more, and when.
    again: BTreeMap<Instant, PathBuf>,
    roots_looked: Instant,
    everything_looked: Instant,
}

impl Following {
    fn run(mut self, receiver: &Receiver<Message>) {
        loop {
            match receiver.recv_timeout(self.wait()) {
                Ok(Message::Heard(Ok(event))) => self.hear(&event),
                Ok(Message::Heard(Err(error))) => {
                    tracing::warn!(%error, "inotify failed; looking through everything");
                    self.look_everywhere();
                }
                Ok(Message::Hint(path)) => self.mark(path),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.look_again();
                    self.settle();
                }
            }
            if self.since.is_some_and(|since| since.elapsed() >= PATIENCE) {
                self.look_again();
                self.settle();
            }
        }
    }

    fn wait(&self) -> Duration {
        if self.since.is_some() {
            return QUIET;
        }
        let now = Instant::now();
        let held = self.held.values().map(|hold| &hold.until);
        let due = held.chain(self.again.keys()).min().map_or(ROOTS_PERIOD, |due| due.saturating_duration_since(now));
        due.min(ROOTS_PERIOD).max(Duration::from_millis(1))
    }

    fn mark(&mut self, path: PathBuf) {
        self.held.remove(&path);
        self.dirty.insert(path);
        self.since.get_or_insert_with(Instant::now);
    }

    fn mark_folder(&mut self, path: PathBuf) {
        self.folders.insert(path);
        self.since.get_or_insert_with(Instant::now);
    }

    /// Marks a file that is whole now: closed, renamed into its place or gone.
    fn mark_whole(&mut self, path: PathBuf) {
        self.unfinished.remove(&path);
        self.mark(path);
    }

    fn created(&mut self, path: PathBuf) {
        self.held.entry(path).or_insert_with(|| Hold { until: Instant::now() + CREATING_MAX, written: false });
    }

    fn written(&mut self, path: PathBuf) {
        let fresh = Hold { until: Instant::now() + WRITING_MAX, written: true };
        let hold = self.held.entry(path).or_insert(fresh);
        // Not pushed back by every write: what one that never ends wrote so far is read after all.
        if !hold.written {
            *hold = fresh;
        }
    }

    fn hear(&mut self, event: &notify::Event) {
        if event.need_rescan() {
            self.look_everywhere();
            return;
        }
        for path in event.paths.iter().cloned() {
            if path.file_name().is_some_and(|name| name == "..data") {
                // A mounted ConfigMap: its files are links into this link, which is swapped.
                self.mark_folder(path.parent().unwrap_or(&path).to_path_buf());
                continue;
            }
            if is_hidden(&path) {
                continue;
            }
            match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) if is_manifest(&path) => self.mark_whole(path),
                EventKind::Modify(ModifyKind::Data(_)) if is_manifest(&path) => self.written(path),
                EventKind::Create(CreateKind::File) if is_manifest(&path) => self.created(path),
                EventKind::Create(CreateKind::Folder) => {
                    self.again.insert(Instant::now() + FOLDER_AGAIN, path.clone());
                    self.mark_folder(path);
                }
                EventKind::Remove(RemoveKind::Folder) => self.mark_folder(path),
                EventKind::Modify(ModifyKind::Name(_)) if !is_manifest(&path) => {
                    self.again.insert(Instant::now() + FOLDER_AGAIN, path.clone());
                    self.mark_folder(path);
                }
                EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) if is_manifest(&path) => self.mark_whole(path),
                EventKind::Create(_) | EventKind::Modify(ModifyKind::Metadata(_))
                    if is_manifest(&path) && !self.held.contains_key(&path) =>
                {
                    self.mark(path);
                }
                _ => {}
            }
        }
    }

    /// What is due without anything having been heard.
    fn look_again(&mut self) {
        let now = Instant::now();
        let due: Vec<(PathBuf, Hold)> =
            self.held.iter().filter(|(_, hold)| hold.until <= now).map(|(path, hold)| (path.clone(), *hold)).collect();
        for (path, hold) in due {
            if hold.written && self.unfinished.insert(path.clone(), now).is_none() {
                tracing::warn!(path = %path.display(), "the file is being written for long; nothing that is missing in it is taken away");
            }
            self.mark(path);
        }
        let stale = |changed: &Instant| now.duration_since(*changed) >= UNFINISHED_MAX;
        let stale: Vec<PathBuf> = self.unfinished.iter().filter(|(_, changed)| stale(changed)).map(|(path, _)| path.clone()).collect();
        for path in stale {
            tracing::warn!(path = %path.display(), "the file was never closed and stays as it is; it counts as whole now");
            self.mark_whole(path);
        }
        while let Some(entry) = self.again.first_entry().filter(|entry| *entry.key() <= now) {
            let path = entry.remove();
            self.mark_folder(path);
        }
        if self.roots_looked.elapsed() >= ROOTS_PERIOD {
            self.roots_looked = now;
            if let Err(error) = self.watch_roots() {
                tracing::warn!(%error, "cannot watch a folder; trying again");
            }
        }
        if self.everything_looked.elapsed() >= EVERYTHING_PERIOD {
            self.look_everywhere();
        }
    }

    /// Watches the roots that are there and not watched yet.
    fn watch_roots(&mut self) -> Result<(), WatchError> {
        for index in 0..self.roots.len() {
            let path = self.roots[index].path.clone();
            let identity = fs::metadata(&path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
            if identity == self.roots[index].identity {
                continue;
            }
            if self.roots[index].identity.take().is_some() {
                // The folder of this name is another one now; the old watch may have gone with it.
                let _ = self.watcher.unwatch(&path);
            }
            if identity.is_some() {
                self.watcher.watch(&path, RecursiveMode::Recursive).map_err(|cause| WatchError::Inotify { path: path.clone(), cause })?;
                self.roots[index].identity = identity;
            }
            self.mark_folder(path);
        }
        Ok(())
    }

    fn look_everywhere(&mut self) {
        self.everything_looked = Instant::now();
        for index in 0..self.roots.len() {
            self.mark_folder(self.roots[index].path.clone());
        }
    }

    /// Reads what changed and tells it.
    fn settle(&mut self) {
        self.since = None;
        let mut paths = std::mem::take(&mut self.dirty);
        for folder in std::mem::take(&mut self.folders) {
            let there = files(&folder).into_iter().filter(|path| !self.held.contains_key(path));
            let changed = there.filter(|path| stamp(path).is_none_or(|stamp| self.stamps.get(path) != Some(&stamp)));
            paths.extend(changed);
            paths.extend(self.stamps.keys().filter(|path| path.starts_with(&folder) && !path.exists()).cloned());
        }
        let changes: Vec<FileChange> = paths.into_iter().filter_map(|path| self.read(&path)).collect();
        if changes.is_empty() {
            return;
        }
        let touched = changes.iter().map(FileChange::key).filter(|key| key.layer == Layer::Objects).cloned().collect();
        let mut inner = self.shared.lock();
        let events = inner.store.apply(changes);
        inner.tell(events);
        drop(inner);
        self.keep(touched);
    }

    /// Tells the store the last good versions that an earlier process left, or another one that follows the same folder.
    fn remember(&self) -> Vec<FileKey> {
        let mut keys = Vec::new();
        for (key, values) in kept(&self.kept) {
            self.shared.lock().store.remember(key.clone(), values);
            keys.push(key);
        }
        keys
    }

    /// Writes down which last good versions are in force, so that they are after a restart too.
    fn keep(&self, keys: BTreeSet<FileKey>) {
        for key in keys {
            let path = self.kept.join(format!("{}{KEPT_ENDING}", key.name));
            let kept = self.shared.lock().store.kept(&key);
            let done = match kept {
                Kept::Nothing => write::remove_file(&path),
                Kept::Unknown => Ok(()),
                Kept::Versions(values) => write::replace_private(&path, &values),
            };
            if let Err(error) = done {
                tracing::warn!(%error, path = %path.display(), "last good versions are not kept over a restart");
            }
        }
    }

    fn read(&mut self, path: &Path) -> Option<FileChange> {
        let key = key(&self.roots.each_ref().map(|root| root.path.clone()), path)?;
        match read_file(path) {
            Ok((text, stamp)) => {
                self.stamps.insert(path.to_path_buf(), stamp);
                let unfinished = self.unfinished.contains_key(path);
                Some(if unfinished { FileChange::Unfinished(key, text) } else { FileChange::Text(key, text) })
            }
            Err(ReadError::Gone) => {
                self.held.remove(path);
                self.unfinished.remove(path);
                self.stamps.remove(path).map(|_| FileChange::Gone(key))
            }
            Err(ReadError::Unreadable(problem)) => {
                if let Some(stamp) = stamp(path) {
                    self.stamps.insert(path.to_path_buf(), stamp);
                }
                Some(FileChange::Unreadable(key, problem))
            }
        }
    }
}

/// The layer and name of a file below one of `roots`; `None` for one that is nobody's business (a hidden one, one beside the writers'
/// folders).
pub(super) fn key(roots: &[PathBuf; 3], path: &Path) -> Option<FileKey> {
    let [objects, cluster, reported] = roots;
    let name = |prefix: &str, relative: &Path| -> Option<Arc<str>> {
        let visible = relative.components().all(|part| !part.as_os_str().as_encoded_bytes().starts_with(b"."));
        let relative = relative.to_string_lossy();
        visible.then(|| if prefix.is_empty() { relative.into() } else { format!("{prefix}/{relative}").into() })
    };
    if let Ok(relative) = path.strip_prefix(objects) {
        return Some(FileKey { layer: Layer::Objects, name: name("", relative)? });
    }
    if let Ok(relative) = path.strip_prefix(cluster) {
        let layer = if relative.starts_with(write::ASSIGNED) { Layer::Assigned } else { Layer::Cluster };
        return Some(FileKey { layer, name: name(super::CLUSTER, relative)? });
    }
    let relative = path.strip_prefix(reported).ok()?;
    let mut parts = relative.components();
    let Some(Component::Normal(writer)) = parts.next() else { return None };
    let writer: Arc<str> = writer.to_str()?.into();
    let layer = match parts.as_path().starts_with(write::OWNED) {
        true => Layer::Owned(writer),
        false => Layer::Reported(writer),
    };
    Some(FileKey { layer, name: name(super::REPORTED, relative)? })
}

/// The last good versions that are written down in a folder, by the file whose documents they are.
pub(super) fn kept(folder: &Path) -> Vec<(FileKey, Vec<serde_json::Value>)> {
    let read = |path: PathBuf| {
        let name = manifest_of(folder, &path)?;
        let values = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        Some((FileKey { layer: Layer::Objects, name: name.into() }, values))
    };
    files(folder).into_iter().filter_map(read).collect()
}

/// The manifest whose last good versions a file holds.
fn manifest_of<'a>(folder: &Path, path: &'a Path) -> Option<&'a str> {
    path.strip_prefix(folder).ok()?.to_str()?.strip_suffix(KEPT_ENDING)
}

pub(super) enum ReadError {
    Gone,
    Unreadable(String),
}

pub(super) fn read_file(path: &Path) -> Result<(String, Stamp), ReadError> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ReadError::Gone,
        _ => ReadError::Unreadable(format!("cannot be read: {error}")),
    };
    // Stamped before it is read: a change in between is found later.
    let metadata = fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        return Err(ReadError::Gone);
    }
    if metadata.len() > yaml::FILE_MAX_BYTES {
        return Err(ReadError::Unreadable(format!("the file has {} bytes, more than {}", metadata.len(), yaml::FILE_MAX_BYTES)));
    }
    let bytes = fs::read(path).map_err(cannot)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        ReadError::Unreadable(format!("line {line} is not UTF-8"))
    })?;
    Ok((text, stamp_of(&metadata)))
}

fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|metadata| stamp_of(&metadata))
}

fn stamp_of(metadata: &fs::Metadata) -> Stamp {
    Stamp { identity: (metadata.dev(), metadata.ino()), size: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
}
