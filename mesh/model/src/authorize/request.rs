//! Whether a request may be: AuthorizationPolicy with nothing cut out, decided at a waypoint against the original caller.
//!
//! Twice for each request: [`target`] for what is attached to the service or the waypoint, with the service's port; [`endpoint`] for what
//! selects the workload that was chosen, with its own port, again for each retry and mirror. Where a route brings it to another service,
//! [`brought`] asks that one's policies, about the request as it is sent on. DENY comes first; with ALLOW policies one must match; AUDIT and
//! dry-run are only reported. Where a question has no clear answer (several headers of a name, an address or a server name that nobody
//! knows) DENY matches and ALLOW does not. The proof is a [`RequestPermit`], which nothing else can make.

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
    pub server_name: ServerName<&'a str>,
}

/// The server name that a connection begins with (RFC 6066 §3), as far as it could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerName<T> {
    /// There is none: it does not begin as TLS, or its ClientHello names nobody.
    Absent,
    /// This one, in lower case.
    Named(T),
    /// There may be one: nobody looked, or what was sent can be read in two ways. Rules are in doubt about it.
    Unknown,
}

impl<T: AsRef<str>> ServerName<T> {
    /// The same, borrowed.
    pub fn borrowed(&self) -> ServerName<&str> {
        match self {
            Self::Absent => ServerName::Absent,
            Self::Named(name) => ServerName::Named(name.as_ref()),
            Self::Unknown => ServerName::Unknown,
        }
    }

    /// The name, if it is known.
    pub fn known(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name.as_ref()),
            Self::Absent | Self::Unknown => None,
        }
    }
}

/// Decides about a request by the policies that are attached to what it addresses.
pub fn target(policies: &[Arc<RequestPolicy>], facts: &RequestFacts<'_>) -> Result<RequestPermit, RequestDenied> {
    decide(attached_to_target(policies), &Asked::request(facts))
}

/// Where a request or a connection is to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// The workload.
    pub workload: &'a Workload,
    /// Where it serves.
    pub address: SocketAddr,
}

/// Decides about a request by the policies that select the workload that was chosen.
pub fn endpoint(policies: &[Arc<RequestPolicy>], facts: &RequestFacts<'_>, endpoint: Endpoint<'_>) -> Result<RequestPermit, RequestDenied> {
    decide(selecting(policies, endpoint.workload), &Asked::request(facts).at(endpoint.address))
}

/// Decides about a request that a route brings to another service than the one addressed. `policies` stand with that service, `sent` is
/// the request as it is sent on ([`crate::rewrite::Sent`]).
pub fn brought(policies: &[Arc<RequestPolicy>], sent: &RequestFacts<'_>) -> Result<RequestPermit, RequestDenied> {
    decide(attached_to_service(policies), &Asked::request(sent))
}

/// Whether [`brought`] would ask any of these policies.
pub fn judges_brought(policies: &[Arc<RequestPolicy>]) -> bool {
    attached_to_service(policies).next().is_some()
}

/// As [`target`], for a connection. An ALLOW rule that asks for HTTP never matches; a DENY rule matches on what is left of it.
pub fn connection_target(policies: &[Arc<RequestPolicy>], facts: &StreamFacts<'_>) -> Result<RequestPermit, RequestDenied> {
    decide(attached_to_target(policies), &Asked::stream(facts))
}

/// As [`endpoint`], for a connection, with the rule of [`connection_target`].
pub fn connection_endpoint(
    policies: &[Arc<RequestPolicy>],
    facts: &StreamFacts<'_>,
    endpoint: Endpoint<'_>,
) -> Result<RequestPermit, RequestDenied> {
    decide(selecting(policies, endpoint.workload), &Asked::stream(facts).at(endpoint.address))
}

/// As [`brought`], for a connection that is sent to `port` of the other service, with the rule of [`connection_target`]. No address of that
/// service was called: rules are in doubt about it.
pub fn connection_brought(policies: &[Arc<RequestPolicy>], facts: &StreamFacts<'_>, port: u16) -> Result<RequestPermit, RequestDenied> {
    decide(attached_to_service(policies), &Asked::stream(&StreamFacts { port, destination: None, ..*facts }))
}

fn attached_to_target(policies: &[Arc<RequestPolicy>]) -> impl Iterator<Item = &RequestPolicy> + Clone {
    let all = policies.iter().map(|policy| &**policy);
    all.filter(|policy| matches!(policy.attachment, Attachment::Target | Attachment::Service))
}

