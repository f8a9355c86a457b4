//! Tries every feature that capture needs, one by one, on this kernel: never by its version. What is attached for it knows no pods, so
//! it changes nothing, and is gone when the function returns.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use comfy_table::Table;
use tropis_maps::bpf::{self, Attach, Place};
use tropis_telemetry::chain;

use super::programs::{self, HOOKS, SK_LOOKUP};
use crate::foreign::process::Process;

/// What came of trying a feature.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The feature.
    pub feature: String,
    /// What it is for and what is lost without it.
    pub purpose: &'static str,
    /// The least kernel that has it, from kernel history.
    pub kernel: &'static str,
    /// Capture cannot work without it.
    pub required: bool,
    /// Why it is missing.
    pub problem: Option<String>,
}

/// Tries everything.
pub fn all(cgroup: &Path) -> Vec<Probe> {
    let mut probes = vec![capabilities(), bpf_filesystem(), namespace_cookie()];
    let directory = File::open(cgroup);
    probes.push(Probe {
        feature: format!("cgroup v2 at {}", cgroup.display()),
        purpose: "hooks are attached to it; nothing works without",
        kernel: "4.10",
        required: true,
        problem: cgroup_problem(cgroup, directory.as_ref().err()),
    });
    let mut object = match programs::open(None) {
        Ok(object) => object,
        Err(error) => {
            probes.push(required("BPF maps (socket storage, SOCKHASH, LRU)", "state; nothing works without", "5.2", Some(chain(&error))));
            return probes;
        }
    };
    probes.push(required("BPF maps (socket storage, SOCKHASH, LRU)", "state; nothing works without", "5.2", None));
    let mut connect = None;
    for hook in HOOKS {
        let loaded = programs::load_one(&mut object, hook.program, hook.kernel);
        let optional = hook.name.starts_with("getsockname") || hook.name.starts_with("getpeername");
        probes.push(Probe {
            feature: format!("program {}", hook.name),
            purpose: hook.purpose,
            kernel: hook.kernel,
            required: !optional,
            problem: loaded.as_ref().err().map(|error| chain(error)),
        });
        if hook.name == "connect4" {
            connect = loaded.ok();
        }
    }
    let sk_lookup = programs::load_one(&mut object, SK_LOOKUP, "5.9");
    let purpose = "captures what arrives; nothing works without";
    probes.push(required("program sk_lookup", purpose, "5.9", sk_lookup.as_ref().err().map(|error| chain(error))));
    if let (Some(program), Ok(cgroup)) = (&connect, &directory) {
        probes.extend(attaching(program, cgroup));
    }
    probes.push(foreign_proxy());
    probes
}

/// The first feature that capture cannot do without and that is missing.
pub fn missing(probes: &[Probe]) -> Option<String> {
    let probe = probes.iter().find(|probe| probe.required && probe.problem.is_some())?;
    Some(format!("{} ({})", probe.feature, probe.problem.as_deref().unwrap_or_default()))
}

/// The probes as a table for people.
pub fn table(probes: &[Probe]) -> String {
    let mut table = Table::new();
    table.set_header(["feature", "kernel", "here", "what it is for"]);
    for probe in probes {
        let here = match (&probe.problem, probe.required) {
            (None, _) => "yes".to_owned(),
            (Some(problem), true) => format!("MISSING: {problem}"),
            (Some(problem), false) => format!("no: {problem}"),
        };
        table.add_row([probe.feature.clone(), probe.kernel.to_owned(), here, probe.purpose.to_owned()]);
    }
    table.to_string()
}

fn required(feature: &str, purpose: &'static str, kernel: &'static str, problem: Option<String>) -> Probe {
    Probe { feature: feature.to_owned(), purpose, kernel, required: true, problem }
}

/// Bits of linux/capability.h.
const NEEDED: [(&str, u32); 4] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];

fn capabilities() -> Probe {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let lacking: Vec<&str> = NEEDED.iter().filter(|(_, bit)| effective.unwrap_or(0) >> bit & 1 == 0).map(|(name, _)| *name).collect();
    let problem = (!lacking.is_empty()).then(|| format!("{} not held", lacking.join(", ")));
    required("capabilities", "load, attach, enter namespaces, see pods' processes", "5.8", problem)
}

fn bpf_filesystem() -> Probe {
    let known =
        fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.lines().any(|line| line.split_whitespace().last() == Some("bpf")));
    let problem = (!known).then(|| "the kernel has no bpf filesystem".to_owned());
    required("bpf filesystem", "capture outlives this process; nothing works without", "4.4", problem)
}

fn namespace_cookie() -> Probe {
    let problem = tropis_net::namespace::NetworkNamespace::current().err().map(|error| chain(&error));
    required("SO_NETNS_COOKIE", "pods are known by it; nothing works without", "5.14", problem)
}

/// On this very process: what is asked of a node proxy that connects.
fn foreign_proxy() -> Probe {
    let problem = match Process::own() {
        Ok(own) => own.sockets(&BTreeSet::new()).err().map(|error| chain(&error)),
        Err(error) => Some(chain(&error)),
    };
    Probe {
        feature: "PIDFD_GET_INFO with cgroup".to_owned(),
        purpose: "knows a node proxy of another mesh; --foreign-proxy does not work without",
        kernel: "6.13",
        required: false,
        problem,
    }
}

fn cgroup_problem(path: &Path, unopened: Option<&std::io::Error>) -> Option<String> {
    if let Some(error) = unopened {
        return Some(error.to_string());
    }
    (!path.join("cgroup.procs").is_file() || path.join("tasks").exists())
        .then(|| "not a cgroup v2 folder (on hybrid hosts: /sys/fs/cgroup/unified)".to_owned())
}

/// Tries each place in the order of a hook, and exchanging a program in place.
fn attaching(program: &OwnedFd, cgroup: &File) -> Vec<Probe> {
    let tried = |place| bpf::link_create(program.as_fd(), cgroup.as_fd(), Attach::Connect4, place);
    let last = tried(Place::Last);
    let exchanged = last.as_ref().map(|link| bpf::link_update(link.as_fd(), program.as_fd()));
    let exchange_problem = match exchanged {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("no link to try it on".to_owned()),
    };
    let order = "before a socket load balancer; it hides service addresses without";
    let optional = |feature: &str, kernel, problem: Option<String>| Probe {
        feature: feature.to_owned(),
        purpose: order,
        kernel,
        required: false,
        problem,
    };
    vec![
        required(
            "cgroup links",
            "attach beside other programs; nothing works without",
            "5.7",
            last.as_ref().err().map(ToString::to_string),
        ),
        required("BPF_LINK_UPDATE", "a restart or upgrade without a gap; nothing works without", "5.7", exchange_problem),
        optional("BPF_F_BEFORE", "6.17", tried(Place::First).err().map(|error| error.to_string())),
        optional("BPF_F_PREORDER", "6.15", tried(Place::BeforeChildren).err().map(|error| error.to_string())),
    ]
}
