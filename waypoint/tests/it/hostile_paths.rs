//! Spellings of one path: policy and router see the same one, and the endpoint gets it.

use std::sync::Arc;

use tropis_model::{
    policy::{PolicyKey, StringMatch},
    request::{PathNormalization, canonical},
    request_policy::{Attachment, OperationMatch, PathMatch, RequestAction, RequestPolicy, RequestRule},
    route::{Host, PathRewrite, PortProtocol, RequestMatch, Rewrite, RouteAction, TextMatch},
    view::Change,
};

use crate::{
    raw::{Answer, RawHttp2, before_witness, frame, statuses, until_closed},
    witness::Witness,
    world::{World, forward, host, pool, route, run, to},
};

/// A host that sends `/admin…` on with a header of its own, and everything else without.
fn routes() -> Host {
    let matched = RequestMatch { uri: Some(TextMatch::Prefix("/admin".into())), ..RequestMatch::default() };
    let action = || RouteAction::Forward(Box::new(forward(vec![to("reviews", None)])));
    let mut admin = route("admin", vec![matched], action());
    admin.headers.request.set = vec![("x-route".into(), "admin".into())];
    host("reviews", PortProtocol::Http, vec![admin, route("default", Vec::new(), action())], vec![pool("reviews", None)])
}

fn nobody_administers() -> RequestPolicy {
    let paths = vec![PathMatch::Text(StringMatch::Prefix("/admin".into()))];
    let to = vec![OperationMatch { paths, ..OperationMatch::default() }];
    RequestPolicy {
        key: PolicyKey("shop/admin".into()),
        attachment: Attachment::Target,
        action: RequestAction::Deny,
        rules: vec![RequestRule { to, ..RequestRule::default() }],
        dry_run: false,
    }
}

