//! One test a field of a match, and that `explain` and `route` agree.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::{
    address::NamespacedHostname,
    identity::Identity,
    route::{DirectResponse, HeaderChanges, HostPort, Origin, PortProtocol, RouteAction},
};

const PORT: u16 = 9080;

/// A request that tests change.
struct Sent {
    method: &'static str,
    scheme: &'static str,
    authority: &'static str,
    path: String,
    query: Option<&'static str>,
    headers: HeaderMap,
    caller: Caller,
}

impl Default for Sent {
    fn default() -> Self {
        Self {
            method: "GET",
            scheme: "http",
            authority: "reviews:9080",
            path: "/".into(),
            query: None,
            headers: HeaderMap::new(),
            caller: Caller::default(),
        }
    }
}

impl Sent {
    fn path(path: &str) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    fn header(mut self, name: &'static str, value: &[u8]) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        self
    }

    fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            method: self.method,
            scheme: self.scheme,
            authority: self.authority,
            path: &self.path,
            query: self.query,
            headers: &self.headers,
            port: PORT,
            caller: &self.caller,
            remote_address: None,
            destination: None,
            server_name: None,
            token: None,
        }
    }

    fn missed<'a>(&self, one: &'a RequestMatch) -> Option<Field<'a>> {
        mismatch(one, &self.facts())
    }
}

fn exact(text: &str) -> TextMatch {
    TextMatch::Exact(text.into())
}

fn prefix(text: &str) -> TextMatch {
    TextMatch::Prefix(text.into())
}

fn regex(text: &str) -> TextMatch {
    TextMatch::regex(text).unwrap()
}

fn uri(wanted: TextMatch) -> RequestMatch {
    RequestMatch { uri: Some(wanted), ..RequestMatch::default() }
}

fn uri_holds(wanted: TextMatch, path: &str) -> bool {
    Sent::path(path).missed(&uri(wanted)).is_none()
}

fn header_match(name: &str, wanted: ValueMatch) -> RequestMatch {
    RequestMatch { headers: vec![(name.into(), wanted)], ..RequestMatch::default() }
}

fn without(name: &str, wanted: ValueMatch) -> RequestMatch {
    RequestMatch { without_headers: vec![(name.into(), wanted)], ..RequestMatch::default() }
}

fn origin() -> Origin {
    Origin { kind: "VirtualService".into(), object: "shop/reviews".into(), field: "spec.http[0]".into() }
}

fn http_route(name: &str, matches: Vec<RequestMatch>) -> Arc<HttpRoute> {
    let action = RouteAction::Respond(DirectResponse { status: 200, body: [].into() });
    Arc::new(HttpRoute { name: name.into(), origin: origin(), matches, action, headers: HeaderChanges::default(), fault: None, cors: None })
}

fn host(http: Vec<Arc<HttpRoute>>, tls: Vec<Arc<TlsRoute>>, tcp: Vec<Arc<TcpRoute>>) -> Host {
    let name = NamespacedHostname { namespace: "shop".into(), hostname: "reviews.shop.svc.cluster.local".into() };
    let ports = [(PORT, HostPort { protocol: PortProtocol::Http, http, tls, tcp })].into();
    Host { name, ports, policies: Vec::new(), pools: BTreeMap::new() }
}

#[test]
fn uri_exact_is_all_of_the_path() {
    assert!(uri_holds(exact("/a"), "/a"));
    assert!(!uri_holds(exact("/a"), "/a/"));
    assert!(!uri_holds(exact("/a"), "/A"));
}

#[test]
fn uri_prefix_is_a_byte_prefix() {
    assert!(uri_holds(prefix("/foo"), "/foobar"));
    assert!(uri_holds(prefix("/foo"), "/foo"));
    assert!(!uri_holds(prefix("/foo"), "/fo"));
    assert!(uri_holds(prefix("/caf\u{e9}"), "/caf\u{e9}s"));
}

#[test]
fn uri_path_prefix_is_segment_wise() {
    for (path, holds) in [("/foo", true), ("/foo/", true), ("/foo/x", true), ("/foobar", false), ("/fo", false)] {
        assert_eq!(uri_holds(TextMatch::PathPrefix("/foo".into()), path), holds, "{path}");
        assert_eq!(uri_holds(TextMatch::PathPrefix("/foo/".into()), path), holds, "{path}");
    }
    assert!(uri_holds(TextMatch::PathPrefix("/".into()), "/anything"));
}

