//! Settings: flags, each with an environment twin, validated once.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use thiserror::Error;
use tropis_compile::waypoint::{automatic::Scope, needed::AutomaticWaypoints};
use tropis_model::waypoint::AccessLogFormat;
use tropis_telemetry::logs::LogFormat;

/// What Kubernetes writes into tokens of its own clusters.
const DEFAULT_ISSUER: &str = "https://kubernetes.default.svc";
/// What Istio's proxies ask tokens for.
const DEFAULT_AUDIENCE: &str = "istio-ca";
/// Longest format of an access line, in bytes; Istio's default has 500.
const MAX_ACCESS_LOG_FORMAT: usize = 16 << 10;

/// The control plane of the mesh: reads objects, serves the proxies' configuration, signs their certificates.
#[derive(Debug, Parser)]
#[command(name = "tropisd", version)]
pub(crate) struct Arguments {
    /// Where objects come from: dir:PATH.
    #[arg(long, env = "TROPIS_SOURCE")]
    source: String,
    /// Folder of the certificate authority's key; made if it is missing.
    #[arg(long, env = "TROPIS_STATE")]
    state: PathBuf,
    /// Addresses to serve proxies on, with port.
    #[arg(long, env = "TROPIS_LISTEN", value_delimiter = ',', default_value = "[::]:15012,0.0.0.0:15012")]
    listen: Vec<SocketAddr>,
    /// Address of metrics and health.
    #[arg(long, env = "TROPIS_MONITORING", value_delimiter = ',', default_value = "[::]:15014")]
    monitoring: Vec<SocketAddr>,
    /// Unix socket of the debug endpoint; none if absent.
    #[arg(long, env = "TROPIS_DEBUG_SOCKET")]
    debug_socket: Option<PathBuf>,
    /// Folder of the proxies' admin sockets, ztunnel.NODE.sock and waypoint.NAMESPACE.POD.sock, which are asked for the page's numbers while
    /// somebody looks at it; without it the page shows no traffic.
    #[arg(long, env = "TROPIS_PROXY_SOCKETS")]
    proxy_sockets: Option<PathBuf>,
    /// Public key of the token issuer: PEM, or a JWKS.
    #[arg(long, env = "TROPIS_TOKEN_KEY")]
    token_key: PathBuf,
    /// Issuer that tokens must name.
    #[arg(long, env = "TROPIS_TOKEN_ISSUER", default_value = DEFAULT_ISSUER)]
    token_issuer: String,
    /// Audience that tokens must be for.
    #[arg(long, env = "TROPIS_TOKEN_AUDIENCE", default_value = DEFAULT_AUDIENCE)]
    token_audience: String,
    /// File to write the root certificate to, for the proxies.
    #[arg(long, env = "TROPIS_ROOT_CERT_OUT")]
    root_cert_out: Option<PathBuf>,
    /// Trust domain of the mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Namespace of the control plane and of mesh-wide policy.
    #[arg(long, env = "TROPIS_ROOT_NAMESPACE", default_value = "istio-system")]
    root_namespace: String,
    /// Domain of the cluster's names.
    #[arg(long, env = "TROPIS_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Name of the cluster.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// Name of the cluster's network; empty is the default network.
    #[arg(long, env = "TROPIS_NETWORK", default_value = "")]
    network: String,
    /// Account of the node proxies, NAMESPACE/NAME: it may have the configuration, and identities of pods on its node.
    #[arg(long, env = "CA_TRUSTED_NODE_ACCOUNTS", default_value = "istio-system/ztunnel")]
    trusted_node_account: String,
    /// The sidecar labels (istio-injection, sidecar.istio.io/inject, istio.io/rev) enrol, too; as the redirectors have it.
    #[arg(long, env = "TROPIS_SIDECAR_LABELS", default_value_t = true, action = clap::ArgAction::Set)]
    sidecar_labels: bool,
    /// Waypoints for namespaces that need one and have none: ByNeed or Off. A namespace's label tropis.io/automatic-waypoint (true, false)
    /// says otherwise for it.
    #[arg(long, env = "TROPIS_AUTOMATIC_WAYPOINTS", default_value = "ByNeed", value_parser = automatic_waypoints)]
    automatic_waypoints: AutomaticWaypoints,
    /// Whether those are for a namespace, or each for a service account (namespace, service-account): one carries the Services all of whose
    /// pods run as its account, and Services with pods of several accounts go through the namespace's. At most 16 accounts of a namespace get
    /// one. A namespace's label tropis.io/automatic-waypoint-scope says otherwise for it.
    #[arg(long, env = "TROPIS_AUTOMATIC_WAYPOINT_SCOPE", default_value = "namespace", value_parser = automatic_waypoint_scope)]
    automatic_waypoint_scope: Scope,
    /// How waypoints log requests: JSON (Istio's fields, and ours), TEXT (Istio's default format) or off; as MeshConfig's accessLogEncoding,
    /// and accessLogFile for whether at all.
    #[arg(long, env = "TROPIS_ACCESS_LOG", default_value = "JSON", value_parser = access_log)]
    access_log: AccessLog,
    /// The format of a line of the access log TEXT instead of Istio's default, with Envoy's operators (%RESPONSE_CODE%); as MeshConfig's
    /// accessLogFormat.
    #[arg(long, env = "TROPIS_ACCESS_LOG_FORMAT", default_value = "")]
    access_log_format: String,
    /// How long what is open through a waypoint has to end, in seconds: for so long any waypoint still serves what has left it, and one that
    /// was made by need runs on after nothing goes through it any more. Waypoints end connections of HTTP/1.1 on which nobody asks anything
    /// five seconds after they have heard of it: with less than 10 some are still open when the waypoint forgets what they address, and a
    /// request of that moment is answered 404.
    #[arg(long, env = "TROPIS_WAYPOINT_DRAIN_SECONDS", default_value_t = 30)]
    waypoint_drain: u64,
    /// Lifetime of a certificate whose request names none, and of tropisd's own, in seconds.
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL_SECONDS", default_value_t = 86_400)]
    default_certificate_lifetime: u64,
    /// Longest lifetime that may be asked for, in seconds.
    #[arg(long, env = "MAX_WORKLOAD_CERT_TTL_SECONDS", default_value_t = 90 * 86_400)]
    max_certificate_lifetime: u64,
    /// Close a proxy's connection at this age, in seconds, so that load spreads over replicas; 0 never does.
    #[arg(long, env = "TROPIS_MAX_CONNECTION_AGE_SECONDS", default_value_t = 1800)]
    max_connection_age: u64,
    /// Connections of proxies at a time, altogether: two for each of 20 000 node proxies, and some for pods that ask for themselves.
    #[arg(long, env = "TROPIS_MAX_CONNECTIONS", default_value_t = 50_000)]
    max_connections: usize,
    /// Connections at a time from one address, an eighth of them without proof of who calls; 0 is no limit, for a tropisd that sees
    /// its callers behind one address.
    #[arg(long, env = "TROPIS_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 512)]
    max_connections_per_address: usize,
    /// Format of the log: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// What to log.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
}

