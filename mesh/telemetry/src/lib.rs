//! What a program says about itself: logs, one access line per connection, metrics, readiness, and the endpoints that serve them;
//! and what it is told ([`settings`]).
//!
//! Each program registers its own metrics and routes; this crate knows the formats (Istio's names for fields, labels and paths).
//! Start with [`logs::start`], [`access::Access`] and [`admin`].

pub mod access;
pub mod admin;
pub mod logs;
pub mod metrics;
pub mod readiness;
pub mod serve;
pub mod settings;

use std::error::Error;

/// An error and everything below it in one line: `outer: cause: root cause`. For log fields.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let own = next.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("cannot open {name}")]
    struct CannotOpen {
        name: &'static str,
        #[source]
        cause: io::Error,
    }

    #[test]
    fn causes_follow_their_effect_once() {
        let error = CannotOpen { name: "map", cause: io::Error::other("gone") };
        assert_eq!(chain(&error), "cannot open map: gone");
        assert_eq!(chain(&io::Error::other("gone")), "gone");
    }
}
