//! One test a field of AuthorizationPolicy, and the properties that no change may break.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::{
    identity::Identity,
    policy::{ServiceAccountMatch, StringMatch},
    request::{Claim, PathNormalization, Token},
    request_policy::{Attribute, Condition, OperationMatch, PathMatch, RequestRule, Segment, SourceMatch},
};

/// A request that tests change.
struct Sent {
    method: &'static str,
    authority: &'static str,
    path: &'static str,
    headers: HeaderMap,
    caller: Caller,
    remote: Option<IpAddr>,
    server_name: Option<&'static str>,
    token: Option<Token>,
}

impl Default for Sent {
    fn default() -> Self {
        let identity = Some(Identity::new("cluster.local", "shop", "web"));
        let caller = Caller { identity, address: Some("10.0.0.9".parse().unwrap()), labels: BTreeMap::new() };
        Self {
            method: "GET",
            authority: "reviews.shop:9080",
            path: "/",
            headers: HeaderMap::new(),
            caller,
            remote: None,
            server_name: None,
            token: None,
        }
    }
}

const VIP: &str = "10.96.0.1";
const ENDPOINT: &str = "10.0.0.1:8080";

impl Sent {
    fn anonymous() -> Self {
        let caller = Caller { identity: None, ..Self::default().caller };
        Self { caller, ..Self::default() }
    }

    fn path(path: &'static str) -> Self {
        Self { path, ..Self::default() }
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }

    fn token(token: Token) -> Self {
        Self { token: Some(token), ..Self::default() }
    }

    fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            method: self.method,
            scheme: "http",
            authority: self.authority,
            path: self.path,
            query: None,
            headers: &self.headers,
            port: 9080,
            caller: &self.caller,
            remote_address: self.remote,
            destination: Some(VIP.parse().unwrap()),
            server_name: self.server_name,
            token: self.token.as_ref(),
        }
    }

    fn stream(&self) -> StreamFacts<'_> {
        let server_name = self.server_name.map_or(ServerName::Absent, ServerName::Named);
        StreamFacts { caller: &self.caller, port: 9080, destination: Some(VIP.parse().unwrap()), server_name }
    }

    /// Whether an ALLOW policy of this rule lets it in, after checking that a DENY policy of it denies the same requests.
    fn matches(&self, rule: RequestRule) -> bool {
        let allowed = target(&[policy("a", RequestAction::Allow, vec![rule.clone()])], &self.facts()).is_ok();
        let denied = target(&[policy("d", RequestAction::Deny, vec![rule])], &self.facts()).is_err();
        assert_eq!(allowed, denied, "no doubt is expected");
        allowed
    }

    fn from(&self, source: SourceMatch) -> bool {
        self.matches(RequestRule { from: vec![source], ..RequestRule::default() })
    }

    fn to(&self, operation: OperationMatch) -> bool {
        self.matches(RequestRule { to: vec![operation], ..RequestRule::default() })
    }

    fn when(&self, attribute: Attribute, values: &[StringMatch], not_values: &[StringMatch]) -> bool {
        let condition = Condition { attribute, values: values.to_vec(), not_values: not_values.to_vec() };
        self.matches(RequestRule { when: vec![condition], ..RequestRule::default() })
    }
}

fn policy(name: &str, action: RequestAction, rules: Vec<RequestRule>) -> Arc<RequestPolicy> {
    let key = PolicyKey(format!("shop/{name}").into());
    Arc::new(RequestPolicy { key, attachment: Attachment::Target, action, rules, dry_run: false })
}

fn with(policy: Arc<RequestPolicy>, change: impl FnOnce(&mut RequestPolicy)) -> Arc<RequestPolicy> {
    let mut changed = RequestPolicy::clone(&policy);
    change(&mut changed);
    Arc::new(changed)
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.into())
}

fn suffix(text: &str) -> StringMatch {
    StringMatch::Suffix(text.into())
}

fn methods(methods: &[&str]) -> RequestRule {
    let operation = OperationMatch { methods: methods.iter().map(|method| exact(method)).collect(), ..OperationMatch::default() };
    RequestRule { to: vec![operation], ..RequestRule::default() }
}

fn everything() -> RequestRule {
    RequestRule::default()
}

fn blocks(text: &str) -> Vec<ipnet::IpNet> {
    vec![text.parse().unwrap()]
}

#[test]
fn principals_are_those_of_the_original_caller() {
    let principals = |value| SourceMatch { principals: vec![value], ..SourceMatch::default() };
    for value in [exact("cluster.local/ns/shop/sa/web"), prefix("cluster.local/ns/shop/"), suffix("/sa/web"), StringMatch::Presence] {
        assert!(Sent::default().from(principals(value.clone())), "{value:?}");
        assert!(!Sent::anonymous().from(principals(value)));
    }
    assert!(!Sent::default().from(principals(exact("cluster.local/ns/shop/sa/other"))));
}

