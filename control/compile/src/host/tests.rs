//! What is accepted from users is accepted by waypoints: everything that compiles decodes at the other end, unchanged.

use proptest::{
    collection::vec,
    option,
    prelude::{ProptestConfig, Strategy, prop_assert, prop_oneof, proptest},
    sample::select,
};
use serde_json::{Value, json};
use tropis_crds::decode;
use tropis_model::{bounds, view::Change};
use tropis_proto::xds::Resource;
use tropis_xds::convert::{self, Interner};

use super::*;
use crate::{Compiler, Settings};

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let group = if kind == "AuthorizationPolicy" { "security" } else { "networking" };
    let version = format!("{group}.istio.io/v1");
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

/// A namespace whose waypoint carries Service `web`; nothing else is there.
fn mesh() -> Compiler {
    let mut compiler = Compiler::new(Settings { trust_domain: "corp".into(), ..Settings::default() });
    for value in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"istio.io/use-waypoint": "gw"}}}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}, {"name": "tcp", "port": 81}]},
        }),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "gw", "namespace": "shop"},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
            "status": {"addresses": [{"type": "Hostname", "value": "gw.shop.svc.cluster.local"}]},
        }),
    ] {
        compiler.apply(&Arc::new(decode(value).unwrap().0));
    }
    compiler
}

