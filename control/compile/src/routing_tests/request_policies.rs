//! AuthorizationPolicy as a waypoint has it, a test a field.

use serde_json::{Value, json};
use tropis_model::{
    policy::{ServiceAccountMatch, StringMatch},
    request_policy::{
        Attachment, Attribute, Condition, OperationMatch, PathMatch, RequestAction, RequestPolicy, RequestRule, Segment, SourceMatch,
    },
};

use super::{Mesh, object, policy, service, shop};
use crate::{Settings, request_policy};

fn compiled(spec: Value) -> RequestPolicy {
    request_policy::compile(&Settings::default(), &object(policy("shop", "p", spec))).0.unwrap()
}

fn rule(written: Value) -> RequestRule {
    let rules = compiled(json!({"rules": [written]})).rules;
    assert_eq!(rules.len(), 1);
    rules[0].clone()
}

fn source(written: Value) -> SourceMatch {
    rule(json!({"from": [{"source": written}]})).from[0].clone()
}

fn operation(written: Value) -> OperationMatch {
    rule(json!({"to": [{"operation": written}]})).to[0].clone()
}

fn condition(key: &str, values: Value) -> Condition {
    rule(json!({"when": [{"key": key, "values": values}]})).when[0].clone()
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.into())
}

#[test]
fn action_is_allow_deny_or_audit_and_custom_denies_without_an_authorizer() {
    let action = |name: &str, provider: Value| compiled(json!({"action": name, "provider": provider, "rules": [{}]})).action;
    assert_eq!(action("ALLOW", Value::Null), RequestAction::Allow);
    assert_eq!(action("DENY", Value::Null), RequestAction::Deny);
    assert_eq!(action("AUDIT", Value::Null), RequestAction::Audit);
    assert_eq!(action("CUSTOM", json!({"name": "opa"})), RequestAction::Deny);
}

#[test]
fn a_policy_that_allows_nobody_is_told_of_beside_one_that_allows() {
    let nobody = || policy("shop", "nobody", json!({}));
    let told = |objects: Vec<Value>| Mesh::new(objects).texts().into_iter().filter(|text| text.contains("allows nobody")).count();
    assert_eq!(told(vec![nobody()]), 0);
    assert_eq!(told(vec![nobody(), policy("shop", "all", json!({"rules": [{}]}))]), 1);
    assert_eq!(told(vec![nobody(), policy("istio-system", "all", json!({"rules": [{}]}))]), 1);
    assert_eq!(told(vec![nobody(), policy("bank", "all", json!({"rules": [{}]}))]), 0);
    assert_eq!(told(vec![nobody(), policy("shop", "no", json!({"action": "DENY", "rules": [{}]}))]), 0);
    let selecting = json!({"selector": {"matchLabels": {"app": "a"}}, "rules": [{}]});
    assert_eq!(told(vec![nobody(), policy("shop", "some", selecting)]), 0, "elsewhere it still denies");
}

#[test]
fn rules_that_are_missing_match_nothing_and_an_empty_one_everything() {
    assert!(compiled(json!({})).rules.is_empty());
    assert_eq!(compiled(json!({"rules": [{}]})).rules, [RequestRule::default()]);
}

#[test]
fn selector_and_namespace_say_which_workloads() {
    let attachment = |namespace: &str, spec: Value| {
        request_policy::compile(&Settings::default(), &object(policy(namespace, "p", spec))).0.unwrap().attachment
    };
    let labels = [("app".into(), "web".into())];
    let selector = json!({"selector": {"matchLabels": {"app": "web"}}});
    assert_eq!(
        attachment("shop", selector.clone()),
        Attachment::Workloads { namespace: Some("shop".into()), labels: labels.clone().into() }
    );
    assert_eq!(attachment("shop", json!({})), Attachment::Workloads { namespace: Some("shop".into()), labels: Default::default() });
    assert_eq!(attachment("istio-system", selector), Attachment::Workloads { namespace: None, labels: labels.into() });
}

