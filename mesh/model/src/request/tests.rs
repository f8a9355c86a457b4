//! Paths and hosts that people and attackers send.

use proptest::prelude::*;

use super::*;

fn base(target: &str) -> Result<String, AmbiguousPath> {
    canonical(target, PathNormalization::Base).map(|canonical| canonical.path.into_owned())
}

fn with(target: &str, normalization: PathNormalization) -> String {
    canonical(target, normalization).unwrap().path.into_owned()
}

#[test]
fn base_gives_each_path_one_spelling() {
    for (sent, expected) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/../../etc/passwd", "/etc/passwd"),
        ("/a/%2e%2e/b", "/b"),
        ("/a/.%2E/b", "/b"),
        ("/a/%2E/b", "/a/b"),
        ("\\a\\..\\b", "/b"),
        ("/%61dmin", "/admin"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%5cb", "/a%5Cb"),
        ("/a//b", "/a//b"),
        ("/a//../b", "/a/b"),
        ("/%252e%252e/a", "/%252e%252e/a"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/a;v=1/b", "/a;v=1/b"),
        ("/caf\u{e9}", "/caf\u{e9}"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("*", "*"),
    ] {
        assert_eq!(base(sent).as_deref(), Ok(expected), "{sent}");
    }
}

#[test]
fn paths_that_mean_two_things_are_refused() {
    for (sent, expected) in [
        ("", AmbiguousPath::NotAbsolute),
        ("a", AmbiguousPath::NotAbsolute),
        ("?a=b", AmbiguousPath::NotAbsolute),
        ("http://x/", AmbiguousPath::NotAbsolute),
        ("**", AmbiguousPath::NotAbsolute),
        ("/a\r\nHost: x", AmbiguousPath::ControlCharacter),
        ("/a b", AmbiguousPath::ControlCharacter),
        ("/a?b\t", AmbiguousPath::ControlCharacter),
        ("/a\u{7f}", AmbiguousPath::ControlCharacter),
        ("/%", AmbiguousPath::BadEscape),
        ("/%2", AmbiguousPath::BadEscape),
        ("/%zz", AmbiguousPath::BadEscape),
        ("/%+1", AmbiguousPath::BadEscape),
        ("/%%32e", AmbiguousPath::BadEscape),
        ("/a%\u{e9}", AmbiguousPath::BadEscape),
        ("/a%00", AmbiguousPath::EscapedControlCharacter),
        ("/a%0d%0a", AmbiguousPath::EscapedControlCharacter),
        ("/a/..;/b", AmbiguousPath::DotSegmentWithParameters),
        ("/a/..;x=1/b", AmbiguousPath::DotSegmentWithParameters),
        ("/a/%2e%2e%3b/b", AmbiguousPath::DotSegmentWithParameters),
        ("/a/..%2fb", AmbiguousPath::DotSegmentBesideEscapedSlash),
        ("/a%2f..%5Cb", AmbiguousPath::DotSegmentBesideEscapedSlash),
        ("/a%5c%2e%2e", AmbiguousPath::DotSegmentBesideEscapedSlash),
        ("/.%2fb", AmbiguousPath::DotSegmentBesideEscapedSlash),
    ] {
        assert_eq!(base(sent), Err(expected), "{sent:?}");
    }
}

#[test]
fn normalization_none_leaves_the_path_as_sent() {
    assert_eq!(with("/a/../%62//c", PathNormalization::None), "/a/../%62//c");
    assert_eq!(canonical("/a\r\n", PathNormalization::None), Err(AmbiguousPath::ControlCharacter));
}

#[test]
fn normalization_merge_slashes_merges_after_dots() {
    assert_eq!(with("//a///b/", PathNormalization::MergeSlashes), "/a/b/");
    assert_eq!(with("/a//../b", PathNormalization::MergeSlashes), "/a/b");
    assert_eq!(with("/a%2f%2fb", PathNormalization::MergeSlashes), "/a%2F%2Fb");
}

#[test]
fn normalization_decode_and_merge_slashes_decodes_first() {
    assert_eq!(with("/a%2f%2Fb%5c..%5Cc", PathNormalization::DecodeAndMergeSlashes), "/a/c");
    assert_eq!(with("/x%2f..%2fadmin", PathNormalization::DecodeAndMergeSlashes), "/admin");
}

#[test]
fn query_is_kept_as_sent_and_a_fragment_is_dropped() {
    let path = canonical("/a/../b?x=%2e%2e/../y?z#top?no", PathNormalization::Base).unwrap();
    assert_eq!((&*path.path, path.query), ("/b", Some("x=%2e%2e/../y?z")));
    let path = canonical("/a#?x", PathNormalization::Base).unwrap();
    assert_eq!((&*path.path, path.query), ("/a", None));
    assert_eq!(canonical("/a?", PathNormalization::Base).unwrap().query, Some(""));
}

#[test]
fn a_path_that_is_canonical_is_not_copied() {
    for path in ["/", "/productpage", "/a.b/c-d_e~f", "/a//b"] {
        assert!(matches!(canonical(path, PathNormalization::Base).unwrap().path, std::borrow::Cow::Borrowed(_)), "{path}");
    }
}

#[test]
fn hosts_have_one_spelling() {
    for (sent, host, port, printed) in [
        ("Reviews.Shop", "reviews.shop", None, "reviews.shop"),
        ("reviews:9080", "reviews", Some(9080), "reviews:9080"),
        ("reviews.shop.", "reviews.shop", None, "reviews.shop"),
        ("10.0.0.1:80", "10.0.0.1", Some(80), "10.0.0.1:80"),
        ("[FD00:0::1]", "fd00::1", None, "[fd00::1]"),
        ("[fd00::1]:8080", "fd00::1", Some(8080), "[fd00::1]:8080"),
        ("my_service", "my_service", None, "my_service"),
    ] {
        let canonical = canonical_host(sent).unwrap();
        assert_eq!((&*canonical.host, canonical.port), (host, port), "{sent}");
        assert_eq!(canonical.to_string(), printed);
    }
}

#[test]
fn hosts_that_mean_two_things_are_refused() {
    let long = "a".repeat(254);
    for (sent, expected) in [
        ("", InvalidHost::Empty),
        (".", InvalidHost::Empty),
        (":80", InvalidHost::Empty),
        (&*long, InvalidHost::TooLong),
        ("user@host", InvalidHost::Character),
        ("a..b", InvalidHost::Character),
        (".a", InvalidHost::Character),
        ("a..", InvalidHost::Character),
        ("a/b", InvalidHost::Character),
        ("a b", InvalidHost::Character),
        ("a,b", InvalidHost::Character),
        ("\u{212a}", InvalidHost::Character),
        ("a\0", InvalidHost::Character),
        ("[::1", InvalidHost::Brackets),
        ("[10.0.0.1]", InvalidHost::Brackets),
        ("[::1]x", InvalidHost::Brackets),
        ("[fe80::1%25eth0]", InvalidHost::Brackets),
        ("fd00::1", InvalidHost::Port),
        ("a:", InvalidHost::Port),
        ("a:0", InvalidHost::Port),
        ("a:+80", InvalidHost::Port),
        ("a:65536", InvalidHost::Port),
        ("a:80:81", InvalidHost::Port),
        ("[::1]:", InvalidHost::Port),
    ] {
        assert_eq!(canonical_host(sent), Err(expected), "{sent:?}");
    }
}

#[test]
fn the_first_value_of_a_query_parameter_counts() {
    let query = Some("a=1&b&a=2&c=x=y");
    assert_eq!(query_parameter(query, "a"), Some("1"));
    assert_eq!(query_parameter(query, "b"), Some(""));
    assert_eq!(query_parameter(query, "c"), Some("x=y"));
    assert_eq!(query_parameter(query, "d"), None);
    assert_eq!(query_parameter(None, "a"), None);
}

#[test]
fn claims_are_found_inside_of_claims() {
    let inside = [("role".into(), Claim::List(vec!["a".into(), "b".into()]))].into();
    let token =
        Token { claims: [("realm".into(), Claim::Object(inside)), ("group".into(), Claim::Text("x".into()))].into(), ..Token::default() };
    let path = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect::<Vec<Arc<str>>>();
    assert_eq!(token.claim(&path(&["realm", "role"])).len(), 2);
    assert_eq!(token.claim(&path(&["group"])).len(), 1);
    for missing in [&["realm"][..], &["group", "x"], &["none"], &[]] {
        assert!(token.claim(&path(missing)).is_empty(), "{missing:?}");
    }
}

fn any_normalization() -> impl Strategy<Value = PathNormalization> {
    prop_oneof![
        Just(PathNormalization::None),
        Just(PathNormalization::Base),
        Just(PathNormalization::MergeSlashes),
        Just(PathNormalization::DecodeAndMergeSlashes),
    ]
}

const PIECES: &[&str] = &["/", "\\", ".", "..", "%2e", "%2E", "%2f", "%5C", "%25", "%61", ";", "%3b", "a", "b", "%", "%C3", "\u{e9}"];

/// Paths of the pieces that attacks are made of.
fn tricky_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(PIECES), 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #[test]
    fn a_canonical_path_is_its_own_canonical_path(path in tricky_path(), normalization in any_normalization()) {
        if let Ok(once) = canonical(&path, normalization) {
            let twice = canonical(&once.path, normalization).map(|twice| twice.path.into_owned());
            prop_assert_eq!(twice.as_deref(), Ok(&*once.path));
        }
    }

    #[test]
    fn a_canonical_path_begins_with_a_slash_and_has_no_dot_segment(path in tricky_path()) {
        for normalization in [PathNormalization::Base, PathNormalization::MergeSlashes, PathNormalization::DecodeAndMergeSlashes] {
            if let Ok(canonical) = canonical(&path, normalization) {
                prop_assert!(canonical.path.starts_with('/'));
                prop_assert!(!has_dot_segment(&canonical.path), "{}", canonical.path);
                prop_assert!(!canonical.path.contains('\\'));
                prop_assert!(normalization == PathNormalization::Base || !canonical.path.contains("//"));
            }
        }
    }

    #[test]
    fn nothing_that_a_peer_sends_panics(text in "\\PC*", normalization in any_normalization()) {
        let _ = canonical(&text, normalization);
        let _ = canonical_host(&text);
    }

    #[test]
    fn a_host_survives_printing(text in "[A-Za-z0-9.:\\[\\]_-]{0,20}") {
        if let Ok(host) = canonical_host(&text) {
            let printed = host.to_string();
            prop_assert_eq!(canonical_host(&printed), Ok(host));
        }
    }
}
