//! What a route does with a request: match, split, rewrite, redirect, answer, headers, fault, CORS, mirror; and who may pass.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Request};
use serde_json::json;
use tropis_model::{
    policy::{PolicyKey, StringMatch},
    request_policy::{Attachment, OperationMatch, RequestAction, RequestPolicy, RequestRule, SourceMatch},
    route::{
        AbortStatus, Cors, DirectResponse, Fault, FaultAbort, FaultDelay, HeaderOperations, Host, HttpRoute, Mirror, PathRewrite,
        PortProtocol, Redirect, RequestMatch, Rewrite, RouteAction, TextMatch, ValueMatch,
    },
    service::AppProtocol,
    view::Change,
};

use crate::{
    log,
    world::{App, Seen, World, fetch, forward, full, get, host, key, plain_host, pool, route, run, says, to},
};

const EVERYTHING: u32 = 1_000_000;

fn to_reviews() -> RouteAction {
    RouteAction::Forward(Box::new(forward(vec![to("reviews", None)])))
}

fn prefix(path: &str) -> RequestMatch {
    RequestMatch { uri: Some(TextMatch::Prefix(path.into())), ..RequestMatch::default() }
}

/// A host of these routes, with the pools `v1`, `v2` and all.
fn routes(http: Vec<HttpRoute>) -> Host {
    host("reviews", PortProtocol::Http, http, vec![pool("reviews", None), pool("reviews", Some("v1")), pool("reviews", Some("v2"))])
}

/// A world with these routes and one application of each version.
async fn with_routes(http: Vec<HttpRoute>) -> (World, Seen, [App; 2]) {
    let world = World::new();
    world.service("reviews", "10.96.0.1", AppProtocol::Http11, routes(http));
    let seen = Seen::default();
    let apps = [world.app(says("v1", &seen)).await, world.app(says("v2", &seen)).await];
    world.endpoint("reviews", "v1", &apps[0]);
    world.endpoint("reviews", "v2", &apps[1]);
    (world, seen, apps)
}

async fn head(world: &World, request: Request<crate::world::Body>) -> (u16, HeaderMap) {
    let mut sender = world.http1("cart", "10.96.0.1:9080").await;
    let response = sender.send_request(request).await.unwrap();
    (response.status().as_u16(), response.headers().clone())
}

#[test]
fn a_header_and_a_weight_choose_the_version() {
    run(async {
        let jason = RequestMatch {
            headers: vec![("end-user".into(), ValueMatch::Text(TextMatch::Exact("jason".into())))],
            ..RequestMatch::default()
        };
        let mut split = forward(vec![to("reviews", Some("v1")), to("reviews", Some("v2"))]);
        split.destinations[0].weight = 3;
        let (world, ..) = with_routes(vec![
            route("jason", vec![jason], RouteAction::Forward(Box::new(forward(vec![to("reviews", Some("v2"))])))),
            route("split", Vec::new(), RouteAction::Forward(Box::new(split))),
        ])
        .await;
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        for _ in 0..10 {
            let mut request = get("/");
            request.headers_mut().insert("end-user", "jason".parse().unwrap());
            assert_eq!(fetch(&mut sender, request).await.1, "v2");
        }
        let mut first = 0;
        for _ in 0..400 {
            first += usize::from(fetch(&mut sender, get("/")).await.1 == "v1");
        }
        // 5 standard deviations of 400 draws at 3/4 are 43.
        assert!((257..=343).contains(&first), "{first} of 400");
    });
}

#[test]
fn a_missing_subset_is_cluster_not_found_and_no_route_is_404() {
    run(async {
        let (world, ..) = with_routes(vec![route(
            "gone",
            vec![prefix("/gone")],
            RouteAction::Forward(Box::new(forward(vec![to("reviews", Some("v3"))]))),
        )])
        .await;
        assert_eq!(world.get("/gone/subset").await.0, 503);
        let line = log::wait_for(&[("path", "/gone/subset")]).await;
        assert_eq!((&line["response_flags"], &line["response_code_details"]), (&json!("NC"), &json!("cluster_not_found")));
        assert_eq!(world.get("/no/route").await.0, 404);
        let line = log::wait_for(&[("path", "/no/route")]).await;
        assert_eq!(
            (&line["response_flags"], &line["response_code_details"], &line["stage"]),
            (&json!("NR"), &json!("route_not_found"), &json!("route"))
        );
    });
}