#[test]
fn not_principals_presence_catches_callers_without_an_identity() {
    let source = || SourceMatch { not_principals: vec![StringMatch::Presence], ..SourceMatch::default() };
    assert!(Sent::anonymous().from(source()));
    assert!(!Sent::default().from(source()));
}

#[test]
fn namespaces_are_those_of_the_identity() {
    let source = |value| SourceMatch { namespaces: vec![value], ..SourceMatch::default() };
    assert!(Sent::default().from(source(exact("shop"))));
    assert!(!Sent::default().from(source(exact("other"))));
    assert!(!Sent::anonymous().from(source(prefix(""))));
    assert!(!Sent::default().from(SourceMatch { not_namespaces: vec![exact("shop")], ..SourceMatch::default() }));
    assert!(Sent::anonymous().from(SourceMatch { not_namespaces: vec![exact("shop")], ..SourceMatch::default() }));
}

#[test]
fn service_accounts_are_namespace_and_name() {
    let account = |name: &str| vec![ServiceAccountMatch { namespace: "shop".into(), service_account: name.into() }];
    assert!(Sent::default().from(SourceMatch { service_accounts: account("web"), ..SourceMatch::default() }));
    assert!(!Sent::default().from(SourceMatch { service_accounts: account("other"), ..SourceMatch::default() }));
    assert!(!Sent::anonymous().from(SourceMatch { service_accounts: account("web"), ..SourceMatch::default() }));
    assert!(!Sent::default().from(SourceMatch { not_service_accounts: account("web"), ..SourceMatch::default() }));
}

#[test]
fn ip_blocks_are_of_the_callers_address() {
    let remote = Some("203.0.113.1".parse().unwrap());
    let sent = Sent { remote, ..Sent::default() };
    assert!(sent.from(SourceMatch { ip_blocks: blocks("10.0.0.0/24"), ..SourceMatch::default() }));
    assert!(!sent.from(SourceMatch { ip_blocks: blocks("203.0.113.0/24"), ..SourceMatch::default() }));
    assert!(!sent.from(SourceMatch { not_ip_blocks: blocks("10.0.0.9/32"), ..SourceMatch::default() }));
}

#[test]
fn ip_blocks_see_through_mapped_addresses() {
    let caller = Caller { address: Some("::ffff:10.0.0.9".parse().unwrap()), ..Caller::default() };
    assert!(Sent { caller, ..Sent::default() }.from(SourceMatch { ip_blocks: blocks("10.0.0.0/8"), ..SourceMatch::default() }));
}

#[test]
fn ip_blocks_of_an_unknown_address_are_a_doubt() {
    let sent = Sent { caller: Caller::default(), ..Sent::default() };
    for source in [
        SourceMatch { ip_blocks: blocks("10.0.0.0/8"), ..SourceMatch::default() },
        SourceMatch { not_ip_blocks: blocks("10.0.0.0/8"), ..SourceMatch::default() },
    ] {
        let rule = RequestRule { from: vec![source], ..RequestRule::default() };
        assert!(target(&[policy("a", RequestAction::Allow, vec![rule.clone()])], &sent.facts()).is_err());
        assert!(target(&[policy("d", RequestAction::Deny, vec![rule])], &sent.facts()).is_err());
    }
}

#[test]
fn remote_ip_blocks_are_of_the_first_callers_address() {
    let sent = Sent { remote: Some("fd00::7".parse().unwrap()), ..Sent::default() };
    assert!(sent.from(SourceMatch { remote_ip_blocks: blocks("fd00::/8"), ..SourceMatch::default() }));
    assert!(!sent.from(SourceMatch { not_remote_ip_blocks: blocks("fd00::/8"), ..SourceMatch::default() }));
    assert!(Sent::default().from(SourceMatch { remote_ip_blocks: blocks("10.0.0.0/8"), ..SourceMatch::default() }));
}

fn token() -> Token {
    Token {
        principal: "https://issuer/alice".into(),
        audiences: vec!["a".into(), "b".into()],
        presenter: Some("app".into()),
        claims: [
            ("groups".into(), Claim::List(vec!["admin".into(), "dev".into()])),
            ("realm".into(), Claim::Object([("role".into(), Claim::Text("owner".into()))].into())),
        ]
        .into(),
    }
}

