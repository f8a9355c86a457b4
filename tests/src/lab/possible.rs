//! Whether a lab can run here at all: said before anything is made, in one line with what to do.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cgroup;

/// What this user or this box lacks, if anything: one line, with what to do.
pub(super) fn box_lacks() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("it makes network namespaces and control groups, which needs root (try sudo)".to_owned());
    }
    let root = match cgroup::root() {
        Ok(root) => root,
        Err(error) => return Some(format!("{error} (mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified)")),
    };
    if nix::unistd::access(&root, nix::unistd::AccessFlags::W_OK).is_err() {
        return Some(format!("{} cannot be written (a container needs --privileged)", root.display()));
    }
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Some("the kernel has no IPv6 (remove ipv6.disable=1 from its command line)".to_owned());
    }
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let tools = [("ip", "iproute2"), ("nft", "nftables")];
    let missing = tools.iter().find(|(tool, _)| crate::process::find(tool.as_ref(), &folders).is_none());
    missing.map(|(tool, package)| format!("{tool} is missing (apt-get install {package})"))
}

/// What capture needs of the kernel and is not there, in the words of `redirector check`. Nothing when it cannot be asked: a program that
/// is not built is said where it is started.
pub(super) fn kernel_lacks(folder: &Path) -> Option<String> {
    let asked = Command::new(folder.join("redirector")).arg("check").arg("--cgroup").arg(cgroup::root().ok()?).output().ok()?;
    if asked.status.success() {
        return None;
    }
    let said = String::from_utf8_lossy(&asked.stderr);
    let reason = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("`redirector check` fails without a word");
    let reason = reason.strip_prefix("redirector: ").unwrap_or(reason);
    Some(format!("{reason}; `redirector check` lists each feature with the first kernel that has it"))
}
