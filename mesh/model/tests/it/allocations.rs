//! Counts allocations: deciding about an ordinary request makes none.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
};

use http::{HeaderMap, HeaderValue};
use tropis_model::{
    address::NamespacedHostname,
    authorize::request as authorize,
    identity::Identity,
    matching,
    pick::{Ask, Candidate, Endpoints},
    policy::{PolicyKey, StringMatch},
    pool::{Balancer, Limits, LocalityPreference, Pool, PoolKey, UpstreamTls, UpstreamVersion},
    request::{PathNormalization, RequestFacts, canonical, canonical_host},
    request_policy::{Attachment, OperationMatch, PathMatch, RequestAction, RequestPolicy, RequestRule, SourceMatch},
    resolve::Draw,
    route::{
        Caller, DirectResponse, HeaderChanges, Host, HostPort, HttpRoute, Origin, PortProtocol, RequestMatch, RouteAction, TextMatch,
        ValueMatch,
    },
    workload::Workload,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How often `decide` allocates.
fn allocations<T>(decide: impl FnOnce() -> T) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    let made = decide();
    let after = ALLOCATIONS.with(Cell::get);
    drop(made);
    after - before
}

fn service() -> NamespacedHostname {
    NamespacedHostname { namespace: "shop".into(), hostname: "reviews.shop.svc.cluster.local".into() }
}

/// A hundred routes that miss, by header, exact path and prefix, and one that hits.
fn host() -> Host {
    let route = |number: usize, one: RequestMatch| {
        Arc::new(HttpRoute {
            name: format!("r{number}").into(),
            origin: Origin { kind: "VirtualService".into(), object: "shop/reviews".into(), field: "spec.http[0]".into() },
            matches: vec![one],
            action: RouteAction::Respond(DirectResponse { status: 200, body: [].into() }),
            headers: HeaderChanges::default(),
            fault: None,
            cors: None,
        })
    };
    let miss = |number: usize| match number % 3 {
        0 => RequestMatch {
            headers: vec![("end-user".into(), ValueMatch::Text(TextMatch::Exact(format!("u{number}").into())))],
            ..RequestMatch::default()
        },
        1 => RequestMatch { uri: Some(TextMatch::Exact(format!("/x{number}").into())), ..RequestMatch::default() },
        _ => RequestMatch { uri: Some(TextMatch::Prefix(format!("/y{number}").into())), ..RequestMatch::default() },
    };
    let hit = RequestMatch {
        uri: Some(TextMatch::PathPrefix("/reviews".into())),
        query: vec![("page".into(), ValueMatch::Present)],
        ..RequestMatch::default()
    };
    let mut http: Vec<_> = (0..100).map(|number| route(number, miss(number))).collect();
    http.push(route(100, hit));
    let port = HostPort { protocol: PortProtocol::Http, http, tls: Vec::new(), tcp: Vec::new() };
    Host { name: service(), ports: [(9080, port)].into(), policies: Vec::new(), pools: BTreeMap::new() }
}

/// An ALLOW policy that misses, one that hits by principal, method and path, and a DENY policy that misses.
fn policies() -> Vec<Arc<RequestPolicy>> {
    let policy = |name: &str, action, principal: &str, path: &str| {
        let source = SourceMatch { principals: vec![StringMatch::Exact(principal.into())], ..SourceMatch::default() };
        let operation = OperationMatch {
            methods: vec![StringMatch::Exact("GET".into())],
            paths: vec![PathMatch::Text(StringMatch::Prefix(path.into()))],
            ..OperationMatch::default()
        };
        let rules = vec![RequestRule { from: vec![source], to: vec![operation], when: Vec::new() }];
        let key = PolicyKey(format!("shop/{name}").into());
        Arc::new(RequestPolicy { key, attachment: Attachment::Target, action, rules, dry_run: false })
    };
    vec![
        policy("other", RequestAction::Allow, "cluster.local/ns/shop/sa/other", "/"),
        policy("web", RequestAction::Allow, "cluster.local/ns/shop/sa/web", "/reviews"),
        policy("admin", RequestAction::Deny, "cluster.local/ns/shop/sa/web", "/admin"),
    ]
}

#[test]
fn routing_and_authorizing_a_request_allocates_nothing() {
    let (host, policies) = (host(), policies());
    let caller = Caller { identity: Some(Identity::new("cluster.local", "shop", "web")), ..Caller::default() };
    let mut headers = HeaderMap::new();
    headers.insert("end-user", HeaderValue::from_static("jason"));
    let mut routed = None;
    let mut allowed = false;
    let count = allocations(|| {
        let path = canonical("/reviews/1?page=2", PathNormalization::Base).unwrap();
        let named = canonical_host("reviews.shop:9080").unwrap();
        let facts = RequestFacts {
            method: "GET",
            scheme: "http",
            authority: "reviews.shop:9080",
            path: &path.path,
            query: path.query,
            headers: &headers,
            port: 9080,
            caller: &caller,
            remote_address: None,
            destination: None,
            server_name: None,
            token: None,
        };
        routed = matching::route(&host, 9080, &facts).map(|hit| hit.index);
        allowed = authorize::target(&policies, &facts).is_ok();
        named.port
    });
    assert_eq!((routed, allowed, count), (Some(100), true, 0));
}

#[test]
fn picking_an_endpoint_allocates_nothing() {
    let workload = Arc::new(Workload::new("c//Pod/shop/w", "w", Identity::new("cluster.local", "shop", "w")));
    let candidate = |number: u8| Candidate {
        workload: workload.clone(),
        address: SocketAddr::from(([10, 0, 0, number], 8080)),
        weight: u32::from(number),
        healthy: true,
        since: None,
    };
    for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random] {
        let pool = Pool {
            key: PoolKey { host: service(), port: 9080, subset: None },
            labels: BTreeMap::new(),
            balancer,
            locality: LocalityPreference::None,
            warmup: None,
            limits: Limits::default(),
            outlier: None,
            panic_threshold_percent: 0,
            upstream_version: UpstreamVersion::default(),
            tls: UpstreamTls::None,
        };
        let endpoints = Endpoints::new(&pool, None, (1..100).map(candidate).collect());
        let mut draw = Draw::new(1);
        assert_eq!(allocations(|| endpoints.pick(&Ask { tried: &[3], ..Ask::default() }, |_| 0, &mut draw).unwrap()), 0);
    }
}