#[test]
fn rewrite_changes_path_and_authority_and_keeps_the_original() {
    run(async {
        let mut rewritten = forward(vec![to("reviews", None)]);
        rewritten.rewrite = Some(Rewrite { path: Some(PathRewrite::Matched("/new".into())), authority: Some("other.example".into()) });
        let (world, seen, _) = with_routes(vec![route("rewrite", vec![prefix("/old")], RouteAction::Forward(Box::new(rewritten)))]).await;
        assert_eq!(world.get("/old/a?b=c").await.0, 200);
        let heads = seen.take();
        let head = &heads[0];
        assert_eq!((head.uri.to_string(), &head.headers["host"]), ("/new/a?b=c".into(), &"other.example".parse().unwrap()));
        assert_eq!(head.headers["x-envoy-original-path"], "/old/a?b=c");
        assert_eq!(log::wait_for(&[("path", "/old/a?b=c")]).await["authority"], json!("reviews:9080"));
    });
}

#[test]
fn redirects_and_direct_responses_are_answered_here() {
    run(async {
        let redirect = Redirect {
            path: Some(PathRewrite::Full("/there".into())),
            authority: Some("shop.example".into()),
            scheme: None,
            port: None,
            status: 308,
        };
        let respond = DirectResponse { status: 418, body: Arc::from(&b"teapot"[..]) };
        let mut answered = route("respond", vec![prefix("/respond")], RouteAction::Respond(respond));
        answered.headers.response.set = vec![("x-made".into(), "here".into())];
        let (world, seen, _) =
            with_routes(vec![route("redirect", vec![prefix("/redirect")], RouteAction::Redirect(redirect)), answered]).await;
        let (status, headers) = head(&world, get("/redirect/x?q=1")).await;
        assert_eq!((status, &headers["location"]), (308, &"http://shop.example/there?q=1".parse().unwrap()));
        let (status, headers) = head(&world, get("/respond")).await;
        assert_eq!((status, &headers["x-made"]), (418, &"here".parse().unwrap()));
        assert_eq!(world.get("/respond/body").await.1, "teapot");
        assert!(seen.borrow().is_empty());
        assert_eq!(log::wait_for(&[("path", "/respond/body")]).await["response_code_details"], json!("direct_response"));
    });
}

#[test]
fn headers_change_by_route_then_by_destination() {
    run(async {
        let mut destination = to("reviews", None);
        destination.headers.request.set = vec![("x-both".into(), "destination".into())];
        destination.headers.response.add = vec![("x-answer".into(), "destination".into())];
        let mut changing = route("headers", Vec::new(), RouteAction::Forward(Box::new(forward(vec![destination]))));
        changing.headers.request = HeaderOperations {
            remove: vec!["x-remove".into()],
            set: vec![("x-both".into(), "route".into()), ("host".into(), "set.example".into())],
            add: vec![("x-add".into(), "100%%".into())],
        };
        changing.headers.response.add = vec![("x-answer".into(), "route".into())];
        let (world, seen, _) = with_routes(vec![changing]).await;
        let mut request = get("/");
        request.headers_mut().insert("x-remove", "1".parse().unwrap());
        request.headers_mut().insert("x-add", "0".parse().unwrap());
        let (status, headers) = head(&world, request).await;
        assert_eq!(status, 200);
        assert_eq!(headers.get_all("x-answer").iter().collect::<Vec<_>>(), ["destination", "route"]);
        let sent = &seen.borrow()[0].headers;
        assert_eq!((&sent["x-both"], &sent["host"]), (&"destination".parse().unwrap(), &"set.example".parse().unwrap()));
        assert_eq!(sent.get_all("x-add").iter().collect::<Vec<_>>(), ["0", "100%"]);
        assert!(!sent.contains_key("x-remove"));
    });
}

