//! `http.delegate`: how a root's rule and a delegate's become one.

use std::time::Duration;

use serde_json::{Value, json};
use tropis_model::route::{HttpRoute, RouteAction, TextMatch};

use super::{Mesh, PORT, refused, routes, shop};

/// The routes of a root whose only rule delegates to `more`.
fn delegated(root: Value, delegate: Value) -> Vec<HttpRoute> {
    let mesh = mesh(root, delegate);
    mesh.host("reviews").ports[&PORT].http.iter().map(|route| (**route).clone()).collect()
}

fn mesh(root: Value, delegate: Value) -> Mesh {
    let mut rule = json!({"delegate": {"name": "more", "namespace": "team"}});
    rule.as_object_mut().unwrap().extend(root.as_object().unwrap().clone());
    let root = routes("shop", "root", json!({"hosts": ["reviews"], "http": [rule]}));
    Mesh::new(shop().into_iter().chain([root, routes("team", "more", delegate)]))
}

fn to_ratings(more: Value) -> Value {
    let mut rule = json!({"route": [{"destination": {"host": "ratings.shop.svc.cluster.local"}}]});
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"http": [rule]})
}

#[test]
fn http_delegate_takes_the_roots_matches_and_what_it_leaves_unsaid() {
    let routes = delegated(
        json!({"name": "root", "match": [{"name": "a", "uri": {"prefix": "/r"}}], "timeout": "3s", "headers": {"request": {"set": {"x": "1"}}}}),
        to_ratings(json!({"name": "more"})),
    );
    assert_eq!((routes.len(), &*routes[0].name, &*routes[0].origin.object), (1, "root-more", "team/more"));
    assert_eq!(routes[0].matches[0].uri, Some(TextMatch::Prefix("/r".into())));
    assert_eq!(routes[0].headers.request.set.len(), 1);
    let RouteAction::Forward(forward) = &routes[0].action else { panic!() };
    assert_eq!(forward.timeout, Some(Duration::from_secs(3)));
    let own = delegated(json!({"timeout": "3s"}), to_ratings(json!({"timeout": "1s"})));
    let RouteAction::Forward(forward) = &own[0].action else { panic!() };
    assert_eq!(forward.timeout, Some(Duration::from_secs(1)));
}

#[test]
fn http_delegate_resolves_short_names_where_they_are_written() {
    let routes = delegated(json!({"mirror": {"host": "ratings"}}), json!({"http": [{"route": [{"destination": {"host": "ratings"}}]}]}));
    let RouteAction::Forward(forward) = &routes[0].action else { panic!() };
    assert_eq!(&*forward.destinations[0].pool.host.hostname, "ratings.team.svc.cluster.local");
    assert_eq!(&*forward.mirrors[0].pool.host.hostname, "ratings.shop.svc.cluster.local");
}

/// The merged matches' paths and methods, or `None` if the delegate's rule was dropped.
fn merged(root: Value, delegate: Value) -> Option<usize> {
    let routes = delegated(json!({"match": root}), to_ratings(json!({"match": delegate})));
    routes.first().map(|route| route.matches.len())
}

