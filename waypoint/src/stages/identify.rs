//! Identify: who is calling, by the certificate of its tunnel; and what a request names, in its only spelling.

use std::{borrow::Cow, net::SocketAddr};

use http::{HeaderMap, Method, Version, header, request::Parts};
use thiserror::Error;
use tokio::net::TcpStream;
use tropis_hbone::{
    headers::Forwarded,
    server::{self, AcceptError, ServerOptions, Session},
    settings::Windows,
};
use tropis_model::{
    address::canonical as canonical_address,
    outcome::{Reason, Side},
    request::{AmbiguousPath, CanonicalPath, InvalidHost, PathNormalization, canonical, canonical_host},
};
use tropis_tls::store::CertificateUnavailable;

use crate::app::Shared;

/// An end is not who it should be, or the request does not say clearly what it is for.
#[derive(Debug, Error)]
pub enum IdentifyError {
    /// No certificate to answer with.
    #[error("cannot answer as {identity}")]
    Certificate {
        /// Who we are.
        identity: tropis_model::identity::Identity,
        /// Why there is none.
        #[source]
        cause: CertificateUnavailable,
    },
    /// The peer did not prove an identity of this mesh, or not in time.
    #[error("the peer did not prove who it is")]
    Peer(#[source] AcceptError),
    /// What the caller sent is no request. It was answered by hyper.
    #[error("malformed request")]
    Malformed(#[source] hyper::Error),
    /// The path can be read in two ways.
    #[error("ambiguous path")]
    Path(#[source] AmbiguousPath),
    /// The host cannot be read.
    #[error("invalid host")]
    Host(#[source] InvalidHost),
    /// The request says two things about one.
    #[error("{what}")]
    Ambiguous {
        /// Which.
        what: &'static str,
    },
    /// The connection that it came on found it to be no request that everybody reads alike.
    #[error(transparent)]
    Unreadable(Unreadable),
}

/// What the HTTP server found wrong with a request that hyper takes; it goes with the request as an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// Where it ends can be read in two ways, or where one before it ends. Answer 400.
    #[error("{0}")]
    Ambiguous(&'static str),
    /// Its body is encoded for the connection in a way that we do not know (RFC 9112 §6.1). Answer 501.
    #[error("a transfer encoding that is not chunked")]
    Encoding,
    /// It has more headers than we take. Answer 431.
    #[error("more than {limit} headers")]
    Headers {
        /// How many we take.
        limit: usize,
    },
}

impl IdentifyError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::Certificate { .. } => (Reason::CertificateUnavailable, Side::Mesh),
            Self::Peer(AcceptError::Tls { .. } | AcceptError::Timeout { .. }) => (Reason::PeerUntrusted, Side::Downstream),
            Self::Peer(AcceptError::Http { .. }) => (Reason::TunnelFailed, Side::Downstream),
            Self::Peer(AcceptError::Gone(_)) => (Reason::DownstreamReset, Side::Downstream),
            Self::Malformed(_) | Self::Path(_) | Self::Host(_) | Self::Ambiguous { .. } | Self::Unreadable(_) => {
                (Reason::BadRequest, Side::Downstream)
            }
        }
    }
}

/// Shakes hands with a peer that opens a tunnel connection: we prove who we are, it proves itself.
pub async fn peer(shared: &Shared, stream: TcpStream) -> Result<Session, IdentifyError> {
    let identity = &shared.config.identity;
    let unavailable = |cause| IdentifyError::Certificate { identity: identity.clone(), cause };
    let certificate = shared.certificates.get(identity).await.map_err(unavailable)?;
    let options = ServerOptions { windows: Windows::WAYPOINT, ..ServerOptions::default() };
    server::accept(stream, certificate.server_config(), &options).await.map_err(IdentifyError::Peer)
}

/// The address that the original caller called from: what its proxy says, if the address is that of the tunnel's own peer (so it can lie
/// about no more than its port); else the tunnel's peer.
pub fn source(peer: SocketAddr, forwarded: Option<&Forwarded>) -> SocketAddr {
    let named = forwarded.and_then(|forwarded| forwarded.source).map(canonical_address);
    named.filter(|named| named.ip() == peer.ip()).unwrap_or(peer)
}

/// What a request names.
#[derive(Debug)]
pub struct Named<'r> {
    /// The authority as sent.
    pub authority: Cow<'r, str>,
    /// The path in its only spelling, and the query.
    pub path: CanonicalPath<'r>,
    /// `http` or `https`.
    pub scheme: &'r str,
}

