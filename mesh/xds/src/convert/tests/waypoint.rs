//! Hosts and waypoints: every field there and back, and what is refused.

use std::time::Duration;

use proptest::collection::{btree_map, btree_set};
use tropis_model::{
    pool::{
        Balancer, Distribution, HashAlgorithm, HashKey, Http2Keepalive, Limits, LocalityMatch, LocalityPreference, OutlierDetection, Pool,
        PoolKey, RetryBudget, TcpKeepalive, UpstreamTls, UpstreamVersion, Warmup,
    },
    request_policy::{
        Attachment, Attribute, Condition, OperationMatch, PathMatch, RequestAction, RequestPolicy, RequestRule, Segment, SourceMatch,
    },
    route::{
        AbortStatus, Cors, Destination, DirectResponse, Fault, FaultAbort, FaultDelay, Forward, HeaderChanges, HeaderOperations, Host,
        HostPort, HttpRoute, Mirror, Origin, PathRewrite, PortProtocol, Redirect, RedirectPort, RequestMatch, Retries, RetryOn, Rewrite,
        RouteAction, TcpRoute, TextMatch, TlsRoute, UnanchoredPattern, ValueMatch,
    },
    waypoint::{AccessLogFormat, Serves, Waypoint},
    workload::WorkloadUid,
};
use tropis_proto::{HOST_TYPE, WAYPOINT_TYPE, waypoint as message};

use super::*;

fn maybe<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    option::of(strategy)
}

fn duration() -> impl Strategy<Value = Duration> {
    (0..3_000_000u64, 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn pool_key() -> impl Strategy<Value = PoolKey> {
    (hostname(), 1..=u16::MAX, maybe(word())).prop_map(|(host, port, subset)| PoolKey { host, port, subset })
}

fn text_match() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        maybe_word().prop_map(TextMatch::Exact),
        maybe_word().prop_map(TextMatch::Prefix),
        maybe_word().prop_map(TextMatch::PathPrefix),
        select(vec!["v[0-9]+", "(?i)a|b", r"^.*?\.png$"]).prop_map(|source| TextMatch::regex(source).unwrap()),
    ]
}

fn value_match() -> impl Strategy<Value = (Arc<str>, ValueMatch)> {
    (word(), prop_oneof![Just(ValueMatch::Present), text_match().prop_map(ValueMatch::Text)])
}

fn headers() -> impl Strategy<Value = HeaderChanges> {
    let operations = || {
        (vec(word(), 0..2), vec((word(), maybe_word()), 0..2), vec((word(), maybe_word()), 0..2))
            .prop_map(|(remove, set, add)| HeaderOperations { remove, set, add })
    };
    (operations(), operations()).prop_map(|(request, response)| HeaderChanges { request, response })
}

fn request_match() -> impl Strategy<Value = RequestMatch> {
    let texts = (maybe(text_match()), maybe(text_match()), maybe(text_match()), maybe(text_match()));
    let named = (vec(value_match(), 0..2), vec(value_match(), 0..2), vec(value_match(), 0..2));
    (maybe(word()), any::<bool>(), texts, named, labels(), maybe(word())).prop_map(
        |(name, ignore_uri_case, texts, named, source_labels, source_namespace)| RequestMatch {
            name,
            uri: texts.0,
            ignore_uri_case,
            scheme: texts.1,
            method: texts.2,
            authority: texts.3,
            headers: named.0,
            without_headers: named.1,
            query: named.2,
            source_labels,
            source_namespace,
        },
    )
}

fn path_rewrite() -> impl Strategy<Value = PathRewrite> {
    let pattern =
        |(source, replacement): (&str, Arc<str>)| PathRewrite::Pattern { pattern: UnanchoredPattern::new(source).unwrap(), replacement };
    prop_oneof![
        maybe_word().prop_map(PathRewrite::Matched),
        maybe_word().prop_map(PathRewrite::Full),
        (select(vec!["^/a/(.*)$", "b+"]), maybe_word()).prop_map(pattern),
    ]
}

fn destinations() -> impl Strategy<Value = Vec<Destination>> {
    vec((pool_key(), 1..=1000u32, headers()).prop_map(|(pool, weight, headers)| Destination { pool, weight, headers }), 1..3)
}

