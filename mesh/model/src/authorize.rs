//! Whether a connection may be: L4 policy, decided on one view.
//!
//! Order: a DENY that matches denies; a policy that is named and missing denies; without ALLOW policies all is allowed; with some, one
//! must match. Dry-run policies are only reported. The proof of having been allowed is a [`Permit`], which nothing else can make, so no
//! stage after this one can run without it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use thiserror::Error;

use crate::{
    identity::Identity,
    policy::{Action, Clause, Match, Policy, PolicyKey, Rule, StringMatch},
    resolve::Plan,
    view::View,
    workload::{Workload, WorkloadUid},
};

pub mod request;

/// What a policy can look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// The identity that the peer proved; `None` for plain traffic.
    pub peer: Option<Identity>,
    /// The peer's address.
    pub source: IpAddr,
    /// The workload's own address and port, after all mapping.
    pub destination: SocketAddr,
}

/// The leave to connect. Made only by the functions of this module.
#[derive(Debug, Clone)]
pub struct Permit {
    inbound: Option<(WorkloadUid, ConnectionFacts)>,
    dry_run_denial: Option<Denied>,
}

impl Permit {
    /// Decides again, on a newer view. An error means that the permit is revoked: close the connection. A workload that the view no
    /// longer holds revokes nothing, because its pod is gone and its connections with it.
    pub fn check(&self, view: &View) -> Result<(), Denied> {
        let Some((uid, facts)) = &self.inbound else { return Ok(()) };
        match view.workload(uid) {
            Some(workload) => inbound(view, workload, facts).map(|_| ()),
            None => Ok(()),
        }
    }

    /// What a dry-run policy would have denied: for the log.
    pub fn dry_run_denial(&self) -> Option<&Denied> {
        self.dry_run_denial.as_ref()
    }
}

/// The connection is not allowed. Close it, and log the policies.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Denied {
    /// A DENY policy matched.
    #[error("denied by policy {0}")]
    ByPolicy(PolicyKey),
    /// ALLOW policies apply and none of them matched.
    #[error("not allowed by any of the policies {}", Keys(.0))]
    ByNone(Vec<PolicyKey>),
    /// A policy that applies has not arrived yet.
    #[error("policy {0} applies and has not arrived yet")]
    Missing(PolicyKey),
}

impl Denied {
    /// The policies to name in the log.
    pub fn policies(&self) -> &[PolicyKey] {
        match self {
            Self::ByPolicy(key) | Self::Missing(key) => std::slice::from_ref(key),
            Self::ByNone(keys) => keys,
        }
    }
}

/// The leave for a connection that a local pod opens. Policy is enforced at the destination, where the caller is proved, so every plan
/// that could be made is permitted here; a plan that would go around a required waypoint cannot be made.
pub fn outbound(_plan: &Plan) -> Permit {
    Permit { inbound: None, dry_run_denial: None }
}

/// Decides about a connection to `workload`.
pub fn inbound(view: &View, workload: &Workload, facts: &ConnectionFacts) -> Result<Permit, Denied> {
    let mut missing = None;
    let mut allowing = Vec::new();
    let mut allowed = false;
    let mut dry_run_allowing = Vec::new();
    let mut dry_run_allowed = false;
    let mut dry_run_denial = None;
    for policy in view.policies_for(workload) {
        let policy = match policy {
            Ok(policy) => policy,
            Err(key) => {
                missing.get_or_insert(key);
                continue;
            }
        };
        let matched = policy_matches(policy, facts);
        match (policy.action, policy.dry_run) {
            (Action::Deny, false) if matched => return Err(Denied::ByPolicy(policy.key.clone())),
            (Action::Deny, true) if matched => {
                dry_run_denial.get_or_insert(Denied::ByPolicy(policy.key.clone()));
            }
            (Action::Deny, _) => {}
            (Action::Allow, false) => {
                allowed |= matched;
                allowing.push(&policy.key);
            }
            (Action::Allow, true) => {
                dry_run_allowed |= matched;
                dry_run_allowing.push(&policy.key);
            }
        }
    }
    let named = |keys: Vec<&PolicyKey>| Denied::ByNone(keys.into_iter().cloned().collect());
    if let Some(key) = missing {
        return Err(Denied::Missing(key));
    }
    if !allowing.is_empty() && !allowed {
        return Err(named(allowing));
    }
    if dry_run_denial.is_none() && !dry_run_allowing.is_empty() && !dry_run_allowed {
        dry_run_denial = Some(named(dry_run_allowing));
    }
    Ok(Permit { inbound: Some((workload.uid.clone(), facts.clone())), dry_run_denial })
}