#[test]
fn request_principals_need_a_token() {
    let source = |value| SourceMatch { request_principals: vec![value], ..SourceMatch::default() };
    for value in [exact("https://issuer/alice"), suffix("/alice"), StringMatch::Presence] {
        assert!(Sent::token(token()).from(source(value.clone())));
        assert!(!Sent::default().from(source(value)));
    }
    let not = || SourceMatch { not_request_principals: vec![StringMatch::Presence], ..SourceMatch::default() };
    assert!(Sent::default().from(not()));
    assert!(!Sent::token(token()).from(not()));
}

#[test]
fn hosts_are_compared_without_case_and_with_their_port() {
    let hosts = |value| OperationMatch { hosts: vec![value], ..OperationMatch::default() };
    let sent = Sent { authority: "Reviews.Shop:9080", ..Sent::default() };
    for (value, holds) in [
        (exact("reviews.shop:9080"), true),
        (exact("reviews.shop"), false),
        (prefix("REVIEWS."), true),
        (prefix("reviews.shop:*"), false),
        (suffix(".SHOP:9080"), true),
        (suffix("a-very-long-suffix-of-nothing.shop:9080"), false),
        (StringMatch::Presence, true),
    ] {
        assert_eq!(sent.to(hosts(value.clone())), holds, "{value:?}");
    }
    assert!(!sent.to(OperationMatch { not_hosts: vec![exact("reviews.shop:9080")], ..OperationMatch::default() }));
}

#[test]
fn hosts_with_a_dot_at_their_end_do_not_slip_past_a_denial() {
    for (authority, denied) in [("admin.example.", "admin.example"), ("admin.example.:80", "admin.example:80")] {
        let sent = Sent { authority, ..Sent::default() };
        let hosts = vec![OperationMatch { hosts: vec![exact(denied)], ..OperationMatch::default() }];
        let rule = RequestRule { to: hosts, ..RequestRule::default() };
        assert!(target(&[policy("d", RequestAction::Deny, vec![rule.clone()])], &sent.facts()).is_err(), "{authority}");
        assert!(target(&[policy("a", RequestAction::Allow, vec![rule])], &sent.facts()).is_err(), "{authority}");
        let hosts = vec![OperationMatch { not_hosts: vec![exact(denied)], ..OperationMatch::default() }];
        let rule = RequestRule { to: hosts, ..RequestRule::default() };
        assert!(target(&[policy("a", RequestAction::Allow, vec![rule])], &sent.facts()).is_err(), "{authority}");
    }
}

#[test]
fn ports_are_the_services_for_a_target_and_the_endpoints_for_workloads() {
    let ports = |port| RequestRule { to: vec![OperationMatch { ports: vec![port], ..OperationMatch::default() }], ..everything() };
    let sent = Sent::default();
    assert!(sent.matches(ports(9080)) && !sent.matches(ports(8080)));
    let for_all = |policy| with(policy, |policy| policy.attachment = Attachment::Workloads { namespace: None, labels: BTreeMap::new() });
    let at_endpoint = |port| {
        let policies = [for_all(policy("p", RequestAction::Allow, vec![ports(port)]))];
        endpoint(&policies, &sent.facts(), at(&workload())).is_ok()
    };
    assert!(at_endpoint(8080) && !at_endpoint(9080));
    assert!(!sent.to(OperationMatch { not_ports: vec![9080], ..OperationMatch::default() }));
}

#[test]
fn methods_are_compared_with_their_case() {
    assert!(Sent::default().matches(methods(&["POST", "GET"])));
    assert!(!Sent { method: "get", ..Sent::default() }.matches(methods(&["GET"])));
    assert!(!Sent::default().to(OperationMatch { not_methods: vec![exact("GET")], ..OperationMatch::default() }));
}

fn paths(value: PathMatch) -> OperationMatch {
    OperationMatch { paths: vec![value], ..OperationMatch::default() }
}

#[test]
fn paths_are_exact_prefix_suffix_or_present() {
    for (value, path, holds) in [
        (exact("/admin"), "/admin", true),
        (exact("/admin"), "/admin/", false),
        (exact("/admin"), "/Admin", false),
        (prefix("/admin"), "/administer", true),
        (suffix(".html"), "/a.html", true),
        (suffix(".html"), "/a.htm", false),
        (StringMatch::Presence, "/", true),
    ] {
        assert_eq!(Sent::path(path).to(paths(PathMatch::Text(value.clone()))), holds, "{value:?} {path}");
        let not = OperationMatch { not_paths: vec![PathMatch::Text(value)], ..OperationMatch::default() };
        assert_eq!(Sent::path(path).to(not), !holds);
    }
}