#[test]
fn faults_delay_and_abort_before_the_endpoint() {
    run(async {
        let fault = |path: &str, delay: Option<FaultDelay>, status: AbortStatus| {
            let abort = Some(FaultAbort { status, share_ppm: EVERYTHING });
            HttpRoute { fault: Some(Fault { delay, abort }), ..route("fault", vec![prefix(path)], to_reviews()) }
        };
        let delay = FaultDelay { duration: Duration::from_millis(50), share_ppm: EVERYTHING };
        let (world, seen, _) =
            with_routes(vec![fault("/fault", Some(delay), AbortStatus::Http(555)), fault("/grpc", None, AbortStatus::Grpc(14))]).await;
        let started = Instant::now();
        assert_eq!(world.get("/fault/http").await, (555, "fault filter abort".into()));
        assert!(started.elapsed() >= Duration::from_millis(50));
        let line = log::wait_for(&[("path", "/fault/http")]).await;
        assert_eq!(
            (&line["response_flags"], &line["response_code_details"], &line["reason"]),
            (&json!("DI,FI"), &json!("fault_filter_abort"), &json!("fault_injected"))
        );
        let mut request = get("/grpc");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let (status, headers) = head(&world, request).await;
        assert_eq!((status, &headers["grpc-status"]), (200, &"14".parse().unwrap()));
        assert!(seen.borrow().is_empty());
    });
}

#[test]
fn preflights_are_answered_and_origins_shown() {
    run(async {
        let cors = Cors {
            allow_origins: vec![TextMatch::Exact("https://shop.example".into())],
            allow_methods: vec!["GET".into(), "POST".into()],
            allow_headers: vec!["x-a".into()],
            expose_headers: vec!["x-b".into()],
            max_age: Some(Duration::from_secs(60)),
            allow_credentials: Some(true),
            ignore_unmatched_preflights: true,
        };
        let (world, seen, _) = with_routes(vec![HttpRoute { cors: Some(cors), ..route("cors", Vec::new(), to_reviews()) }]).await;
        let asked = |method: Method, origin: &str, is_preflight: bool| {
            let mut request = Request::builder().method(method).uri("/cors").header("host", "reviews").header("origin", origin);
            if is_preflight {
                request = request.header("access-control-request-method", "POST");
            }
            request.body(full("")).unwrap()
        };
        let (status, headers) = head(&world, asked(Method::OPTIONS, "https://shop.example", true)).await;
        assert_eq!(status, 200);
        for (name, expected) in [
            ("allow-origin", "https://shop.example"),
            ("allow-methods", "GET,POST"),
            ("allow-headers", "x-a"),
            ("max-age", "60"),
            ("allow-credentials", "true"),
        ] {
            assert_eq!(headers[format!("access-control-{name}")], expected, "{name}");
        }
        let (status, headers) = head(&world, asked(Method::OPTIONS, "https://elsewhere.example", true)).await;
        assert_eq!((status, headers.get("access-control-allow-origin")), (200, None));
        assert!(seen.borrow().is_empty(), "preflights end here");
        let (_, headers) = head(&world, asked(Method::GET, "https://shop.example", false)).await;
        assert_eq!(
            (&headers["access-control-allow-origin"], &headers["access-control-expose-headers"]),
            (&"https://shop.example".parse().unwrap(), &"x-b".parse().unwrap())
        );
        let (_, headers) = head(&world, asked(Method::GET, "https://elsewhere.example", false)).await;
        assert_eq!((headers.get("access-control-allow-origin"), seen.borrow().len()), (None, 2));
    });
}