/// What an access log is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AccessLog {
    Json,
    Text,
    Off,
}

/// A setting that cannot be used.
#[derive(Debug, Error)]
pub(crate) enum InvalidConfig {
    /// Not an account.
    #[error("--trusted-node-account {0:?} is not NAMESPACE/NAME")]
    Account(String),
    /// The text would not fit into an identity.
    #[error("--trust-domain {0:?} is not a trust domain (lower-case letters, digits, '.', '-', '_')")]
    TrustDomain(String),
    /// A format for another encoding than text.
    #[error("--access-log-format is for --access-log TEXT: a template of JSON is not supported, and off has no lines")]
    AccessLogFormat,
    /// A format that is more than a line.
    #[error("--access-log-format has {0} bytes, or a line break before its end; up to {MAX_ACCESS_LOG_FORMAT} bytes on one line are taken")]
    AccessLogFormatLine(usize),
    /// Nobody could connect.
    #[error("--max-connections 0 would let nobody in")]
    NoConnections,
    /// A lifetime makes no sense.
    #[error("--default-certificate-lifetime {default} s is not between 1 s and --max-certificate-lifetime {longest} s")]
    Lifetime {
        /// Seconds.
        default: u64,
        /// Seconds.
        longest: u64,
    },
}

/// Validated settings.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) source: String,
    pub(crate) state: PathBuf,
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) monitoring: Vec<SocketAddr>,
    pub(crate) debug_socket: Option<PathBuf>,
    pub(crate) proxy_sockets: Option<PathBuf>,
    pub(crate) token_key: PathBuf,
    pub(crate) token_issuer: String,
    pub(crate) token_audience: String,
    pub(crate) root_cert_out: Option<PathBuf>,
    pub(crate) trust_domain: Arc<str>,
    pub(crate) root_namespace: String,
    pub(crate) cluster_domain: String,
    pub(crate) cluster_id: String,
    pub(crate) network: String,
    pub(crate) trusted_namespace: String,
    pub(crate) trusted_account: String,
    pub(crate) sidecar_labels: bool,
    pub(crate) automatic_waypoints: AutomaticWaypoints,
    pub(crate) automatic_waypoint_scope: Scope,
    pub(crate) access_log: Option<AccessLogFormat>,
    pub(crate) waypoint_drain: Duration,
    pub(crate) default_certificate_lifetime: Duration,
    pub(crate) longest_certificate_lifetime: Duration,
    pub(crate) longest_connection: Option<Duration>,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_address: usize,
    pub(crate) log_format: LogFormat,
    pub(crate) log: String,
}

