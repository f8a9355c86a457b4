//! A request as decisions see it: normalised once, so that router and policy cannot disagree about it.
//!
//! [`canonical`] makes the path and [`canonical_host`] reads the host; [`RequestFacts`] carries both to `matching`, `rewrite` and
//! `authorize::request`. Whatever could mean two things to two readers is refused here.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use http::HeaderMap;

use crate::route::Caller;

mod host;
mod path;

pub use host::{CanonicalHost, InvalidHost, canonical_host};
pub use path::{AmbiguousPath, CanonicalPath, PathNormalization, canonical, has_dot_segment};

/// What routes and policies may ask about a request. All of it is borrowed: making one costs nothing.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// The method, in the case in which it was sent.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The authority as sent (`:authority` or `Host`), after [`canonical_host`] has accepted it.
    pub authority: &'a str,
    /// [`CanonicalPath::path`].
    pub path: &'a str,
    /// [`CanonicalPath::query`].
    pub query: Option<&'a str>,
    /// The headers as sent.
    pub headers: &'a HeaderMap,
    /// The port of the service that was addressed.
    pub port: u16,
    /// Who called, however many proxies are between.
    pub caller: &'a Caller,
    /// The first caller's address by `x-forwarded-for`, where that is trusted; `None` takes the caller's own.
    pub remote_address: Option<IpAddr>,
    /// The address that was called (a VIP, mostly), if it was an address.
    pub destination: Option<IpAddr>,
    /// The server name of the caller's TLS, if there was one that we ended.
    pub server_name: Option<&'a str>,
    /// The token that was presented and verified.
    pub token: Option<&'a Token>,
}

/// A verified token, as far as policies ask about it (RequestAuthentication).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token {
    /// `iss/sub`.
    pub principal: Arc<str>,
    /// `aud`.
    pub audiences: Vec<Arc<str>>,
    /// `azp`.
    pub presenter: Option<Arc<str>>,
    /// All claims by name.
    pub claims: BTreeMap<Arc<str>, Claim>,
}

/// A claim of a token. Numbers and truth values are their text; a claim that lists words between spaces (`scope`) is a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// One value.
    Text(Arc<str>),
    /// Several.
    List(Vec<Arc<str>>),
    /// Claims inside.
    Object(BTreeMap<Arc<str>, Claim>),
}

impl Token {
    /// The values at a path of claims (`request.auth.claims[a][b]`); none if it is not there or holds more claims.
    pub fn claim(&self, path: &[Arc<str>]) -> &[Arc<str>] {
        let Some((first, rest)) = path.split_first() else { return &[] };
        let mut claim = self.claims.get(first);
        for name in rest {
            claim = match claim {
                Some(Claim::Object(inside)) => inside.get(name),
                _ => None,
            };
        }
        match claim {
            Some(Claim::Text(text)) => std::slice::from_ref(text),
            Some(Claim::List(values)) => values,
            Some(Claim::Object(_)) | None => &[],
        }
    }
}

/// The first value of the parameter `name`, undecoded as Istio compares it; one without `=` is there and empty.
pub fn query_parameter<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    query?.split('&').find_map(|pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        (found == name).then_some(value)
    })
}

#[cfg(test)]
mod tests;
