//! Whether a request may be: AuthorizationPolicy with nothing cut out, decided at a waypoint against the original caller.
//!
//! Twice for each request: [`target`] for what is attached to the service or the waypoint, with the service's port; [`endpoint`] for what
//! selects the workload that was chosen, with its own port, again for each retry and mirror. DENY comes first; with ALLOW policies one
//! must match; AUDIT and dry-run are only reported. Where a question has no clear answer (several headers of a name, an address that
//! nobody knows) DENY matches and ALLOW does not. The proof is a [`RequestPermit`], which nothing else can make.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use thiserror::Error;

use crate::{
    policy::PolicyKey,
    request::RequestFacts,
    request_policy::{Attachment, RequestAction, RequestPolicy},
    route::Caller,
    workload::Workload,
};

mod attributes;
mod rules;

use attributes::Asked;

/// The body of a denial's answer (status 403), as Istio's.
pub const DENIED_BODY: &str = "RBAC: access denied";
/// The gRPC status of a denial: PERMISSION_DENIED.
pub const DENIED_GRPC_STATUS: u16 = 7;

/// The leave to send a request or a connection on. Made only by the functions of this module.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct RequestPermit {
    dry_run_denial: Option<RequestDenied>,
    audited: Vec<PolicyKey>,
}

impl RequestPermit {
    /// What dry-run policies would have denied: for the log.
    pub fn dry_run_denial(&self) -> Option<&RequestDenied> {
        self.dry_run_denial.as_ref()
    }

    /// The AUDIT policies that matched: for the log.
    pub fn audited(&self) -> &[PolicyKey] {
        &self.audited
    }
}

/// Not allowed. Answer 403 with [`DENIED_BODY`] (gRPC: [`DENIED_GRPC_STATUS`]; TCP: close), and log the policies.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestDenied {
    /// A rule of a DENY policy matched.
    #[error("denied by rule {rule} of policy {policy}")]
    ByPolicy {
        /// The policy.
        policy: PolicyKey,
        /// The rule's place in it, from 0.
        rule: usize,
    },
    /// ALLOW policies apply and none of them matched.
    #[error("not allowed by any of the policies {}", super::Keys(.0))]
    ByNone(Vec<PolicyKey>),
}

impl RequestDenied {
    /// The policies to name in the log.
    pub fn policies(&self) -> &[PolicyKey] {
        match self {
            Self::ByPolicy { policy, .. } => std::slice::from_ref(policy),
            Self::ByNone(keys) => keys,
        }
    }

    /// The access log's `response_code_details`, in Istio's words.
    pub fn response_code_details(&self) -> String {
        match self {
            Self::ByPolicy { policy, rule } => {
                let (namespace, name) = policy.0.split_once('/').unwrap_or(("", &policy.0));
                format!("rbac_access_denied_matched_policy[ns[{namespace}]-policy[{name}]-rule[{rule}]]")
            }
            Self::ByNone(_) => "rbac_access_denied_matched_policy[none]".to_owned(),
        }
    }
}

/// What a policy may ask about a connection that is not HTTP.
#[derive(Debug, Clone, Copy)]
pub struct StreamFacts<'a> {
    /// Who called.
    pub caller: &'a Caller,
    /// The port of the service that was addressed.
    pub port: u16,
    /// The address that was called, if it was an address.
    pub destination: Option<IpAddr>,
    /// The server name of a TLS connection that is passed on.
    pub server_name: Option<&'a str>,
}

/// Decides about a request by the policies that are attached to what it addresses.
pub fn target(policies: &[Arc<RequestPolicy>], facts: &RequestFacts<'_>) -> Result<RequestPermit, RequestDenied> {
    decide(attached_to_target(policies), &Asked::request(facts))
}

/// Decides about a request by the policies that select `workload`, which was chosen for it and serves it at `address`.
pub fn endpoint(
    policies: &[Arc<RequestPolicy>],
    facts: &RequestFacts<'_>,
    workload: &Workload,
    address: SocketAddr,
) -> Result<RequestPermit, RequestDenied> {
    decide(selecting(policies, workload), &Asked::request(facts).at(address))
}