fn attached_to_service(policies: &[Arc<RequestPolicy>]) -> impl Iterator<Item = &RequestPolicy> + Clone {
    policies.iter().map(|policy| &**policy).filter(|policy| policy.attachment == Attachment::Service)
}

fn selecting<'a>(policies: &'a [Arc<RequestPolicy>], workload: &'a Workload) -> impl Iterator<Item = &'a RequestPolicy> + Clone {
    policies.iter().map(|policy| &**policy).filter(|policy| selects(&policy.attachment, workload))
}

/// Whether a policy so attached is for this workload.
pub fn selects(attachment: &Attachment, workload: &Workload) -> bool {
    match attachment {
        Attachment::Target | Attachment::Service => false,
        Attachment::Workloads { namespace, labels } => {
            namespace.as_ref().is_none_or(|namespace| *namespace == workload.namespace)
                && labels.iter().all(|(name, value)| workload.labels.get(name) == Some(value))
        }
    }
}

/// What one policy says, for `explain`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict<'a> {
    /// The policy.
    pub policy: &'a RequestPolicy,
    /// The first of its rules that matches, from 0.
    pub rule: Option<usize>,
}

/// What each policy says that [`target`] asks, in order.
pub fn explain_target<'a>(policies: &'a [Arc<RequestPolicy>], facts: &RequestFacts<'_>) -> Vec<Verdict<'a>> {
    let asked = Asked::request(facts);
    attached_to_target(policies).map(|policy| verdict(policy, &asked)).collect()
}

/// What each policy says that [`endpoint`] asks, in order.
pub fn explain_endpoint<'a>(policies: &'a [Arc<RequestPolicy>], facts: &RequestFacts<'_>, endpoint: Endpoint<'a>) -> Vec<Verdict<'a>> {
    let asked = Asked::request(facts).at(endpoint.address);
    selecting(policies, endpoint.workload).map(|policy| verdict(policy, &asked)).collect()
}

/// What each policy says that [`brought`] asks, in order.
pub fn explain_brought<'a>(policies: &'a [Arc<RequestPolicy>], sent: &RequestFacts<'_>) -> Vec<Verdict<'a>> {
    let asked = Asked::request(sent);
    attached_to_service(policies).map(|policy| verdict(policy, &asked)).collect()
}

fn verdict<'a>(policy: &'a RequestPolicy, asked: &Asked<'_>) -> Verdict<'a> {
    let lenient = policy.action != RequestAction::Allow;
    Verdict { policy, rule: policy.rules.iter().position(|rule| rules::matches(rule, asked, lenient)) }
}

/// Nothing is allocated unless there is something to log.
fn decide<'a>(policies: impl Iterator<Item = &'a RequestPolicy> + Clone, asked: &Asked<'_>) -> Result<RequestPermit, RequestDenied> {
    let mut permit = RequestPermit { dry_run_denial: None, audited: Vec::new() };
    let (mut allowing, mut dry_run_allowing) = (Allowing::None, Allowing::None);
    for policy in policies.clone() {
        let matched = verdict(policy, asked).rule;
        match (policy.action, policy.dry_run, matched) {
            (RequestAction::Deny, dry_run, Some(rule)) => {
                let denied = RequestDenied::ByPolicy { policy: policy.key.clone(), rule };
                if !dry_run {
                    return Err(denied);
                }
                permit.dry_run_denial.get_or_insert(denied);
            }
            (RequestAction::Deny, _, None) => {}
            (RequestAction::Allow, false, matched) => allowing = allowing.and(matched),
            (RequestAction::Allow, true, matched) => dry_run_allowing = dry_run_allowing.and(matched),
            (RequestAction::Audit, _, matched) => permit.audited.extend(matched.map(|_| policy.key.clone())),
        }
    }
    let by_none = |dry_run| {
        let allow = policies.filter(|policy| policy.action == RequestAction::Allow && policy.dry_run == dry_run);
        RequestDenied::ByNone(allow.map(|policy| policy.key.clone()).collect())
    };
    if allowing == Allowing::Unmatched {
        return Err(by_none(false));
    }
    if permit.dry_run_denial.is_none() && dry_run_allowing == Allowing::Unmatched {
        permit.dry_run_denial = Some(by_none(true));
    }
    Ok(permit)
}

/// What is known of the ALLOW policies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Allowing {
    /// There are none.
    None,
    /// There are some, and none of them matched.
    Unmatched,
    /// One matched.
    Matched,
}

impl Allowing {
    fn and(self, matched: Option<usize>) -> Self {
        if self == Self::Matched || matched.is_some() { Self::Matched } else { Self::Unmatched }
    }
}

#[cfg(test)]
mod tests;
