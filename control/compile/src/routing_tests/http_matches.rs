//! `http.match`, a test a field.

use serde_json::{Value, json};
use tropis_model::route::{RequestMatch, TextMatch, ValueMatch};

use super::{Mesh, PORT, forwarded, http, refused, refused_rule, routes, service, shop};

fn matched(entry: Value) -> RequestMatch {
    let (route, _) = forwarded(json!({"match": [entry]}));
    assert_eq!(route.matches.len(), 1);
    route.matches[0].clone()
}

fn only(change: impl FnOnce(&mut RequestMatch)) -> RequestMatch {
    let mut entry = RequestMatch::default();
    change(&mut entry);
    entry
}

fn exact(text: &str) -> Option<TextMatch> {
    Some(TextMatch::Exact(text.into()))
}

#[test]
fn http_match_name_is_kept() {
    assert_eq!(matched(json!({"name": "canary"})), only(|entry| entry.name = Some("canary".into())));
}

#[test]
fn http_match_uri_is_exact_prefix_or_regex() {
    assert_eq!(matched(json!({"uri": {"exact": "/a"}})), only(|entry| entry.uri = exact("/a")));
    assert_eq!(matched(json!({"uri": {"prefix": "/a"}})), only(|entry| entry.uri = Some(TextMatch::Prefix("/a".into()))));
    assert_eq!(matched(json!({"uri": {"regex": "/a/[0-9]+"}})), only(|entry| entry.uri = Some(TextMatch::regex("/a/[0-9]+").unwrap())));
    assert!(
        refused_rule(json!({"match": [{"uri": {"exact": "/a", "prefix": "/"}}]})).contains("has more than one of exact, prefix and regex")
    );
    assert!(refused_rule(json!({"match": [{"uri": {}}]})).contains("match[0].uri: an empty mapping matches nothing in particular"));
    assert!(refused_rule(json!({"match": [{"uri": "/a"}]})).contains("match[0].uri: \"/a\" has the wrong type"));
}

#[test]
fn http_match_scheme_is_matched() {
    assert_eq!(matched(json!({"scheme": {"exact": "https"}})), only(|entry| entry.scheme = exact("https")));
    assert!(refused_rule(json!({"match": [{"scheme": {"prefix": ""}}]})).contains("match[0].scheme.prefix: \"\" is an empty prefix"));
}

#[test]
fn http_match_method_is_matched() {
    assert_eq!(matched(json!({"method": {"exact": "GET"}})), only(|entry| entry.method = exact("GET")));
}

#[test]
fn http_match_authority_is_matched() {
    assert_eq!(matched(json!({"authority": {"exact": "a.b:80"}})), only(|entry| entry.authority = exact("a.b:80")));
}

#[test]
fn http_match_headers_are_matched_by_lower_case_name_or_presence() {
    let headers = json!({"End-User": {"exact": "jason"}, "x-a": {}, "x-b": {"regex": "*"}, "x-c": {"regex": "v.*"}});
    assert_eq!(
        matched(json!({"headers": headers})),
        only(|entry| {
            entry.headers = vec![
                ("end-user".into(), ValueMatch::Text(TextMatch::Exact("jason".into()))),
                ("x-a".into(), ValueMatch::Present),
                ("x-b".into(), ValueMatch::Present),
                ("x-c".into(), ValueMatch::Text(TextMatch::regex("v.*").unwrap())),
            ];
        })
    );
}

#[test]
fn http_match_headers_in_another_shape_are_refused_and_never_match_more() {
    let list = refused_rule(json!({"match": [{"headers": [{"end-user": {"exact": "jason"}}]}]}));
    assert!(list.contains("match[0].headers: a list has the wrong type"), "{list}");
    let misspelt = refused_rule(json!({"match": [{"header": {"end-user": {"exact": "jason"}}}]}));
    assert!(misspelt.contains("match[0].header: a mapping is in a field that the schema does not know"), "{misspelt}");
    let null = refused_rule(json!({"match": [{"headers": {"end-user": null}}]}));
    assert!(null.contains("match[0].headers[end-user]: null is not a match ({} for presence"), "{null}");
    assert_eq!(matched(json!({"headers": null})), RequestMatch::default(), "a field that is null is absent");
}

