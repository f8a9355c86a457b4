//! What this program can be told ([`tropis_telemetry::settings`]), and the limits that are not settings.

use std::{
    collections::BTreeMap,
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tropis_model::{identity::Identity, request::PathNormalization};
use tropis_telemetry::{
    admin::AdminAddress,
    logs::LogFormat,
    settings::{InvalidSetting, Variables},
};
use tropis_tls::control::{ControlEndpoint, TokenSource};

/// Connections, tunnels and plain ones, that one worker serves at a time. Far above what callers open by design, far below what would
/// exhaust the process's descriptors; more are refused.
pub const MAX_CONNECTIONS_PER_WORKER: usize = 20_000;
/// Requests under way on one worker. A request costs some kilobytes; more are answered with 503.
pub const MAX_REQUESTS_PER_WORKER: usize = 50_000;

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// `TROPIS_GATEWAY`, `ISTIO_META_GATEWAY_NAME`: `namespace/name` of the Gateway that this process is of; a bare name is in
    /// [`Self::pod_namespace`].
    pub gateway: Arc<str>,
    /// Our own identity: `TRUST_DOMAIN`, `POD_NAMESPACE`, `SERVICE_ACCOUNT`.
    pub identity: Identity,
    /// `NETWORK`: our own network.
    pub network: Arc<str>,
    /// `CLUSTER_ID`, `ISTIO_META_CLUSTER_ID`.
    pub cluster_id: String,
    /// `NODE_NAME`.
    pub node: Arc<str>,
    /// The control plane, `XDS_ADDRESS`.
    pub xds: ControlEndpoint,
    /// The certificate authority, `CA_ADDRESS`.
    pub ca: ControlEndpoint,
    /// `AUTH_TOKEN`: our own token.
    pub token: TokenSource,
    /// `SECRET_TTL`: the certificate lifetime to ask for.
    pub certificate_ttl: Duration,
    /// `CONNECTION_TERMINATION_DEADLINE`, or what `TERMINATION_GRACE_PERIOD_SECONDS` leaves: time to finish at the end.
    pub drain_limit: Duration,
    /// `TROPIS_WORKERS`: threads that move bytes.
    pub workers: usize,
    /// `TROPIS_HBONE_ADDRESS`: where tunnels arrive, port 15008.
    pub hbone: SocketAddr,
    /// `TROPIS_PLAIN_LISTENERS`: connections without tunnel and without identity, each listener for one host and port; for benches and
    /// tests, off by default.
    pub plain: Vec<PlainListener>,
    /// `TROPIS_ADMIN_SOCKET`, else loopback port 15000.
    pub admin: AdminAddress,
    /// Ports 15020 and 15090.
    pub metrics: Vec<SocketAddr>,
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
    /// `TROPIS_PATH_NORMALIZATION`: how paths are made canonical (MeshConfig `pathNormalization`).
    pub path_normalization: PathNormalization,
    /// Limits of HTTP.
    pub http: HttpLimits,
}

/// A listener for plain connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainListener {
    /// Where it listens.
    pub address: SocketAddr,
    /// The host that its connections are addressed to.
    pub hostname: Arc<str>,
    /// The host's port.
    pub port: u16,
}

