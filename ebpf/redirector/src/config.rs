//! Arguments and settings. Each has a twin in the environment.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tropis_maps::ProxyAccount;
use tropis_telemetry::logs::LogFormat;

use crate::{enrol::EnrolmentSettings, kernel::CaptureSettings};

/// The node agent of the mesh.
#[derive(Debug, Parser)]
#[command(name = "redirector", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Capture the connections of the mesh's pods on this node. SIGTERM ends the process, not the capture.
    Run(RunOptions),
    /// Try every kernel feature that capture needs, and print what is missing and what that costs.
    Check(CheckOptions),
    /// Remove everything that is pinned: all capture ends.
    Cleanup(CleanupOptions),
}

/// Settings of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// This node's name, as in `spec.nodeName`.
    #[arg(long, env = "TROPIS_NODE")]
    pub node: String,
    /// Where objects come from, `dir:PATH`.
    #[arg(long, env = "TROPIS_SOURCE")]
    pub source: String,
    /// The cgroup v2 folder that holds all pods of this node and the node proxy.
    #[arg(long, env = "TROPIS_CGROUP", default_value = "/sys/fs/cgroup")]
    pub cgroup: PathBuf,
    /// Where maps and programs are pinned. A bpf filesystem is mounted here unless there is one.
    #[arg(long, env = "TROPIS_PINS", default_value = "/sys/fs/bpf/tropis")]
    pub pins: PathBuf,
    /// The unix socket on which pods are handed to the node proxy.
    #[arg(long, env = "TROPIS_ZDS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub zds: PathBuf,
    /// The unix socket of the admin endpoint.
    #[arg(long, env = "TROPIS_ADMIN_SOCKET", default_value = "/var/run/tropis/redirector.sock")]
    pub admin: PathBuf,
    /// The node proxy's user id: it may open the pins that it needs.
    #[arg(long, env = "TROPIS_PROXY_UID", default_value_t = 1337)]
    pub proxy_uid: u32,
    /// The node proxy's group id; the same number as its user id unless given.
    #[arg(long, env = "TROPIS_PROXY_GID")]
    pub proxy_gid: Option<u32>,
    /// Capture what pods ask resolvers. A pod's annotation `ambient.istio.io/dns-capture` decides otherwise for itself.
    #[arg(long, env = "TROPIS_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    pub dns_capture: bool,
    /// The node proxy is another mesh's, which does not know this program's maps, such as Istio's ztunnel: its listeners in pods are found
    /// and registered for it, and what it dials from inside pods passes, known by its cgroup. Whatever else runs in that cgroup passes, too.
    /// DNS is not captured then. See docs/guide/foreign-proxy.md.
    #[arg(long, env = "TROPIS_FOREIGN_PROXY", default_value_t = false, action = clap::ArgAction::Set)]
    pub foreign_proxy: bool,
    /// Enrol by the labels of sidecar users, too (`istio-injection: enabled`). Off where a sidecar mesh shares the cluster.
    #[arg(long, env = "TROPIS_SIDECAR_LABELS", default_value_t = true, action = clap::ArgAction::Set)]
    pub sidecar_labels: bool,
    /// What is logged, as `RUST_LOG` says it.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
    /// How a log line looks: `json` or `text`.
    #[arg(long, env = "LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
}

impl RunOptions {
    /// The node proxy's account.
    pub fn proxy(&self) -> ProxyAccount {
        ProxyAccount { uid: self.proxy_uid, gid: self.proxy_gid.unwrap_or(self.proxy_uid) }
    }

    /// What the kernel side needs to know.
    pub fn capture(&self) -> CaptureSettings {
        CaptureSettings { pins: self.pins.clone(), cgroup: self.cgroup.clone(), proxy: self.proxy() }
    }

    /// What enrolling needs to know.
    pub fn enrolment(&self) -> EnrolmentSettings {
        EnrolmentSettings {
            node: self.node.clone(),
            dns_capture: self.dns_capture,
            sidecar_labels: self.sidecar_labels,
            foreign_proxy: self.foreign_proxy,
        }
    }
}

/// Settings of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckOptions {
    /// The cgroup v2 folder to try attaching to; what is attached has no effect and is gone at once.
    #[arg(long, env = "TROPIS_CGROUP", default_value = "/sys/fs/cgroup")]
    pub cgroup: PathBuf,
}

/// Settings of `cleanup`.
#[derive(Debug, Clone, Args)]
pub struct CleanupOptions {
    /// Where maps and programs are pinned.
    #[arg(long, env = "TROPIS_PINS", default_value = "/sys/fs/bpf/tropis")]
    pub pins: PathBuf,
}
