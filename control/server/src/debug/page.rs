//! The page that draws the live graph, and what keeps others away from it where the socket is forwarded to a port of the loopback.
//!
//! The page is one file with everything in it. A browser that shows it runs nothing else and speaks to nobody else: the policy names the
//! hashes of its one script and its one style.

use std::sync::LazyLock;

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use tropis_telemetry::chain;

use crate::graph::look::{Look, LookError};

const PAGE: &str = include_str!("page.html");

/// Forbids everything but what is in the page, and asking where it came from.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag: &str| {
        let text = inside(PAGE, tag).unwrap_or_default();
        BASE64_STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()))
    };
    let (script, style) = (hash("script"), hash("style"));
    format!(
        "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
});

/// `/`, the page, and `/graph.json`, what it draws.
pub(crate) fn routes(look: Look) -> Router {
    async fn page() -> Response {
        let policy = HeaderValue::from_str(&POLICY).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        answer("text/html; charset=utf-8", Bytes::from_static(PAGE.as_bytes()), &[(header::CONTENT_SECURITY_POLICY, policy)])
    }
    async fn graph(State(look): State<Look>) -> Response {
        match look.graph().await {
            Ok(graph) => answer("application/json", graph, &[]),
            Err(error) => {
                let status = match error {
                    LookError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
                    LookError::Sockets { .. } | LookError::Write(_) => StatusCode::INTERNAL_SERVER_ERROR,
                };
                (status, format!("{}\n", chain(&error))).into_response()
            }
        }
    }
    Router::new().route("/", get(page)).route("/graph.json", get(graph)).with_state(look)
}

/// What stands between the page's only `<TAG>` and its end.
fn inside<'a>(page: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&format!("<{tag}>"))?;
    rest.split_once(&format!("</{tag}>")).map(|(text, _)| text)
}

/// An answer that no other site may use, and no cache keep.
fn answer(kind: &'static str, body: Bytes, more: &[(HeaderName, HeaderValue)]) -> Response {
    let own = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    let mut response = body.into_response();
    let all = own.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).chain(more.iter().cloned());
    response.headers_mut().extend(all);
    response
}

/// Refuses what a page of somebody else makes a browser ask. The socket is private, but whoever forwards it to a port opens it to the
/// browsers of this machine: by a name that was made to lead there (DNS rebinding), or by a form that posts.
pub(crate) async fn refuse_foreign(request: Request, next: Next) -> Response {
    let headers = request.headers();
    // HTTP/1.0 may leave it out; browsers do not.
    let host = headers.get(header::HOST);
    if host.is_some_and(|host| !is_local(host)) {
        return (StatusCode::FORBIDDEN, "this is not for that host: ask for localhost or 127.0.0.1\n").into_response();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) && headers.contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "this is not for browsers\n").into_response();
    }
    next.run(request).await
}

fn is_local(host: &HeaderValue) -> bool {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let loopback = name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    !authority.as_str().contains('@') && (loopback || name.eq_ignore_ascii_case("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        let local = |host: &'static str| is_local(&HeaderValue::from_static(host));
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:9081", "127.1.2.3", "[::1]", "[::1]:9081"] {
            assert!(local(host), "{host}");
        }
        for host in
            ["", "evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.evil.example:80", "me@localhost", "a b", "0.0.0.0"]
        {
            assert!(!local(host), "{host}");
        }
    }

    #[test]
    fn the_page_is_one_file_that_needs_nothing_else() {
        for tag in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{tag}")).count(), 1, "one <{tag}>, without attributes");
            assert!(inside(PAGE, tag).is_some_and(|text| !text.trim().is_empty()), "{tag}");
        }
        // The policy would refuse these anyhow; then the page would be broken.
        for foreign in ["src=", "@import", "url(", " style=\"", "innerHTML", "document.write", "insertAdjacentHTML"] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        let addresses =
            PAGE.match_indices("://").filter(|(at, _)| !PAGE[..*at].ends_with("http") || !PAGE[*at..].starts_with("://www.w3.org/"));
        assert_eq!(addresses.count(), 0, "no address but the name of SVG's namespace");
    }
}
