//! What the parts of a policy mean, for one caller.

use crate::{
    authorize::ConnectionFacts,
    identity::Identity,
    policy::{Clause, Match, Rule, ServiceAccountMatch, StringMatch},
};

/// The facts, with what is made of them once a decision.
pub(super) struct Caller<'a> {
    pub(super) facts: &'a ConnectionFacts,
    pub(super) principal: Option<String>,
}

/// A field of a [`Match`] by which rules can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Principals,
    ServiceAccounts,
    Namespaces,
    SourceIps,
    DestinationPorts,
}

impl<'a> Caller<'a> {
    pub(super) fn new(facts: &'a ConnectionFacts) -> Self {
        Self { facts, principal: facts.peer.as_ref().map(Identity::principal) }
    }

    /// The peer's namespace; "" without one.
    pub(super) fn namespace(&self) -> &str {
        self.facts.peer.as_ref().map_or("", |peer| &peer.namespace)
    }

    pub(super) fn meets_rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|clause| self.meets_clause(clause))
    }

    pub(super) fn meets_clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|one| self.meets(one, None))
    }

    /// Whether a match holds; a value of the field `found` is known to match already.
    pub(super) fn meets(&self, one: &Match, found: Option<Field>) -> bool {
        if *one == Match::default() {
            return false;
        }
        let facts = self.facts;
        let port = facts.destination.port();
        let in_namespace = |value: &StringMatch| string_matches(value, self.namespace());
        let is_principal = |value: &StringMatch| self.principal.as_deref().is_some_and(|own| principal_matches(value, own));
        let is_account = |value: &ServiceAccountMatch| {
            facts.peer.as_ref().is_some_and(|peer| peer.namespace == value.namespace && peer.service_account == value.service_account)
        };
        let known = |field| found == Some(field);
        holds(known(Field::Namespaces), &one.namespaces, &one.not_namespaces, in_namespace)
            && holds(known(Field::Principals), &one.principals, &one.not_principals, is_principal)
            && holds(known(Field::ServiceAccounts), &one.service_accounts, &one.not_service_accounts, is_account)
            && holds(known(Field::SourceIps), &one.source_ips, &one.not_source_ips, |block| block.contains(&facts.source))
            && holds(false, &one.destination_ips, &one.not_destination_ips, |block| block.contains(&facts.destination.ip()))
            && holds(known(Field::DestinationPorts), &one.destination_ports, &one.not_destination_ports, |own| *own == port)
    }
}

/// A field holds when it is empty or one value matches (which may be known), and none of the negated values does.
fn holds<T>(known: bool, values: &[T], negated: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (known || values.is_empty() || values.iter().any(&matches)) && !negated.iter().any(&matches)
}

fn string_matches(value: &StringMatch, text: &str) -> bool {
    match value {
        StringMatch::Exact(exact) => text == &**exact,
        StringMatch::Prefix(prefix) => text.starts_with(&**prefix),
        StringMatch::Suffix(suffix) => text.ends_with(&**suffix),
        StringMatch::Presence => !text.is_empty(),
    }
}

fn principal_matches(value: &StringMatch, principal: &str) -> bool {
    match value {
        StringMatch::Presence => true,
        _ => string_matches(value, principal),
    }
}
