//! Hosts that are missing, said twice, or said in two ways; and headers that a caller uses to take others away.

use tropis_model::route::{Host, HttpRoute};

use crate::{
    raw::{Answer, RawHttp2, before_plain_witness, before_witness, frame, statuses},
    world::{plain_host, run},
};

/// Lines of a request after `GET` (the target first), its status, and the host that the endpoint gets.
const HOSTS: &[(&str, &str, u16, &str)] = &[
    ("one", "/ HTTP/1.1\r\nHost: reviews", 200, "reviews"),
    ("with a port", "/ HTTP/1.1\r\nHost: reviews:9080", 200, "reviews:9080"),
    ("in upper case", "/ HTTP/1.1\r\nHost: REVIEWS", 200, "REVIEWS"),
    ("with a dot at its end", "/ HTTP/1.1\r\nHost: reviews.", 200, "reviews."),
    ("an address", "/ HTTP/1.1\r\nHost: [fd00::1]:9080", 200, "[fd00::1]:9080"),
    ("another service's: the address that was called decides", "/ HTTP/1.1\r\nHost: ratings.shop", 200, "ratings.shop"),
    ("absolute", "http://reviews/ HTTP/1.1\r\nHost: reviews", 200, "reviews"),
    ("absolute, without Host", "http://reviews/ HTTP/1.1", 200, "reviews"),
    ("absolute, in another case", "http://Reviews/ HTTP/1.1\r\nHost: reviews", 200, "Reviews"),
    ("absolute, without a path", "http://reviews HTTP/1.1\r\nHost: reviews", 200, "reviews"),
    ("HTTP/1.0", "/ HTTP/1.0\r\nHost: reviews", 200, "reviews"),
    ("missing", "/ HTTP/1.1", 400, ""),
    ("missing in HTTP/1.0", "/ HTTP/1.0", 400, ""),
    ("empty", "/ HTTP/1.1\r\nHost:", 400, ""),
    ("twice", "/ HTTP/1.1\r\nHost: reviews\r\nHost: ratings", 400, ""),
    ("twice the same", "/ HTTP/1.1\r\nHost: reviews\r\nHost: reviews", 400, ""),
    ("a list", "/ HTTP/1.1\r\nHost: reviews, ratings", 400, ""),
    ("with a user", "/ HTTP/1.1\r\nHost: user@reviews", 400, ""),
    ("with a path", "/ HTTP/1.1\r\nHost: reviews/admin", 400, ""),
    ("with a blank", "/ HTTP/1.1\r\nHost: reviews ratings", 400, ""),
    ("two dots at its end", "/ HTTP/1.1\r\nHost: reviews..", 400, ""),
    ("a port that is none", "/ HTTP/1.1\r\nHost: reviews:80a", 400, ""),
    ("a port beyond 65535", "/ HTTP/1.1\r\nHost: reviews:99999", 400, ""),
    ("half a bracket", "/ HTTP/1.1\r\nHost: [fd00::1", 400, ""),
    ("absolute and another Host", "http://reviews/ HTTP/1.1\r\nHost: ratings", 400, ""),
    ("absolute with a user", "http://user@reviews/ HTTP/1.1\r\nHost: reviews", 400, ""),
    ("absolute with a user, twice", "http://user@reviews/ HTTP/1.1\r\nHost: user@reviews", 400, ""),
    ("absolute without a host", "http:///admin HTTP/1.1\r\nHost: reviews", 400, ""),
    ("listed as the connection's", "/ HTTP/1.1\r\nHost: reviews\r\nConnection: host", 400, ""),
];

#[test]
fn a_request_of_http1_names_one_host() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let mut wrong = Vec::new();
        for (case, request, status, host) in HOSTS {
            let found = statuses(&world, format!("GET {request}\r\nConnection: close\r\n\r\n").as_bytes()).await;
            let seen: Vec<_> = witness.take().iter().map(|sent| sent.all("host").join(", ")).collect();
            let expected: &[&str] = if *status == 200 { &[host] } else { &[] };
            if found != [*status] || seen != expected {
                wrong.push(format!("{case}: {found:?} {seen:?}"));
            }
        }
        assert_eq!(wrong, Vec::<String>::new());
    });
}