fn retries() -> impl Strategy<Value = Retries> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let on = (flags, vec(100..=599u16, 0..2), vec(0..=16u16, 0..2)).prop_map(|(flags, statuses, grpc_statuses)| RetryOn {
        server_error: flags.0,
        gateway_error: flags.1,
        reset: flags.2,
        reset_before_request: flags.3,
        connect_failure: flags.4,
        retriable_4xx: flags.5,
        refused_stream: flags.6,
        statuses,
        grpc_statuses,
    });
    (any::<u32>(), maybe(duration()), on, duration(), any::<bool>(), any::<bool>()).prop_map(
        |(attempts, per_try_timeout, on, backoff, ignore_previous, remote_localities)| Retries {
            attempts,
            per_try_timeout,
            on,
            backoff,
            ignore_previous,
            remote_localities,
        },
    )
}

fn action() -> impl Strategy<Value = RouteAction> {
    let rewrite = (maybe(path_rewrite()), maybe(word())).prop_map(|(path, authority)| Rewrite { path, authority });
    let mirror = (pool_key(), 0..=1_000_000u32).prop_map(|(pool, share_ppm)| Mirror { pool, share_ppm });
    let forward = (destinations(), maybe(rewrite), maybe(duration()), retries(), vec(mirror, 0..2)).prop_map(
        |(destinations, rewrite, timeout, retries, mirrors)| {
            RouteAction::Forward(Box::new(Forward { destinations, rewrite, timeout, retries, mirrors }))
        },
    );
    let port = prop_oneof![(1..=u16::MAX).prop_map(RedirectPort::Number), Just(RedirectPort::FromScheme), Just(RedirectPort::FromRequest),];
    let redirect = (maybe(path_rewrite()), maybe(word()), maybe(word()), maybe(port), select(vec![301u16, 302, 303, 307, 308]))
        .prop_map(|(path, authority, scheme, port, status)| RouteAction::Redirect(Redirect { path, authority, scheme, port, status }));
    let respond = (200..=599u16, vec(any::<u8>(), 0..9))
        .prop_map(|(status, body)| RouteAction::Respond(DirectResponse { status, body: body.into() }));
    prop_oneof![forward, redirect, respond]
}

fn fault() -> impl Strategy<Value = Fault> {
    let share = || 0..=1_000_000u32;
    let delay = (duration(), share()).prop_map(|(duration, share_ppm)| FaultDelay { duration, share_ppm });
    let status = prop_oneof![(200..=599u16).prop_map(AbortStatus::Http), (0..=16u16).prop_map(AbortStatus::Grpc)];
    let abort = (status, share()).prop_map(|(status, share_ppm)| FaultAbort { status, share_ppm });
    (maybe(delay), maybe(abort)).prop_map(|(delay, abort)| Fault { delay, abort })
}

fn cors() -> impl Strategy<Value = Cors> {
    let words = || vec(word(), 0..2);
    (vec(text_match(), 0..2), words(), words(), words(), maybe(duration()), maybe(any::<bool>()), any::<bool>()).prop_map(
        |(allow_origins, allow_methods, allow_headers, expose_headers, max_age, allow_credentials, ignore)| Cors {
            allow_origins,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            ignore_unmatched_preflights: ignore,
        },
    )
}

fn origin() -> impl Strategy<Value = Origin> {
    (word(), word(), maybe_word()).prop_map(|(kind, object, field)| Origin { kind, object, field })
}

fn http_route() -> impl Strategy<Value = Arc<HttpRoute>> {
    (maybe_word(), origin(), vec(request_match(), 0..2), action(), headers(), maybe(fault()), maybe(cors())).prop_map(
        |(name, origin, matches, action, headers, fault, cors)| Arc::new(HttpRoute { name, origin, matches, action, headers, fault, cors }),
    )
}

