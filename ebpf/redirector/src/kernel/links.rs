//! Attached programs: made, pinned, and exchanged in place.
//!
//! Our own thin layer, because aya neither lets cgroup links share a hook nor says where in the order they go, and cannot pin them all.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use thiserror::Error;
use tropis_maps::bpf::{self, Access, Attach, Place};

/// A program could not be attached or detached.
#[derive(Debug, Error)]
#[error("{call} for {pin} (cgroup links from kernel 5.7, network namespace links from 5.9; CAP_NET_ADMIN and CAP_BPF)")]
pub struct LinkError {
    call: &'static str,
    pin: PathBuf,
    #[source]
    source: io::Error,
}

/// Attaches a program to a cgroup, or exchanges the one that an earlier process pinned there.
pub fn attach_to_cgroup(program: BorrowedFd<'_>, cgroup: &File, attach: Attach, pin: &Path) -> Result<(), LinkError> {
    let error = |call| move |source| LinkError { call, pin: pin.to_owned(), source };
    let id = cgroup.metadata().map_err(error("stat"))?.ino();
    let same_place = |link: BorrowedFd<'_>| bpf::cgroup_link_target(link).is_ok_and(|target| target.id == id);
    if exchange(program, pin, same_place)? {
        return Ok(());
    }
    let link = first_in_order(program, cgroup.as_fd(), attach).map_err(error("BPF_LINK_CREATE"))?;
    bpf::pin(link.as_fd(), pin).map_err(error("BPF_OBJ_PIN"))
}

/// Attaches the inbound program to a network namespace, or exchanges the one that is there.
pub fn attach_to_namespace(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>, pin: &Path) -> Result<(), LinkError> {
    if exchange(program, pin, |_| true)? {
        return Ok(());
    }
    let error = |call| move |source| LinkError { call, pin: pin.to_owned(), source };
    let link = bpf::link_create(program, namespace, Attach::SkLookup, Place::Last).map_err(error("BPF_LINK_CREATE"))?;
    bpf::pin(link.as_fd(), pin).map_err(error("BPF_OBJ_PIN"))
}

/// Removes a pin, and with it what is attached. Nothing happens if it is not there.
pub fn detach(pin: &Path) -> Result<(), LinkError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LinkError { call: "unlink", pin: pin.to_owned(), source }),
        _ => Ok(()),
    }
}

/// Puts `program` in the place of what is pinned. False, and nothing is pinned, when there was nothing or it was attached elsewhere or
/// to something that is gone.
fn exchange(program: BorrowedFd<'_>, pin: &Path, same_place: impl Fn(BorrowedFd<'_>) -> bool) -> Result<bool, LinkError> {
    let link = match bpf::open_pin(pin, Access::ReadWrite) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(LinkError { call: "BPF_OBJ_GET", pin: pin.to_owned(), source }),
    };
    if same_place(link.as_fd()) {
        match bpf::link_update(link.as_fd(), program) {
            Ok(()) => return Ok(true),
            // What it was attached to went away meanwhile.
            Err(source) if source.raw_os_error() == Some(libc::ENOLINK) => {}
            // The older program goes on capturing; taking it away would let traffic pass.
            Err(source) => return Err(LinkError { call: "BPF_LINK_UPDATE", pin: pin.to_owned(), source }),
        }
    }
    detach(pin)?;
    Ok(false)
}

/// Before other programs of the hook where the kernel can say so: a load balancer that ran first would hide the service address.
fn first_in_order(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach: Attach) -> io::Result<OwnedFd> {
    let unknown = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    for place in [Place::First, Place::BeforeChildren] {
        match bpf::link_create(program, cgroup, attach, place) {
            Err(error) if unknown(&error) => {}
            other => return other,
        }
    }
    bpf::link_create(program, cgroup, attach, Place::Last)
}
