//! `tropis ztunnel-config`: what node proxies know, in the columns of `istioctl ztunnel-config`.

mod certificates;
mod connections;

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;

use crate::{
    arguments::{Format, Options},
    output::{self, Listing},
    pods::{self, NodeProxy, text},
    state::{Socket, State},
};

pub(crate) use certificates::listing as certificates;

const EXAMPLES: &str = "\
Examples:
  tropis ztunnel-config workloads --node a
  tropis ztunnel-config connections --direction inbound";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Only the node proxy of this node.
    #[arg(long, global = true)]
    node: Option<String>,
    /// Read a dump from a file (`-o json` of `all` prints one a node).
    #[arg(short, long, global = true, value_name = "DUMP")]
    file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Workloads: who is in the mesh, and behind which waypoint.
    #[command(visible_aliases = ["workload", "w"])]
    Workloads {
        /// Only with this address or name.
        #[arg(long)]
        address: Option<String>,
        /// Only of this namespace.
        #[arg(long)]
        workload_namespace: Option<String>,
        /// Only on this node.
        #[arg(long)]
        workload_node: Option<String>,
    },
    /// Services with their healthy endpoints.
    #[command(visible_aliases = ["service", "svc", "s"])]
    Services {
        /// Only of this namespace.
        #[arg(long)]
        service_namespace: Option<String>,
    },
    /// L4 policies.
    #[command(visible_aliases = ["policy", "pol", "p"])]
    Policies {
        /// Only of this namespace.
        #[arg(long)]
        policy_namespace: Option<String>,
    },
    /// Certificates of the pods that a node proxy serves.
    #[command(visible_aliases = ["certificate", "cert"])]
    Certificates,
    /// Open connections.
    #[command(visible_aliases = ["connection", "cons"])]
    Connections {
        /// Only inbound or outbound.
        #[arg(long, value_parser = ["inbound", "outbound"])]
        direction: Option<String>,
        /// Addresses, not names.
        #[arg(long)]
        raw: bool,
    },
    /// All of it.
    All,
    /// The log level of node proxies.
    #[command(visible_alias = "o")]
    Log {
        /// A level (debug) or a filter (info,access=off).
        #[arg(long)]
        level: Option<String>,
        /// Back to what it started with.
        #[arg(long, conflicts_with = "level")]
        reset: bool,
    },
}

pub(crate) async fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    if let What::Log { level, reset } = &arguments.what {
        let mut told = Vec::new();
        for socket in State::open(&options.state)?.sockets_of(pods::ZTUNNEL)? {
            if arguments.node.as_ref().is_none_or(|node| *node == socket.node) {
                told.push(log(&socket, level.as_deref(), *reset).await?);
            }
        }
        return levels(options.output, &told);
    }
    let proxies = match &arguments.file {
        Some(file) => {
            let content = fs::read(file).with_context(|| format!("read {}", file.display()))?;
            let dump = serde_json::from_slice(&content).with_context(|| format!("{} is not a dump", file.display()))?;
            vec![NodeProxy { socket: Socket { program: pods::ZTUNNEL.into(), node: String::new(), path: file.clone() }, dump }]
        }
        None => pods::dumps(&State::open(&options.state)?, arguments.node.as_deref()).await?,
    };
    match &arguments.what {
        What::All if options.output != Format::Table => {
            let dumps: BTreeMap<&str, &Value> = proxies.iter().map(|proxy| (proxy.socket.node.as_str(), &proxy.dump)).collect();
            output::value(options.output, &dumps)
        }
        What::All => {
            let everything = [
                What::Workloads { address: None, workload_namespace: None, workload_node: None },
                What::Services { service_namespace: None },
                What::Policies { policy_namespace: None },
                What::Certificates,
                What::Connections { direction: None, raw: false },
            ];
            let parts: Vec<String> = everything.iter().map(|what| one(&proxies, what, options.output)).collect::<Result<_, _>>()?;
            Ok(parts.join("\n"))
        }
        what => one(&proxies, what, options.output),
    }
}

/// The log level of a program.
#[derive(Debug, Serialize)]
pub(crate) struct LogLevel {
    /// `ztunnel.a`.
    proxy: String,
    /// What it says: `current log level is info`.
    says: String,
}

/// Asks for the log level of a program, or changes it.
pub(crate) async fn log(socket: &Socket, level: Option<&str>, reset: bool) -> anyhow::Result<LogLevel> {
    let target = match (level, reset) {
        (Some(level), _) => format!("/logging?level={}", crate::admin::escaped(level)),
        (None, true) => "/logging?reset".to_owned(),
        (None, false) => "/logging".to_owned(),
    };
    let says = crate::admin::post(&socket.path, &target).await?.trim_end().to_owned();
    Ok(LogLevel { proxy: format!("{}.{}", socket.program, socket.node), says })
}