#[test]
fn uri_regex_matches_the_whole_path() {
    assert!(uri_holds(regex("/v[12]/.*"), "/v1/x"));
    assert!(!uri_holds(regex("/v[12]"), "/v1/x"));
    assert!(!uri_holds(regex("v1"), "/v1"));
    assert!(!uri_holds(regex("/a|/b"), "/ab"));
    assert!(uri_holds(regex("/a|/b"), "/b"));
}

#[test]
fn a_regex_cannot_leave_its_anchors() {
    assert!(TextMatch::regex("a)|(?:b").is_err());
}

#[test]
fn ignore_uri_case_is_for_literals_only() {
    let ignoring = |wanted| RequestMatch { ignore_uri_case: true, ..uri(wanted) };
    assert_eq!(Sent::path("/FOO").missed(&ignoring(exact("/foo"))), None);
    assert_eq!(Sent::path("/FOObar").missed(&ignoring(prefix("/foo"))), None);
    assert_eq!(Sent::path("/FOO").missed(&ignoring(regex("/foo"))), Some(Field::Uri));
}

#[test]
fn scheme_is_matched() {
    let one = RequestMatch { scheme: Some(exact("https")), ..RequestMatch::default() };
    assert_eq!(Sent::default().missed(&one), Some(Field::Scheme));
    assert_eq!(Sent { scheme: "https", ..Sent::default() }.missed(&one), None);
}

#[test]
fn method_is_matched_with_its_case() {
    let one = RequestMatch { method: Some(regex("GET|HEAD")), ..RequestMatch::default() };
    assert_eq!(Sent::default().missed(&one), None);
    assert_eq!(Sent { method: "get", ..Sent::default() }.missed(&one), Some(Field::Method));
}

#[test]
fn authority_is_matched_as_sent_with_its_port() {
    let one = |wanted| RequestMatch { authority: Some(wanted), ..RequestMatch::default() };
    assert_eq!(Sent::default().missed(&one(exact("reviews:9080"))), None);
    assert_eq!(Sent::default().missed(&one(exact("reviews"))), Some(Field::Authority));
    assert_eq!(Sent::default().missed(&one(prefix("reviews"))), None);
}

#[test]
fn headers_are_matched_by_value_or_presence() {
    let jason = header_match("end-user", ValueMatch::Text(exact("jason")));
    assert_eq!(Sent::default().missed(&jason), Some(Field::Header("end-user")));
    assert_eq!(Sent::default().header("end-user", b"jason").missed(&jason), None);
    assert_eq!(Sent::default().header("end-user", b"Jason").missed(&jason), Some(Field::Header("end-user")));
    let present = header_match("end-user", ValueMatch::Present);
    assert_eq!(Sent::default().header("end-user", b"").missed(&present), None);
    assert_eq!(Sent::default().missed(&present), Some(Field::Header("end-user")));
}

#[test]
fn headers_of_one_name_are_one_value() {
    let sent = Sent::default().header("x", b"a").header("x", b"b");
    assert_eq!(sent.missed(&header_match("x", ValueMatch::Text(exact("a,b")))), None);
    assert_eq!(sent.missed(&header_match("x", ValueMatch::Text(exact("a")))), Some(Field::Header("x")));
}

#[test]
fn headers_that_are_not_utf_8_are_compared_as_bytes() {
    let sent = Sent::default().header("x", b"a\xff");
    assert_eq!(sent.missed(&header_match("x", ValueMatch::Text(prefix("a")))), None);
    assert_eq!(sent.missed(&header_match("x", ValueMatch::Text(regex("a.")))), None);
    assert_eq!(sent.missed(&header_match("x", ValueMatch::Text(regex("[a-z]+")))), Some(Field::Header("x")));
}

#[test]
fn without_headers_absent_header_passes() {
    assert_eq!(Sent::default().missed(&without("x", ValueMatch::Text(exact("a")))), None);
    assert_eq!(Sent::default().missed(&without("x", ValueMatch::Present)), None);
}

#[test]
fn without_headers_matching_header_misses() {
    let sent = Sent::default().header("x", b"a");
    assert_eq!(sent.missed(&without("x", ValueMatch::Text(exact("a")))), Some(Field::WithoutHeader("x")));
    assert_eq!(sent.missed(&without("x", ValueMatch::Text(exact("b")))), None);
    assert_eq!(sent.missed(&without("x", ValueMatch::Present)), Some(Field::WithoutHeader("x")));
}

