//! Where a pod runs: a process whose cgroup path holds the pod's UID, its network namespace, checked against the pod's addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::IpAddr,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::ifaddrs::getifaddrs;
use thiserror::Error;
use tropis_net::namespace::{NamespaceError, NetworkNamespace};

/// A pod's network namespace, kept alive by a descriptor.
#[derive(Debug, Clone)]
pub struct Place {
    descriptor: Arc<OwnedFd>,
    namespace: NetworkNamespace,
}

impl Place {
    /// The kernel's name for the namespace, never used twice.
    pub fn cookie(&self) -> u64 {
        self.namespace.cookie()
    }

    /// The namespace.
    pub fn namespace(&self) -> &NetworkNamespace {
        &self.namespace
    }

    /// The descriptor, to be handed over.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.descriptor)
    }

    /// Opens a namespace by its path.
    pub fn open(path: &Path) -> Result<Self, LocateError> {
        let file = File::open(path).map_err(|source| LocateError::Open { path: path.display().to_string(), source })?;
        let descriptor = OwnedFd::from(file);
        let copy = descriptor.try_clone().map_err(|source| LocateError::Open { path: path.display().to_string(), source })?;
        Ok(Self { namespace: NetworkNamespace::from_fd(copy)?, descriptor: Arc::new(descriptor) })
    }

    /// The user namespace that the namespace belongs to; `None` for one that is not below ours.
    fn owner(&self) -> Option<u64> {
        // SAFETY: takes no argument and writes nothing; gives a new descriptor.
        let raw = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::NS_GET_USERNS) };
        // SAFETY: as above, nobody else has it.
        let owner = (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) })?;
        nix::sys::stat::fstat(owner).ok().map(|status| status.st_ino)
    }

    /// Whether an interface of the namespace has one of these addresses.
    fn has_any(&self, addresses: &[IpAddr]) -> Result<bool, LocateError> {
        let interfaces = self.namespace.run(getifaddrs)?.map_err(|error| LocateError::Addresses { source: error.into() })?;
        let own = interfaces.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or(address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        });
        let own: BTreeSet<IpAddr> = own.collect();
        Ok(addresses.iter().any(|address| own.contains(address)))
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Why a pod's namespace could not be found. It may be there a moment later.
#[derive(Debug, Error)]
pub enum LocateError {
    /// No process of the pod runs.
    #[error("no process runs in a cgroup of the pod")]
    NoProcess,
    /// Its processes run in the node's own namespace, which cannot be enrolled.
    #[error("its processes run in the node's own network namespace")]
    NodeNamespace,
    /// Its processes run in a namespace that one of them made for itself.
    #[error("its processes run in a network namespace of a user namespace that is not the pod's")]
    OtherOwner,
    /// Its processes run in a namespace without the pod's addresses.
    #[error("the network namespace of its processes has none of the addresses {addresses}")]
    OtherAddresses {
        /// What the pod's status says.
        addresses: String,
    },
    /// A namespace cannot be opened.
    #[error("open {path} (CAP_SYS_PTRACE)")]
    Open {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Its addresses cannot be read.
    #[error("read the addresses of a network namespace")]
    Addresses {
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The processes of pods, as one look at `/proc` found them.
#[derive(Debug, Default)]
pub struct Processes {
    /// The UID of the pod that each is of, oldest process first.
    pods: BTreeMap<(u64, u32), String>,
}

impl Processes {
    /// Looks. Processes that end meanwhile are left out.
    pub fn look() -> Self {
        let mut pods = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Ok(text) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
            if let Some(uid) = pod_of(&text) {
                pods.insert((start_time(pid), pid), uid);
            }
        }
        Self { pods }
    }

    /// Looks at the processes of pods' cgroup folders alone.
    pub fn of_folders(folders: &[(String, PathBuf)]) -> Self {
        let mut pods = BTreeMap::new();
        for (uid, folder) in folders {
            let mut found = Vec::new();
            processes_below(folder, CONTAINERS_DEPTH, &mut found);
            pods.extend(found.into_iter().map(|pid| ((start_time(pid), pid), uid.clone())));
        }
        Self { pods }
    }

    /// Whether any process of the pod is left.
    pub fn any_of(&self, uid: &str) -> bool {
        self.pods.values().any(|pod| pod == uid)
    }

    /// The network namespace of the pod: not the node's, with one of the pod's addresses, of our user namespace or of that of the pod's
    /// oldest process. What any process may make without a privilege, a user namespace with a network namespace in it, is not the pod's.
    /// Of several the newest, going by the oldest process of each: what is left of an earlier sandbox may still be ending.
    pub fn locate(&self, uid: &str, addresses: &[IpAddr]) -> Result<Place, LocateError> {
        let node = NetworkNamespace::current()?;
        let mut owners: BTreeSet<u64> = user_namespace("self").into_iter().collect();
        let mut problem = LocateError::NoProcess;
        let (mut seen, mut newest) = (BTreeSet::new(), None);
        for ((_, pid), _) in self.pods.iter().filter(|(_, pod)| *pod == uid) {
            // A process that ends while we look says nothing.
            let Ok(place) = Place::open(Path::new(&format!("/proc/{pid}/ns/net"))) else { continue };
            if seen.is_empty() {
                owners.extend(user_namespace(&pid.to_string()));
            }
            if !seen.insert(place.cookie()) {
                continue;
            }
            if place.cookie() == node.cookie() {
                problem = LocateError::NodeNamespace;
            } else if !place.owner().is_some_and(|owner| owners.contains(&owner)) {
                problem = LocateError::OtherOwner;
            } else {
                match place.has_any(addresses) {
                    Ok(true) => newest = Some(place),
                    Ok(false) => {
                        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                        problem = LocateError::OtherAddresses { addresses: addresses.join(", ") };
                    }
                    Err(error) => problem = error,
                }
            }
        }
        newest.ok_or(problem)
    }
}

/// The user namespace of a process (`self`: of this one), by its number.
fn user_namespace(process: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{process}/ns/user")).ok().map(|status| status.ino())
}

/// Folders of containers within a pod's.
const CONTAINERS_DEPTH: usize = 4;

fn processes_below(folder: &Path, depth: usize, found: &mut Vec<u32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes_below(&entry.path(), depth - 1, found);
        }
    }
}

