//! A request as it comes off its connection: what only that connection needs goes no further, so that policy, router and endpoint see one
//! set of headers.

use http::{HeaderMap, HeaderName, HeaderValue, header};

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Prepares the headers of a request of HTTP/1.1.
pub(super) fn http1(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        remove_listed(headers);
    }
    if headers.contains_key(header::UPGRADE) && becomes_http(headers) {
        headers.remove(header::UPGRADE);
        headers.remove(header::CONNECTION);
        headers.remove(HTTP2_SETTINGS);
    }
}

/// Prepares the headers of a request of HTTP/2: a cookie in pieces is one again (RFC 9113 §8.2.3).
pub(super) fn http2(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(_)) = (pieces.next(), pieces.next()) else { return };
    let mut cookie = first.as_bytes().to_vec();
    for piece in headers.get_all(header::COOKIE).iter().skip(1) {
        cookie.extend_from_slice(b"; ");
        cookie.extend_from_slice(piece.as_bytes());
    }
    if let Ok(cookie) = HeaderValue::from_bytes(&cookie) {
        headers.insert(header::COOKIE, cookie);
    }
}

/// Removes what the caller says is for us alone (RFC 9110 §7.6.1), before routes add headers of their own: a caller that lists those
/// must not take them away.
fn remove_listed(headers: &mut HeaderMap) {
    let mut listed = Vec::new();
    let mut upgrades = false;
    for name in headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')) {
        match HeaderName::try_from(name.trim()) {
            Ok(header::UPGRADE) => upgrades = true,
            // Whether trailers are taken is asked later.
            Ok(header::TE) | Err(_) => {}
            Ok(name) => listed.push(name),
        }
    }
    for name in listed {
        headers.remove(name);
    }
    match upgrades {
        true => drop(headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"))),
        false => drop(headers.remove(header::CONNECTION)),
    }
}

/// Whether the connection may become one of HTTP, whose requests nobody would route and no policy would see (`h2c`, also inside TLS).
fn becomes_http(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::UPGRADE).iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).any(|protocol| {
        let protocol = protocol.trim_ascii().to_ascii_lowercase();
        [&b"h2"[..], b"h3", b"http", b"tls"].iter().any(|name| protocol.starts_with(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(prepare: fn(&mut HeaderMap), headers: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        prepare(&mut map);
        map.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    fn pairs(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_the_connection_lists_goes_no_further() {
        for (headers, expected) in [
            (&[("connection", "close"), ("a", "1")][..], &[("a", "1")][..]),
            (&[("connection", "X-Private, keep-alive"), ("x-private", "1"), ("a", "1")], &[("a", "1")]),
            (&[("connection", "te"), ("connection", "a"), ("te", "trailers"), ("a", "1")], &[("te", "trailers")]),
            (&[("connection", "Upgrade, a"), ("upgrade", "websocket"), ("a", "1")], &[("connection", "upgrade"), ("upgrade", "websocket")]),
        ] {
            let mut found = after(http1, headers);
            found.sort();
            assert_eq!(found, pairs(expected), "{headers:?}");
        }
    }

    #[test]
    fn no_connection_becomes_http_again() {
        for protocol in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.3, HTTP/1.1"] {
            let headers = [("connection", "upgrade, http2-settings"), ("upgrade", protocol), ("http2-settings", "AAMAAABk")];
            assert_eq!(after(http1, &headers), [], "{protocol}");
        }
    }

    #[test]
    fn a_cookie_in_pieces_is_one() {
        assert_eq!(after(http2, &[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]), pairs(&[("cookie", "a=1; b=2; c=3")]));
        assert_eq!(after(http2, &[("cookie", "a=1"), ("b", "2")]), pairs(&[("cookie", "a=1"), ("b", "2")]));
    }
}