/// Puts objects in force and sends what the waypoint is told through the wire. `false` if one of them is refused where it is written;
/// an error if the waypoint refuses something of it.
fn goes_through(objects: Vec<Value>) -> Result<bool, String> {
    let mut compiler = mesh();
    for value in objects {
        let Ok((object, _)) = decode(value) else { return Ok(false) };
        compiler.apply(&Arc::new(object));
    }
    compiler.changes();
    for change in compiler.waypoints().into_iter().flat_map(|told| told.changes.unwrap_or_default()) {
        let encoded = convert::encode(&change);
        let Some(value) = encoded.body else { continue };
        let body = prost_types::Any { type_url: encoded.r#type.url().to_owned(), value };
        let resource = Resource { name: encoded.name.to_string(), resource: Some(body), ..Resource::default() };
        let decoded = convert::decode(encoded.r#type, &resource, &mut Interner::default()).map_err(|error| error.to_string())?;
        let same = match (&decoded, &change) {
            // A duration beyond a hundred years is sent as that.
            (Change::Host(told), Change::Host(own)) => {
                let connections = |host: &Host| host.ports.values().map(|port| (port.tls.clone(), port.tcp.clone())).collect::<Vec<_>>();
                connections(told) == connections(own) && told.policies == own.policies
            }
            _ => decoded == change,
        };
        if !same {
            return Err(format!("{change:?} became {decoded:?}"));
        }
    }
    Ok(true)
}

fn route() -> Value {
    json!([{"destination": {"host": "web"}}])
}

fn times(count: usize, entry: impl Fn(usize) -> Value) -> Value {
    (0..count).map(entry).collect()
}

fn map(count: usize) -> Value {
    (0..count).map(|number| (format!("x-{number}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
}

/// Objects with `count` entries in one list each, by what the list is and how many entries it may have.
fn lists(count: impl Fn(usize) -> usize) -> Vec<(&'static str, Value)> {
    let http = |rule: Value| object("VirtualService", "v", json!({"hosts": ["web"], "http": [rule]}));
    let policy = |rule: Value| object("AuthorizationPolicy", "p", json!({"rules": [rule]}));
    let balancer = |balancer: Value| object("DestinationRule", "d", json!({"host": "web", "trafficPolicy": {"loadBalancer": balancer}}));
    let headers = times(count(bounds::MATCHES), |number| json!({"headers": {"x": {"exact": number.to_string()}}}));
    let named: serde_json::Map<_, _> = (0..count(bounds::NAMED_MATCHES)).map(|number| (format!("x-{number}"), json!({}))).collect();
    vec![
        (
            "http",
            object(
                "VirtualService",
                "v",
                json!({"hosts": ["web"], "http": times(count(bounds::ROUTES), |number| {
                    json!({"match": [{"uri": {"exact": format!("/{number}")}}], "route": route()})
                })}),
            ),
        ),
        ("match", http(json!({"match": headers, "route": route()}))),
        ("match.headers", http(json!({"match": [{"headers": named}], "route": route()}))),
        ("match.sourceLabels", http(json!({"match": [{"sourceLabels": map(count(bounds::LABELS))}], "route": route()}))),
        ("route", http(json!({"route": times(count(bounds::DESTINATIONS), |_| json!({"destination": {"host": "web"}, "weight": 1}))}))),
        (
            "mirrors",
            http(json!({
                "route": route(), "mirrors": times(count(bounds::MIRRORS), |_| json!({"destination": {"host": "web"}})),
            })),
        ),
        ("headers.set", http(json!({"route": route(), "headers": {"request": {"set": map(count(bounds::HEADERS))}}}))),
        (
            "headers.remove",
            http(json!({
                "route": route(), "headers": {"response": {"remove": times(count(bounds::HEADERS), |number| json!(format!("x-{number}")))}},
            })),
        ),
        (
            "allowOrigins",
            http(json!({
                "route": route(), "corsPolicy": {"allowOrigins": times(count(bounds::MATCHES), |number| json!({"exact": number.to_string()}))},
            })),
        ),
        (
            "tcp.match.destinationSubnets",
            object(
                "VirtualService",
                "v",
                json!({"hosts": ["web"], "tcp": [{
                    "match": [{"destinationSubnets": times(count(bounds::VALUES), |number| json!(format!("10.{}.{}.0/24", number / 256, number % 256)))}],
                    "route": route(),
                }]}),
            ),
        ),
        (
            "cookie.attributes",
            balancer(json!({"consistentHash": {"httpCookie": {
                "name": "c", "ttl": "0s", "attributes": times(count(bounds::ATTRIBUTES), |number| json!({"name": number.to_string()})),
            }}})),
        ),
        (
            "failoverPriority",
            object(
                "DestinationRule",
                "d",
                json!({"host": "web", "trafficPolicy": {
                    "outlierDetection": {"interval": "1s"},
                    "loadBalancer": {"localityLbSetting": {
                        "failoverPriority": times(count(bounds::LOCALITIES), |number| json!(format!("label-{number}"))),
                    }},
                }}),
            ),
        ),
        (
            "subset.labels",
            object(
                "DestinationRule",
                "d",
                json!({"host": "web", "subsets": [
                    {"name": "s", "labels": map(count(bounds::LABELS))},
                ]}),
            ),
        ),
        ("rules", object("AuthorizationPolicy", "p", json!({"rules": times(count(bounds::RULES), |_| json!({}))}))),
        ("from", policy(json!({"from": times(count(bounds::RULES), |_| json!({"source": {"namespaces": ["a"]}}))}))),
        ("to", policy(json!({"to": times(count(bounds::RULES), |_| json!({"operation": {"methods": ["GET"]}}))}))),
        (
            "principals",
            policy(json!({"from": [{"source": {
                "principals": times(count(bounds::VALUES), |number| json!(format!("corp/ns/a/sa/{number}"))),
            }}]})),
        ),
        (
            "trustDomains",
            policy(json!({
                "from": times(count(bounds::RULES - 1), |_| json!({"source": {"trustDomains": ["corp"]}})),
            })),
        ),
        ("template", policy(json!({"to": [{"operation": {"paths": ["/x".repeat(count(bounds::SEGMENTS) - 2) + "/{*}"]}}]}))),
        ("selector", object("AuthorizationPolicy", "p", json!({"selector": {"matchLabels": map(count(bounds::LABELS))}}))),
    ]
}

#[test]
fn the_longest_lists_that_users_may_write_go_through_and_longer_ones_are_refused_where_they_are_written() {
    for (name, longest) in lists(|limit| limit) {
        let used = (name == "subset.labels").then(|| {
            let rule = json!({"route": [{"destination": {"host": "web", "subset": "s"}}]});
            object("VirtualService", "v", json!({"hosts": ["web"], "http": [rule]}))
        });
        assert_eq!(goes_through([longest].into_iter().chain(used).collect()), Ok(true), "{name}");
    }
    for (name, longer) in lists(|limit| limit + 1) {
        assert_eq!(goes_through(vec![longer]), Ok(false), "{name}");
    }
}

#[test]
fn matches_that_a_rule_and_its_delegate_make_together_are_refused_as_a_rule_when_they_are_too_many() {
    let matches = |field: &str, count: usize| times(count, |number| json!({"headers": {field: {"exact": number.to_string()}}}));
    let told = |root: usize, delegate: usize| {
        let root = json!({"match": matches("a", root), "delegate": {"name": "more"}});
        let after = json!({"route": route()});
        let mut compiler = mesh();
        for value in [
            object("VirtualService", "v", json!({"hosts": ["web"], "http": [root, after]})),
            object("VirtualService", "more", json!({"http": [{"match": matches("b", delegate), "route": route()}]})),
        ] {
            compiler.apply(&Arc::new(decode(value).unwrap().0));
        }
        let web = compiler.index().service(&("shop".to_owned(), "web".to_owned())).unwrap().clone();
        let (host, findings) = compile(compiler.index(), &("shop".to_owned(), "gw".to_owned()), &web);
        let routes: Vec<(usize, bool)> =
            host.ports[&80].http.iter().map(|route| (route.matches.len(), matches!(route.action, RouteAction::Respond(_)))).collect();
        (routes, findings.iter().map(|finding| format!("{} {}", finding.object, finding.field.as_deref().unwrap_or_default())).collect())
    };
    assert_eq!(told(32, 32), (vec![(1024, false), (0, false)], Vec::<String>::new()));
    let refused = vec!["VirtualService shop/more spec.http[0].match".to_owned()];
    assert_eq!(told(33, 32), (vec![(0, true)], refused), "nothing falls to the rule after it");
}

#[test]
fn connections_are_refused_where_there_are_too_many_routes_for_them() {
    let rendered = |kind: &str, matches: usize| {
        let entry = |number: usize| match kind {
            "tls" => json!({"sniHosts": ["web"], "destinationSubnets": [format!("10.{}.{}.0/24", number / 256, number % 256)]}),
            _ => json!({"destinationSubnets": [format!("10.{}.{}.0/24", number / 256, number % 256)]}),
        };
        let rules = |from: usize, count: usize| json!({"match": times(count, |number| entry(from + number)), "route": route()});
        let rules: Vec<Value> = (0..matches).step_by(1000).map(|from| rules(from, (matches - from).min(1000))).collect();
        let routes = object("VirtualService", "v", json!({"hosts": ["web"], kind: rules}));
        assert_eq!(goes_through(vec![routes.clone()]), Ok(true), "{kind}: a waypoint takes it");
        let mut compiler = mesh();
        compiler.apply(&Arc::new(decode(routes).unwrap().0));
        let web = compiler.index().service(&("shop".to_owned(), "web".to_owned())).unwrap().clone();
        let (host, findings) = compile(compiler.index(), &("shop".to_owned(), "gw".to_owned()), &web);
        let port = &host.ports[&81];
        let tls = port.tls.iter().map(|route| (route.destination_blocks.len(), route.destinations.len()));
        let tcp = port.tcp.iter().map(|route| (route.destination_blocks.len(), route.destinations.len()));
        let mut routes: Vec<(usize, usize)> = if kind == "tls" { tls.collect() } else { tcp.collect() };
        let told: Vec<String> = findings.iter().map(|finding| finding.field.clone().unwrap_or_default()).collect();
        // What no rule takes goes to the service itself.
        if routes.last() == Some(&(0, 1)) {
            routes.pop();
        }
        (routes.len(), routes.last().copied(), told)
    };
    for kind in ["tls", "tcp"] {
        assert_eq!(rendered(kind, bounds::ROUTES - 1), (bounds::ROUTES - 1, Some((1, 1)), vec![]), "{kind}");
        let refused = (bounds::ROUTES - 1, Some((0, 0)), vec![format!("spec.{kind}[4]")]);
        assert_eq!(rendered(kind, bounds::ROUTES), refused, "{kind}");
    }
}

#[test]
fn more_policies_than_a_waypoint_takes_deny_everything() {
    let policy = |number: usize| {
        let key = tropis_model::policy::PolicyKey(format!("shop/{number}").into());
        let action = tropis_model::request_policy::RequestAction::Allow;
        let attachment = tropis_model::request_policy::Attachment::Target;
        Arc::new(tropis_model::request_policy::RequestPolicy { key, attachment, action, rules: Vec::new(), dry_run: false })
    };
    let all: Vec<_> = (0..=bounds::POLICIES).map(policy).collect();
    assert_eq!(request_policy::bounded(all[1..].to_vec()), all[1..]);
    let bounded = request_policy::bounded(all);
    assert_eq!(bounded.len(), bounds::POLICIES);
    let last = bounded.last().unwrap();
    assert_eq!((last.action, last.rules.len()), (tropis_model::request_policy::RequestAction::Deny, 1));
    assert_eq!(last.attachment, tropis_model::request_policy::Attachment::Service, "also what a route brings");
}

/// A value among these.
fn of(values: Vec<Value>) -> impl Strategy<Value = Value> {
    select(values)
}

fn duration() -> impl Strategy<Value = Value> {
    of(["0s", "1ms", "1s", "1.5s", "2562047h", "999999999h", "x"].map(Value::from).to_vec())
}

fn status() -> impl Strategy<Value = Value> {
    prop_oneof![(0..=700_i64).prop_map(Value::from), of(vec![json!(99), json!(199), json!(200), json!(599), json!(600), json!(-1)])]
}

fn count() -> impl Strategy<Value = Value> {
    of([-1_i64, 0, 1, 100, 1_000, 65_537, 5_000_011, 8_388_608, 8_388_609, i32::MAX.into(), u32::MAX.into()].map(Value::from).to_vec())
}

fn percentage() -> impl Strategy<Value = Value> {
    of([-1.0, 0.0, 0.00001, 33.3, 100.0, 100.1].map(|value| json!({"value": value})).to_vec())
}

fn text() -> impl Strategy<Value = Value> {
    let patterns = ["a)|(b", "(?x)a # b", r"\pL{150}", "[", ".*", ""];
    let mut all: Vec<Value> = patterns.map(|pattern| json!({"regex": pattern})).to_vec();
    all.extend([
        json!({"regex": "a".repeat(1024)}),
        json!({"regex": "a".repeat(1025)}),
        json!({"exact": ""}),
        json!({"prefix": "/"}),
        json!({}),
    ]);
    of(all)
}

fn http_rule() -> impl Strategy<Value = Value> {
    let names = of(["x", "", ":method", "uri", "X-A"].map(Value::from).to_vec());
    let matched = (option::of(text()), option::of((names, text()))).prop_map(|(uri, header)| {
        let headers: serde_json::Map<_, _> = header.into_iter().map(|(name, text)| (name.as_str().unwrap().to_owned(), text)).collect();
        match uri {
            Some(uri) => json!({"uri": uri, "headers": headers}),
            None => json!({"headers": headers, "port": 80}),
        }
    });
    let destination = (of(vec![json!(0), json!(1), json!(i32::MAX), json!(-1)]), of(vec![json!(0), json!(80), json!(65_536)]));
    let destinations = vec(
        destination.prop_map(|(weight, port)| json!({"destination": {"host": "web", "port": {"number": port}}, "weight": weight})),
        1..4,
    );
    let action = prop_oneof![
        destinations.prop_map(|list| json!({"route": list})),
        status().prop_map(|status| json!({"directResponse": {"status": status}})),
        status().prop_map(|status| json!({"redirect": {"uri": "/x", "redirectCode": status}})),
    ];
    let on = of(["5xx", "503", "99", "600", "100", "retriable-4xx,429", "nonsense", ""].map(Value::from).to_vec());
    let retries =
        (count(), duration(), on).prop_map(|(attempts, wait, on)| json!({"attempts": attempts, "perTryTimeout": wait, "retryOn": on}));
    let grpc = of(["OK", "UNAVAILABLE", "16", "17", "-1"].map(Value::from).to_vec());
    let abort = prop_oneof![
        (status(), percentage()).prop_map(|(status, share)| json!({"httpStatus": status, "percentage": share})),
        (grpc, percentage()).prop_map(|(status, share)| json!({"grpcStatus": status, "percentage": share})),
    ];
    (vec(matched, 0..3), action, option::of(retries), option::of(abort), option::of(duration())).prop_map(
        |(matches, mut rule, retries, abort, timeout)| {
            rule["match"] = matches.into();
            for (name, value) in [("retries", retries), ("timeout", timeout), ("fault", abort.map(|abort| json!({"abort": abort})))] {
                if let Some(value) = value {
                    rule[name] = value;
                }
            }
            rule
        },
    )
}

fn traffic_policy() -> impl Strategy<Value = Value> {
    let balancer = prop_oneof![
        count().prop_map(|size| json!({"consistentHash": {"httpHeaderName": "x", "ringHash": {"minimumRingSize": size}}})),
        count().prop_map(|size| json!({"consistentHash": {"useSourceIp": true, "maglev": {"tableSize": size}}})),
        (duration(), count()).prop_map(|(duration, share)| {
            json!({"simple": "ROUND_ROBIN", "warmup": {"duration": duration, "minimumPercent": share, "aggression": 1.5}})
        }),
    ];
    let pool = (count(), duration()).prop_map(|(count, duration)| {
        json!({"tcp": {"maxConnections": count, "connectTimeout": duration}, "http": {"maxRetries": count, "idleTimeout": duration}})
    });
    let outlier = (count(), status(), count(), duration()).prop_map(|(errors, code, share, interval)| {
        json!({
            "consecutive5xxErrors": errors, "outlierDetectionHttpErrorCodes": [code], "maxEjectionPercent": share, "interval": interval,
        })
    });
    let budget = (percentage(), count()).prop_map(|(share, least)| json!({"percent": share, "minRetryConcurrency": least}));
    (option::of(balancer), option::of(pool), option::of(outlier), option::of(budget)).prop_map(|(balancer, pool, outlier, budget)| {
        let blocks = [("loadBalancer", balancer), ("connectionPool", pool), ("outlierDetection", outlier), ("retryBudget", budget)];
        let present = blocks.into_iter().filter_map(|(name, block)| Some((name.to_owned(), block?)));
        present.collect::<serde_json::Map<_, _>>().into()
    })
}

fn policy_rule() -> impl Strategy<Value = Value> {
    let sources = of(vec![
        json!({"principals": ["corp/ns/a/sa/b", "*", "who is that", "spiffe://x"]}),
        json!({"trustDomains": ["corp", "*x"], "notIpBlocks": ["10.0.0.0/8"]}),
        json!({"serviceAccounts": ["a", "b/c"]}),
        json!({"remoteIpBlocks": ["nonsense"]}),
    ]);
    let operations = of(vec![
        json!({"ports": ["0"]}),
        json!({"ports": ["65535"], "methods": ["GET"]}),
        json!({"paths": ["/a/{*}", "/b/{**}", "/c*"]}),
        json!({"paths": ["/{**}/x"]}),
    ]);
    let keys =
        ["request.headers[x]", "request.headers[]", "request.auth.claims[a][b]", "experimental.envoy.filters.x", "source.ip", "nonsense"];
    let keys = of(keys.map(Value::from).to_vec());
    let when =
        (keys, of(vec![json!(["1"]), json!([]), json!(["10.0.0.1"])])).prop_map(|(key, values)| json!({"key": key, "values": values}));
    (option::of(sources), option::of(operations), option::of(when)).prop_map(|(source, operation, when)| {
        let parts = [
            ("from", source.map(|source| json!([{"source": source}]))),
            ("to", operation.map(|operation| json!([{"operation": operation}]))),
            ("when", when.map(|when| json!([when]))),
        ];
        let present = parts.into_iter().filter_map(|(name, part)| Some((name.to_owned(), part?)));
        present.collect::<serde_json::Map<_, _>>().into()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_compiles_decodes(rule in http_rule(), traffic in traffic_policy(), rules in vec(policy_rule(), 1..3), deny: bool) {
        // Each by itself: one that is refused says nothing about the others.
        let action = if deny { "DENY" } else { "ALLOW" };
        for object in [
            object("VirtualService", "v", json!({"hosts": ["web"], "http": [rule]})),
            object("DestinationRule", "d", json!({"host": "web", "trafficPolicy": traffic})),
            object("AuthorizationPolicy", "p", json!({"action": action, "rules": rules})),
        ] {
            let told = goes_through(vec![object.clone()]);
            prop_assert!(told.is_ok(), "{object}: {}", told.unwrap_err());
        }
    }
}