#[test]
fn paths_may_be_templates() {
    let literal = |text: &str| Segment::Literal(text.into());
    let books = || vec![literal("shelf"), Segment::One, literal("book")];
    for (path, holds) in
        [("/shelf/1/book", true), ("/shelf//book", false), ("/shelf/1/2/book", false), ("/shelf/1/book/", false), ("/shelf/1", false)]
    {
        assert_eq!(Sent::path(path).to(paths(PathMatch::Template(books()))), holds, "{path}");
    }
    let below = || vec![literal("a"), Segment::Rest];
    for (path, holds) in [("/a/", true), ("/a/b", true), ("/a/b/c", true), ("/a", false), ("/b/", false)] {
        assert_eq!(Sent::path(path).to(paths(PathMatch::Template(below()))), holds, "{path}");
    }
    assert!(Sent::path("/anything").to(paths(PathMatch::Template(vec![Segment::Rest]))));
    assert!(!Sent::path("*").to(paths(PathMatch::Template(vec![Segment::Rest]))));
}

#[test]
fn grpc_is_a_post_to_the_path_of_its_method() {
    let sent = Sent { method: "POST", ..Sent::path("/shop.Reviews/List") };
    let operation = OperationMatch { methods: vec![exact("POST")], ..paths(PathMatch::Text(prefix("/shop.Reviews/"))) };
    assert!(sent.to(operation.clone()));
    assert!(!Sent { method: "POST", ..Sent::path("/shop.Other/List") }.to(operation));
}

#[test]
fn when_request_headers_asks_for_a_value() {
    let role = || Attribute::RequestHeader("x-role".into());
    let sent = || Sent::default().header("x-role", "admin");
    assert!(sent().when(role(), &[exact("admin")], &[]));
    assert!(sent().when(role(), &[StringMatch::Presence], &[]));
    assert!(!sent().when(role(), &[exact("user")], &[]));
    assert!(!sent().when(role(), &[], &[exact("admin")]));
    assert!(!Sent::default().when(role(), &[StringMatch::Presence], &[]));
    assert!(Sent::default().when(role(), &[], &[exact("admin")]));
}

#[test]
fn when_request_headers_come_twice_doubt_denies() {
    let condition = |values: &[StringMatch], not_values: &[StringMatch]| {
        let attribute = Attribute::RequestHeader("x-role".into());
        let when = vec![Condition { attribute, values: values.to_vec(), not_values: not_values.to_vec() }];
        vec![RequestRule { when, ..RequestRule::default() }]
    };
    let sent = Sent::default().header("x-role", "user").header("x-role", "admin");
    let (admin, joined) = ([exact("admin")], [exact("user,admin")]);
    assert!(target(&[policy("d", RequestAction::Deny, condition(&admin, &[]))], &sent.facts()).is_err());
    assert!(target(&[policy("a", RequestAction::Allow, condition(&admin, &[]))], &sent.facts()).is_err());
    assert!(target(&[policy("a", RequestAction::Allow, condition(&[], &admin))], &sent.facts()).is_err());
    assert!(target(&[policy("a", RequestAction::Allow, condition(&joined, &[]))], &sent.facts()).is_ok());
}

#[test]
fn when_source_ip_and_remote_ip_are_blocks() {
    let sent = || Sent { remote: Some("203.0.113.1".parse().unwrap()), ..Sent::default() };
    assert!(sent().when(Attribute::SourceIp, &[exact("10.0.0.0/8")], &[]));
    assert!(sent().when(Attribute::SourceIp, &[exact("10.0.0.9")], &[]));
    assert!(!sent().when(Attribute::SourceIp, &[], &[exact("10.0.0.9")]));
    assert!(sent().when(Attribute::RemoteIp, &[exact("203.0.113.0/24")], &[]));
    assert!(!sent().when(Attribute::RemoteIp, &[exact("10.0.0.0/8")], &[]));
}

#[test]
fn when_source_namespace_principal_and_service_account_are_of_the_identity() {
    for (attribute, value) in [
        (Attribute::SourceNamespace, "shop"),
        (Attribute::SourcePrincipal, "cluster.local/ns/shop/sa/web"),
        (Attribute::SourceServiceAccount, "shop/web"),
    ] {
        assert!(Sent::default().when(attribute.clone(), &[exact(value)], &[]), "{attribute:?}");
        assert!(!Sent::default().when(attribute.clone(), &[exact("other")], &[]));
        assert!(!Sent::anonymous().when(attribute.clone(), &[StringMatch::Presence], &[]));
        assert!(Sent::anonymous().when(attribute, &[], &[exact(value)]));
    }
}

#[test]
fn when_destination_ip_and_port_are_those_addressed() {
    assert!(Sent::default().when(Attribute::DestinationIp, &[exact("10.96.0.0/12")], &[]));
    assert!(!Sent::default().when(Attribute::DestinationIp, &[exact("10.0.0.1")], &[]));
    assert!(Sent::default().when(Attribute::DestinationPort, &[exact("9080")], &[]));
    assert!(!Sent::default().when(Attribute::DestinationPort, &[exact("908")], &[]));
}