#[test]
fn a_mirror_gets_a_copy_with_its_body() {
    run(async {
        let mut mirrored = forward(vec![to("reviews", Some("v1"))]);
        mirrored.mirrors = vec![
            Mirror { pool: key("reviews", Some("v2")), share_ppm: EVERYTHING },
            Mirror { pool: key("reviews", Some("v2")), share_ppm: 0 },
        ];
        let (world, seen, apps) = with_routes(vec![route("mirror", Vec::new(), RouteAction::Forward(Box::new(mirrored)))]).await;
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let request = Request::post("/mirrored").header("host", "reviews:9080").body(full("copy")).unwrap();
        assert_eq!(fetch(&mut sender, request).await, (200, "v1".into()));
        let deadline = Instant::now() + Duration::from_secs(10);
        while seen.borrow().len() < 2 {
            assert!(Instant::now() < deadline, "no copy came");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let heads = seen.borrow();
        assert_eq!((heads.len(), apps[1].connections.get()), (2, 1));
        assert_eq!(
            (&heads[1].method, heads[1].uri.path(), &heads[1].headers["host"]),
            (&Method::POST, "/mirrored", &"reviews:9080".parse().unwrap())
        );
        assert_eq!(heads[1].headers["content-length"], "4");
    });
}

fn policy(name: &str, action: RequestAction, attachment: Attachment, rule: RequestRule) -> Arc<RequestPolicy> {
    Arc::new(RequestPolicy { key: PolicyKey(format!("shop/{name}").into()), attachment, action, rules: vec![rule], dry_run: false })
}

#[test]
fn policy_decides_by_the_original_caller_and_method() {
    run(async {
        let world = World::new();
        let mut guarded = plain_host("reviews");
        let from = SourceMatch { principals: vec![StringMatch::Exact("cluster.local/ns/shop/sa/cart".into())], ..SourceMatch::default() };
        let get_only = OperationMatch { methods: vec![StringMatch::Exact("GET".into())], ..OperationMatch::default() };
        let rule = RequestRule { from: vec![from], to: vec![get_only], when: Vec::new() };
        guarded.policies = vec![policy("cart-reads", RequestAction::Allow, Attachment::Target, rule)];
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, guarded);
        let seen = Seen::default();
        let app = world.app(says("allowed", &seen)).await;
        world.endpoint("reviews", "v1", &app);
        let mut cart = world.http1("cart", "10.96.0.1:9080").await;
        assert_eq!(fetch(&mut cart, get("/policy")).await.0, 200);
        let post = Request::post("/policy/post").header("host", "reviews").body(full("")).unwrap();
        assert_eq!(fetch(&mut cart, post).await, (403, "RBAC: access denied".into()));
        let mut other = world.http1("stranger", "10.96.0.1:9080").await;
        assert_eq!(fetch(&mut other, get("/policy/stranger")).await.0, 403);
        assert_eq!(seen.borrow().len(), 1);
        let line = log::wait_for(&[("path", "/policy/post")]).await;
        assert_eq!(
            (&line["response_code_details"], &line["policy"], &line["stage"]),
            (&json!("rbac_access_denied_matched_policy[none]"), &json!("shop/cart-reads"), &json!("authorize"))
        );
    });
}

#[test]
fn a_policy_that_selects_the_endpoint_is_decided_for_it() {
    run(async {
        let world = World::new();
        let mut guarded = plain_host("reviews");
        let labels = [(Arc::from("version"), Arc::from("v2"))].into_iter().collect();
        let workloads = Attachment::Workloads { namespace: Some("shop".into()), labels };
        guarded.policies = vec![policy("no-v2", RequestAction::Deny, workloads, RequestRule::default())];
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, guarded);
        let app = world.app(says("v1", &Seen::default())).await;
        world.endpoint("reviews", "v1", &app);
        assert_eq!(world.get("/").await.0, 200);
        let app = world.app(says("v2", &Seen::default())).await;
        world.endpoint("reviews", "v2", &app);
        let statuses: Vec<u16> = [world.get("/").await.0, world.get("/").await.0].into();
        assert!(statuses.contains(&200) && statuses.contains(&403), "{statuses:?}");
        world.apply([Change::Host(Arc::new(plain_host("reviews")))]);
        assert_eq!((world.get("/").await.0, world.get("/").await.0), (200, 200), "the policy is gone");
    });
}

/// Requests to `/` are delayed by 400 ms, others are not.
fn delays(policies: Vec<Arc<RequestPolicy>>) -> Host {
    let delay = FaultDelay { duration: Duration::from_millis(400), share_ppm: 1_000_000 };
    let delayed = HttpRoute { fault: Some(Fault { delay: Some(delay), abort: None }), ..route("delayed", vec![], to_reviews()) };
    Host { policies, ..routes(vec![route("at-once", vec![prefix("/at-once")], to_reviews()), delayed]) }
}

