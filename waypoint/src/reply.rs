//! Answers that we give ourselves: bodies and headers as Envoy's, and for callers of gRPC a response of trailers only.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::body::Payload;

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its body; `text/plain`.
    pub body: Bytes,
    /// More headers.
    pub headers: HeaderMap,
    /// The gRPC status for callers of gRPC, if it does not follow from the HTTP status.
    pub grpc_status: Option<u16>,
}

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain");

impl Reply {
    /// A status with a text.
    pub fn text(status: u16, body: impl Into<Cow<'static, str>>) -> Self {
        let body = match body.into() {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        };
        // A configured status is checked when it is compiled; one that is none after all is an error of ours.
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, body, headers: HeaderMap::new(), grpc_status: None }
    }

    /// 503 of a limit, with the header that tells callers not to come back at once.
    pub fn overloaded(body: &'static str) -> Self {
        Self { headers: HeaderMap::from_iter([(OVERLOADED, HeaderValue::from_static("true"))]), ..Self::text(503, body) }
    }

    /// The same with a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// The response, in the form that the caller reads.
    pub fn into_response(self, is_grpc: bool) -> Response<Payload> {
        let mut response = match is_grpc {
            true => self.trailers_only(),
            false => {
                let mut response = Response::new(Payload::local(self.body.clone()));
                *response.status_mut() = self.status;
                if !self.body.is_empty() {
                    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
                }
                response
            }
        };
        response.headers_mut().extend(self.headers);
        response
    }

    /// gRPC's form of a failure: status 200, and the gRPC status in the headers.
    fn trailers_only(&self) -> Response<Payload> {
        let mut response = Response::new(Payload::local(Bytes::new()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, GRPC);
        headers.insert(GRPC_STATUS, HeaderValue::from(self.grpc_status.unwrap_or_else(|| grpc_status(self.status))));
        if !self.body.is_empty()
            && let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.body))
        {
            headers.insert(GRPC_MESSAGE, message);
        }
        response
    }
}

/// The gRPC status for an HTTP status (gRPC's `http-grpc-status-mapping`).
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// `grpc-message` is percent-encoded (gRPC over HTTP/2).
fn percent_encoded(text: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text {
        match byte {
            0x20..=0x7e if *byte != b'%' => encoded.push(char::from(*byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Whether a message is gRPC's, by its `content-type`.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The gRPC status in headers or trailers.
pub fn grpc_status_in(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_of_grpc_reads_a_grpc_status() {
        let response = Reply::text(503, "no healthy upstream").into_response(true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
        let denied = Reply { grpc_status: Some(9), ..Reply::text(200, "a%\n") }.into_response(true);
        assert_eq!(
            (&denied.headers()["grpc-status"], &denied.headers()["grpc-message"]),
            (&HeaderValue::from(9), &HeaderValue::from_static("a%25%0A"))
        );
    }

    #[test]
    fn overload_says_so() {
        let response = Reply::overloaded("overflow").into_response(false);
        assert_eq!((response.status().as_u16(), &response.headers()["x-envoy-overloaded"]), (503, &HeaderValue::from_static("true")));
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (kind, expected) in
            [("application/grpc", true), ("application/grpc+proto", true), ("application/grpc-web", false), ("text/plain", false)]
        {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
