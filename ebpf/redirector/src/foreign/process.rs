//! A process by a descriptor that keeps meaning it (pidfd): who is at the other end of a socket, its cgroup, copies of its sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

/// A process cannot be told, or its descriptors cannot be had.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The kernel refused, or is too old.
    #[error("{call} (kernel {kernel} or newer)")]
    Call {
        /// What was asked.
        call: &'static str,
        /// The least kernel that knows it.
        kernel: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Its descriptors cannot be listed.
    #[error("list the descriptors of process {pid} (CAP_SYS_PTRACE)")]
    Descriptors {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A process.
#[derive(Debug)]
pub struct Process {
    descriptor: OwnedFd,
    pid: u32,
    cgroup: u64,
}

/// `struct pidfd_info` as of its first version; what is not named is not asked for.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    pid: u32,
    tgid: u32,
    others: [u32; 10],
}
const _: () = assert!(size_of::<Info>() == 64);

const INFO_PID: u64 = 1;
const INFO_CGROUP: u64 = 1 << 2;
/// `_IOWR(0xff, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
const SO_PEERPIDFD: libc::c_int = 77;

impl Process {
    /// The process that connected to the unix socket that `connection` was accepted from.
    ///
    /// # Errors
    /// The kernel is too old, or the process is gone.
    pub fn peer_of(connection: BorrowedFd<'_>) -> Result<Self, ProcessError> {
        let (mut raw, mut length): (RawFd, _) = (-1, size_of::<RawFd>() as libc::socklen_t);
        // SAFETY: both pointers are to live locals of the sizes told to the kernel.
        let result =
            unsafe { libc::getsockopt(connection.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut raw).cast(), &raw mut length) };
        if result != 0 {
            return Err(last("getsockopt SO_PEERPIDFD", "6.5"));
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Self::of(unsafe { OwnedFd::from_raw_fd(raw) })
    }

    /// This process.
    ///
    /// # Errors
    /// The kernel is too old.
    pub fn own() -> Result<Self, ProcessError> {
        // SAFETY: the call takes numbers.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
        if raw < 0 {
            return Err(last("pidfd_open", "5.3"));
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Self::of(unsafe { OwnedFd::from_raw_fd(raw as RawFd) })
    }

    fn of(descriptor: OwnedFd) -> Result<Self, ProcessError> {
        let mut info = Info { mask: INFO_PID | INFO_CGROUP, ..Info::default() };
        // SAFETY: the request carries the size of `info`, which the kernel reads and writes while the call runs.
        if unsafe { libc::ioctl(descriptor.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) } != 0 {
            return Err(last("ioctl PIDFD_GET_INFO", "6.13"));
        }
        if info.mask & INFO_CGROUP == 0 {
            let source = io::Error::other("the answer names no cgroup");
            return Err(ProcessError::Call { call: "ioctl PIDFD_GET_INFO", kernel: "6.13 with cgroups", source });
        }
        Ok(Self { descriptor, pid: info.tgid, cgroup: info.cgroup })
    }

    /// Its number, as this process sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The id of its cgroup (v2), which no other cgroup ever has.
    pub fn cgroup(&self) -> u64 {
        self.cgroup
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        let mut asked = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
        poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ended| ended == 0)
    }

    /// Copies of those of its sockets that have one of these inodes.
    ///
    /// # Errors
    /// Its descriptors cannot be listed or copied. One that it closes meanwhile is left out.
    pub fn sockets(&self, inodes: &BTreeSet<u64>) -> Result<BTreeMap<u64, OwnedFd>, ProcessError> {
        let failed = |source| ProcessError::Descriptors { pid: self.pid, source };
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(inode) = fs::read_link(entry.path()).ok().and_then(|target| inode_of(&target.to_string_lossy())) else { continue };
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
            if !inodes.contains(&inode) || found.contains_key(&inode) {
                continue;
            }
            let Some(copy) = self.copy(number)? else { continue };
            // The number may mean another file by now.
            if nix::sys::stat::fstat(&copy).is_ok_and(|status| status.st_ino == inode) {
                found.insert(inode, copy);
            }
        }
        Ok(found)
    }

    /// A copy of one of its descriptors; `None` when it has none of that number.
    fn copy(&self, number: RawFd) -> Result<Option<OwnedFd>, ProcessError> {
        // SAFETY: the call takes numbers.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.descriptor.as_raw_fd(), number, 0) };
        if raw >= 0 {
            // SAFETY: the kernel has just made this descriptor for us.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(raw as RawFd) }));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EBADF) => Ok(None),
            source => Err(ProcessError::Call { call: "pidfd_getfd with CAP_SYS_PTRACE", kernel: "5.6", source }),
        }
    }
}

fn last(call: &'static str, kernel: &'static str) -> ProcessError {
    ProcessError::Call { call, kernel, source: io::Error::last_os_error() }
}

/// The inode of `socket:[INODE]`.
fn inode_of(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::{fd::AsFd as _, unix::net::UnixStream},
    };

    use super::*;

    #[test]
    fn the_other_end_of_a_socket_is_known_and_its_sockets_can_be_had() {
        // Kernels before 6.13 cannot; `redirector check` says so.
        let Ok(own) = Process::own() else { return };
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Process::peer_of(one.as_fd()).unwrap();
        assert_eq!((peer.pid(), peer.cgroup()), (std::process::id(), own.cgroup()));
        assert!(peer.is_alive() && peer.cgroup() != 0);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = nix::sys::stat::fstat(&listener).unwrap().st_ino;
        let sockets = peer.sockets(&BTreeSet::from([inode, u64::MAX])).unwrap();
        assert_eq!(sockets.keys().copied().collect::<Vec<_>>(), [inode]);
        let copy = TcpListener::from(sockets.into_values().next().unwrap());
        assert_eq!(copy.local_addr().unwrap(), listener.local_addr().unwrap());
        assert!(own.copy(RawFd::MAX).unwrap().is_none());
    }

    #[test]
    fn an_ended_process_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        // SAFETY: numbers; the child is not waited for yet, so its number is still its own.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
        assert!(raw >= 0);
        // SAFETY: the kernel has just made this descriptor for us.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw as RawFd) };
        child.wait().unwrap();
        assert!(!Process { descriptor, pid: child.id(), cgroup: 0 }.is_alive());
    }

    #[test]
    fn only_sockets_have_such_links() {
        assert_eq!(inode_of("socket:[4711]"), Some(4711));
        for other in ["pipe:[4711]", "/dev/null", "socket:[]", "anon_inode:[eventpoll]"] {
            assert_eq!(inode_of(other), None, "{other}");
        }
    }
}
