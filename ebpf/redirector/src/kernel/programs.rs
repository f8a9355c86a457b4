//! The compiled object, and its programs as loaded by the kernel.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::{Ebpf, EbpfError, EbpfLoader, programs::Program, programs::ProgramError};
use thiserror::Error;
use tropis_maps::{Pins, bpf::Attach};

/// Built by `cargo xtask ebpf` from `ebpf/programs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/tropis.bpf.o");

/// A hook of a cgroup.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    /// The hook's name, and its pin's.
    pub name: &'static str,
    /// The program in the object.
    pub program: &'static str,
    /// What it is attached as.
    pub attach: Attach,
    /// What it is for, and what is lost without it.
    pub purpose: &'static str,
    /// The least kernel that has it.
    pub kernel: &'static str,
}

macro_rules! hooks {
    ($($name:literal $program:literal $attach:ident $kernel:literal $purpose:literal;)*) => {
        /// All hooks of the cgroup, those that others depend on first: what is kept must be carried before anything is captured.
        pub const HOOKS: &[Hook] =
            &[$(Hook { name: $name, program: $program, attach: Attach::$attach, purpose: $purpose, kernel: $kernel }),*];
    };
}

hooks! {
    "sock_ops" "tropis_sock_ops" SockOps "5.15" "carries the original destination to the proxy; nothing works without";
    "getsockopt" "tropis_getsockopt" Getsockopt "5.3" "answers SO_ORIGINAL_DST; nothing works without";
    "getpeername4" "tropis_getpeername4" Getpeername4 "5.8" "true peer addresses; applications see loopback without";
    "getpeername6" "tropis_getpeername6" Getpeername6 "5.8" "true peer addresses; applications see loopback without";
    "getsockname4" "tropis_getsockname4" Getsockname4 "5.8" "true local addresses; applications see loopback without";
    "getsockname6" "tropis_getsockname6" Getsockname6 "5.8" "true local addresses; applications see loopback without";
    "recvmsg4" "tropis_recvmsg4" Recvmsg4 "5.2" "answers come from the resolver that was asked; DNS capture must be off without";
    "recvmsg6" "tropis_recvmsg6" Recvmsg6 "5.2" "answers come from the resolver that was asked; DNS capture must be off without";
    "sendmsg4" "tropis_sendmsg4" Sendmsg4 "5.18" "captures DNS over UDP; mesh names are not known to pods without";
    "sendmsg6" "tropis_sendmsg6" Sendmsg6 "5.18" "captures DNS over UDP; mesh names are not known to pods without";
    "connect4" "tropis_connect4" Connect4 "5.18" "captures connections; nothing works without";
    "connect6" "tropis_connect6" Connect6 "5.18" "captures connections; nothing works without";
}

/// The program that captures what arrives, in the object.
pub const SK_LOOKUP: &str = "tropis_sk_lookup";

/// The object could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The object or its maps.
    #[error("load the BPF object (CAP_BPF; BTF from kernel 4.18, socket storage from 5.2)")]
    Object(#[source] EbpfError),
    /// A program was refused by the kernel.
    #[error("load the BPF program {name} (kernel {kernel} or newer, CAP_BPF and CAP_NET_ADMIN)")]
    Program {
        /// The program.
        name: &'static str,
        /// The least kernel.
        kernel: &'static str,
        /// What the verifier or the kernel said.
        #[source]
        source: ProgramError,
    },
    /// The object has no such program: it is not the one that this binary was written for.
    #[error("the BPF object has no program {name}; rebuild it with `cargo xtask ebpf`")]
    Missing {
        /// The program.
        name: &'static str,
    },
}

/// A loaded program of a cgroup hook.
#[derive(Debug)]
pub struct Loaded {
    /// Where it goes.
    pub hook: Hook,
    /// The program.
    pub descriptor: OwnedFd,
}

/// All programs, loaded and attached nowhere.
#[derive(Debug)]
pub struct Programs {
    /// Those of the cgroup.
    pub cgroup: Vec<Loaded>,
    /// The one of pods' namespaces.
    pub sk_lookup: OwnedFd,
}

/// Loads the object: with the maps pinned at `pins`, made there if they are not; without pins with maps of its own.
pub fn load(pins: Option<&Pins>) -> Result<Programs, LoadError> {
    let mut object = open(pins)?;
    let cgroup = HOOKS
        .iter()
        .map(|hook| Ok(Loaded { hook: *hook, descriptor: load_one(&mut object, hook.program, hook.kernel)? }))
        .collect::<Result<_, LoadError>>()?;
    let sk_lookup = load_one(&mut object, SK_LOOKUP, "5.9")?;
    Ok(Programs { cgroup, sk_lookup })
}

/// Opens the object and its maps.
pub(crate) fn open(pins: Option<&Pins>) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    if let Some(pins) = pins {
        for name in Pins::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader.load(OBJECT).map_err(LoadError::Object)
}

/// Loads one program. The descriptor keeps it in the kernel, whatever becomes of the object.
pub(crate) fn load_one(object: &mut Ebpf, name: &'static str, kernel: &'static str) -> Result<OwnedFd, LoadError> {
    let refused = |source| LoadError::Program { name, kernel, source };
    let program = object.program_mut(name).ok_or(LoadError::Missing { name })?;
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => return Err(LoadError::Missing { name }),
    }
    .map_err(refused)?;
    let descriptor = program.fd().map_err(refused)?;
    descriptor.as_fd().try_clone_to_owned().map_err(|source| refused(ProgramError::IOError(source)))
}