/// Whether a policy matches the facts: any of its rules does.
pub fn policy_matches(policy: &Policy, facts: &ConnectionFacts) -> bool {
    matching_rule(policy, facts).is_some()
}

fn matching_rule(policy: &Policy, facts: &ConnectionFacts) -> Option<usize> {
    policy.rules.iter().position(|rule| rule_matches(rule, facts))
}

/// What one policy that applies says about a connection, for `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is there.
    Asked {
        /// The policy.
        policy: &'a Policy,
        /// The first of its rules that matches, from 0.
        rule: Option<usize>,
    },
    /// It has not arrived: [`inbound`] denies.
    Missing(PolicyKey),
}

/// What each policy says that [`inbound`] asks, in order.
pub fn explain<'a>(view: &'a View, workload: &'a Workload, facts: &ConnectionFacts) -> Vec<Verdict<'a>> {
    let verdict = |policy: Result<&'a std::sync::Arc<Policy>, PolicyKey>| match policy {
        Ok(policy) => Verdict::Asked { policy, rule: matching_rule(policy, facts) },
        Err(key) => Verdict::Missing(key),
    };
    view.policies_for(workload).map(verdict).collect()
}

fn rule_matches(rule: &Rule, facts: &ConnectionFacts) -> bool {
    rule.clauses.iter().all(|clause| clause_matches(clause, facts))
}

fn clause_matches(clause: &Clause, facts: &ConnectionFacts) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|one| match_matches(one, facts))
}

fn match_matches(one: &Match, facts: &ConnectionFacts) -> bool {
    if *one == Match::default() {
        return false;
    }
    let namespace = facts.peer.as_ref().map_or("", |peer| &peer.namespace);
    let port = facts.destination.port();
    let in_namespace = |value: &StringMatch| string_matches(value, namespace);
    let is_principal = |value: &StringMatch| facts.peer.as_ref().is_some_and(|peer| principal_matches(value, peer));
    let is_account = |value: &crate::policy::ServiceAccountMatch| {
        facts.peer.as_ref().is_some_and(|peer| peer.namespace == value.namespace && peer.service_account == value.service_account)
    };
    field(&one.namespaces, &one.not_namespaces, in_namespace)
        && field(&one.principals, &one.not_principals, is_principal)
        && field(&one.service_accounts, &one.not_service_accounts, is_account)
        && field(&one.source_ips, &one.not_source_ips, |block| block.contains(&facts.source))
        && field(&one.destination_ips, &one.not_destination_ips, |block| block.contains(&facts.destination.ip()))
        && field(&one.destination_ports, &one.not_destination_ports, |own| *own == port)
}

/// A field holds when it is empty or one value matches, and none of the negated values does.
fn field<T>(values: &[T], negated: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (values.is_empty() || values.iter().any(&matches)) && !negated.iter().any(&matches)
}

fn string_matches(value: &StringMatch, text: &str) -> bool {
    match value {
        StringMatch::Exact(exact) => text == &**exact,
        StringMatch::Prefix(prefix) => text.starts_with(&**prefix),
        StringMatch::Suffix(suffix) => text.ends_with(&**suffix),
        StringMatch::Presence => !text.is_empty(),
    }
}

fn principal_matches(value: &StringMatch, peer: &Identity) -> bool {
    match value {
        StringMatch::Presence => true,
        _ => string_matches(value, &peer.principal()),
    }
}

struct Keys<'a>(&'a [PolicyKey]);

impl fmt::Display for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.0.iter().enumerate() {
            write!(f, "{}{key}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