#[test]
fn http_match_without_headers_are_matched() {
    assert_eq!(
        matched(json!({"withoutHeaders": {"X-Debug": {}, "x-v": {"prefix": "1"}}})),
        only(|entry| {
            entry.without_headers =
                vec![("x-debug".into(), ValueMatch::Present), ("x-v".into(), ValueMatch::Text(TextMatch::Prefix("1".into())))];
        })
    );
    assert!(refused_rule(json!({"match": [{"withoutHeaders": {"a": null}}]})).contains("withoutHeaders[a]: null is not a match"));
}

#[test]
fn http_match_query_params_keep_their_case() {
    assert_eq!(
        matched(json!({"queryParams": {"Version": {"exact": "2"}, "debug": {}}})),
        only(|entry| {
            entry.query = vec![("Version".into(), ValueMatch::Text(TextMatch::Exact("2".into()))), ("debug".into(), ValueMatch::Present)];
        })
    );
}

#[test]
fn http_match_ignore_uri_case_is_kept() {
    let entry = matched(json!({"uri": {"prefix": "/A"}, "ignoreUriCase": true}));
    assert!(entry.ignore_uri_case);
}

#[test]
fn http_match_port_leaves_out_what_is_for_other_ports() {
    let spec = json!({"hosts": ["reviews"], "http": [
        {"match": [{"port": 81}], "route": [{"destination": {"host": "ratings", "port": {"number": PORT}}}]},
        {"match": [{"port": 80}, {"port": 81, "method": {"exact": "GET"}}], "route": [{"destination": {"host": "reviews"}}]},
    ]});
    let objects = [
        service("shop", "reviews", &[("http-a", 80), ("http-b", 81)]),
        service("shop", "ratings", &[("http", PORT)]),
        routes("shop", "r", spec),
    ];
    let host = Mesh::new(objects).host("reviews");
    let fields = |port: u16| host.ports[&port].http.iter().map(|route| route.origin.field.to_string()).collect::<Vec<_>>();
    assert_eq!(fields(80), ["spec.http[1]"], "a rule none of whose matches is for the port disappears");
    assert_eq!(fields(81), ["spec.http[0]"], "and what takes everything on a port hides the rest there");
    assert_eq!(host.ports[&80].http[0].matches, [RequestMatch::default()]);
    assert!(refused_rule(json!({"match": [{"port": 70000}]})).contains("match[0].port: 70000 is not a port"));
}

#[test]
fn http_match_source_labels_ask_for_the_original_caller() {
    let entry = matched(json!({"sourceLabels": {"app": "web"}}));
    assert_eq!(entry, only(|entry| drop(entry.source_labels.insert("app".into(), "web".into()))));
    assert!(refused_rule(json!({"match": [{"sourceLabels": {"app": "*"}}]})).contains("sourceLabels[app]: \"*\" is not a label value"));
}

#[test]
fn http_match_source_namespace_asks_for_the_original_caller() {
    assert_eq!(matched(json!({"sourceNamespace": "bank"})), only(|entry| entry.source_namespace = Some("bank".into())));
}

#[test]
fn http_match_gateways_leave_out_what_is_not_for_the_mesh() {
    let rule = |gateways: Value| json!({"match": [{"gateways": gateways}], "route": [{"destination": {"host": "reviews"}}]});
    let spec = json!({"hosts": ["reviews"], "gateways": ["mesh", "edge"], "http": [rule(json!(["edge"])), rule(json!(["edge", "mesh"]))]});
    let host = Mesh::new(shop().into_iter().chain([routes("shop", "r", spec)])).host("reviews");
    assert_eq!(host.ports[&PORT].http.len(), 1);
    assert_eq!(&*host.ports[&PORT].http[0].origin.field, "spec.http[1]");
}

