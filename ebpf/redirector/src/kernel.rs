//! Everything that is put into the kernel: programs loaded, attached, pinned, and replaced in place by the next process.
//!
//! A restart finds the pins of the process before it: maps are used as they are, and each attached program is exchanged with one
//! system call (`BPF_LINK_UPDATE`), so there is no moment without capture. Pins of another schema version stay beside ours until every pod
//! that they capture is captured by ours.

pub mod filesystem;
pub mod links;
pub mod older;
pub mod probe;
pub mod programs;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use thiserror::Error;
use tropis_maps::{InboundCount, MapsError, NodeMaps, OutboundCount, Pins, PodEntry, ProxyAccount};

use self::{links::LinkError, programs::LoadError};

/// Where capture is put.
#[derive(Debug, Clone)]
pub struct CaptureSettings {
    /// The folder of the pins.
    pub pins: PathBuf,
    /// The cgroup that the hooks are attached to.
    pub cgroup: PathBuf,
    /// Who may open which pin.
    pub proxy: ProxyAccount,
}

/// Capture could not be put in place.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The pins have no place.
    #[error("prepare the bpf filesystem at {path} (mount needs CAP_SYS_ADMIN)")]
    Filesystem {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cgroup cannot be opened.
    #[error("open the cgroup {path} (cgroup v2, on hybrid hosts below /sys/fs/cgroup/unified)")]
    Cgroup {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program was refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A program cannot be attached.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A map cannot be used.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// What was counted for pods that are gone, so that sums never go back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Of connections that pods opened.
    pub outbound: OutboundCount,
    /// Of connections that pods were sent.
    pub inbound: InboundCount,
}

/// Capture, in place.
#[derive(Debug)]
pub struct Capture {
    pins: Pins,
    maps: NodeMaps,
    sk_lookup: OwnedFd,
    retired: Mutex<Totals>,
    /// Namespaces that the programs of another version capture, until those are removed.
    older: Mutex<Option<BTreeSet<u64>>>,
}

impl Capture {
    /// Loads the programs, takes over or makes the maps, and attaches the programs to the cgroup.
    pub fn open(settings: &CaptureSettings) -> Result<Self, CaptureError> {
        let filesystem = |source| CaptureError::Filesystem { path: settings.pins.clone(), source };
        filesystem::prepare(&settings.pins).map_err(filesystem)?;
        let pins = Pins::new(&settings.pins);
        pins.create_folders().map_err(filesystem)?;
        let programs = programs::load(Some(&pins))?;
        pins.set_owners(settings.proxy).map_err(filesystem)?;
        let cgroup_error = |source| CaptureError::Cgroup { path: settings.cgroup.clone(), source };
        let cgroup = File::open(&settings.cgroup).map_err(cgroup_error)?;
        for program in &programs.cgroup {
            links::attach_to_cgroup(program.descriptor.as_fd(), &cgroup, program.hook.attach, &pins.links().join(program.hook.name))?;
        }
        let older = older::held(&pins).map_err(filesystem)?;
        let maps = NodeMaps::open(&pins)?;
        Ok(Self { pins, maps, sk_lookup: programs.sk_lookup, retired: Mutex::default(), older: Mutex::new(older) })
    }

    /// The maps.
    pub fn maps(&self) -> &NodeMaps {
        &self.maps
    }

    /// Captures what arrives at a namespace from now on; exchanges the program where an earlier process did so already.
    pub fn attach_inbound(&self, namespace: BorrowedFd<'_>, netns_cookie: u64) -> Result<(), LinkError> {
        links::attach_to_namespace(self.sk_lookup.as_fd(), namespace, &self.pins.inbound_link(netns_cookie))
    }

    /// Captures nothing that arrives at a namespace any more.
    pub fn detach_inbound(&self, netns_cookie: u64) -> Result<(), LinkError> {
        links::detach(&self.pins.inbound_link(netns_cookie))
    }

    /// Removes all traces of a pod; `addresses` are those that no other pod has taken over.
    pub fn remove(&self, netns_cookie: u64, addresses: impl IntoIterator<Item = std::net::IpAddr>) -> Result<(), CaptureError> {
        self.detach_inbound(netns_cookie)?;
        let addresses: Vec<_> = addresses.into_iter().collect();
        let outbound = self.maps.outbound(netns_cookie)?;
        let inbound = addresses.iter().map(|ip| self.maps.inbound(*ip)).collect::<Result<Vec<_>, _>>()?;
        self.maps.remove(netns_cookie, addresses)?;
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        add_outbound(&mut retired.outbound, &outbound);
        inbound.iter().for_each(|count| add_inbound(&mut retired.inbound, count));
        Ok(())
    }

    /// Cookies of namespaces that have an inbound link pinned.
    pub fn inbound_links(&self) -> io::Result<Vec<u64>> {
        links_below(&self.pins.links())
    }

    /// Everything counted since this process started to count, of pods that are there and of those that are gone.
    pub fn totals(&self) -> Result<Totals, MapsError> {
        let mut totals = *self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let pods: BTreeMap<u64, PodEntry> = self.maps.pods()?.into_iter().collect();
        for (cookie, pod) in pods {
            add_outbound(&mut totals.outbound, &self.maps.outbound(cookie)?);
            for ip in pod.addresses() {
                add_inbound(&mut totals.inbound, &self.maps.inbound(ip)?);
            }
        }
        Ok(totals)
    }
}

fn add_outbound(sum: &mut OutboundCount, one: &OutboundCount) {
    sum.captured += one.captured;
    sum.dns_captured += one.dns_captured;
    sum.dns_refused += one.dns_refused;
    sum.passed_self += one.passed_self;
    sum.refused_family += one.refused_family;
    sum.passed_leaving += one.passed_leaving;
    sum.passed_proxy += one.passed_proxy;
}

fn add_inbound(sum: &mut InboundCount, one: &InboundCount) {
    sum.hbone += one.hbone;
    sum.captured += one.captured;
    sum.refused += one.refused;
}

/// The namespaces that inbound links are pinned for in a folder; none where there is no such folder.
fn links_below(folder: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut cookies = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        cookies.extend(name.to_string_lossy().strip_prefix("netns-").and_then(|cookie| cookie.parse::<u64>().ok()));
    }
    Ok(cookies)
}

/// Removes everything that is pinned and the filesystem that was mounted for it: all capture ends.
pub fn cleanup(pins: &Path) -> io::Result<()> {
    if filesystem::is_bpf(pins)? {
        for entry in fs::read_dir(pins)? {
            let path = entry?.path();
            if older::is_schema(&path) {
                fs::remove_dir_all(&path)?;
            }
        }
    }
    filesystem::unmount(pins)
}
