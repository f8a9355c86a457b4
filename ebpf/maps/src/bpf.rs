//! The bpf(2) commands that we make ourselves: pins, elements, and the links that aya does not cover (cgroup links that share a hook,
//! pinned and updated in place). Each is one system call; errors are the kernel's.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// How a pin is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading and writing.
    ReadWrite,
    /// For reading only (`BPF_F_RDONLY`).
    Read,
}

/// Where a program is put among others on the same hook of a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before all programs of the same cgroup (`BPF_F_BEFORE`, kernel 6.17).
    First,
    /// Before the programs of child cgroups (`BPF_F_PREORDER`, kernel 6.15).
    BeforeChildren,
    /// After those that are there.
    Last,
}

impl Place {
    fn flags(self) -> u32 {
        match self {
            Self::First => 1 << 3,
            Self::BeforeChildren => 1 << 6,
            Self::Last => 0,
        }
    }
}

/// What a program is attached as (`enum bpf_attach_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Attach {
    /// `BPF_CGROUP_SOCK_OPS`
    SockOps = 3,
    /// `BPF_CGROUP_INET4_CONNECT`
    Connect4 = 10,
    /// `BPF_CGROUP_INET6_CONNECT`
    Connect6 = 11,
    /// `BPF_CGROUP_UDP4_SENDMSG`
    Sendmsg4 = 14,
    /// `BPF_CGROUP_UDP6_SENDMSG`
    Sendmsg6 = 15,
    /// `BPF_CGROUP_UDP4_RECVMSG`
    Recvmsg4 = 19,
    /// `BPF_CGROUP_UDP6_RECVMSG`
    Recvmsg6 = 20,
    /// `BPF_CGROUP_GETSOCKOPT`
    Getsockopt = 21,
    /// `BPF_CGROUP_INET4_GETPEERNAME`
    Getpeername4 = 29,
    /// `BPF_CGROUP_INET6_GETPEERNAME`
    Getpeername6 = 30,
    /// `BPF_CGROUP_INET4_GETSOCKNAME`
    Getsockname4 = 31,
    /// `BPF_CGROUP_INET6_GETSOCKNAME`
    Getsockname6 = 32,
    /// `BPF_SK_LOOKUP`
    SkLookup = 36,
}

/// What a link is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkTarget {
    /// The cgroup's id (cgroup links) or the network namespace's inode (namespace links); 0 when what it was attached to is gone.
    pub id: u64,
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    descriptor: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    descriptor: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is the repr(C) head of `union bpf_attr` for `command`, its size is passed, and the pointers in it outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), mem::size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(result: libc::c_long) -> OwnedFd {
    // SAFETY: the command returned a new descriptor, which nobody else has.
    unsafe { OwnedFd::from_raw_fd(result as RawFd) }
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Opens a pin.
pub fn open_pin(path: &Path, access: Access) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    let flags = match access {
        Access::ReadWrite => 0,
        Access::Read => 1 << 3,
    };
    bpf(OBJ_GET, &mut ObjectAttr { path: path.as_ptr() as u64, descriptor: 0, flags }).map(descriptor)
}

/// Pins an object.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    bpf(OBJ_PIN, &mut ObjectAttr { path: path.as_ptr() as u64, descriptor: object.as_raw_fd() as u32, flags: 0 }).map(drop)
}

/// Copies the element at `key` to `value`, which is as long as the map's values. False when there is none.
pub fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = element(map, key, value.as_mut_ptr() as u64, 0);
    found(bpf(MAP_LOOKUP_ELEM, &mut attr))
}

/// Writes the element at `key`.
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    bpf(MAP_UPDATE_ELEM, &mut element(map, key, value.as_ptr() as u64, 0)).map(drop)
}

/// Deletes the element at `key`. False when there was none.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    found(bpf(MAP_DELETE_ELEM, &mut element(map, key, 0, 0)))
}

/// Copies the key after `key` to `next`; the first one without `key`. False at the end.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attr = element(map, key.unwrap_or(&[]), next.as_mut_ptr() as u64, 0);
    if key.is_none() {
        attr.key = 0;
    }
    found(bpf(MAP_GET_NEXT_KEY, &mut attr))
}

fn element(map: BorrowedFd<'_>, key: &[u8], value: u64, flags: u64) -> ElementAttr {
    ElementAttr { map: map.as_raw_fd() as u32, padding: 0, key: key.as_ptr() as u64, value, flags }
}

fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Attaches a program to a cgroup or a network namespace. The link shares the hook with other programs and lives as long as its
/// descriptor or its pin (cgroups from 5.7, namespaces from 5.8).
pub fn link_create(program: BorrowedFd<'_>, target: BorrowedFd<'_>, attach: Attach, place: Place) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: program.as_raw_fd() as u32,
        target: target.as_raw_fd() as u32,
        attach_type: attach as u32,
        flags: place.flags(),
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    bpf(LINK_CREATE, &mut attr).map(descriptor)
}

/// Puts another program in the place of a link's program, with no moment between (5.7). ENOLINK: what it was attached to is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: link.as_raw_fd() as u32, program: program.as_raw_fd() as u32, flags: 0, old_program: 0 };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// What a cgroup link is attached to.
pub fn cgroup_link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    let info = link_info(link)?;
    Ok(LinkTarget { id: u64::from(info[4]) | (u64::from(info[5]) << 32) })
}

/// What a network namespace link is attached to.
pub fn netns_link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    Ok(LinkTarget { id: u64::from(link_info(link)?[4]) })
}

/// `struct bpf_link_info`: type, id, program id, padding, then by type.
fn link_info(link: BorrowedFd<'_>) -> io::Result<[u32; 32]> {
    let mut info = [0_u32; 32];
    let mut attr = InfoAttr { descriptor: link.as_raw_fd() as u32, length: mem::size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}
