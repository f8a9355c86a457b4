//! Cross-origin rules: a preflight is answered here, other responses say to whom they may be shown.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tropis_model::{matching, route::Cors};

use super::{Answer, Exchange};
use crate::{reply::Reply, stages::report::flags::Flags};

pub(super) fn request(exchange: &mut Exchange<'_>) -> Option<Answer> {
    let cors = exchange.route().cors.as_ref()?;
    let origin = exchange.parts.headers.get(header::ORIGIN)?;
    let is_allowed = cors.allow_origins.iter().any(|wanted| matching::text(wanted, origin.as_bytes(), false));
    let is_preflight =
        exchange.parts.method == Method::OPTIONS && exchange.parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let answer = |headers| {
        let reply = Reply { headers, ..Reply::text(200, "") };
        Some(Answer { reply, flags: Flags::NONE, details: "cors_response" })
    };
    match (is_allowed, is_preflight) {
        // The origin itself is put in on the way back, as into any other response.
        (true, true) => {
            let headers = preflight(cors);
            exchange.allowed_origin = Some(origin.clone());
            answer(headers)
        }
        (true, false) => {
            exchange.allowed_origin = Some(origin.clone());
            None
        }
        (false, true) if cors.ignore_unmatched_preflights => answer(HeaderMap::new()),
        (false, _) => None,
    }
}

/// What a preflight is told besides the origin.
fn preflight(cors: &Cors) -> HeaderMap {
    let mut headers = HeaderMap::new();
    list(&mut headers, header::ACCESS_CONTROL_ALLOW_METHODS, &cors.allow_methods);
    list(&mut headers, header::ACCESS_CONTROL_ALLOW_HEADERS, &cors.allow_headers);
    if let Some(age) = cors.max_age {
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age.as_secs()));
    }
    headers
}

pub(super) fn response(exchange: &Exchange<'_>, response: &mut HeaderMap) {
    let (Some(cors), Some(origin)) = (&exchange.route().cors, &exchange.allowed_origin) else { return };
    response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.allow_credentials == Some(true) {
        response.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    list(response, header::ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose_headers);
}

fn list(headers: &mut HeaderMap, name: HeaderName, values: &[std::sync::Arc<str>]) {
    // A value that HTTP does not allow in a header permits nothing.
    if !values.is_empty()
        && let Ok(value) = HeaderValue::from_str(&values.join(","))
    {
        headers.insert(name, value);
    }
}