fn host_port() -> impl Strategy<Value = HostPort> {
    // Without destinations what is taken is closed.
    let some = || prop_oneof![destinations(), Just(Vec::new())];
    let tls = (origin(), vec(word(), 0..2), vec(block(), 0..2), labels(), maybe(word()), some()).prop_map(
        |(origin, server_names, destination_blocks, source_labels, source_namespace, destinations)| {
            Arc::new(TlsRoute { origin, server_names, destination_blocks, source_labels, source_namespace, destinations })
        },
    );
    let tcp = (origin(), vec(block(), 0..2), labels(), maybe(word()), some()).prop_map(
        |(origin, destination_blocks, source_labels, source_namespace, destinations)| {
            Arc::new(TcpRoute { origin, destination_blocks, source_labels, source_namespace, destinations })
        },
    );
    let protocols =
        vec![PortProtocol::Auto, PortProtocol::Http, PortProtocol::Http2, PortProtocol::Grpc, PortProtocol::Tcp, PortProtocol::Tls];
    (select(protocols), vec(http_route(), 0..3), vec(tls, 0..2), vec(tcp, 0..2)).prop_map(|(protocol, http, tls, tcp)| HostPort {
        protocol,
        http,
        tls,
        tcp,
    })
}

fn policy() -> impl Strategy<Value = Arc<RequestPolicy>> {
    let text = || {
        prop_oneof![
            maybe_word().prop_map(StringMatch::Exact),
            maybe_word().prop_map(StringMatch::Prefix),
            maybe_word().prop_map(StringMatch::Suffix),
            Just(StringMatch::Presence),
        ]
    };
    let texts = move || vec(text(), 0..2);
    let accounts = || {
        let account = (word(), word()).prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account });
        vec(account, 0..2)
    };
    let blocks = || vec(block(), 0..2);
    let source =
        ((texts(), texts(), texts(), texts(), texts(), texts()), (accounts(), accounts()), (blocks(), blocks(), blocks(), blocks()))
            .prop_map(|(texts, accounts, blocks)| SourceMatch {
                principals: texts.0,
                not_principals: texts.1,
                request_principals: texts.2,
                not_request_principals: texts.3,
                namespaces: texts.4,
                not_namespaces: texts.5,
                service_accounts: accounts.0,
                not_service_accounts: accounts.1,
                ip_blocks: blocks.0,
                not_ip_blocks: blocks.1,
                remote_ip_blocks: blocks.2,
                not_remote_ip_blocks: blocks.3,
            });
    let segment = prop_oneof![word().prop_map(Segment::Literal), Just(Segment::One)];
    let template = (vec(segment, 0..3), any::<bool>()).prop_map(|(mut segments, rest)| {
        segments.extend(rest.then_some(Segment::Rest));
        PathMatch::Template(segments)
    });
    let paths = move || vec(prop_oneof![text().prop_map(PathMatch::Text), template.clone()], 0..2);
    let ports = || vec(1..=u16::MAX, 0..2);
    let operation =
        ((texts(), texts(), texts(), texts()), (ports(), ports()), (paths(), paths())).prop_map(|(texts, ports, paths)| OperationMatch {
            hosts: texts.0,
            not_hosts: texts.1,
            ports: ports.0,
            not_ports: ports.1,
            methods: texts.2,
            not_methods: texts.3,
            paths: paths.0,
            not_paths: paths.1,
        });
    let attribute = prop_oneof![
        word().prop_map(Attribute::RequestHeader),
        vec(word(), 1..3).prop_map(Attribute::TokenClaim),
        select(vec![
            Attribute::SourceIp,
            Attribute::RemoteIp,
            Attribute::SourceNamespace,
            Attribute::SourcePrincipal,
            Attribute::SourceServiceAccount,
            Attribute::DestinationIp,
            Attribute::DestinationPort,
            Attribute::ServerName,
            Attribute::TokenPrincipal,
            Attribute::TokenAudiences,
            Attribute::TokenPresenter,
        ]),
    ];
    let condition = (attribute, texts(), texts()).prop_map(|(attribute, values, not_values)| Condition { attribute, values, not_values });
    let rule = (vec(source, 0..2), vec(operation, 0..2), vec(condition, 0..2)).prop_map(|(from, to, when)| RequestRule { from, to, when });
    let attachment = prop_oneof![
        Just(Attachment::Target),
        Just(Attachment::Service),
        (maybe(word()), labels()).prop_map(|(namespace, labels)| Attachment::Workloads { namespace, labels }),
    ];
    let actions = select(vec![RequestAction::Allow, RequestAction::Deny, RequestAction::Audit]);
    (word(), word(), attachment, actions, vec(rule, 0..2), any::<bool>()).prop_map(
        |(namespace, name, attachment, action, rules, dry_run)| {
            let key = PolicyKey(format!("{namespace}/{name}").into());
            Arc::new(RequestPolicy { key, attachment, action, rules, dry_run })
        },
    )
}