/// What a caller may send, and how long we wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// `TROPIS_MAX_HEADER_BYTES`: all headers of a request or response. 60 KiB, Envoy's default.
    pub header_bytes: usize,
    /// `TROPIS_MAX_HEADERS`: how many. 100, Envoy's default.
    pub headers: usize,
    /// `TROPIS_MAX_STREAMS`: streams of an HTTP/2 connection at once. 100.
    pub streams: u32,
    /// `TROPIS_MAX_RESETS`: streams that a caller may reset before we looked at them (rapid reset). As many as streams.
    pub resets: usize,
    /// `TROPIS_HEADER_TIMEOUT`: a request's head must arrive within this. 60 s.
    pub header_timeout: Duration,
    /// `TROPIS_SNIFF_WAIT`: a caller that says nothing for so long on a port of unknown protocol waits for the other side to speak
    /// first: the connection is TCP. 1 s: longer than any client of HTTP takes to begin, short enough for one of SMTP.
    pub sniff_wait: Duration,
    /// `TROPIS_MAX_BUFFERED_BODY_BYTES`: a request's body is kept for tries after the first up to this. 1 MiB, as in Istio.
    pub buffered_body_bytes: usize,
    /// `TROPIS_MAX_BUFFERED_BYTES`: what one worker keeps of the bodies of all its requests together; a request that finds no room is sent
    /// once. 16 MiB: a hundred times what ordinary requests need, and little beside what a flood of large ones could take.
    pub kept_bytes: usize,
    /// `TROPIS_MAX_MIRRORS`: copies under way on one worker; more are left out. 1024.
    pub mirrors: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            header_bytes: 60 * 1024,
            headers: 100,
            streams: 100,
            resets: 100,
            header_timeout: Duration::from_secs(60),
            sniff_wait: Duration::from_secs(1),
            buffered_body_bytes: 1024 * 1024,
            kept_bytes: 16 * 1024 * 1024,
            mirrors: 1024,
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
        let ipv6 = from.boolean("IPV6_ENABLED", true)?;
        let any = |port| SocketAddr::new(if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }, port);
        let control = |address, root_ca, server_name| {
            let in_kubernetes = from.get("KUBERNETES_SERVICE_HOST").is_some();
            ControlEndpoint::from_settings(from.get(address), from.get(root_ca), from.get(server_name), in_kubernetes)
        };
        let pod_namespace = from.text("POD_NAMESPACE", "default");
        let gateway = from.get("TROPIS_GATEWAY").or(from.get("ISTIO_META_GATEWAY_NAME")).unwrap_or("waypoint");
        let gateway = if gateway.contains('/') { gateway.to_owned() } else { format!("{pod_namespace}/{gateway}") };
        let metrics = from.parsed("TROPIS_METRICS_ADDRESS", any(15020), "IP:PORT")?;
        let prometheus = from.parsed("TROPIS_PROMETHEUS_ADDRESS", any(15090), "IP:PORT")?;
        Ok(Self {
            identity: Identity::new(
                from.text("TRUST_DOMAIN", "cluster.local"),
                pod_namespace.as_str(),
                from.text("SERVICE_ACCOUNT", gateway.rsplit('/').next().unwrap_or_default()),
            ),
            gateway: gateway.into(),
            network: from.text("NETWORK", "").into(),
            cluster_id: from.text("ISTIO_META_CLUSTER_ID", from.get("CLUSTER_ID").unwrap_or("Kubernetes")),
            node: from.text("NODE_NAME", "").into(),
            xds: control("XDS_ADDRESS", "XDS_ROOT_CA", "ALT_XDS_HOSTNAME"),
            ca: control("CA_ADDRESS", "CA_ROOT_CA", "ALT_CA_HOSTNAME"),
            token: TokenSource::from_setting(from.get("AUTH_TOKEN")),
            certificate_ttl: from.duration("SECRET_TTL", Duration::from_secs(24 * 3600))?,
            drain_limit: from.drain_limit()?,
            workers: from.workers("TROPIS_WORKER_THREADS")?,
            hbone: from.parsed("TROPIS_HBONE_ADDRESS", any(15008), "IP:PORT")?,
            plain: plain_listeners(&from)?,
            admin: match from.get("TROPIS_ADMIN_SOCKET") {
                Some(path) => AdminAddress::Unix(path.into()),
                None => AdminAddress::Tcp((Ipv4Addr::LOCALHOST, 15000).into()),
            },
            metrics: if prometheus == metrics { vec![metrics] } else { vec![metrics, prometheus] },
            readiness: from.parsed("TROPIS_READINESS_ADDRESS", any(15021), "IP:PORT")?,
            log_filter: from.text("RUST_LOG", "info"),
            log_format: from.parsed("LOG_FORMAT", LogFormat::Text, "text or json")?,
            pod_name: from.text("POD_NAME", ""),
            pod_namespace,
            instance_address: from.parsed("INSTANCE_IP", IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)), "an IP address")?,
            metadata: from.prefixed("ISTIO_META_").collect(),
            xds_headers: from.prefixed("XDS_HEADER_").collect(),
            path_normalization: path_normalization(&from)?,
            http: http_limits(&from)?,
        })
    }
}

