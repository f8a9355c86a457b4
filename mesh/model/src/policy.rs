//! An L4 authorization policy in the form in which it is decided (`istio.security.Authorization`).
//!
//! A policy is OR over rules, a rule AND over clauses, a clause OR over matches, a match AND over fields, a field OR over values;
//! a `not_` field holds when none of its values matches. See `reference`: no rules never match, a rule without clauses matches
//! everything, a clause without matches is true, a match without any field is false.

use std::{fmt, sync::Arc};

use ipnet::IpNet;

/// Where a policy applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyScope {
    /// To every workload.
    Global,
    /// To the workloads of its namespace.
    Namespace,
    /// To the workloads that list its key.
    WorkloadSelector,
}

/// What a matching policy means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Allowed, unless another denies.
    Allow,
    /// Denied.
    Deny,
}

/// A policy's name, `namespace/name`: what a denial is logged with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey(pub Arc<str>);

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An authorization policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `namespace/name`.
    pub key: PolicyKey,
    /// The policy's namespace.
    pub namespace: Arc<str>,
    /// Where it applies.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// Any rule that matches makes the policy match.
    pub rules: Vec<Rule>,
    /// Matches are logged, never enforced.
    pub dry_run: bool,
}

/// All clauses must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The clauses.
    pub clauses: Vec<Clause>,
}

/// One match must hold; an empty clause holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clause {
    /// The matches.
    pub matches: Vec<Match>,
}

/// All fields that are not empty must hold; a match whose fields are all empty never holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// The peer's namespace, from its certificate; "" without one.
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's principal (identity without `spiffe://`); without one no positive value matches.
    pub principals: Vec<StringMatch>,
    /// None of these; a peer without an identity passes.
    pub not_principals: Vec<StringMatch>,
    /// The peer's service account, any trust domain.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// None of these.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The peer's IP.
    pub source_ips: Vec<IpNet>,
    /// None of these.
    pub not_source_ips: Vec<IpNet>,
    /// The workload's IP.
    pub destination_ips: Vec<IpNet>,
    /// None of these.
    pub not_destination_ips: Vec<IpNet>,
    /// The workload's port (target port, not service port).
    pub destination_ports: Vec<u16>,
    /// None of these.
    pub not_destination_ports: Vec<u16>,
}

/// A namespace and a service account in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The service account.
    pub service_account: Arc<str>,
}

/// How a string is matched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Starts with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Anything but empty.
    Presence,
}
