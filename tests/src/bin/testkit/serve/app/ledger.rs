//! What the application counts: requests, by method, and which of them came twice.

use std::collections::{BTreeMap, HashMap};

use tropis_tests::testkit::calls::Seen;

/// Requests that are told apart; later ones only count.
const NONCES: usize = 1_000_000;
/// Repeated ones that are named.
const REPEATED: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    requests: u64,
    methods: BTreeMap<String, u64>,
    nonces: HashMap<String, u64>,
}

impl Ledger {
    pub(super) fn note(&mut self, method: &str, nonce: Option<&str>) {
        self.requests += 1;
        *self.methods.entry(method.to_owned()).or_default() += 1;
        if let Some(nonce) = nonce.filter(|nonce| self.nonces.len() < NONCES || self.nonces.contains_key(*nonce)) {
            *self.nonces.entry(nonce.to_owned()).or_default() += 1;
        }
    }

    pub(super) fn seen<'a>(&self, wanted: impl Iterator<Item = &'a str>) -> Seen {
        let repeated = self.nonces.iter().filter(|(_, count)| **count > 1).take(REPEATED);
        Seen {
            requests: self.requests,
            methods: self.methods.clone(),
            nonces: self.nonces.len() as u64,
            repeated: repeated.map(|(nonce, count)| (nonce.clone(), *count)).collect(),
            known: wanted.filter(|nonce| self.nonces.contains_key(*nonce)).map(str::to_owned).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twins_are_named() {
        let mut ledger = Ledger::default();
        for (method, nonce) in [("GET", None), ("POST", Some("a")), ("POST", Some("b")), ("POST", Some("a"))] {
            ledger.note(method, nonce);
        }
        let seen = ledger.seen(["a", "c"].into_iter());
        assert_eq!((seen.requests, seen.nonces, seen.methods["POST"]), (4, 2, 3));
        assert_eq!((seen.repeated, seen.known), (BTreeMap::from([("a".to_owned(), 2)]), vec!["a".to_owned()]));
    }
}