fn balancer() -> impl Strategy<Value = Balancer> {
    let cookie = (word(), maybe(word()), maybe(duration()), vec((word(), maybe_word()), 0..2))
        .prop_map(|(name, path, ttl, attributes)| HashKey::Cookie { name, path, ttl, attributes });
    let key =
        prop_oneof![word().prop_map(HashKey::Header), cookie, Just(HashKey::SourceAddress), word().prop_map(HashKey::QueryParameter),];
    let algorithm = prop_oneof![
        (0..=8_388_608u32).prop_map(|minimum_size| HashAlgorithm::Ring { minimum_size }),
        (2..=5_000_011u32).prop_map(|table_size| HashAlgorithm::Maglev { table_size }),
    ];
    prop_oneof![
        select(vec![Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random, Balancer::Passthrough]),
        (key, algorithm).prop_map(|(key, algorithm)| Balancer::ConsistentHash { key, algorithm }),
    ]
}

fn locality() -> impl Strategy<Value = LocalityPreference> {
    let found =
        || (maybe(word()), maybe(word()), maybe(word())).prop_map(|(region, zone, subzone)| LocalityMatch { region, zone, subzone });
    let rule = (found(), vec((found(), 0..=100u32), 0..3)).prop_map(|(from, to)| Distribution { from, to });
    prop_oneof![
        Just(LocalityPreference::None),
        (vec((word(), word()), 0..2), vec((word(), maybe(word())), 0..2))
            .prop_map(|(regions, labels)| LocalityPreference::Failover { regions, labels }),
        vec(rule, 0..2).prop_map(LocalityPreference::Distribute),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let number = || maybe(any::<u32>());
    let tcp = (number(), maybe(duration()), maybe(duration())).prop_map(|(probes, time, interval)| TcpKeepalive { probes, time, interval });
    let http2 = (duration(), duration()).prop_map(|(interval, timeout)| Http2Keepalive { interval, timeout });
    let budget = (0.0..100.0f64, any::<u32>()).prop_map(|(percent, minimum_concurrency)| RetryBudget { percent, minimum_concurrency });
    let numbers = (number(), number(), number(), number(), number(), number());
    (numbers, maybe(budget), duration(), maybe(duration()), maybe(duration()), maybe(tcp), maybe(http2)).prop_map(
        |(numbers, retry_budget, connect_timeout, idle_timeout, max_connection_duration, tcp_keepalive, http2_keepalive)| Limits {
            max_connections: numbers.0,
            max_pending_requests: numbers.1,
            max_requests: numbers.2,
            max_retries: numbers.3,
            retry_budget,
            max_requests_per_connection: numbers.4,
            max_concurrent_streams: numbers.5,
            connect_timeout,
            idle_timeout,
            max_connection_duration,
            tcp_keepalive,
            http2_keepalive,
        },
    )
}

fn pool() -> impl Strategy<Value = Pool> {
    let warmup = (duration(), 0.0..100.0f64, 0.0..10.0f64).prop_map(|(duration, minimum_percent, aggression)| Warmup {
        duration,
        minimum_percent,
        aggression,
    });
    let outlier = ((any::<u32>(), any::<u32>(), any::<u32>(), any::<bool>()), vec(100..=599u16, 0..2), (duration(), duration()), 0..=100u8)
        .prop_map(|(counts, error_statuses, times, max_ejection_percent)| OutlierDetection {
            consecutive_5xx: counts.0,
            consecutive_gateway_errors: counts.1,
            consecutive_local_origin_failures: counts.2,
            split_local_origin: counts.3,
            error_statuses,
            interval: times.0,
            base_ejection_time: times.1,
            max_ejection_percent,
        });
    let tls = prop_oneof![
        Just(UpstreamTls::None),
        (maybe(word()), vec(word(), 0..2), any::<bool>()).prop_map(|(server_name, subject_alt_names, insecure_skip_verify)| {
            UpstreamTls::Simple { server_name, subject_alt_names, insecure_skip_verify }
        }),
    ];
    let versions = select(vec![UpstreamVersion::FromPort, UpstreamVersion::FromCaller, UpstreamVersion::Http2]);
    let choice = (labels(), balancer(), locality(), maybe(warmup));
    (pool_key(), choice, limits(), maybe(outlier), 0..=100u8, versions, tls).prop_map(
        |(key, choice, limits, outlier, panic_threshold_percent, upstream_version, tls)| Pool {
            key,
            labels: choice.0,
            balancer: choice.1,
            locality: choice.2,
            warmup: choice.3,
            limits,
            outlier,
            panic_threshold_percent,
            upstream_version,
            tls,
        },
    )
}

fn host() -> impl Strategy<Value = Host> {
    (hostname(), btree_map(1..=u16::MAX, host_port(), 0..2), vec(policy(), 0..2), vec(pool(), 0..3)).prop_map(
        |(name, ports, policies, pools)| Host {
            name,
            ports,
            policies,
            pools: pools.into_iter().map(|pool| (pool.key.clone(), Arc::new(pool))).collect(),
        },
    )
}

fn waypoint() -> impl Strategy<Value = Waypoint> {
    let log = prop_oneof![Just(AccessLogFormat::Json), maybe(word()).prop_map(AccessLogFormat::Text)];
    let serves = select(vec![Serves::Services, Serves::Workloads, Serves::All, Serves::Nothing]);
    let elsewhere = btree_set(word().prop_map(WorkloadUid), 0..3);
    (hostname(), hostname(), serves, vec(policy(), 0..2), maybe(log), elsewhere).prop_map(
        |(key, service, serves, policies, access_log, elsewhere)| Waypoint {
            key: key.to_string().into(),
            service,
            serves,
            policies,
            access_log,
            elsewhere,
        },
    )
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(128))]

    #[test]
    fn a_host_survives_the_wire(host in host()) {
        let change = Change::Host(Arc::new(host));
        let decoded = decode(ResourceType::Host, &resource(&encode(&change)), &mut Interner::default());
        proptest::prop_assert_eq!(decoded, Ok(change));
    }

    #[test]
    fn a_waypoint_survives_the_wire(waypoint in waypoint()) {
        let change = Change::Waypoint(Arc::new(waypoint));
        let decoded = decode(ResourceType::Waypoint, &resource(&encode(&change)), &mut Interner::default());
        proptest::prop_assert_eq!(decoded, Ok(change));
    }
}