#[test]
fn http_match_stat_prefix_is_told_of() {
    let rule = json!({"match": [{"statPrefix": "a"}], "route": [{"destination": {"host": "reviews"}}]});
    let (_, findings) = tropis_crds::decode(routes("shop", "r", json!({"hosts": ["reviews"], "http": [rule]}))).unwrap();
    assert_eq!(
        findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["Warning [TRP0012] (VirtualService shop/r) spec.http[0].match[0].statPrefix: is not obeyed here; no statistics are kept under it"]
    );
}

#[test]
fn several_matches_are_alternatives_and_none_matches_everything() {
    let (route, _) = forwarded(json!({"match": [{"method": {"exact": "GET"}}, {"method": {"exact": "HEAD"}}]}));
    assert_eq!(route.matches.len(), 2);
    assert!(http(json!({"route": [{"destination": {"host": "reviews"}}]})).matches.is_empty());
}

#[test]
fn patterns_that_do_not_compile_are_refused() {
    for bad in ["(", "a{2,1}", "(?<!a)b", "\\1"] {
        let text = refused_rule(json!({"match": [{"uri": {"regex": bad}}]}));
        assert!(text.contains("match[0].uri.regex") && text.contains("is not a regular expression"), "{text}");
    }
    assert!(refused_rule(json!({"match": [{"uri": {"regex": "a".repeat(1025)}}]})).contains("1025 bytes are too many for a pattern"));
    let mixed = refused(routes("shop", "r", json!({"hosts": ["reviews"], "http": [{}]})));
    assert!(mixed.contains("spec.http[0]: does nothing with what it matches"), "{mixed}");
}

#[test]
fn names_of_fields_are_no_headers_and_left_out() {
    let entry = json!({"uri": {"prefix": "/admin"}, "headers": {":method": {"exact": "GET"}, "Authority": {"exact": "a"}, "x-a": {}}, "withoutHeaders": {"scheme": {}}});
    let spec = json!({"hosts": ["reviews"], "http": [{"match": [entry], "route": [{"destination": {"host": "reviews"}}]}]});
    let (_, findings) = tropis_crds::decode(routes("shop", "r", spec.clone())).unwrap();
    let fields: Vec<_> = findings.iter().map(|finding| finding.field.as_deref().unwrap()).collect();
    let at = "spec.http[0].match[0]";
    assert_eq!(fields, [format!("{at}.headers[:method]"), format!("{at}.headers[Authority]"), format!("{at}.withoutHeaders[scheme]")]);
    let host = Mesh::new(shop().into_iter().chain([routes("shop", "r", spec)])).host("reviews");
    let matched = &host.ports[&PORT].http[0].matches[0];
    let names: Vec<&str> = matched.headers.iter().map(|(name, _)| &**name).collect();
    assert_eq!((names, matched.without_headers.len()), (vec!["x-a"], 0));
}

#[test]
fn patterns_are_bounded_in_size_and_number_and_hold_between_anchors() {
    let bad = |regex: &str| refused_rule(json!({"match": [{"uri": {"regex": regex}}]}));
    assert!(bad("\\pL{150}").contains("match[0].uri.regex"), "too large once it is compiled");
    assert!(bad("(?x)a # b").contains("is not a regular expression"), "the end of the anchored form is a comment");
    let many: Vec<_> = (0..300).map(|number| json!({"uri": {"regex": format!("/{number}/.*")}})).collect();
    assert!(refused_rule(json!({"match": many})).contains("spec.http: 300 patterns are too many for one object"));
    let hosts: Vec<_> = (0..2000).map(|number| format!("a{number}")).collect();
    let spec = json!({"hosts": hosts, "http": [{"directResponse": {"status": 200}}]});
    assert!(refused(routes("shop", "r", spec)).contains("spec.hosts: 2000 hosts are too many for one object"));
}
