//! What an HTTP rule does, a test a field.

use std::time::Duration;

use serde_json::{Value, json};
use tropis_model::route::{
    AbortStatus, Cors, Destination, DirectResponse, Fault, FaultAbort, FaultDelay, HeaderChanges, HeaderOperations, Mirror, PathRewrite,
    Redirect, RedirectPort, Retries, RetryOn, Rewrite, RouteAction, TextMatch, UnanchoredPattern,
};

use super::{Mesh, PORT, forwarded, http, key, refused, refused_rule, routes, service, shop};

const BACKOFF: Duration = Duration::from_millis(25);

fn share(name: &str, subset: Option<&str>, weight: u32) -> Destination {
    Destination { pool: key(name, PORT, subset), weight, headers: HeaderChanges::default() }
}

fn destinations(route: Value) -> Vec<Destination> {
    let RouteAction::Forward(forward) = http(json!({"route": route})).action.clone() else { panic!() };
    forward.destinations
}

#[test]
fn http_name_is_the_routes_name() {
    assert_eq!(&*forwarded(json!({"name": "canary"})).0.name, "canary");
    assert_eq!(&*forwarded(json!({})).0.name, "default");
}

#[test]
fn http_route_destination_names_host_subset_and_port() {
    assert_eq!(destinations(json!([{"destination": {"host": "ratings"}}])), [share("ratings", None, 1)]);
    assert_eq!(
        destinations(json!([{"destination": {"host": "reviews.shop.svc.cluster.local", "subset": "v2"}}])),
        [share("reviews", Some("v2"), 1)]
    );
    let ported = destinations(json!([{"destination": {"host": "reviews", "port": {"number": 81}}}]));
    assert_eq!(ported[0].pool, key("reviews", 81, None));
    for (destination, problem) in [
        (json!({"host": ""}), "destination.host: is missing"),
        (json!({"host": "*"}), "destination.host: \"*\" is not a host"),
        (json!({"host": "a", "subset": "V1"}), "destination.subset: \"V1\" is not a subset's name"),
        (json!({"host": "a", "port": {"number": 0}}), "destination.port.number: 0 is not a port"),
        (json!({"host": "a", "port": {"name": "http"}}), "destination.port.name: \"http\" is in a field that the schema does not know"),
    ] {
        let text = refused_rule(json!({"route": [{"destination": destination}]}));
        assert!(text.contains(problem), "{text}");
    }
}