impl Config {
    /// Checks the arguments.
    pub(crate) fn validate(arguments: Arguments) -> Result<Self, InvalidConfig> {
        let account = || InvalidConfig::Account(arguments.trusted_node_account.clone());
        let (namespace, name) = arguments.trusted_node_account.split_once('/').ok_or_else(account)?;
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err(account());
        }
        // SPIFFE ID §2.1.
        let good = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || ".-_".contains(letter);
        if arguments.trust_domain.is_empty() || !arguments.trust_domain.chars().all(good) {
            return Err(InvalidConfig::TrustDomain(arguments.trust_domain));
        }
        let (default, longest) = (arguments.default_certificate_lifetime, arguments.max_certificate_lifetime);
        if default == 0 || default > longest {
            return Err(InvalidConfig::Lifetime { default, longest });
        }
        if arguments.max_connections == 0 {
            return Err(InvalidConfig::NoConnections);
        }
        Ok(Self {
            trusted_namespace: namespace.to_owned(),
            trusted_account: name.to_owned(),
            source: arguments.source,
            state: arguments.state,
            listen: arguments.listen,
            monitoring: arguments.monitoring,
            debug_socket: arguments.debug_socket,
            proxy_sockets: arguments.proxy_sockets,
            token_key: arguments.token_key,
            token_issuer: arguments.token_issuer,
            token_audience: arguments.token_audience,
            root_cert_out: arguments.root_cert_out,
            trust_domain: arguments.trust_domain.into(),
            root_namespace: arguments.root_namespace,
            cluster_domain: arguments.cluster_domain,
            cluster_id: arguments.cluster_id,
            network: arguments.network,
            sidecar_labels: arguments.sidecar_labels,
            automatic_waypoints: arguments.automatic_waypoints,
            automatic_waypoint_scope: arguments.automatic_waypoint_scope,
            access_log: access_log_format(arguments.access_log, &arguments.access_log_format)?,
            waypoint_drain: Duration::from_secs(arguments.waypoint_drain),
            default_certificate_lifetime: Duration::from_secs(default),
            longest_certificate_lifetime: Duration::from_secs(longest),
            longest_connection: (arguments.max_connection_age > 0).then(|| Duration::from_secs(arguments.max_connection_age)),
            max_connections: arguments.max_connections,
            max_connections_per_address: arguments.max_connections_per_address,
            log_format: arguments.log_format,
            log: arguments.log,
        })
    }

    /// The names that proxies know the control plane by.
    pub(crate) fn server_names(&self) -> Vec<String> {
        let (namespace, domain) = (&self.root_namespace, &self.cluster_domain);
        let mut names = Vec::new();
        for service in ["istiod", "tropisd"] {
            names.extend([
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}.svc.{domain}"),
                format!("{service}.{namespace}"),
                service.to_owned(),
            ]);
        }
        names
    }
}

/// In any case of letters.
fn automatic_waypoints(text: &str) -> Result<AutomaticWaypoints, String> {
    match text.to_ascii_lowercase().as_str() {
        "byneed" => Ok(AutomaticWaypoints::ByNeed),
        "off" => Ok(AutomaticWaypoints::Off),
        _ => Err("ByNeed or Off".to_owned()),
    }
}

/// In any case of letters.
fn automatic_waypoint_scope(text: &str) -> Result<Scope, String> {
    Scope::of(&text.to_ascii_lowercase()).ok_or_else(|| "namespace or service-account".to_owned())
}

/// In any case of letters.
fn access_log(text: &str) -> Result<AccessLog, String> {
    match text.to_ascii_lowercase().as_str() {
        "json" => Ok(AccessLog::Json),
        "text" => Ok(AccessLog::Text),
        "off" => Ok(AccessLog::Off),
        _ => Err("JSON, TEXT or off".to_owned()),
    }
}

