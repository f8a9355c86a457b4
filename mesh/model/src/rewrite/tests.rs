//! Paths, locations and headers, one test a field.

use super::*;
use crate::route::Caller;
use proptest::prelude::*;

fn uri(wanted: TextMatch) -> RequestMatch {
    RequestMatch { uri: Some(wanted), ..RequestMatch::default() }
}

fn prefix(text: &str) -> RequestMatch {
    uri(TextMatch::Prefix(text.into()))
}

fn to(replacement: &str) -> PathRewrite {
    PathRewrite::Matched(replacement.into())
}

fn rewritten(rewrite: &PathRewrite, matched: Option<&RequestMatch>, from: &str) -> String {
    path(rewrite, matched, from, None).unwrap()
}

fn pattern(source: &str, replacement: &str) -> PathRewrite {
    PathRewrite::Pattern { pattern: UnanchoredPattern::new(source).unwrap(), replacement: replacement.into() }
}

#[test]
fn rewrite_uri_replaces_the_matched_prefix() {
    for (matched, replacement, from, expected) in [
        ("/a", "/b", "/a/c", "/b/c"),
        ("/a", "/b", "/axe", "/bxe"),
        ("/a/", "/", "/a/c", "/c"),
        ("/a", "/", "/a/c", "//c"),
        ("/a", "b", "/a/c", "/b/c"),
        ("/", "/v2/", "/c", "/v2/c"),
    ] {
        assert_eq!(rewritten(&to(replacement), Some(&prefix(matched)), from), expected, "{matched} to {replacement}");
    }
}

#[test]
fn rewrite_uri_without_a_match_replaces_the_root() {
    assert_eq!(rewritten(&to("/new/"), None, "/foo"), "/new/foo");
    assert_eq!(rewritten(&to("/new"), Some(&RequestMatch::default()), "/foo"), "/newfoo");
}

#[test]
fn rewrite_uri_replaces_all_of_an_exact_or_regex_match() {
    assert_eq!(rewritten(&to("/b"), Some(&uri(TextMatch::Exact("/a/x".into()))), "/a/x"), "/b");
    assert_eq!(rewritten(&to("/b"), Some(&uri(TextMatch::regex("/a/.*").unwrap())), "/a/x"), "/b");
}

#[test]
fn rewrite_uri_ignores_case_where_the_match_did() {
    let matched = RequestMatch { ignore_uri_case: true, ..prefix("/foo") };
    assert_eq!(rewritten(&to("/bar"), Some(&matched), "/FOO/x"), "/bar/x");
}

#[test]
fn replace_prefix_match_is_segment_wise() {
    for (matched, replacement, from, expected) in [
        ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "", "/foo/bar", "/bar"),
        ("/foo", "", "/foo/", "/"),
        ("/foo", "", "/foo", "/"),
        ("/foo", "/", "/foo/bar", "/bar"),
    ] {
        let matched = uri(TextMatch::PathPrefix(matched.into()));
        assert_eq!(rewritten(&to(replacement), Some(&matched), from), expected, "{from} to {replacement}");
    }
}

#[test]
fn replace_full_path_replaces_all() {
    assert_eq!(rewritten(&PathRewrite::Full("/one".into()), Some(&prefix("/a")), "/a/b"), "/one");
}

#[test]
fn uri_regex_rewrite_substitutes_every_match() {
    for (source, replacement, from, expected) in [
        ("o", "0", "/foo/o", "/f00/0"),
        ("^/v([0-9])/(.*)$", "/\\2/v\\1", "/v2/x/y", "/x/y/v2"),
        ("/a(b)?", "/c\\1d\\7", "/a/ab", "/cd/cbd"),
        ("/a", "\\0\\0", "/a", "/a/a"),
        ("a", "\\\\", "/xay", "/x\\y"),
        ("a", "b\\", "/a", "/b"),
        ("/nothing", "/x", "/a", "/a"),
        ("^/a", "", "/ab", "/b"),
        ("\u{e9}", "e", "/caf\u{e9}", "/cafe"),
    ] {
        assert_eq!(rewritten(&pattern(source, replacement), None, from), expected, "{source} to {replacement}");
    }
}

#[test]
fn a_rewrite_keeps_the_query() {
    assert_eq!(path(&to("/b"), Some(&prefix("/a")), "/a/c", Some("x=1")).unwrap(), "/b/c?x=1");
    assert_eq!(path(&pattern("[0-9]", "n"), None, "/1", Some("x=1")).unwrap(), "/n?x=1");
    assert_eq!(path(&PathRewrite::Full("/b?y=2".into()), None, "/a", Some("x=1")).unwrap(), "/b?y=2&x=1");
    assert_eq!(path(&to("/b"), Some(&prefix("/a")), "/a", Some("")).unwrap(), "/b?");
}