#[test]
fn when_connection_sni_is_the_server_name() {
    let sent = Sent { server_name: Some("a.example"), ..Sent::default() };
    assert!(sent.when(Attribute::ServerName, &[suffix(".example")], &[]));
    assert!(!Sent::default().when(Attribute::ServerName, &[StringMatch::Presence], &[]));
}

#[test]
fn when_connection_sni_is_not_known_doubt_denies() {
    let condition = |values: &[StringMatch], not_values: &[StringMatch]| RequestRule {
        when: vec![Condition { attribute: Attribute::ServerName, values: values.to_vec(), not_values: not_values.to_vec() }],
        ..RequestRule::default()
    };
    let decide = |action, rule: &RequestRule, server_name| {
        let sent = Sent::default();
        connection_target(&[policy("p", action, vec![rule.clone()])], &StreamFacts { server_name, ..sent.stream() }).is_ok()
    };
    for rule in [condition(&[exact("payments.internal")], &[]), condition(&[], &[exact("payments.internal")])] {
        assert!(!decide(RequestAction::Deny, &rule, ServerName::Unknown), "{rule:?}");
        assert!(!decide(RequestAction::Allow, &rule, ServerName::Unknown), "{rule:?}");
    }
    let named = condition(&[exact("payments.internal")], &[]);
    assert!(decide(RequestAction::Deny, &named, ServerName::Absent));
    assert!(!decide(RequestAction::Deny, &named, ServerName::Named("payments.internal")));
}

#[test]
fn when_request_auth_asks_the_token() {
    let claim = |path: &[&str]| Attribute::TokenClaim(path.iter().map(|name| Arc::from(*name)).collect());
    for (attribute, value) in [
        (Attribute::TokenPrincipal, "https://issuer/alice"),
        (Attribute::TokenAudiences, "b"),
        (Attribute::TokenPresenter, "app"),
        (claim(&["groups"]), "dev"),
        (claim(&["realm", "role"]), "owner"),
    ] {
        assert!(Sent::token(token()).when(attribute.clone(), &[exact(value)], &[]), "{attribute:?}");
        assert!(!Sent::token(token()).when(attribute.clone(), &[], &[exact(value)]));
        assert!(!Sent::token(token()).when(attribute.clone(), &[exact("other")], &[]));
        assert!(!Sent::default().when(attribute.clone(), &[StringMatch::Presence], &[]));
        assert!(Sent::default().when(attribute, &[], &[exact(value)]));
    }
    assert!(!Sent::token(token()).when(claim(&["realm"]), &[StringMatch::Presence], &[]));
}

#[test]
fn from_and_to_are_alternatives_and_when_is_not() {
    let namespace = |name: &str| SourceMatch { namespaces: vec![exact(name)], ..SourceMatch::default() };
    let condition = |value: &str| Condition { attribute: Attribute::SourceNamespace, values: vec![exact(value)], not_values: vec![] };
    let sent = Sent::default();
    let from = || vec![namespace("other"), namespace("shop")];
    assert!(sent.matches(RequestRule { from: from(), ..everything() }));
    assert!(sent.matches(RequestRule { from: from(), when: vec![condition("shop")], ..methods(&["GET"]) }));
    assert!(!sent.matches(RequestRule { from: from(), ..methods(&["POST"]) }));
    assert!(!sent.matches(RequestRule { when: vec![condition("shop"), condition("other")], ..everything() }));
}

#[test]
fn a_source_needs_all_of_its_fields() {
    let source = SourceMatch { namespaces: vec![exact("shop")], ip_blocks: blocks("192.168.0.0/16"), ..SourceMatch::default() };
    assert!(!Sent::default().from(source));
}

#[test]
fn allow_without_rules_denies_everything_and_an_empty_rule_allows_it() {
    let sent = Sent::default();
    assert!(target(&[policy("none", RequestAction::Allow, vec![])], &sent.facts()).is_err());
    assert!(target(&[policy("all", RequestAction::Allow, vec![everything()])], &sent.facts()).is_ok());
    assert!(target(&[], &sent.facts()).is_ok());
}

#[test]
fn deny_beats_allow_and_names_its_rule() {
    let policies = [
        policy("all", RequestAction::Allow, vec![everything()]),
        policy("no-get", RequestAction::Deny, vec![methods(&["POST"]), methods(&["GET"])]),
    ];
    let denied = target(&policies, &Sent::default().facts()).unwrap_err();
    assert_eq!(denied.response_code_details(), "rbac_access_denied_matched_policy[ns[shop]-policy[no-get]-rule[1]]");
    assert_eq!(denied.to_string(), "denied by rule 1 of policy shop/no-get");
}

