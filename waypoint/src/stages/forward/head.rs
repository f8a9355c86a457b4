//! The head of a request as it goes out: what belongs to the caller's connection is left out, what says where it came from is added.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};

use crate::{body::RequestBody, request::Journey, stages::route::Head, upstream::connections::HttpVersion};

/// The header that lists the callers.
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The header that names a request.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// A request's head, the same for each try but for its number and the version of HTTP.
#[derive(Debug, Clone)]
pub struct Outgoing {
    method: Method,
    scheme: http::uri::Scheme,
    head: Head,
    /// The headers.
    pub headers: HeaderMap,
    /// What the caller wants the connection to become.
    upgrade: Option<HeaderValue>,
}

impl Outgoing {
    /// The head as it goes out.
    pub fn new(journey: &Journey<'_>, mut head: Head) -> Self {
        let mut headers = std::mem::take(&mut head.headers);
        let upgrade = headers.get(header::UPGRADE).filter(|_| lists(&headers, "upgrade")).cloned();
        let has_trailers = lists_in(&headers, &header::TE, "trailers");
        remove_hop_by_hop(&mut headers);
        if has_trailers {
            headers.insert(header::TE, TRAILERS);
        }
        // The caller was told to go on when its body was first asked for.
        headers.remove(header::EXPECT);
        headers.remove(header::HOST);
        if !headers.contains_key(REQUEST_ID) {
            headers.insert(REQUEST_ID, request_id());
        }
        append_forwarded_for(&mut headers, journey.entry.source_address.ip());
        if !headers.contains_key(FORWARDED_PROTO) {
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if journey.facts.scheme == "https" { "https" } else { "http" }));
        }
        let method = Method::from_bytes(journey.facts.method.as_bytes()).unwrap_or(Method::GET);
        let scheme = if journey.facts.scheme == "https" { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP };
        Self { method, scheme, head, headers, upgrade }
    }

    /// Whether the caller wants to change the protocol.
    pub fn wants_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }

    /// The request of try `number` (from 1).
    pub fn request(&self, number: u32, version: HttpVersion, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        let headers = request.headers_mut();
        *headers = self.headers.clone();
        headers.insert(ATTEMPT_COUNT, HeaderValue::from(number));
        match version {
            HttpVersion::Http1 => {
                headers.insert(header::HOST, self.head.authority.clone());
                *request.uri_mut() = Uri::from(self.head.target.clone());
            }
            HttpVersion::Http2 => {
                *request.version_mut() = Version::HTTP_2;
                let mut parts = http::uri::Parts::default();
                parts.scheme = Some(self.scheme.clone());
                parts.authority = self.head.authority.to_str().ok().and_then(|authority| authority.parse().ok());
                parts.path_and_query = Some(self.head.target.clone());
                // An authority that is none was refused when the head was made; then the path alone goes out.
                *request.uri_mut() = Uri::from_parts(parts).unwrap_or_else(|_| Uri::from(self.head.target.clone()));
            }
        }
        request
    }

    /// The request that asks to change the protocol.
    pub fn upgrade_request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut request = self.request(1, HttpVersion::Http1, body);
        if let Some(upgrade) = &self.upgrade {
            request.headers_mut().insert(header::UPGRADE, upgrade.clone());
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        request
    }
}

/// Leaves out what is about one connection only (RFC 9110 §7.6.1).
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::TE, header::UPGRADE] {
        headers.remove(name);
    }
}

fn lists(headers: &HeaderMap, word: &str) -> bool {
    lists_in(headers, &header::CONNECTION, word)
}

fn lists_in(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let mut words = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    words.any(|found| found.trim().eq_ignore_ascii_case(word))
}

fn append_forwarded_for(headers: &mut HeaderMap, address: IpAddr) {
    let text = match headers.get(FORWARDED_FOR).and_then(|before| before.to_str().ok()) {
        Some(before) if !before.is_empty() => format!("{before}, {address}"),
        _ => address.to_string(),
    };
    // An address, after what was a header's value before, is one.
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// A UUID of version 4 (RFC 9562 §5.4).
fn request_id() -> HeaderValue {
    let random: u128 = rand::random();
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{id:032x}");
    let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("00000000-0000-4000-8000-000000000000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("proxy-connection", "close"),
            ("x-public", "2"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-public"]);
    }

    #[test]
    fn callers_are_listed_in_order() {
        let mut headers = HeaderMap::new();
        append_forwarded_for(&mut headers, "10.0.0.1".parse().unwrap());
        append_forwarded_for(&mut headers, "fd00::2".parse().unwrap());
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1, fd00::2");
    }

    #[test]
    fn an_id_is_a_uuid_of_version_4() {
        let id = request_id();
        let text = id.to_str().unwrap();
        assert_eq!((text.len(), &text[14..15]), (36, "4"));
        assert!("89ab".contains(&text[19..20]), "{text}");
        assert_ne!(id, request_id());
    }
}