#[test]
fn target_refs_attach_to_service_gateway_and_class() {
    let to = |namespace: &str, name: &str, target: Value| policy(namespace, name, json!({"targetRefs": [target], "rules": [{}]}));
    let gateway = |kind: &str, name: &str| json!({"group": "gateway.networking.k8s.io", "kind": kind, "name": name});
    let policies = [
        to("shop", "service", json!({"kind": "Service", "name": "reviews"})),
        to("shop", "other", json!({"kind": "Service", "name": "ratings"})),
        to("shop", "waypoint", gateway("Gateway", "waypoint")),
        to("shop", "edge", gateway("Gateway", "edge")),
        to("istio-system", "class", gateway("GatewayClass", "istio-waypoint")),
        to("shop", "misplaced", gateway("GatewayClass", "istio-waypoint")),
        policy("shop", "workloads", json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [{}]})),
        policy("istio-system", "everywhere", json!({"rules": [{}]})),
        policy("bank", "elsewhere", json!({"rules": [{}]})),
    ];
    let host = Mesh::new(shop().into_iter().chain(policies)).host("reviews");
    let attachment = |policy: &RequestPolicy| match policy.attachment {
        Attachment::Service => "service",
        Attachment::Target => "target",
        Attachment::Workloads { .. } => "workloads",
    };
    let keys: Vec<(String, &str)> = host.policies.iter().map(|policy| (policy.key.to_string(), attachment(policy))).collect();
    let expected = [
        ("shop/service", "service"),
        ("shop/waypoint", "target"),
        ("istio-system/class", "target"),
        ("shop/workloads", "workloads"),
        ("istio-system/everywhere", "workloads"),
    ];
    assert_eq!(keys, expected.map(|(key, kind)| (key.to_owned(), kind)));
}

#[test]
fn policies_of_the_namespaces_where_endpoints_are_come_along() {
    let routes = super::routes(
        "shop",
        "r",
        json!({"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "accounts.bank.svc.cluster.local"}}]}]}),
    );
    let objects = [service("bank", "accounts", &[("http", 80)]), routes, policy("bank", "closed", json!({}))];
    let host = Mesh::new(shop().into_iter().chain(objects)).host("reviews");
    assert_eq!(host.policies.iter().map(|policy| policy.key.to_string()).collect::<Vec<_>>(), ["bank/closed"]);
}

#[test]
fn dry_run_is_kept() {
    let mut value = policy("shop", "p", json!({"action": "DENY", "rules": [{}]}));
    value["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    assert!(request_policy::compile(&Settings::default(), &object(value)).0.unwrap().dry_run);
}

#[test]
fn source_principals_and_not_principals_are_matched() {
    let read = source(
        json!({"principals": ["cluster.local/ns/a/sa/b", "*/sa/c", "cluster.local/*", "*"], "notPrincipals": ["cluster.local/ns/x/sa/y"]}),
    );
    assert_eq!(
        read.principals,
        [exact("cluster.local/ns/a/sa/b"), StringMatch::Suffix("/sa/c".into()), prefix("cluster.local/"), StringMatch::Presence]
    );
    assert_eq!(read.not_principals, [exact("cluster.local/ns/x/sa/y")]);
}

#[test]
fn source_principals_of_the_meshs_own_domain_go_by_both_names() {
    let settings = Settings { trust_domain: "corp".into(), ..Settings::default() };
    let spec = json!({"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/a/sa/b", "corp/ns/c/*", "other/ns/d/sa/e"]}}]}]});
    let policy = request_policy::compile(&settings, &object(policy("shop", "p", spec))).0.unwrap();
    let expected = [
        exact("cluster.local/ns/a/sa/b"),
        exact("corp/ns/a/sa/b"),
        prefix("corp/ns/c/"),
        prefix("cluster.local/ns/c/"),
        exact("other/ns/d/sa/e"),
    ];
    assert_eq!(policy.rules[0].from[0].principals, expected);
}