#[test]
fn no_allow_that_matches_names_all_of_them() {
    let policies = [policy("a", RequestAction::Allow, vec![]), policy("b", RequestAction::Allow, vec![methods(&["POST"])])];
    let denied = target(&policies, &Sent::default().facts()).unwrap_err();
    assert_eq!(denied.response_code_details(), "rbac_access_denied_matched_policy[none]");
    assert_eq!(denied.to_string(), "not allowed by any of the policies shop/a, shop/b");
    assert_eq!(denied.policies().len(), 2);
}

#[test]
fn explain_says_which_rule_of_each_policy_matched() {
    let policies = [
        policy("a", RequestAction::Allow, vec![methods(&["POST"]), everything()]),
        with(policy("w", RequestAction::Deny, vec![everything()]), |policy| {
            policy.attachment = Attachment::Workloads { namespace: None, labels: BTreeMap::new() };
        }),
        policy("d", RequestAction::Deny, vec![methods(&["POST"])]),
    ];
    let sent = Sent::default();
    let said = |verdicts: Vec<Verdict<'_>>| verdicts.iter().map(|one| (one.policy.key.to_string(), one.rule)).collect::<Vec<_>>();
    assert_eq!(said(explain_target(&policies, &sent.facts())), [("shop/a".into(), Some(1)), ("shop/d".into(), None)]);
    let at_endpoint = explain_endpoint(&policies, &sent.facts(), at(&workload())).len();
    assert_eq!(at_endpoint, 1);
}

#[test]
fn audit_is_reported_only() {
    let policies = [policy("log", RequestAction::Audit, vec![everything()]), policy("not", RequestAction::Audit, vec![])];
    let permit = target(&policies, &Sent::default().facts()).unwrap();
    assert_eq!(permit.audited(), [PolicyKey("shop/log".into())]);
}

#[test]
fn dry_run_is_reported_only() {
    let dry = |policy| with(policy, |policy| policy.dry_run = true);
    let deny = dry(policy("d", RequestAction::Deny, vec![everything()]));
    let allow = dry(policy("a", RequestAction::Allow, vec![]));
    let permit = target(&[deny, allow.clone()], &Sent::default().facts()).unwrap();
    assert_eq!(permit.dry_run_denial().unwrap().to_string(), "denied by rule 0 of policy shop/d");
    let permit = target(std::slice::from_ref(&allow), &Sent::default().facts()).unwrap();
    assert_eq!(permit.dry_run_denial().unwrap().policies(), [PolicyKey("shop/a".into())]);
    let real = policy("r", RequestAction::Allow, vec![methods(&["POST"])]);
    assert!(target(&[allow, real], &Sent::default().facts()).is_err());
}

fn workload() -> Workload {
    let mut workload = Workload::new("c//Pod/shop/w", "w", Identity::new("cluster.local", "shop", "w"));
    workload.labels = [("app".into(), "reviews".into()), ("version".into(), "v1".into())].into();
    workload
}

fn at(workload: &Workload) -> Endpoint<'_> {
    Endpoint { workload, address: ENDPOINT.parse().unwrap() }
}

#[test]
fn selectors_are_decided_at_the_endpoint_and_targets_before() {
    let attached = |namespace: Option<&str>, labels: &[(&str, &str)]| Attachment::Workloads {
        namespace: namespace.map(Arc::from),
        labels: labels.iter().map(|(name, value)| (Arc::from(*name), Arc::from(*value))).collect(),
    };
    let deny = |attachment| [with(policy("d", RequestAction::Deny, vec![everything()]), |policy| policy.attachment = attachment)];
    let (sent, workload) = (Sent::default(), workload());
    for (attachment, at_target, at_endpoint, is_brought) in [
        (Attachment::Target, true, false, false),
        (Attachment::Service, true, false, true),
        (attached(None, &[]), false, true, false),
        (attached(Some("shop"), &[]), false, true, false),
        (attached(Some("shop"), &[("app", "reviews")]), false, true, false),
        (attached(None, &[("app", "reviews"), ("version", "v2")]), false, false, false),
        (attached(Some("other"), &[]), false, false, false),
        (attached(Some("shop"), &[("missing", "")]), false, false, false),
    ] {
        let policies = deny(attachment.clone());
        assert_eq!(target(&policies, &sent.facts()).is_err(), at_target, "{attachment:?}");
        assert_eq!(endpoint(&policies, &sent.facts(), at(&workload)).is_err(), at_endpoint, "{attachment:?}");
        assert_eq!((brought(&policies, &sent.facts()).is_err(), judges_brought(&policies)), (is_brought, is_brought), "{attachment:?}");
        assert_eq!(connection_target(&policies, &sent.stream()).is_err(), at_target);
        assert_eq!(connection_endpoint(&policies, &sent.stream(), at(&workload)).is_err(), at_endpoint);
        assert_eq!(connection_brought(&policies, &sent.stream(), 7070).is_err(), is_brought);
    }
}

