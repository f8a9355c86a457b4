//! Whether a connection may be: L4 policy, decided on one view.
//!
//! Order: a DENY that matches denies; a policy that is named and missing denies; without ALLOW policies all is allowed; with some, one
//! must match. Dry-run policies are only reported. The proof of having been allowed is a [`Permit`], which nothing else can make, so no
//! stage after this one can run without it.

mod compiled;
mod matching;

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use thiserror::Error;

pub(crate) use self::compiled::PolicySet;
use self::{compiled::Rules, matching::Caller};
use crate::{
    identity::Identity,
    policy::{Policy, PolicyKey},
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

/// Decides about a connection to `workload`. The time that it takes does not grow with the number of policies (`compiled.rs`).
pub fn inbound(view: &View, workload: &Workload, facts: &ConnectionFacts) -> Result<Permit, Denied> {
    let caller = Caller::new(facts);
    let sets = view.policy_sets(workload);
    if let Some(key) = sets.iter().find_map(|set| set.deny.first(&caller)) {
        return Err(Denied::ByPolicy(key.clone()));
    }
    if let Some(key) = sets.iter().find_map(|set| set.missing.as_ref()) {
        return Err(Denied::Missing(key.clone()));
    }
    allowed(&sets, &caller, |set| &set.allow)?;
    let dry_run_denial = match sets.iter().find_map(|set| set.dry_run_deny.first(&caller)) {
        Some(key) => Some(Denied::ByPolicy(key.clone())),
        None => allowed(&sets, &caller, |set| &set.dry_run_allow).err(),
    };
    Ok(Permit { inbound: Some((workload.uid.clone(), facts.clone())), dry_run_denial })
}

/// With ALLOW policies, one must match.
fn allowed(sets: &[Cow<'_, PolicySet>], caller: &Caller<'_>, allow: impl Fn(&PolicySet) -> &Rules) -> Result<(), Denied> {
    let allows = || sets.iter().map(|set| allow(set));
    if allows().all(Rules::is_empty) || allows().any(|rules| rules.any(caller)) {
        return Ok(());
    }
    Err(Denied::ByNone(allows().flat_map(Rules::names).collect()))
}

/// Whether a policy matches the facts: any of its rules does.
pub fn policy_matches(policy: &Policy, facts: &ConnectionFacts) -> bool {
    matching_rule(policy, &Caller::new(facts)).is_some()
}

fn matching_rule(policy: &Policy, caller: &Caller<'_>) -> Option<usize> {
    policy.rules.iter().position(|rule| caller.meets_rule(rule))
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
    let caller = Caller::new(facts);
    let verdict = |policy: Result<&'a Arc<Policy>, PolicyKey>| match policy {
        Ok(policy) => Verdict::Asked { policy, rule: matching_rule(policy, &caller) },
        Err(key) => Verdict::Missing(key),
    };
    view.policies_for(workload).map(verdict).collect()
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