#[test]
fn a_request_of_http2_names_one_host() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let mut wrong = Vec::new();
        for (case, authority, hosts, status, expected) in [
            ("authority", Some("reviews:9080"), &[][..], 200, "reviews:9080"),
            ("authority and the same host", Some("reviews"), &["reviews"], 200, "reviews"),
            ("authority and host in another case", Some("reviews"), &["REVIEWS"], 200, "reviews"),
            ("host alone", None, &["reviews"], 200, "reviews"),
            ("another service's", Some("ratings"), &[], 200, "ratings"),
            ("a dot at its end", Some("reviews."), &[], 200, "reviews."),
            ("authority and another host", Some("reviews"), &["ratings"], 400, ""),
            ("authority and a host that adds a port", Some("reviews"), &["reviews:9080"], 400, ""),
            ("two hosts", None, &["reviews", "reviews"], 400, ""),
            ("authority and two hosts", Some("reviews"), &["reviews", "reviews"], 400, ""),
            ("an empty host", None, &[""], 400, ""),
            ("none", None, &[], 400, ""),
            ("a user", Some("user@reviews"), &[], 400, ""),
        ] {
            let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":path", "/")];
            fields.extend(authority.map(|authority| (":authority", authority)));
            fields.extend(hosts.iter().map(|host| ("host", *host)));
            let mut connection = RawHttp2::open(world.bound.plain[0]).await;
            connection.send(&frame::new(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &frame::block(&fields))).await;
            let found = connection.answer(1).await;
            let seen: Vec<_> = witness.take().iter().map(|sent| sent.all("host").join(", ")).collect();
            let expected: &[&str] = if status == 200 { &[expected] } else { &[] };
            if found != Answer::Status(status) || seen != expected {
                wrong.push(format!("{case}: {found:?} {seen:?}"));
            }
        }
        assert_eq!(wrong, Vec::<String>::new());
    });
}

/// The plain host, whose route says who its callers are.
fn tenant_host() -> Host {
    let mut host = plain_host("reviews");
    for port in host.ports.values_mut() {
        for route in &mut port.http {
            let mut changed = HttpRoute::clone(route);
            changed.headers.request.set = vec![("x-tenant".into(), "a".into())];
            *route = changed.into();
        }
    }
    host
}

#[test]
fn a_caller_cannot_have_the_routes_headers_removed() {
    run(async {
        let (world, witness) = before_witness(tenant_host(), &[]).await;
        let listed = "close, x-tenant, x-forwarded-for, x-request-id, x-envoy-attempt-count";
        let request = format!(
            "GET / HTTP/1.1\r\nHost: reviews\r\nX-Tenant: b\r\nX-Private: 1\r\nConnection: x-private\r\nConnection: {listed}\r\n\r\n"
        );
        assert_eq!(statuses(&world, request.as_bytes()).await, [200]);
        let seen = witness.take();
        assert_eq!(seen[0].all("x-tenant"), ["a"]);
        assert_eq!((seen[0].all("x-forwarded-for"), seen[0].all("x-request-id").len()), (vec!["127.0.0.1"], 1));
        assert_eq!((seen[0].all("x-private").len(), seen[0].all("connection").len()), (0, 0));
    });
}

#[test]
fn a_cookie_that_http2_sent_in_pieces_is_one_in_http1() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let fields =
            [(":method", "GET"), (":scheme", "http"), (":authority", "reviews"), (":path", "/"), ("cookie", "a=1"), ("cookie", "b=2")];
        let mut connection = RawHttp2::open(world.bound.plain[0]).await;
        connection.send(&frame::new(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &frame::block(&fields))).await;
        assert_eq!(connection.answer(1).await, Answer::Status(200));
        assert_eq!(witness.take()[0].all("cookie"), ["a=1; b=2"]);
    });
}