#[test]
fn what_a_route_brings_is_asked_about_as_it_is_sent() {
    let at_service = |action, rule| [with(policy("p", action, vec![rule]), |policy| policy.attachment = Attachment::Service)];
    let came = Sent::path("/pub/users").header("host", "reviews.shop:9080").header("x-user", "jason");
    let mut changed = came.headers.clone();
    changed.insert("x-user", HeaderValue::from_static("root"));
    let to = |operation| RequestRule { to: vec![operation], ..RequestRule::default() };
    let when = |attribute, value: &str| {
        let condition = Condition { attribute, values: vec![exact(value)], not_values: vec![] };
        RequestRule { when: vec![condition], ..RequestRule::default() }
    };
    let header = |name: &str| Attribute::RequestHeader(name.into());
    for (what, rule, holds) in [
        ("the new path, in its only spelling", to(paths(PathMatch::Text(exact("/admin/users")))), true),
        ("not the old one", to(paths(PathMatch::Text(prefix("/pub")))), false),
        ("the new authority", to(OperationMatch { hosts: vec![exact("ratings")], ..OperationMatch::default() }), true),
        ("not the old one", to(OperationMatch { hosts: vec![prefix("reviews")], ..OperationMatch::default() }), false),
        ("the port to which it is sent", to(OperationMatch { ports: vec![7070], ..OperationMatch::default() }), true),
        ("not the one that was called", to(OperationMatch { ports: vec![9080], ..OperationMatch::default() }), false),
        ("a header that was changed", when(header("x-user"), "root"), true),
        ("the host, which is the authority", when(header("host"), "ratings"), true),
        (
            "who calls",
            RequestRule { from: vec![SourceMatch { namespaces: vec![exact("shop")], ..SourceMatch::default() }], ..everything() },
            true,
        ),
    ] {
        let sent = crate::rewrite::Sent::new("/admin/%75sers?a=b", "ratings", &changed, 7070, PathNormalization::Base).unwrap();
        let facts = came.facts();
        let sent = sent.facts(&facts);
        assert_eq!(sent.query, Some("a=b"));
        assert_eq!(brought(&at_service(RequestAction::Allow, rule.clone()), &sent).is_ok(), holds, "{what}");
        assert_eq!(brought(&at_service(RequestAction::Deny, rule.clone()), &sent).is_err(), holds, "{what}");
        assert_eq!(explain_brought(&at_service(RequestAction::Deny, rule), &sent)[0].rule.is_some(), holds, "{what}");
    }
    // No address of that service was called: in doubt a denial matches, for connections too.
    let address = || when(Attribute::DestinationIp, VIP);
    let sent = crate::rewrite::Sent::new("/", "ratings", &changed, 7070, PathNormalization::Base).unwrap();
    let facts = came.facts();
    for (action, allowed) in [(RequestAction::Allow, false), (RequestAction::Deny, false)] {
        assert_eq!(brought(&at_service(action, address()), &sent.facts(&facts)).is_ok(), allowed);
        assert_eq!(connection_brought(&at_service(action, address()), &came.stream(), 7070).is_ok(), allowed);
    }
    assert!(crate::rewrite::Sent::new("/%zz", "ratings", &changed, 7070, PathNormalization::Base).is_err());
}

/// Rules that ask for HTTP and hold for the default request.
fn http_rules() -> Vec<RequestRule> {
    let to = |operation| RequestRule { to: vec![operation], ..RequestRule::default() };
    let from = |source| RequestRule { from: vec![source], ..RequestRule::default() };
    let when = |attribute, not: &str| RequestRule {
        when: vec![Condition { attribute, values: vec![], not_values: vec![exact(not)] }],
        ..RequestRule::default()
    };
    vec![
        methods(&["GET"]),
        to(OperationMatch { not_methods: vec![exact("POST")], ..OperationMatch::default() }),
        to(OperationMatch { hosts: vec![prefix("reviews")], ..OperationMatch::default() }),
        to(OperationMatch { not_hosts: vec![exact("x")], ..OperationMatch::default() }),
        to(paths(PathMatch::Text(exact("/")))),
        to(OperationMatch { not_paths: vec![PathMatch::Text(exact("/x"))], ..OperationMatch::default() }),
        from(SourceMatch { not_request_principals: vec![StringMatch::Presence], ..SourceMatch::default() }),
        from(SourceMatch { remote_ip_blocks: blocks("10.0.0.0/8"), ..SourceMatch::default() }),
        from(SourceMatch { not_remote_ip_blocks: blocks("11.0.0.0/8"), ..SourceMatch::default() }),
        when(Attribute::RequestHeader("x".into()), "y"),
        when(Attribute::RemoteIp, "11.0.0.0/8"),
        when(Attribute::TokenPrincipal, "x"),
        when(Attribute::TokenAudiences, "x"),
        when(Attribute::TokenPresenter, "x"),
        when(Attribute::TokenClaim(vec!["x".into()]), "x"),
    ]
}

