//! The headers of a CONNECT: who forwards (`forwarded`), what it says about the source (`baggage`), and the trace.
//!
//! All of it is hearsay, for logs and metrics: who the peer is comes from its certificate only. Unknown headers are ignored.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use tropis_model::workload::{Workload, WorkloadKind};

const FORWARDED: HeaderName = http::header::FORWARDED;
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// `traceparent` has this length and no other (W3C Trace Context, version 00).
const TRACEPARENT_LENGTH: usize = 55;

/// The headers of a CONNECT request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TunnelHeaders {
    /// The connection's true source, and the service that it was addressed to.
    pub forwarded: Option<Forwarded>,
    /// The source workload ([`baggage_of`]).
    pub baggage: Option<String>,
    /// The trace that the connection belongs to.
    pub traceparent: Option<String>,
}

/// `forwarded: for="10.0.0.1:4711";host=reviews.shop.svc.cluster.local` (RFC 7239).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forwarded {
    /// Address and port of the application that opened the connection.
    pub source: Option<SocketAddr>,
    /// Hostname of the service that was addressed.
    pub host: Option<String>,
}

impl Forwarded {
    /// The header's text.
    pub fn to_text(&self) -> String {
        let source = self.source.map(|source| format!("for=\"{source}\""));
        let host = self.host.as_ref().map(|host| format!("host={host}"));
        source.into_iter().chain(host).collect::<Vec<_>>().join(";")
    }

    /// Reads the header's text. What is not understood is left out; only the first element of a list counts.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for pair in text.split(',').next().unwrap_or_default().split(';') {
            let Some((name, value)) = pair.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "for" => found.source = value.parse().ok(),
                "host" if !value.is_empty() => found.host = Some(value.to_owned()),
                _ => {}
            }
        }
        found
    }
}

impl TunnelHeaders {
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let texts = [
            (FORWARDED, self.forwarded.as_ref().map(Forwarded::to_text)),
            (BAGGAGE, self.baggage.clone()),
            (TRACEPARENT, self.traceparent.clone()),
        ];
        for (name, text) in texts {
            // A name that HTTP does not allow in a header is left out: these are hearsay, not worth a connection.
            if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
                headers.insert(name, value);
            }
        }
    }

    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            forwarded: text(&FORWARDED).map(Forwarded::parse),
            baggage: read_baggage(headers),
            traceparent: text(&TRACEPARENT).filter(|text| text.len() == TRACEPARENT_LENGTH).map(str::to_owned),
        }
    }
}