/// Reads what a request names. Whatever two readers could read in two ways is refused.
pub fn request(parts: &Parts, normalization: PathNormalization) -> Result<Named<'_>, IdentifyError> {
    let ambiguous = |what| IdentifyError::Ambiguous { what };
    if let Some(unreadable) = parts.extensions.get::<Unreadable>() {
        return Err(IdentifyError::Unreadable(*unreadable));
    }
    if parts.method == Method::CONNECT {
        return Err(ambiguous("a tunnel inside of a tunnel"));
    }
    let scheme = parts.uri.scheme_str().unwrap_or("http");
    if !matches!(scheme, "http" | "https") {
        return Err(ambiguous("a scheme that is not HTTP's"));
    }
    let authority = authority(parts)?;
    canonical_host(&authority).map_err(IdentifyError::Host)?;
    // A target of nothing but an authority is CONNECT's.
    let target = parts.uri.path_and_query().filter(|_| !parts.uri.path().is_empty()).ok_or(ambiguous("no path"))?;
    let path = canonical(target.as_str(), normalization).map_err(IdentifyError::Path)?;
    if path.path == "*" && (parts.method != Method::OPTIONS || path.query.is_some()) {
        return Err(ambiguous("the target * of something else than OPTIONS"));
    }
    check_framing(parts)?;
    Ok(Named { authority, path, scheme })
}

/// `:authority`, an absolute target's, or `Host`: where there are several, they must agree.
fn authority(parts: &Parts) -> Result<Cow<'_, str>, IdentifyError> {
    let ambiguous = |what| IdentifyError::Ambiguous { what };
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|host| host.to_str().map_err(|_| ambiguous("host is not text"))).transpose()?;
    if hosts.next().is_some() {
        return Err(ambiguous("several hosts"));
    }
    match (parts.uri.authority(), host) {
        (Some(authority), Some(host)) if !authority.as_str().eq_ignore_ascii_case(host) => Err(ambiguous("host and authority differ")),
        (Some(authority), _) => Ok(Cow::Borrowed(authority.as_str())),
        (None, Some(host)) => Ok(Cow::Borrowed(host)),
        (None, None) => Err(ambiguous("no host")),
    }
}

/// HTTP/2 has no framing headers of HTTP/1.1; a proxy to HTTP/1.1 that let them pass would smuggle (RFC 9113 §8.2.2).
fn check_framing(parts: &Parts) -> Result<(), IdentifyError> {
    let several = |headers: &HeaderMap| headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some();
    if parts.version == Version::HTTP_2 && parts.headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(IdentifyError::Ambiguous { what: "transfer-encoding in HTTP/2" });
    }
    if several(&parts.headers) {
        return Err(IdentifyError::Ambiguous { what: "several lengths" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)], version: Version) -> Parts {
        let mut builder = Request::builder().uri(uri).version(version);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_host_is_named_once() {
        for (uri, headers, expected) in [
            ("/a", &[("host", "reviews:9080")][..], Some("reviews:9080")),
            ("http://reviews/a", &[], Some("reviews")),
            ("http://reviews/a", &[("host", "REVIEWS")], Some("reviews")),
            ("http://reviews/a", &[("host", "ratings")], None),
            ("/a", &[("host", "a"), ("host", "b")], None),
            ("/a", &[("host", "a b")], None),
            ("/a", &[], None),
            ("http://user@reviews/a", &[], None),
            ("http://reviews.:80/a", &[], Some("reviews.:80")),
        ] {
            let parts = parts(uri, headers, Version::HTTP_11);
            let found = request(&parts, PathNormalization::Base).ok().map(|named| named.authority.into_owned());
            assert_eq!(found.as_deref(), expected, "{uri} {headers:?}");
        }
    }

    #[test]
    fn router_and_policy_see_one_path() {
        let parts = parts("/a/../%2e/b%41?q=/..", &[("host", "a")], Version::HTTP_11);
        let named = request(&parts, PathNormalization::Base).unwrap();
        assert_eq!((&*named.path.path, named.path.query, named.scheme), ("/bA", Some("q=/.."), "http"));
    }

    #[test]
    fn a_target_that_is_no_path_is_refused() {
        let refused = |method: Method, uri: &str| {
            let mut parts = parts(uri, &[("host", "a")], Version::HTTP_11);
            parts.method = method;
            request(&parts, PathNormalization::Base).is_err()
        };
        for (method, uri) in [(Method::GET, "a"), (Method::GET, "*"), (Method::CONNECT, "a"), (Method::GET, "ftp://a/")] {
            assert!(refused(method, uri), "{uri}");
        }
        assert!(!refused(Method::OPTIONS, "*") && !refused(Method::GET, "http://a"));
    }

    #[test]
    fn framing_of_http1_is_refused_in_http2() {
        let parts = parts("http://a/", &[("transfer-encoding", "chunked")], Version::HTTP_2);
        assert!(request(&parts, PathNormalization::Base).is_err());
    }

    #[test]
    fn a_caller_cannot_lie_about_its_address() {
        let peer: SocketAddr = "10.0.0.1:5000".parse().unwrap();
        let found = |text: &str| source(peer, Some(&Forwarded { source: text.parse().ok(), host: None })).to_string();
        assert_eq!(found("10.0.0.1:4000"), "10.0.0.1:4000");
        assert_eq!(found("10.9.9.9:4000"), "10.0.0.1:5000");
        assert_eq!(source(peer, None), peer);
    }
}