#[test]
fn a_rewrite_that_makes_a_dot_segment_is_refused() {
    for (rewrite, matched, from) in [
        (to("/b/"), prefix("/a"), "/a../secret"),
        (to("/b/"), prefix("/a"), "/a./secret"),
        (to("/b/.."), uri(TextMatch::PathPrefix("/a".into())), "/a/x"),
        (pattern("x", "."), prefix("/"), "/b/x./c"),
        (pattern("/a(.*)", "/b/\\1"), prefix("/"), "/a%2e%2e/c"),
        (to("/b/"), prefix("/a"), "/a..%2Fadmin"),
        (to("/b/"), prefix("/a"), "/a..%2fadmin"),
        (to("/b/"), prefix("/a"), "/a.%5Cadmin"),
        (to("/b%2F"), prefix("/a"), "/a..%2Fadmin"),
        (to("/b%2f"), prefix("/a"), "/a.."),
        (pattern("x", "%2F"), prefix("/"), "/bx..xadmin"),
    ] {
        assert_eq!(path(&rewrite, Some(&matched), from, None), Err(AmbiguousPath::RewrittenDotSegment), "{from}");
    }
}

#[test]
fn a_rewrite_leaves_the_dot_segments_of_a_path_that_is_not_normalised() {
    assert_eq!(rewritten(&to("/b"), Some(&prefix("/a")), "/a/../c"), "/b/../c");
}

const REDIRECT: Redirect = Redirect { path: None, authority: None, scheme: None, port: None, status: 301 };

fn sent(redirect: &Redirect, scheme: &str, authority: &str, at: &str, query: Option<&str>) -> String {
    let (headers, caller) = (HeaderMap::new(), Caller::default());
    let facts = RequestFacts {
        method: "GET",
        scheme,
        authority,
        path: at,
        query,
        headers: &headers,
        port: 8080,
        caller: &caller,
        remote_address: None,
        destination: None,
        server_name: None,
        token: None,
    };
    location(redirect, Some(&prefix("/a")), &facts).unwrap()
}

#[test]
fn redirect_uri_replaces_the_path_and_keeps_the_query_unless_it_has_one() {
    let to = |full: &str| Redirect { path: Some(PathRewrite::Full(full.into())), ..REDIRECT };
    assert_eq!(sent(&to("/new"), "http", "a", "/a/b", Some("x=1")), "http://a/new?x=1");
    assert_eq!(sent(&to("/new?y"), "http", "a", "/a/b", Some("x=1")), "http://a/new?y");
    assert_eq!(sent(&to("/new#top"), "http", "a", "/a/b", Some("x=1")), "http://a/new?x=1#top");
    assert_eq!(sent(&to("new"), "http", "a", "/a/b", None), "http://a/new");
}

#[test]
fn redirect_prefix_rewrite_replaces_the_matched_prefix() {
    let redirect = Redirect { path: Some(to("/new")), ..REDIRECT };
    assert_eq!(sent(&redirect, "http", "a", "/a/b", Some("x")), "http://a/new/b?x");
}

#[test]
fn redirect_authority_replaces_the_host() {
    let redirect = |authority: &str| Redirect { authority: Some(authority.into()), ..REDIRECT };
    assert_eq!(sent(&redirect("b.com"), "http", "a:8080", "/x", None), "http://b.com/x");
    assert_eq!(sent(&redirect("b.com:81"), "http", "a", "/x", None), "http://b.com:81/x");
}

#[test]
fn redirect_scheme_strips_the_old_default_port_only() {
    let redirect = Redirect { scheme: Some("https".into()), ..REDIRECT };
    assert_eq!(sent(&redirect, "http", "a:80", "/x", None), "https://a/x");
    assert_eq!(sent(&redirect, "http", "a:8080", "/x", None), "https://a:8080/x");
    assert_eq!(sent(&redirect, "https", "a:443", "/x", None), "https://a:443/x");
    assert_eq!(sent(&redirect, "http", "[fd00::1]:80", "/x", None), "https://[fd00::1]/x");
}

#[test]
fn redirect_port_is_left_out_when_it_is_the_default() {
    let redirect = |port, scheme: Option<&str>| Redirect { port: Some(port), scheme: scheme.map(Into::into), ..REDIRECT };
    assert_eq!(sent(&redirect(RedirectPort::Number(81), None), "http", "a:8080", "/x", None), "http://a:81/x");
    assert_eq!(sent(&redirect(RedirectPort::Number(443), Some("https")), "http", "a:8080", "/x", None), "https://a/x");
    assert_eq!(sent(&redirect(RedirectPort::Number(81), None), "http", "[fd00::1]", "/x", None), "http://[fd00::1]:81/x");
}

