//! What this program can be told ([`tropis_telemetry::settings`]). Names and defaults are Istio's, so that istio-cni's and Istio's charts
//! start it unchanged.

use std::{
    collections::BTreeMap,
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tropis_net::{
    listen::Transparent,
    sockets::{Keepalive, PACKET_MARK},
};
use tropis_telemetry::{
    admin::AdminAddress,
    logs::LogFormat,
    settings::{InvalidSetting, Variables},
};
use tropis_tls::control::{ControlEndpoint, TokenSource};

/// Connections that one pod may have open through this proxy on one worker. Far above what an application opens by design, far below
/// what would exhaust the proxy's descriptors.
pub const MAX_CONNECTIONS_PER_POD: usize = 20_000;

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// `NETWORK`: the proxy's own network.
    pub network: Arc<str>,
    /// `NODE_NAME`: only workloads of this node are served; empty serves any.
    pub node: Arc<str>,
    /// `CLUSTER_ID`, `ISTIO_META_CLUSTER_ID`.
    pub cluster_id: String,
    /// `CLUSTER_DOMAIN`: what Kubernetes names end in.
    pub cluster_domain: Arc<str>,
    /// The control plane, `XDS_ADDRESS`.
    pub xds: ControlEndpoint,
    /// The certificate authority, `CA_ADDRESS`.
    pub ca: ControlEndpoint,
    /// `AUTH_TOKEN`: the file with our token, or the token.
    pub token: TokenSource,
    /// `SECRET_TTL`: the certificate lifetime to ask for.
    pub certificate_ttl: Duration,
    /// `INPOD_UDS`: the node agent's ZDS socket.
    pub zds_socket: PathBuf,
    /// How connections come to us.
    pub capture: Capture,
    /// TCP keepalive of relayed connections, `KEEPALIVE_*`.
    pub keepalive: Option<Keepalive>,
    /// `IPV6_ENABLED`.
    pub ipv6: bool,
    /// `ISTIO_META_DNS_CAPTURE`: run the DNS proxy in each pod (the default).
    pub dns: bool,
    /// `CONNECTION_TERMINATION_DEADLINE`, or what `TERMINATION_GRACE_PERIOD_SECONDS` leaves: time to finish at the end.
    pub drain_limit: Duration,
    /// `TROPIS_WORKERS`, `ZTUNNEL_WORKER_THREADS`: threads that move bytes.
    pub workers: usize,
    /// `TROPIS_ADMIN_SOCKET`, else loopback port 15000.
    pub admin: AdminAddress,
    /// Port 15020.
    pub metrics: SocketAddr,
    /// Port 15021.
    pub readiness: SocketAddr,
    /// `RUST_LOG`.
    pub log_filter: String,
    /// `LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `POD_NAME`, `POD_NAMESPACE`, `INSTANCE_IP`: who we are, for the control plane.
    pub pod_name: String,
    /// See [`Self::pod_name`].
    pub pod_namespace: String,
    /// See [`Self::pod_name`].
    pub instance_address: IpAddr,
    /// `ISTIO_META_*` without the prefix: told to the control plane.
    pub metadata: BTreeMap<String, String>,
    /// `XDS_HEADER_*`: sent to the control plane.
    pub xds_headers: Vec<(String, String)>,
    /// `ENABLE_RESPONSE_BAGGAGE`: describe ourselves in tunnel responses.
    pub response_baggage: bool,
}

/// How a pod's connections reach our listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capture {
    /// By our redirector's hooks: `TROPIS_PINS` is the folder of its pinned maps.
    Hooks {
        /// The folder.
        pins: PathBuf,
    },
    /// By istio-cni's netfilter rules: `PACKET_MARK` exempts us, `ENABLE_ORIG_SRC` says whether callers' addresses are kept.
    Netfilter {
        /// The mark of our own packets.
        mark: u32,
        /// Whether listeners and dialled sockets use foreign addresses.
        transparent: Transparent,
    },
}

impl Capture {
    /// The mark of our own sockets, if netfilter needs one.
    pub fn mark(&self) -> Option<u32> {
        match self {
            Self::Hooks { .. } => None,
            Self::Netfilter { mark, .. } => Some(*mark),
        }
    }

    /// Whether listeners ask for `IP_TRANSPARENT`.
    pub fn transparent(&self) -> Transparent {
        match self {
            Self::Hooks { .. } => Transparent::Off,
            Self::Netfilter { transparent, .. } => *transparent,
        }
    }
}

impl Config {
    /// Reads the process's environment.
    pub fn from_environment() -> Result<Self, InvalidSetting> {
        Self::read(&env::vars().collect())
    }