/// All lines of `baggage` as one.
pub(crate) fn read_baggage(headers: &HeaderMap) -> Option<String> {
    let lines: Vec<_> = headers.get_all(BAGGAGE).iter().filter_map(|line| line.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

pub(crate) fn write_baggage(baggage: &str, headers: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::try_from(baggage) {
        headers.insert(BAGGAGE, value);
    }
}

/// What `baggage` says of a workload: `key=value` joined by commas, unknown parts left out.
pub fn baggage_of(workload: &Workload) -> String {
    let kind = match workload.workload_kind {
        WorkloadKind::Deployment => "k8s.deployment.name",
        WorkloadKind::CronJob => "k8s.cronjob.name",
        WorkloadKind::Pod => "k8s.pod.name",
        WorkloadKind::Job => "k8s.job.name",
    };
    let parts = [
        ("k8s.cluster.name", &workload.cluster_id),
        ("k8s.namespace.name", &workload.namespace),
        (kind, &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let known = parts.into_iter().filter(|(_, value)| !value.is_empty());
    known.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// What a peer's `baggage` says; parts that it does not say are `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<String>,
    /// `k8s.namespace.name`.
    pub namespace: Option<String>,
    /// The owner's kind and name.
    pub workload: Option<(WorkloadKind, String)>,
    /// `service.name`: the canonical name.
    pub canonical_name: Option<String>,
    /// `service.version`: the canonical revision.
    pub canonical_revision: Option<String>,
    /// `cloud.region`.
    pub region: Option<String>,
    /// `cloud.availability_zone`.
    pub zone: Option<String>,
}

impl Baggage {
    /// Reads it; the last of equal keys counts, unknown keys do not.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for part in text.split(',') {
            let Some((key, value)) = part.split_once('=') else { continue };
            let value = value.trim();
            if value.is_empty() {
                continue;
            }
            let value = value.to_owned();
            match key.trim() {
                "k8s.cluster.name" => found.cluster = Some(value),
                "k8s.namespace.name" => found.namespace = Some(value),
                "k8s.deployment.name" => found.workload = Some((WorkloadKind::Deployment, value)),
                "k8s.cronjob.name" => found.workload = Some((WorkloadKind::CronJob, value)),
                "k8s.pod.name" => found.workload = Some((WorkloadKind::Pod, value)),
                "k8s.job.name" => found.workload = Some((WorkloadKind::Job, value)),
                "service.name" => found.canonical_name = Some(value),
                "service.version" => found.canonical_revision = Some(value),
                "cloud.region" => found.region = Some(value),
                "cloud.availability_zone" => found.zone = Some(value),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use tropis_model::identity::Identity;

    use super::*;

    #[test]
    fn forwarded_round_trips_on_both_families() {
        for (source, host, text) in [
            ("10.0.0.1:4711", Some("reviews.shop.svc"), r#"for="10.0.0.1:4711";host=reviews.shop.svc"#),
            ("[fd00::1]:4711", None, r#"for="[fd00::1]:4711""#),
        ] {
            let forwarded = Forwarded { source: Some(source.parse().unwrap()), host: host.map(str::to_owned) };
            assert_eq!(forwarded.to_text(), text);
            assert_eq!(Forwarded::parse(text), forwarded);
        }
    }

    #[test]
    fn what_a_peer_writes_oddly_is_read_as_far_as_it_goes() {
        for (text, source, host) in [
            ("", None, None),
            ("nonsense", None, None),
            ("for=unknown;host=a", None, Some("a")),
            ("For=10.0.0.1:1; Host=\"a\"", Some("10.0.0.1:1"), Some("a")),
            ("for=\"10.0.0.1:1\", for=\"10.0.0.2:2\"", Some("10.0.0.1:1"), None),
            ("host=", None, None),
        ] {
            let found = Forwarded::parse(text);
            assert_eq!((found.source.map(|source| source.to_string()).as_deref(), found.host.as_deref()), (source, host), "{text}");
        }
    }

    #[test]
    fn baggage_round_trips() {
        let mut workload = Workload::new("Kubernetes//Pod/shop/cart-1", "cart-1", Identity::new("td", "shop", "cart"));
        workload.workload_kind = WorkloadKind::Deployment;
        workload.workload_name = "cart".into();
        workload.canonical_name = "cart".into();
        workload.canonical_revision = "v1".into();
        workload.locality.zone = "z1".into();
        let text = baggage_of(&workload);
        assert_eq!(
            text,
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,service.version=v1,\
             cloud.availability_zone=z1"
        );
        let found = Baggage::parse(&text);
        assert_eq!(found.workload, Some((WorkloadKind::Deployment, "cart".to_owned())));
        assert_eq!((found.region, found.zone.as_deref()), (None, Some("z1")));
    }

    #[test]
    fn headers_that_cannot_be_sent_are_left_out_and_odd_traces_not_read() {
        let headers = TunnelHeaders { baggage: Some("a=\n".into()), traceparent: Some("00-short".into()), forwarded: None };
        let mut map = HeaderMap::new();
        headers.write(&mut map);
        assert!(!map.contains_key("baggage"));
        assert_eq!(TunnelHeaders::read(&map), TunnelHeaders::default());
        map.append("baggage", HeaderValue::from_static("a=1"));
        map.append("baggage", HeaderValue::from_static("b=2"));
        assert_eq!(TunnelHeaders::read(&map).baggage.as_deref(), Some("a=1,b=2"));
    }
}
