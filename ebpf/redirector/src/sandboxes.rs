//! Hears when something happens in a pod's cgroup: a sandbox that is made anew under the same pod starts processes there, in another
//! network namespace, and must be captured before they talk.
//!
//! inotify tells of processes moved into the pod's folder, of folders made in it, and of the folder itself being made again. As what comes
//! then takes a moment, the pod's own processes (never all of the machine) are looked at every [`LOOK_AGAIN`] for [`ATTENTION`]. Where
//! there is no such folder (cgroup v1) nothing is heard, and who asks must look by himself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    ffi::{CString, OsStr},
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{io::unix::AsyncFd, time::Instant};

use crate::namespaces::pod_uid;

/// How long a pod is looked at after something happened in its folder: a container's start takes tenths of a second.
const ATTENTION: Duration = Duration::from_secs(2);
/// How often it is looked at meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Folders between the root and a pod's, and how many of them are looked through at most.
const DEPTH: usize = 8;
const FOLDERS: usize = 50_000;
const EVENTS: u32 = libc::IN_CREATE | libc::IN_MODIFY | libc::IN_DELETE | libc::IN_MOVED_TO | libc::IN_ONLYDIR;

/// What is watched for one descriptor of inotify.
#[derive(Debug)]
enum Watched {
    Pod(String),
    /// The folder that holds pods' folders.
    Parent,
}

/// The folders of the pods that are followed.
#[derive(Debug)]
pub struct Sandboxes {
    root: PathBuf,
    inotify: Option<AsyncFd<OwnedFd>>,
    watches: HashMap<i32, Watched>,
    /// Where each pod's folder is; `None`: it was not found.
    pods: BTreeMap<String, Option<(i32, PathBuf)>>,
    attention: BTreeMap<String, Instant>,
    next_look: Instant,
    search: bool,
}

impl Sandboxes {
    /// Follows nobody yet. `root`: the cgroup v2 folder below which all pods are.
    pub fn new(root: &Path) -> Self {
        let inotify = start().inspect_err(|error| tracing::warn!(%error, "no inotify: new sandboxes are found by looking"));
        Self {
            root: root.to_owned(),
            inotify: inotify.ok(),
            watches: HashMap::new(),
            pods: BTreeMap::new(),
            attention: BTreeMap::new(),
            next_look: Instant::now(),
            search: false,
        }
    }

    /// Follows these pods, by UID, and no others.
    pub async fn follow(&mut self, pods: BTreeSet<String>) {
        let gone: Vec<String> = self.pods.keys().filter(|uid| !pods.contains(*uid)).cloned().collect();
        for uid in gone {
            self.lose(&uid);
            self.pods.remove(&uid);
            self.attention.remove(&uid);
        }
        for uid in pods {
            if let Entry::Vacant(entry) = self.pods.entry(uid) {
                entry.insert(None);
                self.search = true;
            }
        }
        if std::mem::take(&mut self.search) {
            self.find().await;
        }
    }

    /// Whether every pod's folder is watched.
    pub fn hears_all(&self) -> bool {
        self.pods.values().all(Option::is_some)
    }

    /// Looks for the folders that were not found before, at the next [`Self::follow`].
    pub fn search_again(&mut self) {
        self.search |= !self.hears_all();
    }

    /// Waits until something happened in one of the folders.
    pub async fn changed(&mut self) {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        let mut buffer = [0_u8; 8192];
        let read = match inotify.readable().await {
            Ok(mut ready) => ready.try_io(|inotify| read(inotify.get_ref(), &mut buffer)),
            Err(error) => Ok(Err(error)),
        };
        match read {
            Ok(Ok(length)) => self.heed(&buffer[..length]),
            Ok(Err(error)) => {
                tracing::warn!(%error, "inotify ended: new sandboxes are found by looking");
                self.inotify = None;
                self.pods.values_mut().for_each(|folder| *folder = None);
            }
            Err(_would_block) => {}
        }
    }

