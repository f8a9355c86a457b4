//! What a load asks for: a path, and header fields beside those that every client sends.

use std::str::FromStr;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

/// What most clients send in any case; a proxy that copies a request copies them.
const USUAL: [(HeaderName, HeaderValue); 2] =
    [(http::header::USER_AGENT, HeaderValue::from_static("tropis-testkit")), (http::header::ACCEPT, HeaderValue::from_static("*/*"))];

/// A request that is made again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) path: PathAndQuery,
    fields: Vec<(HeaderName, HeaderValue)>,
}

/// A text is no such request.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not PATH [NAME:VALUE]… (for example \"/reviews/1 end-user:jason\")")]
pub(super) struct InvalidAsk(String);

impl Ask {
    /// Its header fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.fields.iter()
    }
}

impl FromStr for Ask {
    type Err = InvalidAsk;

    fn from_str(text: &str) -> Result<Self, InvalidAsk> {
        let invalid = || InvalidAsk(text.to_owned());
        let mut words = text.split_whitespace();
        let path = words.next().filter(|path| path.starts_with('/')).and_then(|path| path.parse().ok()).ok_or_else(invalid)?;
        let own = words.map(|word| {
            let (name, value) = word.split_once(':')?;
            Some((name.parse().ok()?, value.parse().ok()?))
        });
        let own: Vec<_> = own.collect::<Option<_>>().ok_or_else(invalid)?;
        Ok(Self { path, fields: USUAL.into_iter().chain(own).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_follow_the_path() {
        let ask: Ask = "/reviews?x=1 end-user:jason a:b".parse().expect("valid");
        assert_eq!((ask.path.as_str(), ask.fields().count()), ("/reviews?x=1", 4));
        for bad in ["", "reviews", "/a b", "/a \u{1}:b"] {
            assert!(bad.parse::<Ask>().is_err(), "{bad:?}");
        }
    }
}