#[test]
fn http_delegate_pairs_matches_that_do_not_contradict_and_drops_the_rest() {
    let prefix = |text: &str| json!({"uri": {"prefix": text}});
    let exact = |text: &str| json!({"uri": {"exact": text}});
    assert_eq!(merged(json!([prefix("/a")]), json!([prefix("/a/b"), exact("/a/c")])), Some(2));
    assert_eq!(merged(json!([prefix("/a"), prefix("/b")]), json!([prefix("/a/b")])), Some(1));
    assert_eq!(merged(json!([prefix("/a")]), json!([prefix("/a/b"), prefix("/c")])), None, "one without a partner drops the rule");
    assert_eq!(merged(json!([exact("/a")]), json!([exact("/a")])), Some(1));
    assert_eq!(merged(json!([exact("/a")]), json!([prefix("/a")])), None);
    assert_eq!(merged(json!([prefix("/a")]), json!([{"uri": {"regex": "/a.*"}}])), None);
    assert_eq!(merged(json!([{"uri": {"regex": "/a.*"}}]), json!([exact("/a")])), None, "a root's pattern stands alone");
    assert_eq!(merged(json!([{"uri": {"regex": "/a.*"}}]), json!([{"method": {"exact": "GET"}}])), Some(1));
    assert_eq!(merged(json!([{"headers": {"x": {"exact": "1"}}}]), json!([{"headers": {"y": {"exact": "1"}}}])), Some(1));
    assert_eq!(merged(json!([{"headers": {"x": {"exact": "1"}}}]), json!([{"headers": {"x": {"exact": "2"}}}])), None);
    assert_eq!(merged(json!([{"queryParams": {"x": {"exact": "1"}}}]), json!([{"queryParams": {"x": {"prefix": "1"}}}])), None);
    assert_eq!(merged(json!([{"port": PORT}]), json!([{"port": 80}])), None);
    assert_eq!(merged(json!([{"sourceLabels": {"a": "b"}}]), json!([{"sourceLabels": {"a": "c"}}])), None);
    assert_eq!(merged(json!([{"sourceNamespace": "a"}]), json!([{"sourceNamespace": "b"}])), None);
    assert_eq!(merged(json!([{"sourceNamespace": "a"}]), json!([{"method": {"exact": "GET"}}])), None, "the delegate must say it too");
    assert_eq!(merged(json!([{"method": {"exact": "GET"}}]), json!([{"sourceNamespace": "b"}])), Some(1));
    assert_eq!(merged(json!([{"ignoreUriCase": true}]), json!([{"method": {"exact": "GET"}}])), None);
    assert_eq!(merged(json!([{"gateways": ["mesh"]}]), json!([{"gateways": ["edge"]}])), None);
}

#[test]
fn http_delegate_that_is_missing_hidden_or_has_hosts_leaves_the_rule_out() {
    for (delegate, problem) in [
        (json!({"exportTo": ["."], "http": [{"directResponse": {"status": 200}}]}), "is not exported to this namespace"),
        (json!({"hosts": ["a"], "http": [{"directResponse": {"status": 200}}]}), "has hosts of its own"),
    ] {
        let mesh = mesh(json!({}), delegate);
        assert!(mesh.host("reviews").ports[&PORT].http.is_empty(), "and nothing takes its place");
        assert!(
            mesh.texts().iter().any(|text| text.contains("spec.http[0].delegate: \"team/more\"") && text.contains(problem)),
            "{:?}",
            mesh.texts()
        );
    }
    let absent = routes("shop", "root", json!({"hosts": ["reviews"], "http": [{"delegate": {"name": "absent"}}]}));
    let texts = Mesh::new(shop().into_iter().chain([absent])).texts();
    assert!(texts.iter().any(|text| text.contains("\"shop/absent\" does not exist")), "{texts:?}");
}

#[test]
fn http_delegate_has_one_level_and_stands_alone() {
    let nested = refused(routes("team", "more", json!({"http": [{"delegate": {"name": "deeper"}}]})));
    assert!(nested.contains("spec.http[0].delegate: is not allowed without spec.hosts"), "{nested}");
    let both = json!({"hosts": ["a"], "http": [{"delegate": {"name": "b"}, "route": [{"destination": {"host": "a"}}]}]});
    assert!(refused(routes("shop", "r", both)).contains("route beside delegate is ambiguous"));
    let bound = refused(routes("team", "more", json!({"gateways": ["mesh"], "tcp": [{"route": [{"destination": {"host": "a"}}]}]})));
    assert!(bound.contains("spec.gateways: is not allowed without spec.hosts") && bound.contains("spec.tcp"), "{bound}");
}