    /// When pods are to be looked at, if any are.
    pub fn due(&self) -> Option<Instant> {
        (!self.attention.is_empty()).then_some(self.next_look)
    }

    /// The pods to be looked at now, with their folders.
    pub fn to_look_at(&mut self, now: Instant) -> Vec<(String, PathBuf)> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let folder = |uid: &String| self.pods.get(uid).cloned().flatten().map(|(_, path)| (uid.clone(), path));
        let look = self.attention.keys().filter_map(folder).collect();
        self.attention.retain(|_, until| *until > now);
        self.next_look = now + LOOK_AGAIN;
        look
    }

    fn attend(&mut self, uid: &str) {
        let now = Instant::now();
        if self.attention.is_empty() {
            self.next_look = now;
        }
        self.attention.insert(uid.to_owned(), now + ATTENTION);
    }

    /// Reads events: `struct inotify_event` with its name, one after the other.
    fn heed(&mut self, mut events: &[u8]) {
        while let Some((head, rest)) = events.split_first_chunk::<16>() {
            let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (watch, mask) = (word(0).cast_signed(), word(4));
            let (name, rest) = rest.split_at((word(12) as usize).min(rest.len()));
            events = rest;
            if mask & libc::IN_Q_OVERFLOW != 0 {
                self.pods.keys().cloned().collect::<Vec<_>>().iter().for_each(|uid| self.attend(uid));
                continue;
            }
            let pod = match self.watches.get(&watch) {
                Some(Watched::Pod(uid)) => Some((uid.clone(), mask & libc::IN_IGNORED != 0)),
                // The folder of a pod is made again, or goes.
                Some(Watched::Parent) => {
                    let name = OsStr::from_bytes(name.split(|byte| *byte == 0).next().unwrap_or_default()).to_string_lossy().into_owned();
                    pod_uid(&name).filter(|uid| self.pods.contains_key(uid)).map(|uid| (uid, true))
                }
                None => None,
            };
            if let Some((uid, lost)) = pod {
                if lost {
                    self.lose(&uid);
                    self.search = true;
                }
                self.attend(&uid);
            }
            if mask & libc::IN_IGNORED != 0 {
                self.watches.remove(&watch);
            }
        }
    }

    /// The folder that was watched is not the pod's any more.
    fn lose(&mut self, uid: &str) {
        if let Some(folder) = self.pods.get_mut(uid)
            && let Some((watch, _)) = folder.take()
        {
            self.watches.remove(&watch);
            if let Some(inotify) = &self.inotify {
                // SAFETY: two numbers; that the kernel removed it already is no harm.
                unsafe { libc::inotify_rm_watch(inotify.as_raw_fd(), watch) };
            }
        }
    }

    /// Finds and watches the folders that are not known.
    async fn find(&mut self) {
        let missing: BTreeSet<String> = self.pods.iter().filter(|(_, folder)| folder.is_none()).map(|(uid, _)| uid.clone()).collect();
        let Some(inotify) = self.inotify.as_ref().map(|inotify| inotify.as_raw_fd()).filter(|_| !missing.is_empty()) else { return };
        let root = self.root.clone();
        let search = move || {
            let (mut found, mut left) = (Vec::new(), FOLDERS);
            search(&root, &missing, DEPTH, &mut left, &mut found);
            found
        };
        for (uid, path) in tokio::task::spawn_blocking(search).await.unwrap_or_default() {
            let watched = watch(inotify, &path).inspect_err(|error| tracing::warn!(%error, path = %path.display(), "not watched"));
            let Ok(number) = watched else { continue };
            self.watches.insert(number, Watched::Pod(uid.clone()));
            if let Some(Ok(parent)) = path.parent().map(|parent| watch(inotify, parent)) {
                self.watches.insert(parent, Watched::Parent);
            }
            self.attend(&uid);
            self.pods.insert(uid, Some((number, path)));
        }
    }
}

