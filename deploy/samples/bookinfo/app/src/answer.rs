//! Responses: JSON, pages, redirections, and the header field in which each pod says that it took part.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

/// What every route gives.
pub(crate) type Answer = Response<Full<Bytes>>;

/// Header field that names the pods behind an answer, the nearest first, and the caller's address that each saw:
/// `reviews-v2-abc;saw=10.244.1.4, ratings-v1-def;saw=10.244.2.7`.
pub(crate) const SERVED_BY: &str = "x-bookinfo-served-by";

/// Header field of reviews that names their version, for whoever counts how traffic is split.
pub(crate) const VERSION: &str = "x-version";

/// No scripts, no foreign content, no framing: the page brings all that it needs.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let text = serde_json::to_string(value).expect("the shop's types are plain data with string keys");
    respond(status, "application/json", text)
}

pub(crate) fn error(status: StatusCode, message: &str) -> Answer {
    json(status, &serde_json::json!({ "error": message }))
}

pub(crate) fn html(text: String) -> Answer {
    let mut answer = respond(StatusCode::OK, "text/html; charset=utf-8", text);
    let fields = answer.headers_mut();
    fields.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    fields.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    answer
}

pub(crate) fn redirect(to: &'static str) -> Answer {
    let mut answer = respond(StatusCode::SEE_OTHER, "text/plain", "");
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static(to));
    answer
}

fn respond(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let fields = answer.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
