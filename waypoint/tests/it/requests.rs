//! A request's whole way: in through a tunnel, out through another or plain, on both families; and what is refused.

use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::json;
use tropis_hbone::client::TunnelError;
use tropis_model::{route::PortProtocol, service::AppProtocol};

use crate::{
    log,
    world::{Seen, World, fetch, full, get, host, own_address, plain_host, run, says},
};

#[test]
fn a_request_goes_through_tunnels_on_both_sides() {
    run(async {
        let world = World::new();
        world.reviews();
        let seen = Seen::default();
        let app = world.tunnelled(own_address(), "reviews", says("hello", &seen)).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        for _ in 0..3 {
            assert_eq!(fetch(&mut sender, get("/tunnels-both-sides?q=1")).await, (200, "hello".into()));
        }
        assert_eq!(app.connections.get(), 1, "the connection is used again");
        let head = seen.take();
        assert_eq!(
            (head[0].uri.to_string(), &head[0].headers["host"]),
            ("/tunnels-both-sides?q=1".into(), &"reviews:9080".parse().unwrap())
        );
        assert_eq!(head[0].headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(head[0].headers["x-envoy-attempt-count"], "1");
        assert_eq!(head[0].headers["x-request-id"].len(), 36);
        let line = log::wait_for(&[("path", "/tunnels-both-sides?q=1")]).await;
        for (field, expected) in [
            ("method", json!("GET")),
            ("protocol", json!("HTTP/1.1")),
            ("response_code", json!(200)),
            ("response_flags", json!("-")),
            ("response_code_details", json!("via_upstream")),
            ("bytes_sent", json!(5)),
            ("authority", json!("reviews:9080")),
            ("upstream_host", json!(app.address.to_string())),
            ("upstream_cluster", json!("inbound-vip|9080|http|reviews.shop.svc.cluster.local")),
            ("downstream_local_address", json!("10.96.0.1:9080")),
            ("downstream_remote_address", json!("127.0.0.1:4711")),
            ("route_name", json!("default")),
            ("reason", json!("completed")),
            ("side", json!(null)),
        ] {
            assert_eq!(line[field], expected, "{field}");
        }
        let metrics = world.scrape();
        let expected = "source_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"";
        let line = metrics.lines().find(|line| line.starts_with("istio_requests_total{") && line.contains(expected)).unwrap();
        for expected in [
            "reporter=\"waypoint\"",
            "destination_workload=\"reviews-v1\"",
            "destination_service=\"reviews.shop.svc.cluster.local\"",
            "destination_service_name=\"reviews\"",
            "response_code=\"200\"",
            "connection_security_policy=\"mutual_tls\"",
        ] {
            assert!(line.contains(expected), "{expected} in {line}");
        }
    });
}

#[test]
fn ipv6_goes_the_same_way() {
    run(async {
        let world = World::at("[::1]:0", &[]);
        world.service("reviews", "fd00:96::1", AppProtocol::Http11, plain_host("reviews"));
        let seen = Seen::default();
        let app = world.app_at("[::1]:0".parse().unwrap(), says("six", &seen)).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "[fd00:96::1]:9080").await;
        assert_eq!(fetch(&mut sender, get("/")).await, (200, "six".into()));
        assert_eq!(seen.borrow()[0].headers["x-forwarded-for"], "::1");
    });
}

#[test]
fn a_service_is_found_by_its_name_too() {
    run(async {
        let world = World::new();
        world.reviews();
        let app = world.app(says("named", &Seen::default())).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "reviews.shop.svc.cluster.local:9080").await;
        assert_eq!(fetch(&mut sender, get("/")).await, (200, "named".into()));
    });
}

#[test]
fn what_is_not_attached_is_refused() {
    run(async {
        let world = World::new();
        world.reviews();
        for authority in ["10.96.0.9:9080", "10.96.0.1:9081", "ratings.shop.svc.cluster.local:9080", "10.0.0.7:80"] {
            match world.tunnel("cart", authority).await {
                Err(TunnelError::Refused { status, .. }) => assert_eq!(status, 404, "{authority}"),
                other => panic!("{authority}: {:?}", other.map(|stream| stream.id())),
            }
        }
    });
}

#[test]
fn no_endpoint_is_no_healthy_upstream() {
    run(async {
        let world = World::new();
        world.reviews();
        assert_eq!(world.get("/no-endpoint").await, (503, "no healthy upstream".into()));
        let line = log::wait_for(&[("path", "/no-endpoint")]).await;
        assert_eq!((&line["response_flags"], &line["stage"], &line["reason"]), (&json!("UH"), &json!("balance"), &json!("no_endpoint")));
        let metrics = world.scrape();
        assert!(metrics.contains("destination_workload=\"unknown\"") && metrics.contains("response_flags=\"UH\""), "{metrics}");
    });
}