#[test]
fn source_request_principals_are_matched() {
    let read = source(json!({"requestPrincipals": ["issuer/subject", "*"], "notRequestPrincipals": ["issuer/*"]}));
    assert_eq!(
        (read.request_principals, read.not_request_principals),
        (vec![exact("issuer/subject"), StringMatch::Presence], vec![prefix("issuer/")])
    );
}

#[test]
fn source_namespaces_are_matched() {
    let read = source(json!({"namespaces": ["shop", "team-*"], "notNamespaces": ["bank"]}));
    assert_eq!((read.namespaces, read.not_namespaces), (vec![exact("shop"), prefix("team-")], vec![exact("bank")]));
}

#[test]
fn source_service_accounts_are_of_the_policys_namespace_unless_they_say_so() {
    let account = |namespace: &str, name: &str| ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() };
    let read = source(json!({"serviceAccounts": ["cart", "bank/cart"], "notServiceAccounts": ["x/y"]}));
    assert_eq!(
        (read.service_accounts, read.not_service_accounts),
        (vec![account("shop", "cart"), account("bank", "cart")], vec![account("x", "y")])
    );
}

#[test]
fn source_ip_blocks_and_remote_ip_blocks_are_blocks() {
    let read = source(
        json!({"ipBlocks": ["10.0.0.1"], "notIpBlocks": ["10.1.0.0/16"], "remoteIpBlocks": ["fd00::/8"], "notRemoteIpBlocks": ["192.0.2.0/24"]}),
    );
    let lists = [read.ip_blocks, read.not_ip_blocks, read.remote_ip_blocks, read.not_remote_ip_blocks];
    let texts = lists.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    assert_eq!(texts, ["10.0.0.1/32", "10.1.0.0/16", "fd00::/8", "192.0.2.0/24"]);
}

#[test]
fn source_trust_domains_are_the_beginnings_of_principals() {
    let rules = compiled(json!({"rules": [{"from": [
        {"source": {"namespaces": ["shop"]}},
        {"source": {"trustDomains": ["corp"], "notTrustDomains": ["corp-test*"], "ipBlocks": ["10.0.0.0/8"]}},
    ]}]}))
    .rules;
    assert_eq!(rules.len(), 2, "each source with a domain is a rule of its own");
    assert_eq!(rules[0].from[0].namespaces, [exact("shop")]);
    let condition =
        Condition { attribute: Attribute::SourcePrincipal, values: vec![prefix("corp/")], not_values: vec![prefix("corp-test")] };
    assert_eq!((rules[1].when.as_slice(), rules[1].from[0].ip_blocks.len()), ([condition].as_slice(), 1));
    assert!(
        compiled(json!({"rules": [{"from": [{"source": {"trustDomains": ["*.corp"]}}]}]})).rules.is_empty(),
        "cannot be told: allows nothing"
    );
}

#[test]
fn operation_hosts_are_matched() {
    let read = operation(json!({"hosts": ["a.b", "a.b:*"], "notHosts": ["*.c"]}));
    assert_eq!((read.hosts, read.not_hosts), (vec![exact("a.b"), prefix("a.b:")], vec![StringMatch::Suffix(".c".into())]));
}

#[test]
fn operation_ports_are_numbers() {
    let read = operation(json!({"ports": ["80", "8080"], "notPorts": ["22"]}));
    assert_eq!((read.ports, read.not_ports), (vec![80, 8080], vec![22]));
}

#[test]
fn operation_methods_are_matched() {
    let read = operation(json!({"methods": ["GET", "P*"], "notMethods": ["PUT"]}));
    assert_eq!((read.methods, read.not_methods), (vec![exact("GET"), prefix("P")], vec![exact("PUT")]));
}