#[test]
fn query_params_match_the_first_value() {
    let one = |wanted| RequestMatch { query: vec![("v".into(), wanted)], ..RequestMatch::default() };
    let sent = Sent { query: Some("v=1&v=2"), ..Sent::default() };
    assert_eq!(sent.missed(&one(ValueMatch::Text(exact("1")))), None);
    assert_eq!(sent.missed(&one(ValueMatch::Text(exact("2")))), Some(Field::QueryParameter("v")));
    assert_eq!(sent.missed(&one(ValueMatch::Text(regex("[0-9]")))), None);
    assert_eq!(Sent { query: Some("v"), ..Sent::default() }.missed(&one(ValueMatch::Present)), None);
    assert_eq!(Sent::default().missed(&one(ValueMatch::Present)), Some(Field::QueryParameter("v")));
}

#[test]
fn source_labels_are_those_of_the_original_caller() {
    let one = RequestMatch { source_labels: [("app".into(), "web".into())].into(), ..RequestMatch::default() };
    assert_eq!(Sent::default().missed(&one), Some(Field::SourceLabel("app")));
    let caller = Caller { labels: [("app".into(), "web".into()), ("x".into(), "y".into())].into(), ..Caller::default() };
    assert_eq!(Sent { caller, ..Sent::default() }.missed(&one), None);
}

#[test]
fn source_namespace_is_that_of_the_original_caller() {
    let one = RequestMatch { source_namespace: Some("shop".into()), ..RequestMatch::default() };
    assert_eq!(Sent::default().missed(&one), Some(Field::SourceNamespace));
    let caller = |namespace| Caller { identity: Some(Identity::new("cluster.local", namespace, "web")), ..Caller::default() };
    assert_eq!(Sent { caller: caller("shop"), ..Sent::default() }.missed(&one), None);
    assert_eq!(Sent { caller: caller("other"), ..Sent::default() }.missed(&one), Some(Field::SourceNamespace));
}

#[test]
fn match_entries_are_alternatives_and_their_fields_are_not() {
    let both = RequestMatch { method: Some(exact("POST")), ..uri(exact("/a")) };
    let routes = host(vec![http_route("r", vec![both, uri(exact("/b"))])], vec![], vec![]);
    assert!(route(&routes, PORT, &Sent::path("/a").facts()).is_none());
    let sent = Sent::path("/b");
    let hit = route(&routes, PORT, &sent.facts()).unwrap();
    assert_eq!(hit.matched, Some(&uri(exact("/b"))));
}

#[test]
fn the_first_route_that_matches_is_taken() {
    let routes = [http_route("a", vec![uri(prefix("/a"))]), http_route("all", vec![]), http_route("b", vec![uri(prefix("/b"))])];
    let host = host(routes.to_vec(), vec![], vec![]);
    for (path, name, index) in [("/a", "a", 0), ("/b", "all", 1), ("/", "all", 1)] {
        let sent = Sent::path(path);
        let hit = route(&host, PORT, &sent.facts()).unwrap();
        assert_eq!((&*hit.route.name, hit.index), (name, index), "{path}");
        assert_eq!(hit.matched.is_none(), name == "all");
    }
}

#[test]
fn a_port_or_host_without_routes_takes_none() {
    let sent = Sent::default();
    assert_eq!(route(&host(vec![], vec![], vec![]), PORT, &sent.facts()), None);
    assert_eq!(route(&host(vec![http_route("r", vec![])], vec![], vec![]), 80, &sent.facts()), None);
}

#[test]
fn explain_names_the_field_of_each_match_that_missed() {
    let header = header_match("end-user", ValueMatch::Present);
    let host = host(vec![http_route("a", vec![uri(exact("/x")), header]), http_route("b", vec![])], vec![], vec![]);
    let sent = Sent::default();
    let explanation = explain(&host, PORT, &sent.facts());
    let fields: Vec<String> = explanation.missed[0].fields.iter().map(Field::to_string).collect();
    assert_eq!(fields, ["uri", "headers[end-user]"]);
    assert_eq!(explanation.matched.unwrap().index, 1);
}

fn destinations() -> Vec<crate::route::Destination> {
    Vec::new()
}

fn tls_route(server_names: &[&str], blocks: &[&str]) -> Arc<TlsRoute> {
    Arc::new(TlsRoute {
        origin: origin(),
        server_names: server_names.iter().map(|name| Arc::from(*name)).collect(),
        destination_blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
        source_labels: BTreeMap::new(),
        source_namespace: None,
        destinations: destinations(),
    })
}

fn tcp_route(blocks: &[&str], namespace: Option<&str>) -> Arc<TcpRoute> {
    Arc::new(TcpRoute {
        origin: origin(),
        destination_blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
        source_labels: BTreeMap::new(),
        source_namespace: namespace.map(Arc::from),
        destinations: destinations(),
    })
}