/// The cookies of all network namespaces that a process is in.
///
/// # Errors
/// Something cannot be read, so nobody knows that a namespace is empty.
pub fn inhabited() -> io::Result<BTreeSet<u64>> {
    let (mut seen, mut cookies) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir("/proc")?.flatten() {
        if !entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            continue;
        }
        let mut links = vec![entry.path().join("ns/net")];
        if !links[0].exists() {
            // A process whose first thread has ended lives on in the others.
            links =
                fs::read_dir(entry.path().join("task")).into_iter().flatten().flatten().map(|task| task.path().join("ns/net")).collect();
        }
        for link in links {
            match fs::read_link(&link) {
                Ok(name) if seen.contains(&name) => {}
                Ok(name) => {
                    if let Ok(namespace) = NetworkNamespace::open(&link) {
                        cookies.insert(namespace.cookie());
                        seen.insert(name);
                    }
                }
                // Another pod's process may be anywhere; the machine's own, which sandboxes may hide from us, are no pod's.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_of_a_pod(&entry.path()) => return Err(error),
                // It ended meanwhile.
                Err(_) => {}
            }
        }
    }
    Ok(cookies)
}

/// Whether a process (`/proc/PID`) is in a cgroup of any pod.
fn is_of_a_pod(process: &Path) -> bool {
    fs::read_to_string(process.join("cgroup")).is_ok_and(|cgroups| cgroups.contains("pod"))
}

/// The UID of the pod whose cgroups these are (`/proc/PID/cgroup`). In each hierarchy the outermost pod's folder says it: those below
/// belong to what runs in the pod, which may give them any name. Hierarchies that tell of different pods tell of none.
fn pod_of(cgroups: &str) -> Option<String> {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let pods: BTreeSet<String> = paths.filter_map(|path| path.split('/').find_map(pod_uid)).collect();
    if pods.len() == 1 { pods.into_iter().next() } else { None }
}

/// The pod whose cgroup folder this is: `pod<uid>`, or systemd's `…-pod<uid with _>.slice`. A UID is one as Kubernetes makes them: a UUID, or
/// the 32 digits of a static pod.
pub fn pod_uid(folder: &str) -> Option<String> {
    let folder = folder.strip_suffix(".slice").unwrap_or(folder);
    let uid = folder.rsplit_once("pod")?.1.replace('_', "-");
    let groups: Vec<usize> = uid.split('-').map(str::len).collect();
    let is_uid = matches!(groups[..], [32] | [8, 4, 4, 4, 12]) && uid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    is_uid.then_some(uid)
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/PID/stat`, counted after the name, which may hold anything.
fn start_time(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)).and_then(|ticks| ticks.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_a_pods_cgroup_and_no_other() {
        let uid = "0b9c6f3e-6f6f-4bcd-9a52-06a1de40f0c9";
        let systemd = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b9c6f3e_6f6f_4bcd_9a52_06a1de40f0c9.slice/cri-containerd-1.scope";
        let cases = [
            (format!("0::/tropis/demo/a/pods/pod{uid}\n"), Some(uid)),
            (format!("12:cpu:/x\n4:memory:/kubepods/pod{uid}/a\n0::/kubepods/burstable/pod{uid}/abc\n"), Some(uid)),
            (systemd.to_owned(), Some(uid)),
            (format!("0::/../../pod{uid}/a:b/c"), Some(uid)),
            ("0::/kubepods/pod0123456789abcdef0123456789abcdef/x".to_owned(), Some("0123456789abcdef0123456789abcdef")),
            (format!("0::/tropis/demo/a/pods/pod{uid}x\n"), None),
            (format!("0::/other/{uid}\n"), None),
            ("0::/".to_owned(), None),
            ("0::/kubepods/pod".to_owned(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(pod_of(&text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_that_names_its_own_folders_after_another_stays_itself() {
        let (stranger, friend) = ("5de91a37-11aa-4c1e-8a43-5f5a0c1e7d11", "0b9c6f3e-6f6f-4bcd-9a52-06a1de40f0c9");
        let systemd = format!("kubepods-pod{}.slice", friend.replace('-', "_"));
        for nested in [format!("x/pod{friend}"), format!("x/{systemd}/y"), format!("pod{friend}")] {
            for outer in [format!("kubepods/pod{stranger}"), format!("kubepods.slice/kubepods-pod{}.slice", stranger.replace('-', "_"))] {
                assert_eq!(pod_of(&format!("0::/{outer}/{nested}\n")).as_deref(), Some(stranger));
            }
        }
        let torn = format!("4:memory:/kubepods/pod{stranger}\n0::/kubepods/pod{friend}\n");
        assert_eq!(pod_of(&torn), None, "two hierarchies, two pods");
    }

    #[test]
    fn processes_know_when_they_started() {
        assert!(start_time(std::process::id()) < u64::MAX);
        assert_eq!(start_time(u32::MAX), u64::MAX);
    }
}
