//! Authorization of requests: what a policy says, and where it is attached. `authorize` decides.
//!
//! This is AuthorizationPolicy with nothing cut out, as a waypoint needs it; [`crate::policy`] is what is left for L4.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;

use crate::policy::{PolicyKey, ServiceAccountMatch, StringMatch};

/// An authorization policy for requests.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestPolicy {
    /// `namespace/name`.
    pub key: PolicyKey,
    /// Where it applies.
    pub attachment: Attachment,
    /// What a match means.
    pub action: RequestAction,
    /// Any rule that matches makes the policy match; none never matches.
    pub rules: Vec<RequestRule>,
    /// Matches are logged, never enforced.
    pub dry_run: bool,
}

/// Where a policy applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// It names the waypoint or its class (`targetRefs`): decided before an endpoint is chosen, with the service's port.
    Target,
    /// It names the service that it stands with (`targetRefs`): decided as [`Self::Target`] about what addresses that service, and about
    /// what a route of another one brings to it, as it is sent on and with the port to which it is sent.
    Service,
    /// It applies to workloads that carry these labels: decided for the endpoint that was chosen, with the endpoint's port. `namespace`
    /// is where they are; `None` is everywhere (root namespace); no labels are all workloads.
    Workloads {
        /// `None` is everywhere.
        namespace: Option<Arc<str>>,
        /// Labels that the workload must carry.
        labels: BTreeMap<Arc<str>, Arc<str>>,
    },
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestAction {
    /// Allowed, unless another denies.
    Allow,
    /// Denied.
    Deny,
    /// Logged.
    Audit,
}

/// `from` (any), `to` (any) and `when` (all) must hold; an empty list holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RequestRule {
    /// Who calls.
    pub from: Vec<SourceMatch>,
    /// What is called.
    pub to: Vec<OperationMatch>,
    /// More conditions.
    pub when: Vec<Condition>,
}

/// All fields that are not empty must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SourceMatch {
    /// The caller's principal (identity without `spiffe://`).
    pub principals: Vec<StringMatch>,
    /// None of these.
    pub not_principals: Vec<StringMatch>,
    /// Token principals `issuer/subject`.
    pub request_principals: Vec<StringMatch>,
    /// None of these.
    pub not_request_principals: Vec<StringMatch>,
    /// The caller's namespace.
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    pub not_namespaces: Vec<StringMatch>,
    /// The caller's service account.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// None of these.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The caller's address.
    pub ip_blocks: Vec<IpNet>,
    /// None of these.
    pub not_ip_blocks: Vec<IpNet>,
    /// The first caller's address, by `x-forwarded-for` where it is trusted.
    pub remote_ip_blocks: Vec<IpNet>,
    /// None of these.
    pub not_remote_ip_blocks: Vec<IpNet>,
}

/// All fields that are not empty must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OperationMatch {
    /// Authority, compared without case.
    pub hosts: Vec<StringMatch>,
    /// None of these.
    pub not_hosts: Vec<StringMatch>,
    /// Port: the service's for [`Attachment::Target`] and [`Attachment::Service`], the endpoint's for [`Attachment::Workloads`].
    pub ports: Vec<u16>,
    /// None of these.
    pub not_ports: Vec<u16>,
    /// Method.
    pub methods: Vec<StringMatch>,
    /// None of these.
    pub not_methods: Vec<StringMatch>,
    /// Canonical path without the query.
    pub paths: Vec<PathMatch>,
    /// None of these.
    pub not_paths: Vec<PathMatch>,
}

/// How a path is matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// As any string.
    Text(StringMatch),
    /// Segments of a template (`{*}` is one, `{**}` zero or more and last).
    Template(Vec<Segment>),
}

/// A segment of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// This text.
    Literal(Arc<str>),
    /// One segment, not empty.
    One,
    /// The rest.
    Rest,
}

/// A condition on an attribute: a value must match, if there are any, and no `not` value may.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// Of what.
    pub attribute: Attribute,
    /// One of these.
    pub values: Vec<StringMatch>,
    /// None of these.
    pub not_values: Vec<StringMatch>,
}

/// What a condition looks at (`when.key`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// `request.headers[NAME]`, lower case.
    RequestHeader(Arc<str>),
    /// `source.ip`: values are blocks written as text.
    SourceIp,
    /// `remote.ip`.
    RemoteIp,
    /// `source.namespace`.
    SourceNamespace,
    /// `source.principal`.
    SourcePrincipal,
    /// `source.serviceAccount`: `ns/sa`.
    SourceServiceAccount,
    /// `destination.ip`.
    DestinationIp,
    /// `destination.port`.
    DestinationPort,
    /// `connection.sni`.
    ServerName,
    /// `request.auth.principal`.
    TokenPrincipal,
    /// `request.auth.audiences`.
    TokenAudiences,
    /// `request.auth.presenter`.
    TokenPresenter,
    /// `request.auth.claims[a][b]`.
    TokenClaim(Vec<Arc<str>>),
}