#[test]
fn sni_hosts_are_exact_or_a_suffix() {
    let host = host(vec![], vec![tls_route(&["a.com", "*.b.com"], &[]), tls_route(&["*"], &[])], vec![]);
    let taken = |name| host.ports[&PORT].tls.iter().position(|route| Some(route) == tls(&host, PORT, name, None, &Caller::default()));
    for (name, index) in [("a.com", 0), ("A.COM", 0), ("x.b.com", 0), ("x.y.b.com", 0), ("b.com", 1), ("xb.com", 1)] {
        assert_eq!(taken(name), Some(index), "{name}");
    }
}

#[test]
fn destination_subnets_are_of_the_address_that_was_called() {
    let host = host(vec![], vec![tls_route(&["*"], &["10.0.0.0/8"])], vec![tcp_route(&["fd00::/8"], None)]);
    let address = |text: &str| Some(text.parse().unwrap());
    assert!(tls(&host, PORT, "a", address("10.1.1.1"), &Caller::default()).is_some());
    assert!(tls(&host, PORT, "a", address("11.1.1.1"), &Caller::default()).is_none());
    assert!(tls(&host, PORT, "a", None, &Caller::default()).is_none());
    assert!(tcp(&host, PORT, address("fd00::1"), &Caller::default()).is_some());
    assert!(tcp(&host, PORT, address("10.1.1.1"), &Caller::default()).is_none());
}

#[test]
fn tcp_routes_ask_for_the_original_caller() {
    let host = host(vec![], vec![], vec![tcp_route(&[], Some("shop")), tcp_route(&[], None)]);
    let shop = Caller { identity: Some(Identity::new("cluster.local", "shop", "web")), ..Caller::default() };
    let index = |caller: &Caller| host.ports[&PORT].tcp.iter().position(|route| Some(route) == tcp(&host, PORT, None, caller));
    assert_eq!(index(&shop), Some(0));
    assert_eq!(index(&Caller::default()), Some(1));
}

#[test]
fn tls_routes_ask_for_the_original_caller() {
    let asks = |label: &str, namespace: Option<&str>| {
        let labels = [("app".into(), label.into())].into();
        Arc::new(TlsRoute { source_labels: labels, source_namespace: namespace.map(Arc::from), ..TlsRoute::clone(&tls_route(&["*"], &[])) })
    };
    let host = host(vec![], vec![asks("web", Some("shop")), asks("cart", None), tls_route(&["*"], &[])], vec![]);
    let index = |namespace: &str, label: &str| {
        let identity = Some(Identity::new("cluster.local", namespace, "a"));
        let caller = Caller { identity, labels: [("app".into(), label.into())].into(), ..Caller::default() };
        host.ports[&PORT].tls.iter().position(|route| Some(route) == tls(&host, PORT, "a", None, &caller))
    };
    assert_eq!(
        [index("shop", "web"), index("bank", "web"), index("bank", "cart"), index("shop", "other")],
        [Some(0), Some(2), Some(1), Some(2)]
    );
}

fn any_match() -> impl Strategy<Value = RequestMatch> {
    let texts = prop_oneof![Just(exact("/a")), Just(prefix("/a")), Just(regex("/a.*")), Just(TextMatch::PathPrefix("/a".into()))];
    (prop::option::of(texts), any::<bool>(), prop::option::of(Just(exact("GET")))).prop_map(|(uri, ignore_uri_case, method)| RequestMatch {
        uri,
        ignore_uri_case,
        method,
        ..RequestMatch::default()
    })
}

proptest! {
    #[test]
    fn explain_and_route_agree(
        routes in prop::collection::vec(prop::collection::vec(any_match(), 0..3), 0..5),
        path in "/[aAb/]{0,3}",
        method in prop::sample::select(&["GET", "POST"][..]),
    ) {
        let host = host(routes.into_iter().map(|matches| http_route("r", matches)).collect(), vec![], vec![]);
        let sent = Sent { method, ..Sent::path(&path) };
        let explanation = explain(&host, PORT, &sent.facts());
        prop_assert_eq!(explanation.matched, route(&host, PORT, &sent.facts()));
        let tried = explanation.missed.len();
        prop_assert_eq!(tried, explanation.matched.map_or(host.ports[&PORT].http.len(), |hit| hit.index));
        for missed in explanation.missed {
            prop_assert_eq!(missed.fields.len(), missed.route.matches.len());
        }
    }

    #[test]
    fn whatever_matches_exactly_matches_as_a_prefix(path in "/[a-c/]{0,5}") {
        prop_assert!(uri_holds(exact(&path), &path) && uri_holds(prefix(&path), &path) && uri_holds(TextMatch::PathPrefix(path.as_str().into()), &path));
    }
}