#[test]
fn on_a_connection_an_allow_rule_that_asks_for_http_never_matches() {
    for rule in http_rules() {
        let policies = [policy("a", RequestAction::Allow, vec![rule.clone()])];
        assert!(target(&policies, &Sent::default().facts()).is_ok(), "{rule:?}");
        assert!(connection_target(&policies, &Sent::default().stream()).is_err(), "{rule:?}");
    }
}

#[test]
fn on_a_connection_a_deny_rule_keeps_what_is_not_http() {
    for rule in http_rules() {
        let denied = |rule| connection_target(&[policy("d", RequestAction::Deny, vec![rule])], &Sent::default().stream()).is_err();
        assert!(denied(rule.clone()), "{rule:?}");
        let namespace = Condition { attribute: Attribute::SourceNamespace, values: vec![exact("other")], not_values: vec![] };
        let when = [rule.when.clone(), vec![namespace]].concat();
        assert!(!denied(RequestRule { when, ..rule }));
    }
}

#[test]
fn on_a_connection_what_is_not_http_decides() {
    let ports = OperationMatch { ports: vec![9080], ..OperationMatch::default() };
    let from = vec![SourceMatch { namespaces: vec![exact("shop")], ..SourceMatch::default() }];
    let policies = [policy("a", RequestAction::Allow, vec![RequestRule { from, to: vec![ports], ..RequestRule::default() }])];
    assert!(connection_target(&policies, &Sent::default().stream()).is_ok());
    assert!(connection_target(&policies, &Sent::anonymous().stream()).is_err());
}

fn any_rule() -> impl Strategy<Value = RequestRule> {
    prop_oneof![
        Just(everything()),
        prop::sample::select(http_rules()),
        Just(methods(&["POST"])),
        Just(RequestRule {
            from: vec![SourceMatch { principals: vec![StringMatch::Presence], ..SourceMatch::default() }],
            ..RequestRule::default()
        }),
    ]
}

fn any_policies() -> impl Strategy<Value = Vec<Arc<RequestPolicy>>> {
    let action = prop::sample::select(&[RequestAction::Allow, RequestAction::Deny, RequestAction::Audit][..]);
    let one = (action, prop::collection::vec(any_rule(), 0..3), any::<bool>())
        .prop_map(|(action, rules, dry_run)| with(policy("p", action, rules), |policy| policy.dry_run = dry_run));
    prop::collection::vec(one, 0..6)
}

proptest! {
    #[test]
    fn the_order_of_policies_does_not_matter(policies in any_policies(), anonymous: bool) {
        let sent = if anonymous { Sent::anonymous() } else { Sent::default() };
        let reversed: Vec<_> = policies.iter().rev().cloned().collect();
        prop_assert_eq!(target(&policies, &sent.facts()).is_ok(), target(&reversed, &sent.facts()).is_ok());
    }

    #[test]
    fn another_deny_never_lets_more_in(policies in any_policies(), rule in any_rule()) {
        let sent = Sent::default();
        let more = [policies.clone(), vec![policy("d", RequestAction::Deny, vec![rule])]].concat();
        prop_assert!(target(&policies, &sent.facts()).is_ok() || target(&more, &sent.facts()).is_err());
    }

    #[test]
    fn dry_run_and_audit_change_no_decision(policies in any_policies()) {
        let sent = Sent::default();
        let enforced: Vec<_> = policies.iter().filter(|one| !one.dry_run && one.action != RequestAction::Audit).cloned().collect();
        prop_assert_eq!(target(&policies, &sent.facts()).is_ok(), target(&enforced, &sent.facts()).is_ok());
    }

    #[test]
    fn a_connection_is_never_allowed_what_a_request_is_denied(policies in any_policies(), anonymous: bool) {
        let sent = if anonymous { Sent::anonymous() } else { Sent::default() };
        prop_assert!(target(&policies, &sent.facts()).is_ok() || connection_target(&policies, &sent.stream()).is_err());
    }
}
