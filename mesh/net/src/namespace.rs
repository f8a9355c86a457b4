//! Network namespaces: open one, know it by its cookie, and make sockets in it.
//!
//! A socket belongs to the namespace it was made in for all its life, so only making it happens inside [`NetworkNamespace::run`];
//! everything later (accept, connect, read, write) is done from where the thread lives.

use std::{
    cell::RefCell,
    fmt, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use nix::sched::{CloneFlags, setns};
use thiserror::Error;

/// A network namespace that somebody else made: kept alive by a descriptor, known by its cookie. Cheap to clone.
#[derive(Clone)]
pub struct NetworkNamespace {
    descriptor: Arc<OwnedFd>,
    cookie: u64,
    inode: u64,
}

/// A network namespace cannot be used. The pod that it belongs to cannot be served; others can.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// The path cannot be opened.
    #[error("cannot open the network namespace {path}")]
    Open {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptor is something else.
    #[error("the descriptor is not of a network namespace (NS_GET_NSTYPE gave {found})")]
    NotANetworkNamespace {
        /// What the kernel said about it.
        found: String,
    },
    /// `setns` was refused.
    #[error("cannot enter the network namespace {inode} with setns, which needs CAP_SYS_ADMIN")]
    Enter {
        /// The namespace's inode number.
        inode: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its inode or cookie cannot be read.
    #[error("cannot identify the network namespace: {call}")]
    Identify {
        /// The call that failed.
        call: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl NetworkNamespace {
    /// Takes a descriptor that came from elsewhere (ZDS hands one over for each pod).
    ///
    /// # Errors
    /// The descriptor is of something else, or the namespace cannot be entered to read its cookie.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Self, NamespaceError> {
        // SAFETY: NS_GET_NSTYPE takes no argument and writes nothing; the descriptor is open for as long as the call runs.
        let kind = unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            let found = if kind < 0 { io::Error::last_os_error().to_string() } else { format!("{kind:#x}") };
            return Err(NamespaceError::NotANetworkNamespace { found });
        }
        let status =
            nix::sys::stat::fstat(&descriptor).map_err(|error| NamespaceError::Identify { call: "fstat", source: error.into() })?;
        let mut namespace = Self { descriptor: Arc::new(descriptor), cookie: 0, inode: status.st_ino };
        namespace.cookie = namespace.run(read_cookie)?.map_err(|source| NamespaceError::Identify { call: "SO_NETNS_COOKIE", source })?;
        Ok(namespace)
    }

    /// Opens a namespace by its path: `/proc/PID/ns/net`, `/run/netns/NAME`.
    ///
    /// # Errors
    /// As [`Self::from_fd`], or the path cannot be opened.
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let file = std::fs::File::open(path).map_err(|source| NamespaceError::Open { path: path.display().to_string(), source })?;
        Self::from_fd(file.into())
    }

    /// The namespace that this thread is in.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn current() -> Result<Self, NamespaceError> {
        Self::open(Path::new(CURRENT))
    }

    /// The kernel's cookie for it (`SO_NETNS_COOKIE`, Linux 5.14; what BPF's `bpf_get_netns_cookie` gives): never reused while the
    /// machine runs, so two namespaces are one if and only if their cookies are equal.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Its inode number in nsfs, as `ls -l /proc/PID/ns/net` shows it. Unlike the cookie it is reused after the namespace is gone.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` with this thread inside the namespace, then goes back. Meant for making a socket, a few microseconds; never
    /// holds across an await, as it takes a plain closure. May be nested.
    ///
    /// The process aborts if the thread cannot go back: anything it did from then on would be done as somebody else's pod.
    ///
    /// # Errors
    /// The namespace cannot be entered; `work` was not run.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NamespaceError> {
        let home = home()?;
        setns(&*self.descriptor, CloneFlags::CLONE_NEWNET)
            .map_err(|error| NamespaceError::Enter { inode: self.inode, source: error.into() })?;
        CURRENT_NAMESPACE.with(|current| *current.borrow_mut() = Some(Arc::clone(&self.descriptor)));
        let _back = GoBack { home };
        Ok(work())
    }
}

impl fmt::Debug for NetworkNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkNamespace").field("cookie", &self.cookie).field("inode", &self.inode).finish_non_exhaustive()
    }
}

/// Two handles of one namespace are equal.
impl PartialEq for NetworkNamespace {
    fn eq(&self, other: &Self) -> bool {
        self.cookie == other.cookie
    }
}

impl Eq for NetworkNamespace {}

const CURRENT: &str = "/proc/thread-self/ns/net";

thread_local! {
    /// Where this thread is now, once it has entered a namespace at least once: saves opening the file each time.
    static CURRENT_NAMESPACE: RefCell<Option<Arc<OwnedFd>>> = const { RefCell::new(None) };
}

fn home() -> Result<Arc<OwnedFd>, NamespaceError> {
    CURRENT_NAMESPACE.with(|current| {
        let mut current = current.borrow_mut();
        if let Some(home) = &*current {
            return Ok(Arc::clone(home));
        }
        let file = std::fs::File::open(CURRENT).map_err(|source| NamespaceError::Open { path: CURRENT.to_owned(), source })?;
        Ok(Arc::clone(current.insert(Arc::new(file.into()))))
    })
}

/// Takes the thread back, also when the work panics.
struct GoBack {
    home: Arc<OwnedFd>,
}

impl Drop for GoBack {
    fn drop(&mut self) {
        if let Err(error) = setns(&*self.home, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot leave a pod's network namespace: stopping rather than acting as that pod");
            std::process::abort();
        }
        CURRENT_NAMESPACE.with(|current| *current.borrow_mut() = Some(Arc::clone(&self.home)));
    }
}

/// The cookie of the namespace that this thread is in.
fn read_cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)
        .or_else(|_| socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None))?;
    let mut cookie: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live, aligned locals of the sizes told to the kernel, which writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_namespace_is_known_by_a_stable_cookie() {
        let one = NetworkNamespace::current().unwrap();
        let two = NetworkNamespace::current().unwrap();
        assert_ne!(one.cookie(), 0);
        assert_eq!(one, two);
        assert_eq!(one.inode(), two.inode());
    }

    #[test]
    fn other_descriptors_are_refused() {
        let file = std::fs::File::open("/proc/self/ns/mnt").unwrap();
        assert!(matches!(NetworkNamespace::from_fd(file.into()), Err(NamespaceError::NotANetworkNamespace { .. })));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(NetworkNamespace::from_fd(file.into()), Err(NamespaceError::NotANetworkNamespace { .. })));
        assert!(matches!(NetworkNamespace::open(Path::new("/nowhere")), Err(NamespaceError::Open { .. })));
    }
}
