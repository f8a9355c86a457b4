//! A request as it is sent on: what the policies of another service than the one addressed are asked about.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, header};

use crate::request::{AmbiguousPath, CanonicalPath, PathNormalization, RequestFacts, canonical};

/// What a route makes of a request that it brings to another service.
#[derive(Debug, Clone)]
pub struct Sent<'a> {
    path: CanonicalPath<'a>,
    authority: &'a str,
    headers: Cow<'a, HeaderMap>,
    port: u16,
}

impl<'a> Sent<'a> {
    /// A request for `target` (path and query) of `authority`, to `port` of the other service. `headers` are those of the caller after the
    /// changes of the route, and `host` among them is the authority whatever they say. Errors where a rewrite made a path that has no
    /// single meaning: refuse it with 400.
    pub fn new(
        target: &'a str,
        authority: &'a str,
        headers: &'a HeaderMap,
        port: u16,
        normalization: PathNormalization,
    ) -> Result<Self, AmbiguousPath> {
        let path = canonical(target, normalization)?;
        let mut headers = Cow::Borrowed(headers);
        if headers.get(header::HOST).is_some_and(|host| host.as_bytes() != authority.as_bytes()) {
            match HeaderValue::from_str(authority) {
                Ok(host) => drop(headers.to_mut().insert(header::HOST, host)),
                Err(_) => drop(headers.to_mut().remove(header::HOST)),
            }
        }
        Ok(Self { path, authority, headers, port })
    }

    /// What policies may ask about it; of the request as it `came` there is what no route changes. No address of the other service was
    /// called, so rules are in doubt about that.
    pub fn facts<'f>(&'f self, came: &RequestFacts<'f>) -> RequestFacts<'f> {
        RequestFacts {
            authority: self.authority,
            path: &self.path.path,
            query: self.path.query,
            headers: &self.headers,
            port: self.port,
            destination: None,
            ..*came
        }
    }
}
