//! A node proxy that does not know our maps, such as Istio's ztunnel: it is handed pods by ZDS like ours, binds the listeners in them and
//! reads original destinations, but it neither puts its listeners where `sk_lookup` finds them nor marks what it dials as its own. With
//! `--foreign-proxy` both are done for it here (ADR 7).
//!
//! Who the proxy is says the kernel, of the process that made the connection of ZDS. What that process's cgroup dials from inside a pod
//! passes: no pod can enter that cgroup, while user ids, marks and process ids can be had by a pod. Its listeners are found among its
//! descriptors after each pod that it took over, copied, and put into the map.

pub mod process;
mod sockets;

use std::{
    fs, io,
    net::IpAddr,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use thiserror::Error;
use tropis_maps::{HBONE_PORT, ListenerKind, MAX_PROXIES, MapsError, NodeMaps, Pins, ProxyMaps};
use tropis_net::namespace::{NamespaceError, NetworkNamespace};

use self::{
    process::{Process, ProcessError},
    sockets::Listening,
};
use crate::kernel::CaptureSettings;

/// Where a proxy of Istio's contract listens in a pod, as far as our maps name it.
const LISTENERS: [(ListenerKind, u16); 3] =
    [(ListenerKind::Outbound, 15001), (ListenerKind::Inbound, 15006), (ListenerKind::Hbone, HBONE_PORT)];
/// The id of a hierarchy's root: a process there is in no cgroup of its own.
const ROOT_CGROUP: u64 = 1;

/// A process that connected cannot be taken for the node proxy.
#[derive(Debug, Error)]
pub enum AdmitError {
    /// The kernel does not say who it is.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Others share its cgroup, so that what they dial would pass, too.
    #[error("the node proxy's process {pid} is in no cgroup v2 group of its own, below {}: what pods dial could not be told from what it dials", cgroup.display())]
    NoCgroup {
        /// The process.
        pid: u32,
        /// The cgroup that is captured.
        cgroup: PathBuf,
    },
    /// A map cannot be written.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// The listeners of a pod could not be put into the map.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// The pod's namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The listeners of its namespace cannot be read.
    #[error("read the listening sockets of the pod's network namespace")]
    Sockets(#[source] io::Error),
    /// The proxy's descriptors cannot be had.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The proxy took the pod over, but does not listen.
    #[error("the node proxy has no listener on port {port} for {address} in the pod")]
    Missing {
        /// Where it should.
        port: u16,
        /// The pod's address.
        address: IpAddr,
    },
    /// The map cannot be written.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// All node proxies that were admitted.
#[derive(Debug)]
pub struct ForeignProxies {
    node: NodeMaps,
    proxy: Arc<ProxyMaps>,
    cgroup: PathBuf,
    /// The captured cgroup's id.
    captured: u64,
    admitted: Mutex<Vec<Arc<Process>>>,
}

/// A node proxy that was admitted.
#[derive(Debug, Clone)]
pub struct ForeignProxy {
    process: Arc<Process>,
    maps: Arc<ProxyMaps>,
}

impl ForeignProxies {
    /// Opens what capture has pinned.
    ///
    /// # Errors
    /// A map cannot be opened.
    pub fn open(settings: &CaptureSettings) -> Result<Self, MapsError> {
        let path = &settings.cgroup;
        let captured = fs::metadata(path).map_err(|source| MapsError::Open { path: path.clone(), source })?.ino();
        Ok(Self {
            node: NodeMaps::open(&Pins::new(&settings.pins))?,
            proxy: Arc::new(ProxyMaps::open(&settings.pins)?),
            cgroup: path.clone(),
            captured,
            admitted: Mutex::default(),
        })
    }

    /// Lets pass what the process at the other end of `connection` dials from inside pods, and whatever else runs in its cgroup.
    ///
    /// # Errors
    /// It cannot be told from pods; nothing was changed.
    pub fn admit(&self, connection: BorrowedFd<'_>) -> Result<ForeignProxy, AdmitError> {
        let process = Arc::new(Process::peer_of(connection)?);
        let (pid, cgroup) = (process.pid(), process.cgroup());
        if cgroup == ROOT_CGROUP || cgroup == self.captured {
            return Err(AdmitError::NoCgroup { pid, cgroup: self.cgroup.clone() });
        }
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.retain(|known| known.is_alive() && known.pid() != pid);
        let before = self.node.proxies()?;
        if !before.contains(&cgroup) {
            // Cgroups of proxies that ended stay while there is room: they are empty, and their ids are not used again.
            let left = before.iter().filter(|id| admitted.iter().all(|known| known.cgroup() != **id));
            for id in left.take((before.len() + 1).saturating_sub(MAX_PROXIES)) {
                self.node.dismiss_proxy(*id)?;
            }
            self.node.admit_proxy(cgroup)?;
        }
        admitted.push(Arc::clone(&process));
        tracing::info!(pid, cgroup, "a node proxy that does not know our maps is admitted by its cgroup");
        Ok(ForeignProxy { process, maps: Arc::clone(&self.proxy) })
    }
}

impl ForeignProxy {
    /// Puts the proxy's listeners in a pod where the kernel finds them. Blocks: it looks through all of the proxy's descriptors.
    ///
    /// # Errors
    /// One is not there or cannot be had. Connections that it should take are refused.
    pub fn adopt(&self, namespace: BorrowedFd<'_>, addresses: &[IpAddr]) -> Result<(), AdoptError> {
        let copy = namespace.try_clone_to_owned().map_err(AdoptError::Sockets)?;
        let mut listening = NetworkNamespace::from_fd(copy)?.run(sockets::listening)?.map_err(AdoptError::Sockets)?;
        listening.retain(|one| LISTENERS.iter().any(|(_, port)| *port == one.port));
        let inodes = listening.iter().map(|one| one.inode).collect();
        let own = self.process.sockets(&inodes)?;
        for address in addresses {
            for (kind, port) in LISTENERS {
                let fits =
                    |one: &&Listening| one.port == port && own.get(&one.inode).is_some_and(|socket| one.serves(*address, socket.as_fd()));
                let found = listening.iter().find(fits).and_then(|one| own.get(&one.inode));
                let socket = found.ok_or(AdoptError::Missing { port, address: *address })?;
                self.maps.add_listener(*address, kind, socket.as_fd())?;
            }
        }
        Ok(())
    }
}