#[test]
fn an_endpoint_that_refuses_is_a_connection_failure() {
    run(async {
        let world = World::new();
        world.reviews();
        let mut app = world.app(says("never", &Seen::default())).await;
        // Nobody listens on the discard port.
        app.address.set_port(9);
        world.endpoint("reviews", "v1", &app);
        let (status, body) = world.get("/refuses").await;
        assert_eq!(status, 503);
        assert!(
            body.starts_with("upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"),
            "{body}"
        );
        let line = log::wait_for(&[("path", "/refuses")]).await;
        assert_eq!((&line["response_flags"], &line["reason"]), (&json!("UF"), &json!("connect_refused")));
    });
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    run(async {
        let world = World::new();
        world.reviews();
        let seen = Seen::default();
        let app = world.app(says("never", &seen)).await;
        world.endpoint("reviews", "v1", &app);
        let mut requests = vec![Request::get("/a").header("host", "a").header("host", "b"), Request::get("/a")];
        requests.push(Request::get("http://ratings/a").header("host", "reviews"));
        for builder in requests {
            let request = builder.body(full("")).unwrap();
            let what = format!("{request:?}");
            let mut sender = world.http1("cart", "10.96.0.1:9080").await;
            assert_eq!(fetch(&mut sender, request).await.0, 400, "{what}");
        }
        assert!(seen.borrow().is_empty());
    });
}

#[test]
fn router_and_endpoint_see_the_canonical_path() {
    run(async {
        let world = World::new();
        world.reviews();
        let seen = Seen::default();
        let app = world.app(says("seen", &seen)).await;
        world.endpoint("reviews", "v1", &app);
        assert_eq!(world.get("/a/../%62/./c?d=..").await.0, 200);
        assert_eq!(seen.borrow()[0].uri.to_string(), "/b/c?d=..");
    });
}

#[test]
fn bodies_heads_and_empty_answers_pass_as_they_are() {
    run(async {
        let world = World::new();
        world.reviews();
        let app = world
            .app(|request| async move {
                let (parts, body) = request.into_parts();
                let sent = body.collect().await.unwrap().to_bytes();
                match parts.uri.path() {
                    "/empty" => http::Response::builder().status(204).body(full("")).unwrap(),
                    "/unchanged" => http::Response::builder().status(304).header("etag", "x").body(full("")).unwrap(),
                    _ => http::Response::builder().header("x-length", sent.len()).body(full(sent)).unwrap(),
                }
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let large = "x".repeat(3 * 1024 * 1024);
        let post = Request::post("/large").header("host", "reviews").header("expect", "100-continue").body(full(large.clone())).unwrap();
        let (status, body) = fetch(&mut sender, post).await;
        assert_eq!((status, body == large), (200, true));
        for (method, path, status) in [(Method::GET, "/empty", 204), (Method::GET, "/unchanged", 304), (Method::HEAD, "/", 200)] {
            let request = Request::builder().method(method).uri(path).header("host", "reviews").body(full("")).unwrap();
            assert_eq!(fetch(&mut sender, request).await, (status, String::new()), "{path}");
        }
        let line = log::wait_for(&[("path", "/large")]).await;
        assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&json!(large.len()), &json!(large.len())));
    });
}

#[test]
fn a_workload_is_addressed_by_itself() {
    run(async {
        let world = World::new();
        let app = world.app(says("itself", &Seen::default())).await;
        let mut workload = world.endpoint("reviews", "v1", &app);
        let authority = app.address.to_string();
        assert!(world.tunnel("cart", &authority).await.is_err(), "it has no waypoint");
        workload.waypoint = Some(tropis_model::workload::GatewayAddress {
            destination: tropis_model::workload::GatewayDestination::Service(crate::world::name("waypoint")),
            hbone_port: 15008,
        });
        world.apply([tropis_model::view::Change::Workload(std::sync::Arc::new(workload))]);
        let mut sender = world.http1("cart", &authority).await;
        assert_eq!(fetch(&mut sender, get("/by-address")).await, (200, "itself".into()));
    });
}

#[test]
fn a_change_of_routes_holds_for_open_connections() {
    run(async {
        let world = World::new();
        world.reviews();
        let app = world.app(says("hello", &Seen::default())).await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        assert_eq!(fetch(&mut sender, get("/")).await.0, 200);
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, host("reviews", PortProtocol::Http, Vec::new(), Vec::new()));
        assert_eq!(fetch(&mut sender, get("/gone")).await, (404, String::new()));
        assert_eq!(log::wait_for(&[("path", "/gone")]).await["response_flags"], json!("NR"));
    });
}
