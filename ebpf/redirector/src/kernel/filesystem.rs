//! The bpf filesystem that holds the pins: one of its own for each node, so that nodes which share a kernel never meet.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::statfs,
};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_MAGIC: i64 = 0xcafe_4a11;

/// Whether `path` is there and on a bpf filesystem.
pub fn is_bpf(path: &Path) -> io::Result<bool> {
    match statfs(path) {
        Ok(status) => Ok(status.filesystem_type().0 & 0xffff_ffff == BPF_MAGIC),
        Err(nix::Error::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes the folder and mounts a bpf filesystem on it, unless it is on one already. Everybody may pass through it, only root may list it.
pub fn prepare(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(path)?;
    if is_bpf(path)? {
        return Ok(());
    }
    mount(Some("tropis"), path, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, Some("mode=0711"))?;
    Ok(())
}

/// Unmounts what [`prepare`] mounted; a folder of somebody else's filesystem is removed instead.
pub fn unmount(path: &Path) -> io::Result<()> {
    let is_mount = match (fs::metadata(path), path.parent().map(fs::metadata)) {
        (Ok(own), Some(Ok(parent))) => own.dev() != parent.dev(),
        _ => return Ok(()),
    };
    if is_mount {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    fs::remove_dir(path)
}