#[test]
fn redirect_derive_port_is_from_the_scheme_or_from_the_request() {
    let redirect = |port| Redirect { port: Some(port), ..REDIRECT };
    assert_eq!(sent(&redirect(RedirectPort::FromScheme), "http", "a:8080", "/x", None), "http://a/x");
    assert_eq!(sent(&redirect(RedirectPort::FromRequest), "http", "a:9090", "/x", None), "http://a:8080/x");
}

#[test]
fn a_redirect_cannot_be_led_to_another_host_by_its_path() {
    let redirect = Redirect { scheme: Some("https".into()), ..REDIRECT };
    assert_eq!(sent(&redirect, "http", "a", "//evil.example", None), "https://a//evil.example");
}

fn names(pairs: &[(&str, &str)]) -> Vec<(std::sync::Arc<str>, std::sync::Arc<str>)> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn applied(operations: &HeaderOperations, before: &[(&'static str, &'static str)]) -> (Vec<String>, Option<String>) {
    let mut map = HeaderMap::new();
    for (name, value) in before {
        map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let authority = headers(operations, &mut map, literal).unwrap();
    let mut after: Vec<String> = map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    after.sort();
    (after, authority)
}

#[test]
fn headers_set_overwrites_or_adds() {
    let operations = HeaderOperations { set: names(&[("a", "new"), ("b", "new")]), ..HeaderOperations::default() };
    assert_eq!(applied(&operations, &[("a", "1"), ("a", "2")]).0, ["a: new", "b: new"]);
}

#[test]
fn headers_add_appends() {
    let operations = HeaderOperations { add: names(&[("a", "2"), ("b", "1")]), ..HeaderOperations::default() };
    assert_eq!(applied(&operations, &[("a", "1")]).0, ["a: 1", "a: 2", "b: 1"]);
}

#[test]
fn headers_remove_deletes_all_of_a_name() {
    let operations = HeaderOperations { remove: vec!["a".into(), "none".into()], ..HeaderOperations::default() };
    assert_eq!(applied(&operations, &[("a", "1"), ("a", "2"), ("b", "1")]).0, ["b: 1"]);
}

#[test]
fn headers_are_removed_then_set_then_added() {
    let operations = HeaderOperations { remove: vec!["a".into()], set: names(&[("a", "set")]), add: names(&[("a", "added")]) };
    assert_eq!(applied(&operations, &[("a", "sent")]).0, ["a: added", "a: set"]);
}

#[test]
fn setting_host_rewrites_the_authority() {
    for name in ["host", ":authority", "Host"] {
        let operations = HeaderOperations { set: names(&[(name, "b.com")]), remove: vec![name.into()], ..HeaderOperations::default() };
        assert_eq!(applied(&operations, &[("host", "a")]), (vec!["host: a".into()], Some("b.com".into())), "{name}");
    }
}

#[test]
fn header_values_are_rendered() {
    let operations = HeaderOperations { set: names(&[("a", "100%%"), ("b", "%REQ(X)%")]), ..HeaderOperations::default() };
    assert_eq!(applied(&operations, &[]).0, ["a: 100%", "b: %REQ(X)%"]);
    let mut map = HeaderMap::new();
    headers(&operations, &mut map, |value| value.replace("%REQ(X)%", "x").into()).unwrap();
    assert_eq!(map["b"], "x");
}

#[test]
fn what_is_no_header_is_an_error() {
    for (name, value) in [("a b", "x"), ("a", "x\r\ny: z"), ("", "x")] {
        let operations = HeaderOperations { add: names(&[(name, value)]), ..HeaderOperations::default() };
        assert_eq!(headers(&operations, &mut HeaderMap::new(), literal), Err(InvalidHeader { name: name.into() }));
    }
}

proptest! {
    #[test]
    fn a_rewritten_path_begins_with_a_slash_and_has_no_new_dot_segment(
        matched in "/([ab./]|%2F){0,3}",
        replacement in "([/ab.]|%2f|%5C){0,4}",
        rest in "([/ab.]|%2F|%5c){0,5}",
    ) {
        let from = format!("{matched}{rest}");
        for matched in [prefix(&matched), uri(TextMatch::PathPrefix(matched.as_str().into())), RequestMatch::default()] {
            if let Ok(changed) = path(&to(&replacement), Some(&matched), &from, None) {
                prop_assert!(changed.starts_with('/'));
                prop_assert!(has_dot_segment(&from) || !has_dot_segment(&changed));
            }
        }
    }

    #[test]
    fn no_replacement_panics(replacement in "\\PC{0,8}", from in "/\\PC{0,8}") {
        let _ = path(&pattern("(.)b?", &replacement), None, &from, None);
    }
}