/// As [`target`], for a connection. An ALLOW rule that asks for HTTP never matches; a DENY rule matches on what is left of it.
pub fn connection_target(policies: &[Arc<RequestPolicy>], facts: &StreamFacts<'_>) -> Result<RequestPermit, RequestDenied> {
    decide(attached_to_target(policies), &Asked::stream(facts))
}

/// As [`endpoint`], for a connection, with the rule of [`connection_target`].
pub fn connection_endpoint(
    policies: &[Arc<RequestPolicy>],
    facts: &StreamFacts<'_>,
    workload: &Workload,
    address: SocketAddr,
) -> Result<RequestPermit, RequestDenied> {
    decide(selecting(policies, workload), &Asked::stream(facts).at(address))
}

fn attached_to_target(policies: &[Arc<RequestPolicy>]) -> impl Iterator<Item = &RequestPolicy> {
    policies.iter().map(|policy| &**policy).filter(|policy| policy.attachment == Attachment::Target)
}

fn selecting<'a>(policies: &'a [Arc<RequestPolicy>], workload: &'a Workload) -> impl Iterator<Item = &'a RequestPolicy> {
    policies.iter().map(|policy| &**policy).filter(|policy| selects(&policy.attachment, workload))
}

/// Whether a policy so attached is for this workload.
pub fn selects(attachment: &Attachment, workload: &Workload) -> bool {
    match attachment {
        Attachment::Target => false,
        Attachment::Workloads { namespace, labels } => {
            namespace.as_ref().is_none_or(|namespace| *namespace == workload.namespace)
                && labels.iter().all(|(name, value)| workload.labels.get(name) == Some(value))
        }
    }
}

fn decide<'a>(policies: impl Iterator<Item = &'a RequestPolicy>, asked: &Asked<'_>) -> Result<RequestPermit, RequestDenied> {
    let mut allowing = Allowing::default();
    let mut dry_run_allowing = Allowing::default();
    let mut permit = RequestPermit { dry_run_denial: None, audited: Vec::new() };
    for policy in policies {
        let lenient = policy.action != RequestAction::Allow;
        let rule = || policy.rules.iter().position(|rule| rules::matches(rule, asked, lenient));
        match (policy.action, policy.dry_run) {
            (RequestAction::Deny, dry_run) => {
                let Some(rule) = rule() else { continue };
                let denied = RequestDenied::ByPolicy { policy: policy.key.clone(), rule };
                if !dry_run {
                    return Err(denied);
                }
                permit.dry_run_denial.get_or_insert(denied);
            }
            (RequestAction::Allow, false) => allowing.add(policy, || rule().is_some()),
            (RequestAction::Allow, true) => dry_run_allowing.add(policy, || rule().is_some()),
            (RequestAction::Audit, _) => permit.audited.extend(rule().map(|_| policy.key.clone())),
        }
    }
    if let Some(denied) = allowing.denied() {
        return Err(denied);
    }
    permit.dry_run_denial = permit.dry_run_denial.or_else(|| dry_run_allowing.denied());
    Ok(permit)
}

/// ALLOW policies: which there are, until one matches.
#[derive(Default)]
struct Allowing<'a> {
    unmatched: Vec<&'a PolicyKey>,
    matched: bool,
}

impl<'a> Allowing<'a> {
    fn add(&mut self, policy: &'a RequestPolicy, matches: impl FnOnce() -> bool) {
        if self.matched {
            return;
        }
        self.matched = matches();
        if !self.matched {
            self.unmatched.push(&policy.key);
        }
    }

    fn denied(self) -> Option<RequestDenied> {
        (!self.matched && !self.unmatched.is_empty()).then(|| RequestDenied::ByNone(self.unmatched.into_iter().cloned().collect()))
    }
}

#[cfg(test)]
mod tests;