fn http_limits(from: &Variables<'_>) -> Result<HttpLimits, InvalidSetting> {
    let default = HttpLimits::default();
    Ok(HttpLimits {
        // hyper needs room for a head; less than this would refuse ordinary requests.
        header_bytes: from.parsed("TROPIS_MAX_HEADER_BYTES", default.header_bytes, "a number of bytes")?.max(8 * 1024),
        headers: from.parsed("TROPIS_MAX_HEADERS", default.headers, "a number")?,
        streams: from.parsed("TROPIS_MAX_STREAMS", default.streams, "a number")?,
        resets: from.parsed("TROPIS_MAX_RESETS", default.resets, "a number")?,
        header_timeout: from.duration("TROPIS_HEADER_TIMEOUT", default.header_timeout)?,
        sniff_wait: from.duration("TROPIS_SNIFF_WAIT", default.sniff_wait)?,
        buffered_body_bytes: from.parsed("TROPIS_MAX_BUFFERED_BODY_BYTES", default.buffered_body_bytes, "a number of bytes")?,
        kept_bytes: from.parsed("TROPIS_MAX_BUFFERED_BYTES", default.kept_bytes, "a number of bytes")?,
        mirrors: from.parsed("TROPIS_MAX_MIRRORS", default.mirrors, "a number")?,
    })
}

fn path_normalization(from: &Variables<'_>) -> Result<PathNormalization, InvalidSetting> {
    const NAME: &str = "TROPIS_PATH_NORMALIZATION";
    match from.get(NAME) {
        None | Some("DEFAULT" | "BASE") => Ok(PathNormalization::default()),
        Some("NONE") => Ok(PathNormalization::None),
        Some("MERGE_SLASHES") => Ok(PathNormalization::MergeSlashes),
        Some("DECODE_AND_MERGE_SLASHES") => Ok(PathNormalization::DecodeAndMergeSlashes),
        Some(found) => Err(InvalidSetting {
            name: NAME,
            found: found.to_owned(),
            accepted: "DEFAULT, NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES",
        }),
    }
}

fn plain_listeners(from: &Variables<'_>) -> Result<Vec<PlainListener>, InvalidSetting> {
    const NAME: &str = "TROPIS_PLAIN_LISTENERS";
    let one = |text: &str| {
        let (address, host) = text.split_once('=')?;
        let (hostname, port) = host.rsplit_once(':')?;
        Some(PlainListener { address: address.parse().ok()?, hostname: hostname.into(), port: port.parse().ok()? })
    };
    let Some(found) = from.get(NAME) else { return Ok(Vec::new()) };
    found.split(',').map(|text| one(text.trim())).collect::<Option<_>>().ok_or_else(|| InvalidSetting {
        name: NAME,
        found: found.to_owned(),
        accepted: "a list of IP:PORT=HOSTNAME:PORT",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, InvalidSetting> {
        Config::read(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_gateway_gives_the_identity() {
        let config = read(&[("POD_NAMESPACE", "shop"), ("ISTIO_META_GATEWAY_NAME", "waypoint")]).unwrap();
        assert_eq!(&*config.gateway, "shop/waypoint");
        assert_eq!(config.identity, Identity::new("cluster.local", "shop", "waypoint"));
        assert_eq!(config.hbone, "[::]:15008".parse().unwrap());
        assert_eq!(config.metrics.iter().map(SocketAddr::port).collect::<Vec<_>>(), [15020, 15090]);
        let config = read(&[("POD_NAMESPACE", "shop"), ("TROPIS_GATEWAY", "shop/auto"), ("SERVICE_ACCOUNT", "sa")]).unwrap();
        assert_eq!((&*config.gateway, &*config.identity.service_account), ("shop/auto", "sa"));
    }

    #[test]
    fn plain_listeners_are_read_and_off_by_default() {
        assert!(read(&[]).unwrap().plain.is_empty());
        let config = read(&[("TROPIS_PLAIN_LISTENERS", "127.0.0.1:8080=a.shop.svc:80, [::1]:8081=b.shop.svc:81")]).unwrap();
        let found: Vec<_> = config.plain.iter().map(|one| (one.address.to_string(), &*one.hostname, one.port)).collect();
        assert_eq!(found, [("127.0.0.1:8080".to_owned(), "a.shop.svc", 80), ("[::1]:8081".to_owned(), "b.shop.svc", 81)]);
    }

    #[test]
    fn a_bad_value_is_named() {
        for (name, value) in [
            ("TROPIS_PLAIN_LISTENERS", "8080"),
            ("TROPIS_HBONE_ADDRESS", "15008"),
            ("TROPIS_PATH_NORMALIZATION", "ALL"),
            ("TROPIS_MAX_STREAMS", "many"),
            ("SECRET_TTL", "soon"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert_eq!((error.name, error.found.as_str()), (name, value));
        }
    }
}
