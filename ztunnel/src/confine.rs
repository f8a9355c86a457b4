//! What this process gives up at start: loading BPF programs.
//!
//! setns(2) needs CAP_SYS_ADMIN, which the kernel also accepts for BPF. All that we need of bpf(2) is to open pins and to use map
//! elements, so a seccomp filter leaves only that, for every thread and for good.

use std::{collections::BTreeMap, env::consts::ARCH};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};
use thiserror::Error;

/// `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_UPDATE_ELEM`, `BPF_MAP_DELETE_ELEM`, `BPF_OBJ_GET` (linux/bpf.h).
const ALLOWED_BPF_COMMANDS: [u64; 4] = [1, 2, 3, 7];

/// The process cannot be confined, so it does not start.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The filter cannot be built for this machine.
    #[error("the seccomp filter cannot be built for {ARCH}")]
    Build(#[source] BackendError),
    /// The kernel does not take it.
    #[error("the seccomp filter cannot be installed (seccomp SECCOMP_SET_MODE_FILTER, Linux 3.17 with CONFIG_SECCOMP_FILTER)")]
    Install(#[source] seccompiler::Error),
}

/// Forbids every bpf(2) command but those that open pins and use map elements: they fail with EPERM from now on. There is no way back,
/// and no privileges by exec either (`no_new_privs`).
pub fn forbid_loading_bpf() -> Result<(), ConfineError> {
    apply_filter_all_threads(&filter().map_err(ConfineError::Build)?).map_err(ConfineError::Install)
}

fn filter() -> Result<BpfProgram, BackendError> {
    let is_other = |command| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, command);
    let all_others = ALLOWED_BPF_COMMANDS.into_iter().map(is_other).collect::<Result<Vec<_>, _>>()?;
    let rules = BTreeMap::from([(libc::SYS_bpf, vec![SeccompRule::new(all_others)?])]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, ARCH.try_into()?)?.try_into()
}
