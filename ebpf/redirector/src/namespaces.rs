//! Where a pod runs: a process whose cgroup path holds the pod's UID, its network namespace, checked against the pod's addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
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
    /// Cgroup paths by process, oldest process first.
    cgroups: BTreeMap<(u64, u32), String>,
}

impl Processes {
    /// Looks. Processes that end meanwhile are left out.
    pub fn look() -> Self {
        let mut cgroups = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Ok(text) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
            if text.contains("pod") {
                cgroups.insert((start_time(pid), pid), text);
            }
        }
        Self { cgroups }
    }

    /// The network namespace of the pod: that of its oldest process which is not in the node's and has one of the pod's addresses.
    pub fn locate(&self, uid: &str, addresses: &[IpAddr]) -> Result<Place, LocateError> {
        let node = NetworkNamespace::current()?;
        let mut problem = LocateError::NoProcess;
        for ((_, pid), _) in self.cgroups.iter().filter(|(_, text)| belongs(text, uid)) {
            // A process that ends while we look says nothing.
            let Ok(place) = Place::open(Path::new(&format!("/proc/{pid}/ns/net"))) else { continue };
            if place.cookie() == node.cookie() {
                problem = LocateError::NodeNamespace;
            } else if place.has_any(addresses)? {
                return Ok(place);
            } else {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                problem = LocateError::OtherAddresses { addresses: addresses.join(", ") };
            }
        }
        Err(problem)
    }
}

/// Whether a process's cgroups (`/proc/PID/cgroup`) are a pod's: a folder `pod<uid>`, or systemd's `…-pod<uid with _>.slice`.
fn belongs(cgroups: &str, uid: &str) -> bool {
    let systemd = uid.replace('-', "_");
    cgroups.lines().filter_map(|line| line.rsplit(':').next()).flat_map(|path| path.split('/')).any(|folder| {
        let folder = folder.strip_suffix(".slice").unwrap_or(folder);
        let name = folder.rsplit_once("pod").map_or("", |(_, name)| name);
        !uid.is_empty() && (name == uid || name == systemd)
    })
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
            (format!("0::/tropis/demo/a/pods/pod{uid}\n"), true),
            (format!("12:cpu:/x\n0::/kubepods/burstable/pod{uid}/abc\n"), true),
            (systemd.to_owned(), true),
            (format!("0::/tropis/demo/a/pods/pod{uid}x\n"), false),
            (format!("0::/other/{uid}\n"), false),
            ("0::/".to_owned(), false),
        ];
        for (text, expected) in cases {
            assert_eq!(belongs(&text, uid), expected, "{text}");
        }
        assert!(!belongs("0::/pod", ""));
    }

    #[test]
    fn processes_know_when_they_started() {
        assert!(start_time(std::process::id()) < u64::MAX);
        assert_eq!(start_time(u32::MAX), u64::MAX);
    }
}