#[test]
fn http_route_destination_takes_the_only_port_of_the_service_else_the_one_that_was_addressed() {
    let spec = json!({"hosts": ["front"], "http": [
        {"match": [{"uri": {"exact": "/one"}}], "route": [{"destination": {"host": "one"}}]},
        {"match": [{"uri": {"exact": "/two"}}], "route": [{"destination": {"host": "two"}}]},
        {"route": [{"destination": {"host": "absent"}}]},
    ]});
    let mesh = Mesh::new([
        service("shop", "front", &[("http", 80)]),
        service("shop", "one", &[("http", 8081)]),
        service("shop", "two", &[("http-a", 80), ("http-b", 8082)]),
        routes("shop", "front", spec),
    ]);
    let host = mesh.host("front");
    let pools: Vec<String> = host.ports[&80]
        .http
        .iter()
        .map(|route| match &route.action {
            RouteAction::Forward(forward) => forward.destinations[0].pool.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        pools,
        ["shop/one.shop.svc.cluster.local:8081", "shop/two.shop.svc.cluster.local:80", "shop/absent.shop.svc.cluster.local:80"]
    );
    assert_eq!(host.pools.keys().map(ToString::to_string).collect::<Vec<_>>(), pools[..2], "no pool for what does not exist: NC");
}

#[test]
fn http_route_destination_follows_a_service_that_is_an_external_name() {
    let alias = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "old", "namespace": "shop"},
        "spec": {"type": "ExternalName", "externalName": "ratings.shop.svc.cluster.local"},
    });
    let mut outside = alias.clone();
    (outside["metadata"]["name"], outside["spec"]["externalName"]) = (json!("away"), json!("Example.com"));
    let route = |host: &str| json!({"match": [{"uri": {"prefix": format!("/{host}")}}], "route": [{"destination": {"host": host}}]});
    let spec = json!({"hosts": ["reviews"], "http": [route("old"), route("away")]});
    let host = Mesh::new(shop().into_iter().chain([alias, outside, routes("shop", "r", spec)])).host("reviews");
    let pools: Vec<String> = host.ports[&PORT]
        .http
        .iter()
        .map(|route| match &route.action {
            RouteAction::Forward(forward) => forward.destinations[0].pool.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(pools, ["shop/ratings.shop.svc.cluster.local:9080", "shop/example.com:9080"]);
    assert_eq!(host.pools.len(), 1);
}

#[test]
fn http_route_weight_is_a_share_of_the_sum() {
    let split = json!([
        {"destination": {"host": "reviews", "subset": "v1"}, "weight": 90},
        {"destination": {"host": "reviews", "subset": "v2"}, "weight": 30},
        {"destination": {"host": "ratings"}, "weight": 0},
    ]);
    assert_eq!(destinations(split), [share("reviews", Some("v1"), 90), share("reviews", Some("v2"), 30)]);
    assert_eq!(destinations(json!([{"destination": {"host": "ratings"}, "weight": 0}])), [share("ratings", None, 1)], "alone it gets all");
    let negative =
        refused_rule(json!({"route": [{"destination": {"host": "a"}, "weight": -1}, {"destination": {"host": "b"}, "weight": 1}]}));
    assert!(negative.contains("route[0].weight: -1 is out of range"), "{negative}");
}

#[test]
fn http_route_headers_belong_to_the_share() {
    let RouteAction::Forward(forward) = http(json!({"route": [
        {"destination": {"host": "reviews", "subset": "v1"}, "weight": 1, "headers": {"request": {"set": {"X-Share": "v1"}}}},
        {"destination": {"host": "reviews", "subset": "v2"}, "weight": 1, "headers": {"response": {"remove": ["X-Debug"]}}},
    ]}))
    .action
    .clone() else {
        panic!()
    };
    assert_eq!(forward.destinations[0].headers.request.set, [("x-share".into(), "v1".into())]);
    assert_eq!(&*forward.destinations[1].headers.response.remove[0], "x-debug");
}

#[test]
fn http_redirect_has_path_authority_scheme_port_and_code() {
    let redirect = |written: Value, matches: Value| match http(json!({"match": matches, "redirect": written})).action.clone() {
        RouteAction::Redirect(redirect) => redirect,
        other => panic!("{other:?}"),
    };
    let none = || Redirect { path: None, authority: None, scheme: None, port: None, status: 301 };
    let any = json!([]);
    assert_eq!(redirect(json!({"uri": "/new"}), any.clone()), Redirect { path: Some(PathRewrite::Full("/new".into())), ..none() });
    assert_eq!(
        redirect(json!({"authority": "a.b", "scheme": "https", "port": 8443, "redirectCode": 308}), any.clone()),
        Redirect {
            authority: Some("a.b".into()),
            scheme: Some("https".into()),
            port: Some(RedirectPort::Number(8443)),
            status: 308,
            ..none()
        }
    );
    assert_eq!(redirect(json!({"derivePort": "FROM_REQUEST_PORT"}), any.clone()).port, Some(RedirectPort::FromRequest));
    assert_eq!(redirect(json!({"derivePort": "FROM_PROTOCOL_DEFAULT"}), any).port, Some(RedirectPort::FromScheme));
    let by_prefix = redirect(json!({"prefixRewrite": "/b"}), json!([{"uri": {"prefix": "/a"}}]));
    assert_eq!(by_prefix.path, Some(PathRewrite::Matched("/b".into())));
    let refuse = |written: Value| refused(routes("shop", "r", json!({"hosts": ["a"], "http": [{"redirect": written}]})));
    for (written, problem) in [
        (json!({}), "leads to where the request came from"),
        (json!({"uri": "/a", "redirectCode": 304}), "redirectCode: 304 is not a redirect"),
        (json!({"prefixRewrite": "/a"}), "prefixRewrite: \"/a\" has no prefix to replace"),
        (json!({"port": 80, "derivePort": "FROM_REQUEST_PORT"}), "port beside derivePort is ambiguous"),
    ] {
        assert!(refuse(written.clone()).contains(problem), "{}", refuse(written));
    }
}

#[test]
fn http_direct_response_has_status_and_body() {
    let respond = |written: Value| http(json!({"directResponse": written})).action.clone();
    let answer = |status: u16, body: &[u8]| RouteAction::Respond(DirectResponse { status, body: body.into() });
    assert_eq!(respond(json!({"status": 418})), answer(418, b""));
    assert_eq!(respond(json!({"status": 503, "body": {"string": "down"}})), answer(503, b"down"));
    assert_eq!(respond(json!({"status": 200, "body": {"bytes": "aGk="}})), answer(200, b"hi"));
    let refuse = |written: Value| refused(routes("shop", "r", json!({"hosts": ["a"], "http": [{"directResponse": written}]})));
    assert!(refuse(json!({"status": 100})).contains("directResponse.status: 100 is out of range"));
    assert!(refuse(json!({"status": 200, "body": {"bytes": "*"}})).contains("body.bytes: \"*\" is not base64"));
    assert!(refuse(json!({"status": 200, "body": {}})).contains("body: is not one body"));
}

#[test]
fn http_rewrite_changes_path_and_authority() {
    let rewrite = |written: Value| forwarded(json!({"rewrite": written})).1.rewrite.unwrap();
    assert_eq!(rewrite(json!({"uri": "/b"})), Rewrite { path: Some(PathRewrite::Matched("/b".into())), authority: None });
    assert_eq!(rewrite(json!({"authority": "a.b"})), Rewrite { path: None, authority: Some("a.b".into()) });
    let pattern = PathRewrite::Pattern { pattern: UnanchoredPattern::new("^/(v[0-9])/").unwrap(), replacement: "/\\1-x/".into() };
    assert_eq!(rewrite(json!({"uriRegexRewrite": {"match": "^/(v[0-9])/", "rewrite": "/\\1-x/"}})).path, Some(pattern));
    assert!(refused_rule(json!({"rewrite": {}})).contains("rewrite: an empty mapping changes nothing"));
    assert!(
        refused_rule(json!({"rewrite": {"uri": "/", "uriRegexRewrite": {"match": "a", "rewrite": "b"}}}))
            .contains("uri beside uriRegexRewrite")
    );
    let twice = refused_rule(json!({"rewrite": {"authority": "a"}, "headers": {"request": {"set": {"Host": "b"}}}}));
    assert!(twice.contains("rewrite.authority: stands beside a header operation on the host"), "{twice}");
}

#[test]
fn http_timeout_is_off_unless_it_is_said() {
    assert_eq!(forwarded(json!({})).1.timeout, None);
    assert_eq!(forwarded(json!({"timeout": "0.5s"})).1.timeout, Some(Duration::from_millis(500)));
    let text = refused_rule(json!({"timeout": "5x"}));
    assert_eq!(
        text,
        "Error [TRP0004] (VirtualService shop/reviews) spec.http[0].timeout: \"5x\" is not a duration (for example \"5s\"); the document is refused"
    );
    assert!(refused_rule(json!({"timeout": "0s"})).contains("timeout: \"0ns\" is too short"));
    assert!(refused_rule(json!({"timeout": 5})).contains("timeout: 5 has the wrong type (a string)"));
}

#[test]
fn http_retries_default_to_two_without_any_http_status() {
    let on = RetryOn { connect_failure: true, refused_stream: true, grpc_statuses: vec![14, 1], ..RetryOn::default() };
    let expected = Retries { attempts: 2, per_try_timeout: None, on, backoff: BACKOFF, ignore_previous: true, remote_localities: false };
    assert_eq!(forwarded(json!({})).1.retries, expected);
    assert_eq!(forwarded(json!({"retries": {"attempts": 3}})).1.retries, Retries { attempts: 3, ..expected });
    assert_eq!(forwarded(json!({"retries": {"attempts": 0}})).1.retries.attempts, 0);
}

#[test]
fn http_retries_say_how_often_how_long_and_where() {
    let written = json!({
        "attempts": 3, "perTryTimeout": "2s", "backoff": "100ms", "retryOn": "5xx", "retryRemoteLocalities": true,
        "retryIgnorePreviousHosts": false,
    });
    let retries = forwarded(json!({"retries": written})).1.retries;
    assert_eq!((retries.attempts, retries.per_try_timeout, retries.backoff), (3, Some(Duration::from_secs(2)), Duration::from_millis(100)));
    assert!(retries.remote_localities && !retries.ignore_previous && retries.on.server_error);
    let zero = refused_rule(json!({"retries": {"attempts": 0, "retryOn": "5xx"}}));
    assert!(zero.contains("retries.attempts: 0 turns retries off"), "{zero}");
    assert!(refused_rule(json!({"retries": {"attempts": -1}})).contains("retries.attempts: -1 is out of range"));
}

#[test]
fn http_retries_retry_on_reads_every_condition() {
    let on = |list: &str| forwarded(json!({"retries": {"attempts": 1, "retryOn": list}})).1.retries.on;
    let none = RetryOn::default;
    assert_eq!(on("5xx"), RetryOn { server_error: true, reset: true, connect_failure: true, refused_stream: true, ..none() });
    assert_eq!(on("gateway-error"), RetryOn { gateway_error: true, reset: true, ..none() });
    assert_eq!(on("reset,reset-before-request"), RetryOn { reset: true, reset_before_request: true, ..none() });
    assert_eq!(on("connect-failure,refused-stream"), RetryOn { connect_failure: true, refused_stream: true, ..none() });
    assert_eq!(on("retriable-4xx"), RetryOn { retriable_4xx: true, ..none() });
    assert_eq!(on("503,retriable-status-codes,429"), RetryOn { statuses: vec![503, 429], ..none() });
    let grpc = "cancelled,deadline-exceeded,resource-exhausted,internal,unavailable";
    assert_eq!(on(grpc), RetryOn { grpc_statuses: vec![1, 4, 8, 13, 14], ..none() });
    for bad in ["5XX", "5xx, reset", "5xx,", "600"] {
        assert!(refused_rule(json!({"retries": {"attempts": 1, "retryOn": bad}})).contains("is not a condition"), "{bad}");
    }
}

#[test]
fn http_fault_delay_waits_for_a_share() {
    let fault = |written: Value| forwarded(json!({"fault": {"delay": written}})).0.fault.clone();
    let delay = |share_ppm: u32| Some(Fault { delay: Some(FaultDelay { duration: Duration::from_secs(10), share_ppm }), abort: None });
    assert_eq!(fault(json!({"fixedDelay": "10s", "percentage": {"value": 0.0001}})), delay(1));
    assert_eq!(fault(json!({"fixedDelay": "10s", "percent": 50})), delay(500_000));
    assert_eq!(fault(json!({"fixedDelay": "10s"})), None, "without a share nobody waits");
    assert!(refused_rule(json!({"fault": {"delay": {"percentage": {"value": 1}}}})).contains("fault.delay.fixedDelay: is missing"));
    assert!(refused_rule(json!({"fault": {"delay": {"fixedDelay": "1s", "percentage": {"value": 101}}}})).contains("101 is not a share"));
}

#[test]
fn http_fault_abort_answers_a_share() {
    let fault = |written: Value| forwarded(json!({"fault": {"abort": written}})).0.fault.clone().and_then(|fault| fault.abort);
    let abort = |status: AbortStatus, share_ppm: u32| Some(FaultAbort { status, share_ppm });
    assert_eq!(fault(json!({"httpStatus": 500, "percentage": {"value": 10}})), abort(AbortStatus::Http(500), 100_000));
    assert_eq!(fault(json!({"grpcStatus": "UNAVAILABLE", "percentage": {"value": 100}})), abort(AbortStatus::Grpc(14), 1_000_000));
    assert_eq!(fault(json!({"grpcStatus": "7", "percentage": {"value": 100}})), abort(AbortStatus::Grpc(7), 1_000_000));
    assert_eq!(fault(json!({"httpStatus": 500})), None);
    assert!(refused_rule(json!({"fault": {"abort": {"httpStatus": 99}}})).contains("fault.abort.httpStatus: 99 is out of range"));
    assert!(refused_rule(json!({"fault": {"abort": {"grpcStatus": "GONE"}}})).contains("\"GONE\" is not a gRPC status"));
    assert!(refused_rule(json!({"fault": {"abort": {"httpStatus": 500, "grpcStatus": "OK"}}})).contains("has not one status"));
}

#[test]
fn faults_that_nobody_implements_are_refused() {
    let delay = refused_rule(json!({"fault": {"delay": {"exponentialDelay": "1s"}}}));
    assert!(delay.contains("fault.delay.exponentialDelay: is not supported, by Istio neither"), "{delay}");
    let abort = refused_rule(json!({"fault": {"abort": {"http2Error": "CANCEL"}}}));
    assert!(abort.contains("fault.abort.http2Error: is not supported, by Istio neither"), "{abort}");
}

#[test]
fn http_mirror_and_mirror_percentage_copy_a_share() {
    let mirrors = |more: Value| forwarded(more).1.mirrors;
    let copy = |share_ppm: u32| vec![Mirror { pool: key("ratings", PORT, None), share_ppm }];
    let to = json!({"host": "ratings"});
    assert_eq!(mirrors(json!({"mirror": to})), copy(1_000_000));
    assert_eq!(mirrors(json!({"mirror": to, "mirrorPercentage": {"value": 12.5}})), copy(125_000));
    assert_eq!(mirrors(json!({"mirror": to, "mirrorPercent": 30})), copy(300_000));
    assert_eq!(mirrors(json!({"mirror": to, "mirror_percent": 30})), copy(300_000));
    assert_eq!(mirrors(json!({"mirror": to, "mirrorPercent": 30, "mirrorPercentage": {"value": 0}})), []);
}

#[test]
fn http_mirrors_copy_to_several() {
    let several = json!([
        {"destination": {"host": "ratings"}},
        {"destination": {"host": "reviews", "subset": "v2"}, "percentage": {"value": 50}},
        {"destination": {"host": "reviews"}, "percentage": {"value": 0}},
    ]);
    let expected = [
        Mirror { pool: key("ratings", PORT, None), share_ppm: 1_000_000 },
        Mirror { pool: key("reviews", PORT, Some("v2")), share_ppm: 500_000 },
    ];
    assert_eq!(forwarded(json!({"mirrors": several})).1.mirrors, expected);
    assert!(refused_rule(json!({"mirror": {"host": "a"}, "mirrors": [{"destination": {"host": "b"}}]})).contains("mirror beside mirrors"));
}

#[test]
fn http_cors_policy_is_read_whole() {
    let cors = |written: Value| forwarded(json!({"corsPolicy": written})).0.cors.clone().unwrap();
    let written = json!({
        "allowOrigins": [{"exact": "https://a.b"}, {"prefix": "https://c."}, {"regex": "https://.*\\.d"}, {"exact": "*"}],
        "allowMethods": ["GET", "POST"], "allowHeaders": ["x-a"], "exposeHeaders": ["x-b"], "maxAge": "24h", "allowCredentials": true,
        "unmatchedPreflights": "IGNORE",
    });
    let expected = Cors {
        allow_origins: vec![
            TextMatch::Exact("https://a.b".into()),
            TextMatch::Prefix("https://c.".into()),
            TextMatch::regex("https://.*\\.d").unwrap(),
            TextMatch::Prefix("".into()),
        ],
        allow_methods: vec!["GET".into(), "POST".into()],
        allow_headers: vec!["x-a".into()],
        expose_headers: vec!["x-b".into()],
        max_age: Some(Duration::from_secs(86_400)),
        allow_credentials: Some(true),
        ignore_unmatched_preflights: true,
    };
    assert_eq!(cors(written), expected);
    assert_eq!(cors(json!({"allowOrigin": ["https://a.b"]})).allow_origins, [TextMatch::Exact("https://a.b".into())]);
    assert!(refused_rule(json!({"corsPolicy": {"maxAge": "1.5s"}})).contains("maxAge: has a fraction of a second"));
}

#[test]
fn http_headers_are_set_added_and_removed_on_both_ways() {
    let written = json!({
        "request": {"set": {"X-A": "1", "host": "b"}, "add": {"x-b": "50%%"}, "remove": ["X-C"]},
        "response": {"set": {"x-d": "4"}, "remove": ["server"]},
    });
    let request = HeaderOperations {
        remove: vec!["x-c".into()],
        set: vec![("x-a".into(), "1".into()), ("host".into(), "b".into())],
        add: vec![("x-b".into(), "50%".into())],
    };
    let response = HeaderOperations { remove: vec!["server".into()], set: vec![("x-d".into(), "4".into())], add: Vec::new() };
    assert_eq!(forwarded(json!({"headers": written})).0.headers, HeaderChanges { request, response });
    for (bad, field) in [
        (json!({"response": {"set": {"host": "a"}}}), "headers.response.set[host]"),
        (json!({"request": {"remove": ["host"]}}), "headers.request.remove[0]"),
        (json!({"request": {"set": {":path": "/"}}}), "headers.request.set[:path]"),
        (json!({"request": {"set": {"a": "b\r\nc: d"}}}), "headers.request.set[a]"),
        (json!({"request": {"set": {"a": "50%"}}}), "headers.request.set[a]"),
    ] {
        let text = refused_rule(json!({"headers": bad}));
        assert!(text.contains(field), "{text}");
    }
}

#[test]
fn http_headers_with_formatter_commands_are_told_of_and_left_alone() {
    let (route, _) = forwarded(json!({"headers": {"request": {"set": {"x-a": "%REQ(x)%", "x-b": "b"}}}}));
    assert_eq!(route.headers.request.set, [("x-b".into(), "b".into())]);
}