/// What the waypoint makes of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It begins with `/admin`; the endpoint gets this.
    Admin(&'static str),
    /// It does not; the endpoint gets this.
    Other(&'static str),
    /// Nothing: 400.
    Refused,
}
use Seen::{Admin, Other, Refused};

/// A path as sent, and what it is by `BASE`, `MERGE_SLASHES` and `DECODE_AND_MERGE_SLASHES`.
const PATHS: &[(&str, Seen, Seen, Seen)] = &[
    ("/admin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/admin/", Admin("/admin/"), Admin("/admin/"), Admin("/admin/")),
    ("/admin?", Admin("/admin?"), Admin("/admin?"), Admin("/admin?")),
    ("/admin?a=/../b", Admin("/admin?a=/../b"), Admin("/admin?a=/../b"), Admin("/admin?a=/../b")),
    ("/x?/admin", Other("/x?/admin"), Other("/x?/admin"), Other("/x?/admin")),
    ("/admin#x", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("//admin", Other("//admin"), Admin("/admin"), Admin("/admin")),
    ("/./admin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/x/../admin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/x/./../admin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/../../admin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/admin/../x", Other("/x"), Other("/x"), Other("/x")),
    ("/admin/..", Other("/"), Other("/"), Other("/")),
    ("/%61dmin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/%61%64%6D%69%6e", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/%2561dmin", Other("/%2561dmin"), Other("/%2561dmin"), Other("/%2561dmin")),
    ("/%2e%2e/admin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/x/.%2E/admin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/x/%252e%252e/admin", Other("/x/%252e%252e/admin"), Other("/x/%252e%252e/admin"), Other("/x/%252e%252e/admin")),
    ("/admin%2f", Admin("/admin%2F"), Admin("/admin%2F"), Admin("/admin/")),
    ("/%2fadmin", Other("/%2Fadmin"), Other("/%2Fadmin"), Admin("/admin")),
    ("/x%2f..%2fadmin", Refused, Refused, Admin("/admin")),
    ("/x/..%2fadmin", Refused, Refused, Admin("/admin")),
    ("/x/..%5cadmin", Refused, Refused, Admin("/admin")),
    ("/x/%2e%2e%2fadmin", Refused, Refused, Admin("/admin")),
    ("\\admin", Refused, Refused, Refused),
    ("/x\\..\\admin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/x/..\\admin", Admin("/admin"), Admin("/admin"), Admin("/admin")),
    ("/%5cadmin", Other("/%5Cadmin"), Other("/%5Cadmin"), Admin("/admin")),
    ("/admin;x", Admin("/admin;x"), Admin("/admin;x"), Admin("/admin;x")),
    ("/x/..;/admin", Refused, Refused, Refused),
    ("/x/..%3b/admin", Refused, Refused, Refused),
    ("/;/admin", Other("/;/admin"), Other("/;/admin"), Other("/;/admin")),
    ("/Admin", Other("/Admin"), Other("/Admin"), Other("/Admin")),
    ("/admin%00", Refused, Refused, Refused),
    ("/%0d%0aadmin", Refused, Refused, Refused),
    ("/admin%", Refused, Refused, Refused),
    ("/%zzadmin", Refused, Refused, Refused),
    ("/x//../admin", Other("/x/admin"), Other("/x/admin"), Other("/x/admin")),
];

/// Asks for a path; the status.
type Asks = for<'a> fn(&'a World, &'a str) -> std::pin::Pin<Box<dyn Future<Output = u16> + 'a>>;

const ASKS: &[(&str, Asks)] = &[
    ("HTTP/1.1", |world, path| Box::pin(http1(world, path.to_owned()))),
    ("HTTP/1.1, absolute", |world, path| Box::pin(http1(world, format!("http://reviews{path}")))),
    ("HTTP/2", |world, path| Box::pin(http2(world, path))),
];

async fn http1(world: &World, target: String) -> u16 {
    let request = format!("GET {target} HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n");
    statuses(world, request.as_bytes()).await[0]
}

async fn http2(world: &World, path: &str) -> u16 {
    let mut connection = RawHttp2::open(world.bound.plain[0]).await;
    let block = frame::block(&[(":method", "GET"), (":scheme", "http"), (":authority", "reviews"), (":path", path)]);
    connection.send(&frame::new(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &block)).await;
    match connection.answer(1).await {
        Answer::Status(status) => status,
        // Not even a path to HTTP/2.
        Answer::Reset(_) => 400,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn policy_router_and_endpoint_see_one_path_by_base() {
    all("BASE", PathNormalization::Base, |(sent, base, ..)| (sent, *base));
}

#[test]
fn policy_router_and_endpoint_see_one_path_by_merge_slashes() {
    all("MERGE_SLASHES", PathNormalization::MergeSlashes, |(sent, _, merged, _)| (sent, *merged));
}

#[test]
fn policy_router_and_endpoint_see_one_path_by_decode_and_merge_slashes() {
    all("DECODE_AND_MERGE_SLASHES", PathNormalization::DecodeAndMergeSlashes, |(sent, .., decoded)| (sent, *decoded));
}

/// A path as sent, and what becomes of it by BASE, MERGE_SLASHES and DECODE_AND_MERGE_SLASHES.
type Case = (&'static str, Seen, Seen, Seen);

fn all(setting: &'static str, normalization: PathNormalization, expected: fn(&Case) -> (&'static str, Seen)) {
    run(async move {
        let (world, witness) = before_witness(routes(), &[("TROPIS_PATH_NORMALIZATION", setting)]).await;
        let mut wrong = Vec::new();
        for is_guarded in [false, true] {
            let mut host = routes();
            host.policies = is_guarded.then(|| Arc::new(nobody_administers())).into_iter().collect();
            world.apply([Change::Host(Arc::new(host))]);
            for (sent, seen) in PATHS.iter().map(expected) {
                for (way, ask) in ASKS {
                    let status = ask(&world, sent).await;
                    let found = (status, got(&witness));
                    if found != should(seen, is_guarded) {
                        wrong.push(format!("{way}: {sent}, guarded: {is_guarded}: {found:?}"));
                    }
                }
            }
        }
        assert_eq!(wrong, Vec::<String>::new());
        for (_, seen) in PATHS.iter().map(expected) {
            if let Admin(target) | Other(target) = seen {
                assert_eq!(canonical(target, normalization).unwrap().path, target.split('?').next().unwrap(), "it stays as it is");
            }
        }
    });
}

/// Status, and what the endpoint gets: its target, and the route that it was sent by.
fn should(seen: Seen, is_guarded: bool) -> (u16, Vec<(String, Vec<String>)>) {
    match seen {
        Admin(_) if is_guarded => (403, vec![]),
        Admin(target) => (200, vec![(target.to_owned(), vec!["admin".to_owned()])]),
        Other(target) => (200, vec![(target.to_owned(), vec![])]),
        Refused => (400, vec![]),
    }
}

fn got(witness: &Witness) -> Vec<(String, Vec<String>)> {
    let owned = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect();
    witness.take().iter().map(|sent| (sent.target().to_owned(), owned(sent.all("x-route")))).collect()
}

#[test]
fn a_rewrite_makes_no_dot_segment_of_what_policy_saw_without_one() {
    run(async {
        let matched = RequestMatch { uri: Some(TextMatch::Prefix("/a".into())), ..RequestMatch::default() };
        let mut rewriting = forward(vec![to("reviews", None)]);
        rewriting.rewrite = Some(Rewrite { path: Some(PathRewrite::Matched("/b/".into())), authority: None });
        let action = RouteAction::Forward(Box::new(rewriting));
        let rewrites = host("reviews", PortProtocol::Http, vec![route("rewrites", vec![matched], action)], vec![pool("reviews", None)]);
        let (world, witness) = before_witness(rewrites, &[]).await;
        for (sent, arrives) in [
            ("/ax", Some("/b/x")),
            ("/a.%2Fadmin.", None),
            ("/a..%2Fadmin", None),
            ("/a..%5cadmin", None),
            ("/a../admin", None),
            ("/a...%2Fadmin", Some("/b/...%2Fadmin")),
        ] {
            for (way, ask) in ASKS {
                assert_eq!(ask(&world, sent).await, if arrives.is_some() { 200 } else { 400 }, "{way}: {sent}");
                let arrived: Vec<String> = witness.take().iter().map(|sent| sent.target().to_owned()).collect();
                assert_eq!(arrived, Vec::from_iter(arrives), "{way}: {sent}");
            }
        }
    });
}

/// On a port that nobody declared, what does not begin like HTTP is passed on as it is, and an application may find HTTP in it after all.
#[test]
fn what_does_not_look_like_http_gets_past_no_policy_about_http() {
    run(async {
        let mut guarded = routes();
        guarded.policies = vec![Arc::new(nobody_administers())];
        for port in guarded.ports.values_mut() {
            port.protocol = PortProtocol::Auto;
        }
        let (world, witness) = before_witness(guarded, &[]).await;
        for request in [
            "\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
            "get /admin HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /admin HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET  /admin  HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /admin\r\n\r\n",
            "\0GET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            until_closed(&world, request.as_bytes()).await;
            assert_eq!(witness.take(), [], "{request:?}");
        }
        assert_eq!(statuses(&world, b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await, [200]);
    });
}
