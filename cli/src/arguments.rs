//! What may be typed: the commands and the options that all of them share.

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    commands::{
        analyze, apply, completion, delete, explain, get, label, logs, proxy_config, proxy_status, version, waypoint, ztunnel_config,
    },
    state::StateOptions,
};

const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  it could not be done; the message says what to do next
   2  the arguments are wrong
  79  analyze: a finding reaches --failure-threshold

Examples:
  tropis analyze shop.yaml                  what is wrong in a file, before it is applied
  tropis analyze live                       what is wrong in the mesh
  tropis proxy-status                       who has which configuration
  tropis explain sleep reviews:9080/health  why a request may pass, or not, rule by rule";

/// Shows, explains and changes the mesh.
#[derive(Debug, Parser)]
#[command(name = "tropis", version, max_term_width = 120, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) state: StateOptions,
    /// Namespace of names that say none.
    #[arg(short, long, global = true)]
    pub(crate) namespace: Option<String>,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

/// The namespace of names that say none, as kubectl has it.
const DEFAULT_NAMESPACE: &str = "default";

impl Options {
    /// The namespace of names that say none.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[value(alias = "short", alias = "log")]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// The commands, each with its file in `commands/`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the version of this program and of what runs.
    Version(version::Arguments),
    /// Find what is wrong in files, or in the mesh.
    #[command(visible_alias = "validate")]
    Analyze(analyze::Arguments),
    /// Put objects into the mesh's folder of objects.
    Apply(apply::Arguments),
    /// Take objects out of it.
    Delete(delete::Arguments),
    /// Set or remove labels of an object.
    Label(label::Arguments),
    /// Print objects as the mesh sees them.
    Get(get::Arguments),
    /// Print who has which configuration.
    #[command(visible_alias = "ps")]
    ProxyStatus(proxy_status::Arguments),
    /// Print what waypoints, and a pod's proxies, are told.
    #[command(visible_alias = "pc")]
    ProxyConfig(proxy_config::Arguments),
    /// Print what node proxies know.
    #[command(visible_alias = "zc")]
    ZtunnelConfig(ztunnel_config::Arguments),
    /// Make, list and remove waypoints.
    Waypoint(waypoint::Arguments),
    /// Print the log of a program, or what the mesh logged about a pod.
    Logs(logs::Arguments),
    /// Say why a connection or a request may pass, rule by rule.
    Explain(explain::Arguments),
    /// Print a completion script for a shell.
    Completion(completion::Arguments),
}