fn start() -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: takes flags, returns a new descriptor that nobody else has.
    let raw = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; an owned descriptor stays open and the same for as long as it is owned.
    Ok(unsafe { AsyncFd::register(OwnedFd::from_raw_fd(raw)) }?)
}

fn watch(inotify: i32, path: &Path) -> io::Result<i32> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the path ends with a zero and outlives the call.
    let number = unsafe { libc::inotify_add_watch(inotify, path.as_ptr(), EVENTS) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

fn read(inotify: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    let length = unsafe { libc::read(inotify.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// The folders of these pods below `folder`. Nothing below a pod's folder is another pod's, whatever its name.
fn search(folder: &Path, pods: &BTreeSet<String>, depth: usize, left: &mut usize, found: &mut Vec<(String, PathBuf)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if depth == 0 || *left == 0 || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        *left -= 1;
        match pod_uid(&entry.file_name().to_string_lossy()) {
            Some(uid) if pods.contains(&uid) => found.push((uid, entry.path())),
            Some(_) => {}
            None => search(&entry.path(), pods, depth - 1, left, found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "11111111-2222-4333-8444-555555555555";
    const OTHER: &str = "99999999-2222-4333-8444-555555555555";

    #[tokio::test]
    async fn folders_that_a_pod_makes_are_nobody_elses() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(format!("kubepods/pod{OTHER}/x/pod{UID}"))).unwrap();
        let mut sandboxes = Sandboxes::new(root.path());
        sandboxes.follow([UID.to_owned()].into()).await;
        assert!(!sandboxes.hears_all());
        let own = root.path().join(format!("kubepods/pod{UID}"));
        fs::create_dir(&own).unwrap();
        sandboxes.search_again();
        sandboxes.follow([UID.to_owned()].into()).await;
        assert_eq!(sandboxes.to_look_at(Instant::now() + LOOK_AGAIN), [(UID.to_owned(), own)]);
    }

    #[tokio::test]
    async fn hears_of_processes_and_folders_of_the_pods_it_follows() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("kubepods.slice/kubepods-pod11111111_2222_4333_8444_555555555555.slice");
        let other = root.path().join("kubepods.slice/kubepods-pod99999999_2222_4333_8444_555555555555.slice");
        for folder in [&pod, &other] {
            fs::create_dir_all(folder).unwrap();
        }
        let mut sandboxes = Sandboxes::new(root.path());
        sandboxes.follow([UID.to_owned(), "44".to_owned()].into()).await;
        assert!(!sandboxes.hears_all(), "44 has no folder");
        let names = |sandboxes: &mut Sandboxes| {
            let look = sandboxes.to_look_at(Instant::now() + LOOK_AGAIN);
            look.into_iter().map(|(uid, _)| uid).collect::<Vec<_>>()
        };
        assert_eq!(names(&mut sandboxes), [UID], "once, as it may have changed before it was followed");
        sandboxes.attention.clear();

        fs::write(other.join("cgroup.procs"), "1").unwrap();
        fs::write(pod.join("cgroup.procs"), "1").unwrap();
        sandboxes.changed().await;
        assert_eq!(names(&mut sandboxes), [UID]);
        sandboxes.attention.clear();

        fs::remove_dir_all(&pod).unwrap();
        fs::create_dir(&pod).unwrap();
        while !sandboxes.search {
            sandboxes.changed().await;
        }
        sandboxes.follow([UID.to_owned()].into()).await;
        assert!(sandboxes.hears_all(), "the folder that was made again");
        sandboxes.attention.clear();
        fs::create_dir(pod.join("container")).unwrap();
        while sandboxes.due().is_none() {
            sandboxes.changed().await;
        }
        assert_eq!(names(&mut sandboxes), [UID]);
        assert!(sandboxes.to_look_at(Instant::now() + ATTENTION + LOOK_AGAIN).len() == 1 && sandboxes.due().is_none(), "and then no more");
    }
}
