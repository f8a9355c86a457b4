//! The head of a request as it goes out: what belongs to the caller's connection is left out, what says where it came from is added.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use http_body::Body;
use tropis_model::{
    request::{AmbiguousPath, PathNormalization, RequestFacts},
    rewrite::Sent,
};

use crate::{
    body::RequestBody,
    request::Journey,
    stages::route::{Head, ORIGINAL_PATH},
    upstream::connections::HttpVersion,
};

/// The header that lists the callers.
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The header that names a request.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Headers that are about one connection (RFC 9110 §7.6.1), besides those that `connection` lists.
const HOP_BY_HOP: [HeaderName; 6] =
    [header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::TE, header::UPGRADE];
/// What is said anew: the host is the authority's; the caller was told to go on (`expect`) when its body was first asked for.
const SAID_ANEW: [HeaderName; 2] = [header::HOST, header::EXPECT];
/// Headers that a request gets here at most.
const ADDED_HEADERS: usize = 8;

/// A request's head, the same for each try but for its number and the version of HTTP.
#[derive(Debug, Clone)]
pub struct Outgoing {
    method: Method,
    scheme: http::uri::Scheme,
    head: Head,
    /// What names the request, the caller's or ours.
    pub request_id: HeaderValue,
    /// The callers, with this one.
    pub forwarded_for: HeaderValue,
    has_trailers: bool,
    normalization: PathNormalization,
    /// What the caller wants the connection to become.
    upgrade: Option<HeaderValue>,
}

impl Outgoing {
    /// The head as it goes out.
    pub fn new(journey: &Journey<'_>, head: Head) -> Self {
        let headers = head.changed.as_ref().unwrap_or(journey.facts.headers);
        let method = Method::from_bytes(journey.facts.method.as_bytes()).unwrap_or(Method::GET);
        let scheme = if journey.facts.scheme == "https" { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP };
        Self {
            method,
            scheme,
            request_id: headers.get(REQUEST_ID).cloned().unwrap_or_else(request_id),
            forwarded_for: forwarded_for(headers, &journey.entry.source_text),
            has_trailers: lists_in(headers, &header::TE, "trailers"),
            normalization: journey.entry.worker.shared.config.path_normalization,
            upgrade: headers.get(header::UPGRADE).filter(|_| lists_in(headers, &header::CONNECTION, "upgrade")).cloned(),
            head,
        }
    }

    /// What is sent to `port` of another service, as that one's policies look at it; `came` is the request as it came.
    pub fn sent<'a>(&'a self, came: &RequestFacts<'a>, port: u16) -> Result<Sent<'a>, AmbiguousPath> {
        let headers = self.head.changed.as_ref().unwrap_or(came.headers);
        // It was made of text.
        let authority = std::str::from_utf8(self.head.authority.as_bytes()).unwrap_or_default();
        Sent::new(self.head.target.as_str(), authority, headers, port, self.normalization)
    }

    /// Whether the caller wants to change the protocol.
    pub fn wants_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }

    /// The request of try `number` (from 1). `received` are the headers as they came.
    pub fn request(&self, received: &HeaderMap, number: u32, version: HttpVersion, body: RequestBody) -> Request<RequestBody> {
        let is_sized = body.is_end_stream() || body.size_hint().exact().is_some();
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers(received, number);
        match version {
            HttpVersion::Http1 => {
                let headers = request.headers_mut();
                headers.insert(header::HOST, self.head.authority.clone());
                if !is_sized {
                    // Unasked, hyper sends a GET's body of unknown length not at all.
                    headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
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

    /// The headers of a try, made in one go: one allocation each for what is passed on and for what is added.
    fn headers(&self, received: &HeaderMap, number: u32) -> HeaderMap {
        let given = self.head.changed.as_ref().unwrap_or(received);
        let mut headers = HeaderMap::with_capacity(given.len() + ADDED_HEADERS);
        let stays = |name: &HeaderName| !HOP_BY_HOP.contains(name) && !SAID_ANEW.contains(name);
        for (name, value) in given.iter().filter(|(name, _)| stays(name)) {
            headers.append(name, value.clone());
        }
        remove_listed(given, &mut headers);
        if self.has_trailers {
            headers.insert(header::TE, TRAILERS);
        }
        if !headers.contains_key(FORWARDED_PROTO) {
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if self.scheme.as_str() == "https" { "https" } else { "http" }));
        }
        headers.insert(REQUEST_ID, self.request_id.clone());
        headers.insert(FORWARDED_FOR, self.forwarded_for.clone());
        headers.insert(ATTEMPT_COUNT, HeaderValue::from(number));
        if let Some(path) = &self.head.original_path {
            headers.insert(ORIGINAL_PATH, path.clone());
        }
        headers
    }

    /// The request that asks to change the protocol.
    pub fn upgrade_request(&self, received: &HeaderMap, body: RequestBody) -> Request<RequestBody> {
        let mut request = self.request(received, 1, HttpVersion::Http1, body);
        if let Some(upgrade) = &self.upgrade {
            request.headers_mut().insert(header::UPGRADE, upgrade.clone());
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        request
    }
}

/// Leaves out what is about one connection only.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let given = headers.clone();
        remove_listed(&given, headers);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Leaves out of `headers` what `connection` lists in those that were `given`.
fn remove_listed(given: &HeaderMap, headers: &mut HeaderMap) {
    let values = given.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in values.flat_map(|value| value.split(',')) {
        if let Ok(name) = HeaderName::try_from(name.trim()) {
            headers.remove(name);
        }
    }
}

fn lists_in(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let mut words = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    words.any(|found| found.trim().eq_ignore_ascii_case(word))
}

/// The callers in their order, from all lines of the header, then `address`.
fn forwarded_for(headers: &HeaderMap, address: &HeaderValue) -> HeaderValue {
    let mut all = Vec::new();
    for before in headers.get_all(FORWARDED_FOR).iter().filter(|before| !before.is_empty()) {
        all.extend_from_slice(before.as_bytes());
        all.extend_from_slice(b", ");
    }
    if all.is_empty() {
        return address.clone();
    }
    all.extend_from_slice(address.as_bytes());
    // An address, after what were a header's values before, is one.
    HeaderValue::from_bytes(&all).unwrap_or_else(|_| address.clone())
}

/// A UUID of version 4 (RFC 9562 §5.4).
fn request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let random: u128 = rand::random();
    let mut left = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let mut text = *b"00000000-0000-4000-8000-000000000000";
    for place in text.iter_mut().filter(|place| **place != b'-') {
        *place = DIGITS[(left >> 124) as usize];
        left <<= 4;
    }
    let mut id = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("00000000-0000-4000-8000-000000000000"));
    // No two requests share it: in HPACK's table (RFC 7541 §7.1) it would only push out what they do share.
    id.set_sensitive(true);
    id
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
        let first = forwarded_for(&headers, &HeaderValue::from_static("10.0.0.1"));
        assert_eq!(first, "10.0.0.1");
        headers.append(FORWARDED_FOR, first);
        headers.append(FORWARDED_FOR, HeaderValue::from_static("10.0.0.7"));
        assert_eq!(forwarded_for(&headers, &HeaderValue::from_static("fd00::2")), "10.0.0.1, 10.0.0.7, fd00::2");
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