/// What decoding says of a host with one pool, one policy and one HTTP route that forwards to the pool, changed.
fn refusal(change: impl FnOnce(&mut message::Host)) -> String {
    let key = message::PoolKey { namespace: "ns".into(), hostname: "web".into(), port: 80, subset: None };
    let origin = message::Origin { kind: "VirtualService".into(), object: "ns/vs".into(), field: "spec.http[0]".into() };
    let destination = message::Destination { pool: Some(key.clone()), weight: 1, headers: None };
    let forward = message::Forward {
        destinations: vec![destination],
        retries: Some(message::Retries { backoff: Some(Default::default()), ..Default::default() }),
        ..Default::default()
    };
    let route = message::HttpRoute {
        name: "r".into(),
        origin: Some(origin),
        action: Some(message::http_route::Action::Forward(forward)),
        ..Default::default()
    };
    let limits = message::Limits { connect_timeout: Some(Default::default()), ..Default::default() };
    let mut host = message::Host {
        namespace: "ns".into(),
        hostname: "web".into(),
        ports: vec![message::HostPort { port: 80, http: vec![route], ..Default::default() }],
        policies: vec![message::RequestPolicy {
            namespace: "ns".into(),
            name: "p".into(),
            attachment: Some(message::request_policy::Attachment::Target(())),
            action: message::RequestAction::Deny.into(),
            rules: vec![message::RequestRule::default()],
            ..Default::default()
        }],
        pools: vec![message::Pool { key: Some(key), limits: Some(limits), ..Default::default() }],
    };
    change(&mut host);
    let any = prost_types::Any { type_url: HOST_TYPE.to_owned(), value: host.encode_to_vec() };
    let resource = Resource { name: "ns/web".into(), resource: Some(any), ..Default::default() };
    match decode(ResourceType::Host, &resource, &mut Interner::default()) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn forward(host: &mut message::Host) -> &mut message::Forward {
    match host.ports[0].http[0].action.as_mut() {
        Some(message::http_route::Action::Forward(forward)) => forward,
        other => panic!("{other:?}"),
    }
}

fn uri(host: &mut message::Host, regex: &str) {
    let uri = message::TextMatch { kind: Some(message::text_match::Kind::Regex(regex.to_owned())) };
    host.ports[0].http[0].matches = vec![message::RequestMatch { uri: Some(uri), ..Default::default() }];
}

const ROUTE: &str = "route \"r\" of VirtualService ns/vs spec.http[0]: ";

#[test]
fn a_host_that_says_nothing_sound_is_refused_with_the_place() {
    assert_eq!(refusal(|_| {}), "accepted");
    assert_eq!(refusal(|h| h.hostname = String::new()), "hostname is empty");
    assert_eq!(refusal(|h| h.hostname = "api".into()), "the resource is named otherwise than its content, \"ns/api\"");
    assert_eq!(refusal(|h| h.ports[0].port = 0), "ports.port: 0 is not a port");
    assert_eq!(refusal(|h| h.ports[0].port = 65_536), "ports.port: 65536 is not a port");
    assert_eq!(refusal(|h| h.ports.push(message::HostPort { port: 80, ..Default::default() })), "ports: 80 is there twice");
    assert_eq!(refusal(|h| h.ports[0].protocol = 17), "ports.protocol: the value 17 is not known");
    assert_eq!(refusal(|h| h.pools.push(h.pools[0].clone())), "pools: ns/web:80 is there twice");
    let many = |h: &mut message::Host| h.ports = vec![message::HostPort::default(); 4097];
    assert_eq!(refusal(many), "ports: 4097 are more than 4096");
    assert_eq!(refusal(|h| h.ports[0].http = vec![message::HttpRoute::default(); 4097]), "ports.http: 4097 are more than 4096");
}

#[test]
fn a_route_that_says_nothing_sound_is_refused_with_the_place() {
    let refused = |change: &dyn Fn(&mut message::Host), text: &str| {
        assert_eq!(refusal(change), format!("{ROUTE}{text}"));
    };
    refused(&|h| uri(h, "a(b"), "uri: \"a(b\" is not a usable pattern: unclosed group");
    refused(&|h| uri(h, &"a".repeat(4097)), "uri: a pattern of 4097 bytes is not accepted (4096 bytes at most)");
    refused(&|h| h.ports[0].http[0].matches = vec![Default::default(); 1025], "matches: 1025 are more than 1024");
    refused(&|h| h.ports[0].http[0].action = None, "action is empty");
    refused(&|h| forward(h).destinations.clear(), "destinations is empty");
    let weights = |h: &mut message::Host, weights: [u32; 2]| {
        let one = forward(h).destinations[0].clone();
        forward(h).destinations = weights.map(|weight| message::Destination { weight, ..one.clone() }).to_vec();
    };
    refused(&|h| weights(h, [u32::MAX, 1]), "destinations: the sum of the weights is larger than 4294967295");
    refused(&|h| weights(h, [0, 0]), "destinations: the sum of the weights is 0");
    assert_eq!(refusal(|h| forward(h).destinations[0].weight = 0), "accepted", "with one destination the weight does not matter");
    refused(&|h| forward(h).destinations[0].pool = None, "destinations.pool is empty");
    refused(&|h| forward(h).retries = None, "retries is empty");
    refused(
        &|h| forward(h).timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        "timeout: -1 s 0 ns is not accepted (0 to 100 years)",
    );
    refused(
        &|h| forward(h).timeout = Some(prost_types::Duration { seconds: i64::MAX, nanos: 999_999_999 }),
        "timeout: 9223372036854775807 s 999999999 ns is not accepted (0 to 100 years)",
    );
    refused(
        &|h| {
            let pool = forward(h).destinations[0].pool.clone();
            forward(h).mirrors = vec![message::Mirror { pool, share_ppm: 1_000_001 }];
        },
        "mirrors.share_ppm: 1000001 is not accepted (0 to 1000000)",
    );
    let act = |h: &mut message::Host, action| h.ports[0].http[0].action = Some(action);
    refused(
        &|h| act(h, message::http_route::Action::Redirect(message::Redirect { status: 200, ..Default::default() })),
        "redirect.status: 200 is not accepted (301, 302, 303, 307 or 308)",
    );
    refused(
        &|h| act(h, message::http_route::Action::Respond(message::DirectResponse { status: 101, body: Vec::new() })),
        "respond.status: 101 is not accepted (200 to 599)",
    );
    refused(
        &|h| act(h, message::http_route::Action::Respond(message::DirectResponse { status: 200, body: vec![0; (1 << 20) + 1] })),
        "respond.body: 1048577 are more than 1000000",
    );
}

#[test]
fn a_pool_or_a_policy_that_says_nothing_sound_is_refused_with_the_place() {
    let pool = |change: &dyn Fn(&mut message::Pool), text: &str| {
        assert_eq!(refusal(|h| change(&mut h.pools[0])), format!("pool ns/web:80: {text}"));
    };
    pool(&|p| p.limits = None, "limits is empty");
    pool(&|p| p.panic_threshold_percent = 101, "panic_threshold_percent: 101 is not accepted (0 to 100)");
    pool(&|p| p.upstream_version = 9, "upstream_version: the value 9 is not known");
    pool(&|p| p.tls = Some(Default::default()), "tls is empty");
    pool(&|p| p.balancer = Some(Default::default()), "balancer is empty");
    let warmup = message::Warmup { duration: Some(Default::default()), minimum_percent: f64::NAN, aggression: 1.0 };
    pool(&|p| p.warmup = Some(warmup), "warmup.minimum_percent: NaN is not accepted (a finite number, not negative)");
    let hash = message::ConsistentHash {
        key: Some(message::consistent_hash::Key::SourceAddress(())),
        algorithm: Some(message::consistent_hash::Algorithm::MaglevTableSize(0)),
    };
    let balancer = message::Balancer { kind: Some(message::balancer::Kind::ConsistentHash(hash)) };
    pool(&|p| p.balancer = Some(balancer.clone()), "maglev_table_size: 0 is not accepted (2 to 5000011)");

    let policy = |change: &dyn Fn(&mut message::RequestPolicy), text: &str| {
        assert_eq!(refusal(|h| change(&mut h.policies[0])), format!("policy ns/p: {text}"));
    };
    policy(&|p| p.action = 0, "action: the value 0 is not known");
    policy(&|p| p.attachment = None, "attachment is empty");
    policy(&|p| p.rules = vec![Default::default(); 4097], "rules: 4097 are more than 4096");
    policy(&|p| p.rules[0].when = vec![Default::default()], "a match has the unknown condition \"when\"");
    let operation = |change: &dyn Fn(&mut message::Operation), text: &str| {
        let mut operation = message::Operation::default();
        change(&mut operation);
        policy(&|p| p.rules[0].to = vec![operation.clone()], text);
    };
    operation(&|o| o.ports = vec![0], "ports: 0 is not a port");
    operation(&|o| o.methods = vec![Default::default()], "methods: a string match of an unknown kind");
    let segment = |kind| message::path_match::Segment { kind: Some(kind) };
    let segments = vec![segment(message::path_match::segment::Kind::Rest(())), segment(message::path_match::segment::Kind::One(()))];
    let template = message::path_match::Kind::Template(message::path_match::Template { segments });
    operation(
        &|o| o.paths = vec![message::PathMatch { kind: Some(template.clone()) }],
        "paths: a rest before the end of a template is not supported",
    );
}

#[test]
fn a_waypoint_that_says_nothing_sound_is_refused() {
    let refusal = |change: &dyn Fn(&mut message::Waypoint)| {
        let mut wire = message::Waypoint {
            namespace: "ns".into(),
            gateway: "gw".into(),
            service_namespace: "ns".into(),
            service_hostname: "gw.ns.svc.cluster.local".into(),
            ..Default::default()
        };
        change(&mut wire);
        let any = prost_types::Any { type_url: WAYPOINT_TYPE.to_owned(), value: wire.encode_to_vec() };
        let resource = Resource { name: "ns/gw".into(), resource: Some(any), ..Default::default() };
        match decode(ResourceType::Waypoint, &resource, &mut Interner::default()) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(refusal(&|_| {}), "accepted");
    assert_eq!(refusal(&|w| w.gateway = String::new()), "gateway is empty");
    assert_eq!(refusal(&|w| w.service_hostname = String::new()), "service_hostname is empty");
    assert_eq!(refusal(&|w| w.serves = 4), "serves: the value 4 is not known");
    assert_eq!(refusal(&|w| w.access_log = Some(Default::default())), "access_log is empty");
    assert_eq!(refusal(&|w| w.elsewhere = vec![String::new()]), "elsewhere is empty");
}