/// How waypoints are to log; a line break at the end of the format is there anyway.
fn access_log_format(encoding: AccessLog, format: &str) -> Result<Option<AccessLogFormat>, InvalidConfig> {
    let line = format.trim_end_matches('\n');
    match encoding {
        AccessLog::Json | AccessLog::Off if !format.is_empty() => Err(InvalidConfig::AccessLogFormat),
        AccessLog::Json => Ok(Some(AccessLogFormat::Json)),
        AccessLog::Off => Ok(None),
        AccessLog::Text if line.len() > MAX_ACCESS_LOG_FORMAT || line.contains('\n') => {
            Err(InvalidConfig::AccessLogFormatLine(format.len()))
        }
        AccessLog::Text => Ok(Some(AccessLogFormat::Text((!line.is_empty()).then(|| line.into())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &[&str]) -> Result<Config, InvalidConfig> {
        let own = ["tropisd", "--source", "dir:/x", "--state", "/x/state", "--token-key", "/x/token.pub"];
        Config::validate(Arguments::try_parse_from(own.iter().chain(more)).unwrap())
    }

    #[test]
    fn bad_settings_are_named() {
        assert!(config(&[]).is_ok());
        let refused = |more: &[&str]| config(more).unwrap_err().to_string();
        for account in ["ztunnel", "/ztunnel", "a/b/c", "a/"] {
            assert!(refused(&["--trusted-node-account", account]).contains(account));
        }
        assert!(refused(&["--trust-domain", "Bad/Domain"]).contains("Bad/Domain"));
        assert!(refused(&["--default-certificate-lifetime", "0"]).contains("between 1 s"));
        assert!(refused(&["--max-connections", "0"]).contains("nobody"));
        assert!(refused(&["--max-certificate-lifetime", "60"]).contains("86400"));
    }

    #[test]
    fn sidecar_labels_enrol_unless_told_otherwise() {
        assert!(config(&[]).unwrap().sidecar_labels);
        assert!(!config(&["--sidecar-labels", "false"]).unwrap().sidecar_labels);
    }

    #[test]
    fn automatic_waypoints_are_made_unless_they_are_switched_off() {
        assert_eq!(config(&[]).unwrap().automatic_waypoints, AutomaticWaypoints::ByNeed);
        assert_eq!(config(&["--automatic-waypoints", "off"]).unwrap().automatic_waypoints, AutomaticWaypoints::Off);
        assert!(Arguments::try_parse_from(["tropisd", "--automatic-waypoints", "often"]).is_err());
    }

    #[test]
    fn automatic_waypoints_are_for_namespaces_unless_they_are_for_accounts() {
        let scope = |more: &[&str]| config(more).unwrap().automatic_waypoint_scope;
        assert_eq!(scope(&[]), Scope::Namespace);
        assert_eq!(scope(&["--automatic-waypoint-scope", "service-account"]), Scope::ServiceAccount);
        assert!(Arguments::try_parse_from(["tropisd", "--automatic-waypoint-scope", "pod"]).is_err());
    }

    #[test]
    fn requests_are_logged_as_mesh_config_would_say() {
        let logged = |more: &[&str]| config(more).map(|config| config.access_log).map_err(|error| error.to_string());
        let format = "%RESPONSE_CODE% %REQ(:PATH)%";
        for (more, expected) in [
            (&[][..], Some(AccessLogFormat::Json)),
            (&["--access-log", "TEXT"], Some(AccessLogFormat::Text(None))),
            (
                &["--access-log", "text", "--access-log-format", "%RESPONSE_CODE% %REQ(:PATH)%\n"],
                Some(AccessLogFormat::Text(Some(format.into()))),
            ),
            (&["--access-log", "off"], None),
        ] {
            assert_eq!(logged(more), Ok(expected), "{more:?}");
        }
        for encoding in ["JSON", "off"] {
            let refused = logged(&["--access-log", encoding, "--access-log-format", format]).unwrap_err();
            assert!(refused.contains("--access-log TEXT"), "{refused}");
        }
        for format in ["a\nb".to_owned(), "x".repeat(MAX_ACCESS_LOG_FORMAT + 1)] {
            assert!(logged(&["--access-log", "TEXT", "--access-log-format", &format]).unwrap_err().contains("--access-log-format"));
        }
        assert!(Arguments::try_parse_from(["tropisd", "--access-log", "xml"]).is_err());
    }

    #[test]
    fn the_server_is_known_by_istiods_name_and_its_own() {
        let names = config(&[]).unwrap().server_names();
        assert_eq!(names[0], "istiod.istio-system.svc");
        assert!(names.contains(&"tropisd.istio-system.svc.cluster.local".to_owned()));
    }
}