    /// Reads settings from `variables`.
    pub fn read(variables: &BTreeMap<String, String>) -> Result<Self, InvalidSetting> {
        let from = Variables(variables);
        let text = |name: &str, default: &str| from.text(name, default);
        let ipv6 = from.boolean("IPV6_ENABLED", true)?;
        let any = |port| SocketAddr::new(if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }, port);
        let control = |address, root_ca, server_name| {
            let in_kubernetes = from.get("KUBERNETES_SERVICE_HOST").is_some();
            ControlEndpoint::from_settings(from.get(address), from.get(root_ca), from.get(server_name), in_kubernetes)
        };
        let xds = control("XDS_ADDRESS", "XDS_ROOT_CA", "ALT_XDS_HOSTNAME");
        let ca = control("CA_ADDRESS", "CA_ROOT_CA", "ALT_CA_HOSTNAME");
        let instance_address = from.parsed("INSTANCE_IP", IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)), "an IP address")?;
        Ok(Self {
            network: text("NETWORK", "").into(),
            node: text("NODE_NAME", "").into(),
            cluster_id: text("ISTIO_META_CLUSTER_ID", from.get("CLUSTER_ID").unwrap_or("Kubernetes")),
            cluster_domain: text("CLUSTER_DOMAIN", "cluster.local").into(),
            xds,
            ca,
            token: TokenSource::from_setting(from.get("AUTH_TOKEN")),
            certificate_ttl: from.duration("SECRET_TTL", Duration::from_secs(24 * 3600))?,
            zds_socket: text("INPOD_UDS", "/var/run/ztunnel/ztunnel.sock").into(),
            capture: capture(&from)?,
            keepalive: keepalive(&from)?,
            ipv6,
            dns: from.get("ISTIO_META_DNS_CAPTURE").is_none_or(|value| value.eq_ignore_ascii_case("true")),
            drain_limit: from.drain_limit()?,
            workers: from.workers("ZTUNNEL_WORKER_THREADS")?,
            admin: match from.get("TROPIS_ADMIN_SOCKET") {
                Some(path) => AdminAddress::Unix(path.into()),
                None => AdminAddress::Tcp((Ipv4Addr::LOCALHOST, 15000).into()),
            },
            metrics: from.parsed("TROPIS_METRICS_ADDRESS", any(15020), "IP:PORT")?,
            readiness: from.parsed("TROPIS_READINESS_ADDRESS", any(15021), "IP:PORT")?,
            log_filter: text("RUST_LOG", "info"),
            log_format: from.parsed("LOG_FORMAT", LogFormat::Text, "text or json")?,
            pod_name: text("POD_NAME", ""),
            pod_namespace: text("POD_NAMESPACE", ""),
            instance_address,
            metadata: from.prefixed("ISTIO_META_").collect(),
            xds_headers: from.prefixed("XDS_HEADER_").collect(),
            response_baggage: from.boolean("ENABLE_RESPONSE_BAGGAGE", true)?,
        })
    }
}

fn capture(from: &Variables<'_>) -> Result<Capture, InvalidSetting> {
    if let Some(pins) = from.get("TROPIS_PINS") {
        return Ok(Capture::Hooks { pins: pins.into() });
    }
    let transparent = match from.get("ENABLE_ORIG_SRC") {
        None => Transparent::Try,
        Some(_) if from.boolean("ENABLE_ORIG_SRC", true)? => Transparent::Require,
        Some(_) => Transparent::Off,
    };
    Ok(Capture::Netfilter { mark: from.parsed("PACKET_MARK", PACKET_MARK, "a number")?, transparent })
}

fn keepalive(from: &Variables<'_>) -> Result<Option<Keepalive>, InvalidSetting> {
    if !from.boolean("KEEPALIVE_ENABLED", true)? {
        return Ok(None);
    }
    let default = Keepalive::default();
    Ok(Some(Keepalive {
        idle: from.duration("KEEPALIVE_TIME", default.idle)?,
        interval: from.duration("KEEPALIVE_INTERVAL", default.interval)?,
        probes: from.parsed("KEEPALIVE_RETRIES", default.probes, "a number")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, InvalidSetting> {
        Config::read(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn defaults_are_istios() {
        let config = read(&[]).unwrap();
        assert_eq!(config.xds.address, "https://localhost:15012");
        assert_eq!(config.cluster_id, "Kubernetes");
        assert_eq!(config.certificate_ttl, Duration::from_secs(86_400));
        assert_eq!(config.drain_limit, Duration::from_secs(5));
        assert_eq!(config.capture, Capture::Netfilter { mark: 1337, transparent: Transparent::Try });
        assert_eq!(config.metrics, "[::]:15020".parse().unwrap());
        assert!(config.dns);
    }

    #[test]
    fn what_is_set_is_used() {
        let config = read(&[
            ("XDS_ADDRESS", "10.88.0.2:15012"),
            ("ALT_XDS_HOSTNAME", "istiod.istio-system.svc"),
            ("TROPIS_PINS", "/pins"),
            ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
            ("ISTIO_META_DNS_CAPTURE", "false"),
            ("ISTIO_META_CLUSTER_ID", "a"),
            ("CLUSTER_ID", "b"),
            ("KEEPALIVE_TIME", "5m"),
            ("IPV6_ENABLED", "false"),
            ("TROPIS_WORKERS", "3"),
        ])
        .unwrap();
        assert_eq!(config.xds.address, "https://10.88.0.2:15012");
        assert_eq!(config.xds.server_name.as_deref(), Some("istiod.istio-system.svc"));
        assert_eq!(config.capture, Capture::Hooks { pins: "/pins".into() });
        assert_eq!(config.drain_limit, Duration::from_secs(25));
        assert_eq!((config.dns, config.cluster_id.as_str(), config.workers), (false, "a", 3));
        assert_eq!(config.keepalive.unwrap().idle, Duration::from_secs(300));
        assert_eq!(config.metrics, "0.0.0.0:15020".parse().unwrap());
    }

    #[test]
    fn a_bad_value_is_named() {
        for (name, value) in [
            ("IPV6_ENABLED", "maybe"),
            ("SECRET_TTL", "soon"),
            ("LOG_FORMAT", "xml"),
            ("INSTANCE_IP", "x"),
            ("ZTUNNEL_WORKER_THREADS", "x%"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert_eq!((error.name, error.found.as_str()), (name, value));
        }
    }
}