#[test]
fn operation_paths_are_texts_or_templates() {
    let read = operation(json!({"paths": ["/a", "/b/*", "/c/{*}/d/{**}"], "notPaths": ["*/admin"]}));
    let template = vec![Segment::Literal("c".into()), Segment::One, Segment::Literal("d".into()), Segment::Rest];
    assert_eq!(read.paths, [PathMatch::Text(exact("/a")), PathMatch::Text(prefix("/b/")), PathMatch::Template(template)]);
    assert_eq!(read.not_paths, [PathMatch::Text(StringMatch::Suffix("/admin".into()))]);
}

#[test]
fn when_reads_every_key() {
    for (key, attribute) in [
        ("request.headers[X-Token]", Attribute::RequestHeader("x-token".into())),
        ("connection.sni", Attribute::ServerName),
        ("request.auth.principal", Attribute::TokenPrincipal),
        ("request.auth.audiences", Attribute::TokenAudiences),
        ("request.auth.presenter", Attribute::TokenPresenter),
        ("request.auth.claims[iss]", Attribute::TokenClaim(vec!["iss".into()])),
        ("request.auth.claims[a][b.c]", Attribute::TokenClaim(vec!["a".into(), "b.c".into()])),
        ("source.namespace", Attribute::SourceNamespace),
    ] {
        assert_eq!(condition(key, json!(["shop"])), Condition { attribute, values: vec![exact("shop")], not_values: vec![] }, "{key}");
    }
    assert_eq!(condition("source.principal", json!(["*"])).values, [StringMatch::Presence]);
    assert_eq!(condition("source.serviceAccount", json!(["cart"])).values, [exact("shop/cart")]);
    assert_eq!(
        condition("source.trustDomain", json!(["corp"])),
        Condition { attribute: Attribute::SourcePrincipal, values: vec![prefix("corp/")], not_values: vec![] }
    );
    for (key, attribute) in
        [("source.ip", Attribute::SourceIp), ("remote.ip", Attribute::RemoteIp), ("destination.ip", Attribute::DestinationIp)]
    {
        assert_eq!(
            condition(key, json!(["10.0.0.1"])),
            Condition { attribute, values: vec![exact("10.0.0.1/32")], not_values: vec![] },
            "{key}"
        );
    }
    assert_eq!(
        condition("destination.port", json!(["80"])),
        Condition { attribute: Attribute::DestinationPort, values: vec![exact("80")], not_values: vec![] }
    );
}

#[test]
fn when_not_values_are_kept() {
    let read = rule(json!({"when": [{"key": "request.headers[x]", "notValues": ["bad*"]}]})).when;
    assert_eq!(read, [Condition { attribute: Attribute::RequestHeader("x".into()), values: vec![], not_values: vec![prefix("bad")] }]);
}

#[test]
fn what_cannot_be_read_allows_less_and_denies_more() {
    let rules = |action: &str, rule: Value| compiled(json!({"action": action, "rules": [rule]})).rules;
    let by = |field: &str, text: &str| json!({"from": [{"source": {field: [text], "ipBlocks": ["10.0.0.0/8"]}}]});
    assert!(rules("ALLOW", by("principals", "who is that")).is_empty());
    assert!(rules("ALLOW", by("notPrincipals", "who is that")).is_empty());
    for field in ["principals", "notPrincipals"] {
        let denied = rules("DENY", by(field, "who is that"));
        let from = &denied[0].from[0];
        assert!(from.principals.is_empty() && from.not_principals.is_empty() && from.ip_blocks.len() == 1, "{field}: {denied:?}");
    }
    assert_eq!(
        rules("DENY", by("principals", "spiffe://cluster.local/ns/a/sa/b"))[0].from[0].principals,
        [exact("cluster.local/ns/a/sa/b")]
    );
    assert!(rules("ALLOW", by("principals", "spiffe://cluster.local/ns/a/sa/b")).is_empty());
    let unknown = json!({"when": [{"key": "experimental.envoy.filters.x[y]", "values": ["1"]}]});
    assert!(rules("ALLOW", unknown.clone()).is_empty());
    assert_eq!(rules("DENY", unknown), [RequestRule::default()]);
}
