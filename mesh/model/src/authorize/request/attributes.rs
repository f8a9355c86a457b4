//! What a rule may ask about, for requests and for connections alike.

use std::net::{IpAddr, SocketAddr};

use crate::{identity::Identity, policy::StringMatch, request::RequestFacts, route::Caller};

use super::{ServerName, StreamFacts};

/// What is asked about. Without `request` it is a connection, and what only HTTP has is not there to be asked.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) request: Option<&'a RequestFacts<'a>>,
    pub(super) caller: &'a Caller,
    pub(super) port: u16,
    pub(super) destination: Option<IpAddr>,
    pub(super) server_name: ServerName<&'a str>,
}

impl<'a> Asked<'a> {
    pub(super) fn request(facts: &'a RequestFacts<'a>) -> Self {
        Self {
            request: Some(facts),
            caller: facts.caller,
            port: facts.port,
            destination: facts.destination,
            server_name: facts.server_name.map_or(ServerName::Absent, ServerName::Named),
        }
    }

    pub(super) fn stream(facts: &StreamFacts<'a>) -> Self {
        Self { request: None, caller: facts.caller, port: facts.port, destination: facts.destination, server_name: facts.server_name }
    }

    /// The same, at the endpoint that was chosen.
    pub(super) fn at(self, address: SocketAddr) -> Self {
        Self { port: address.port(), destination: Some(address.ip()), ..self }
    }

    /// Whether the caller's principal matches; without an identity it does not.
    pub(super) fn is_principal(&self, value: &StringMatch) -> bool {
        let parts = |identity: &'a Identity| [&*identity.trust_domain, "/ns/", &identity.namespace, "/sa/", &identity.service_account];
        self.caller.identity.as_ref().is_some_and(|identity| joined(value, &parts(identity)))
    }

    /// Whether `namespace/account` matches.
    pub(super) fn is_service_account(&self, value: &StringMatch) -> bool {
        let parts = |identity: &'a Identity| [&*identity.namespace, "/", &identity.service_account];
        self.caller.identity.as_ref().is_some_and(|identity| joined(value, &parts(identity)))
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.caller.identity.as_ref().map(|identity| &*identity.namespace)
    }

    pub(super) fn source(&self) -> Option<IpAddr> {
        self.caller.address.map(|address| address.to_canonical())
    }
}

/// Whether the parts, joined, match: without joining them, because each request asks.
fn joined(value: &StringMatch, parts: &[&str]) -> bool {
    match value {
        StringMatch::Exact(exact) => parts.iter().try_fold(&**exact, |rest, part| rest.strip_prefix(part)).is_some_and(str::is_empty),
        StringMatch::Prefix(prefix) => {
            let mut rest = &**prefix;
            for part in parts {
                match rest.strip_prefix(part) {
                    Some(after) => rest = after,
                    None => return part.starts_with(rest),
                }
            }
            rest.is_empty()
        }
        StringMatch::Suffix(suffix) => {
            let mut rest = &**suffix;
            for part in parts.iter().rev() {
                match rest.strip_suffix(part) {
                    Some(before) => rest = before,
                    None => return part.ends_with(rest),
                }
            }
            rest.is_empty()
        }
        StringMatch::Presence => parts.iter().any(|part| !part.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_match_as_their_joined_text(parts in prop::collection::vec("[ab]{0,2}", 0..5), wanted in "[ab]{0,6}", cut in 0usize..8) {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let text = parts.concat();
            let cut = cut.min(text.len());
            for wanted in [&*wanted, &text, &text[cut..], &text[..cut]] {
                prop_assert_eq!(joined(&StringMatch::Exact(wanted.into()), &parts), text == wanted);
                prop_assert_eq!(joined(&StringMatch::Prefix(wanted.into()), &parts), text.starts_with(wanted));
                prop_assert_eq!(joined(&StringMatch::Suffix(wanted.into()), &parts), text.ends_with(wanted));
            }
            prop_assert_eq!(joined(&StringMatch::Presence, &parts), !text.is_empty());
        }
    }
}