/// A policy that lets in `cart` alone.
fn cart_only(attachment: Attachment) -> Arc<RequestPolicy> {
    let from = SourceMatch { principals: vec![StringMatch::Exact("cluster.local/ns/shop/sa/cart".into())], ..SourceMatch::default() };
    let rule = RequestRule { from: vec![from], ..RequestRule::default() };
    policy("cart-only", RequestAction::Allow, attachment, rule)
}

/// Pods of version 1.
fn first_version() -> Attachment {
    Attachment::Workloads { namespace: Some("shop".into()), labels: [(Arc::from("version"), Arc::from("v1"))].into_iter().collect() }
}

/// The statuses of a delayed request of `cart` and of one of a stranger. Meanwhile comes `change`, by which `cart` fetches something at once, so
/// that the endpoints to choose from are those of the change; then comes `last`, by which nobody does.
async fn delayed_while(world: &World, change: Vec<Change>, last: Option<Change>) -> (u16, u16) {
    let mut connections = Vec::new();
    for account in ["cart", "stranger", "cart"] {
        connections.push(world.http1(account, "10.96.0.1:9080").await);
    }
    let [cart, stranger, other] = &mut connections[..] else { unreachable!() };
    let changes = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.apply(change);
        fetch(other, get("/at-once")).await;
        world.apply(last);
    };
    let (cart, stranger, ()) = tokio::join!(fetch(cart, get("/")), fetch(stranger, get("/")), changes);
    (cart.0, stranger.0)
}

/// A change that comes while a request is delayed takes away the label that the policy selected by, and has another policy instead.
#[test]
fn a_request_that_was_delayed_is_decided_by_what_is_in_force_then() {
    run(async {
        let world = World::new();
        let guarded = |attachment| delays(vec![cart_only(attachment)]);
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, guarded(first_version()));
        let app = world.app(says("allowed", &Seen::default())).await;
        let endpoint = world.endpoint("reviews", "v1", &app);
        for (attachment, is_told) in [(Attachment::Target, false), (first_version(), true)] {
            let mut told = endpoint.clone();
            if !is_told {
                told.labels.clear();
            }
            let change = vec![Change::Workload(Arc::new(told)), Change::Host(Arc::new(guarded(attachment.clone())))];
            assert_eq!(delayed_while(&world, change, None).await, (200, 403), "{attachment:?}");
        }
    });
}

/// The pod goes after that change: what knew it decides, with the labels that it knew.
#[test]
fn a_request_that_was_delayed_is_decided_for_an_endpoint_that_went_meanwhile_by_what_knew_it() {
    run(async {
        let world = World::new();
        let guarded = |attachment| Change::Host(Arc::new(delays(vec![cart_only(attachment)])));
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, delays(vec![cart_only(first_version())]));
        let app = world.app(says("allowed", &Seen::default())).await;
        let endpoint = world.endpoint("reviews", "v1", &app);
        let mut unlabelled = endpoint.clone();
        unlabelled.labels.clear();
        let gone = || Some(Change::RemoveAddress(endpoint.uid.to_string().into()));
        let change = vec![Change::Workload(Arc::new(unlabelled.clone())), guarded(Attachment::Target)];
        assert_eq!(delayed_while(&world, change, gone()).await, (200, 403));
        // One that came and went meanwhile was known to no configuration that knew the request.
        world.apply([guarded(first_version())]);
        assert_eq!(delayed_while(&world, vec![Change::Workload(Arc::new(unlabelled))], gone()).await, (503, 503));
    });
}

#[test]
fn a_header_change_that_makes_no_header_says_so_in_the_log() {
    run(async {
        let world = World::new();
        let mut changes = route("changes", vec![], to_reviews());
        changes.headers.request.set = vec![("no header".into(), "x".into())];
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, routes(vec![changes]));
        assert_eq!(world.get("/no/header").await.0, 500);
        let line = log::wait_for(&[("path", "/no/header")]).await;
        assert_eq!((&line["stage"], &line["reason"]), (&json!("route"), &json!("bad_request")));
        assert_eq!(line["response_code_details"], json!("invalid_header_change"));
        assert!(log::text(&line["upstream_transport_failure_reason"]).contains("no header"), "{line}");
    });
}
