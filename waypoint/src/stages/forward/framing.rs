//! Where a response ends, and what it makes of the connection: what hyper takes and two readers could understand in two ways is no response.
//! Of requests the same is found in `http_server/framing.rs`.

use std::rc::Rc;

use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};
use thiserror::Error;

/// Why a response is none.
#[derive(Debug, Clone, Error)]
pub enum MalformedResponse {
    /// It is not HTTP.
    #[error("it cannot be read")]
    Unreadable(#[source] Rc<hyper::Error>),
    /// Passed on, it would be cut to that length, or never end.
    #[error("it has both a length and a transfer encoding")]
    LengthAndEncoding,
    /// Passed on, it would be taken for decoded.
    #[error("its transfer encoding is another than chunked")]
    Encoding,
    /// 101 without a request that asked for it.
    #[error("it changes the protocol, which nobody asked for")]
    UnaskedUpgrade,
}

/// Refuses what callers could read otherwise than the endpoint meant it. `asked_upgrade`: 101 is an answer.
pub(super) fn check<B>(response: &Response<B>, asked_upgrade: bool) -> Result<(), MalformedResponse> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !asked_upgrade {
        return Err(MalformedResponse::UnaskedUpgrade);
    }
    // HTTP/2 has frames; a transfer encoding was refused when the head was read.
    if response.version() == Version::HTTP_2 { Ok(()) } else { check_encoding(response.headers()) }
}

fn check_encoding(headers: &HeaderMap) -> Result<(), MalformedResponse> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(encoding) = encodings.next() else { return Ok(()) };
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Err(MalformedResponse::LengthAndEncoding);
    }
    let is_chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if is_chunked(encoding) && encodings.next().is_none() { Ok(()) } else { Err(MalformedResponse::Encoding) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(status: u16, headers: &[(&str, &str)], asked_upgrade: bool) -> Option<String> {
        let with = |builder: http::response::Builder, (name, value): &(&str, &str)| builder.header(*name, *value);
        let response = headers.iter().fold(Response::builder().status(status), with).body(()).unwrap();
        check(&response, asked_upgrade).err().map(|malformed| malformed.to_string())
    }

    #[test]
    fn a_response_has_a_length_or_is_chunked() {
        let (length, chunked) = (("content-length", "5"), ("transfer-encoding", "chunked"));
        for good in [&[][..], &[length], &[chunked], &[("transfer-encoding", " Chunked ")]] {
            assert_eq!(checked(200, good, false), None, "{good:?}");
        }
        for (bad, why) in [
            (&[length, chunked][..], "it has both a length and a transfer encoding"),
            (&[chunked, ("content-length", "0")], "it has both a length and a transfer encoding"),
            (&[chunked, chunked], "its transfer encoding is another than chunked"),
            (&[("transfer-encoding", "gzip, chunked")], "its transfer encoding is another than chunked"),
            (&[("transfer-encoding", "gzip")], "its transfer encoding is another than chunked"),
            (&[("transfer-encoding", "")], "its transfer encoding is another than chunked"),
        ] {
            assert_eq!(checked(200, bad, true).as_deref(), Some(why), "{bad:?}");
        }
    }

    #[test]
    fn only_who_asked_is_answered_101() {
        assert_eq!(checked(101, &[("upgrade", "websocket")], true), None);
        assert_eq!(checked(101, &[], false).as_deref(), Some("it changes the protocol, which nobody asked for"));
    }
}