/// Log levels, a line each.
pub(crate) fn levels(format: Format, levels: &[LogLevel]) -> anyhow::Result<String> {
    match format {
        Format::Table => Ok(levels.iter().map(|level| format!("{}: {}\n", level.proxy, level.says)).collect()),
        format => output::value(format, &levels),
    }
}

fn one(proxies: &[NodeProxy], what: &What, format: Format) -> anyhow::Result<String> {
    let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
    match what {
        What::Workloads { address, workload_namespace, workload_node } => {
            let mut found = union(proxies, "workloads", |workload| text(workload, "/uid").to_owned());
            found.retain(|workload| {
                is(workload_namespace, text(workload, "/namespace"))
                    && is(workload_node, text(workload, "/node"))
                    && address
                        .as_ref()
                        .is_none_or(|wanted| text(workload, "/name") == wanted || addresses(workload).contains(&wanted.as_str()))
            });
            workloads(found).render(format, "The node proxies know no such workload.")
        }
        What::Services { service_namespace } => {
            let mut found = union(proxies, "services", |service| format!("{}/{}", text(service, "/namespace"), text(service, "/hostname")));
            found.retain(|service| is(service_namespace, text(service, "/namespace")));
            services(found).render(format, "The node proxies know no such service.")
        }
        What::Policies { policy_namespace } => {
            let mut found = union(proxies, "policies", |policy| format!("{}/{}", text(policy, "/namespace"), text(policy, "/name")));
            found.retain(|policy| is(policy_namespace, text(policy, "/namespace")));
            policies(found).render(format, "The node proxies know no policy.")
        }
        What::Certificates => certificates::listing(proxies, None).render(format, "The node proxies hold no certificate."),
        What::Connections { direction, raw } => {
            connections::listing(proxies, direction.as_deref(), *raw).render(format, "No connection is open.")
        }
        What::All | What::Log { .. } => Ok(String::new()),
    }
}

/// The entries of all proxies' lists, each once, in order of their keys.
fn union(proxies: &[NodeProxy], list: &str, key: impl Fn(&Value) -> String) -> Vec<Value> {
    let entries = proxies.iter().flat_map(|proxy| proxy.list(list)).map(|entry| (key(entry), entry.clone()));
    entries.collect::<BTreeMap<String, Value>>().into_values().collect()
}

fn addresses(workload: &Value) -> Vec<&str> {
    workload["workloadIps"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn workloads(found: Vec<Value>) -> Listing<Value> {
    Listing::new(&["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"], found, |workload| {
        vec![
            text(workload, "/namespace").to_owned(),
            text(workload, "/name").to_owned(),
            addresses(workload).join(","),
            text(workload, "/node").to_owned(),
            waypoint(workload),
            text(workload, "/protocol").to_owned(),
        ]
    })
}

fn services(found: Vec<Value>) -> Listing<Value> {
    Listing::new(&["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"], found, |service| {
        let vips = service["vips"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let vips: Vec<&str> = vips.map(|vip| vip.split_once('/').map_or(vip, |(_, address)| address)).collect();
        let endpoints: Vec<&Value> = service["endpoints"].as_object().into_iter().flat_map(|all| all.values()).collect();
        let healthy = endpoints.iter().filter(|endpoint| endpoint["status"] != "Unhealthy").count();
        vec![
            text(service, "/namespace").to_owned(),
            text(service, "/name").to_owned(),
            vips.join(","),
            waypoint(service),
            format!("{healthy}/{}", endpoints.len()),
        ]
    })
}

fn policies(found: Vec<Value>) -> Listing<Value> {
    Listing::new(&["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"], found, |policy| {
        let part = |pointer| text(policy, pointer).to_owned();
        let dry_run = if policy["dryRun"] == true { " (dry run)" } else { "" };
        vec![part("/namespace"), part("/name"), part("/action") + dry_run, part("/scope")]
    })
}

/// The name of the waypoint that something is behind, `None` as istioctl prints it.
fn waypoint(entry: &Value) -> String {
    let destination = text(entry, "/waypoint/destination");
    match destination.split_once('/') {
        None => "None".to_owned(),
        Some((namespace, host)) => match host.split('.').next().filter(|_| host.contains(".svc")) {
            Some(name) if namespace == text(entry, "/namespace") => name.to_owned(),
            Some(name) => format!("{namespace}/{name}"),
            None => host.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests;
