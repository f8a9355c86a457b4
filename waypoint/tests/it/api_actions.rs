//! What the rules of a VirtualService do to real requests, a test for each field or few.

use std::time::{Duration, Instant};

use http::Response;
use serde_json::{Value, json};

use crate::{
    api_mesh::{Answer, Mesh, answer, is_share, request, to},
    log,
    world::{Body, full, run},
};

#[test]
fn http_route_destination_goes_to_host_subset_and_port() {
    run(async {
        let mesh = Mesh::new();
        mesh.traffic_policy(&Value::Null);
        let _apps = [
            mesh.says("reviews", "v1", "near", "v1").await,
            mesh.says("reviews", "v2", "near", "v2").await,
            mesh.says("ratings", "v1", "near", "ratings").await,
        ];
        for (route, expected) in [(to("reviews", Some("v1")), "v1"), (to("reviews", Some("v2")), "v2"), (to("ratings", None), "ratings")] {
            mesh.route(&json!({"route": [route]}));
            for _ in 0..4 {
                assert_eq!(mesh.body("/").await, expected);
            }
        }
        mesh.route(&json!({"route": [{"destination": {"host": "ratings", "port": {"number": 9081}}}]}));
        assert_eq!(mesh.body("/to/a/port").await, "ratings");
        let cluster = log::wait_for(&[("path", "/to/a/port")]).await["upstream_cluster"].clone();
        assert_eq!(cluster, json!("inbound-vip|9081|http|ratings.shop.svc.cluster.local"));
    });
}

#[test]
fn http_route_weight_is_a_share_and_headers_belong_to_the_share() {
    run(async {
        let mesh = Mesh::new();
        mesh.traffic_policy(&Value::Null);
        let _apps = [mesh.says("reviews", "v1", "near", "v1").await, mesh.says("reviews", "v2", "near", "v2").await];
        let share = |subset: &str, weight: u32| {
            let headers = json!({"request": {"set": {"x-share": subset}}, "response": {"add": {"x-from": subset}}});
            json!({"destination": {"host": "reviews", "subset": subset}, "weight": weight, "headers": headers})
        };
        mesh.route(&json!({"route": [share("v1", 9), share("v2", 1)]}));
        let counts = mesh.counts(1000).await;
        assert!(is_share(counts["v2"], 1000, 10.0), "{counts:?}");
        let of_v2 = mesh.seen.borrow().iter().filter(|head| head.headers["x-share"] == "v2").count();
        assert_eq!(of_v2, counts["v2"]);
        let found = mesh.send(request("GET", "/", &[])).await;
        assert_eq!(found.header("x-from"), Some(found.body.as_str()));
    });
}

#[test]
fn http_redirect_redirect_code_is_the_status() {
    run(async {
        let mesh = Mesh::new();
        for (code, status) in [(Value::Null, 301), (json!(302), 302), (json!(303), 303), (json!(307), 307), (json!(308), 308)] {
            let redirect = json!({"uri": "/new", "authority": "shop.example", "scheme": "https", "port": 8443, "redirectCode": code});
            mesh.routes(&json!([{"redirect": redirect}]));
            let found = mesh.send(request("GET", "/old?q=1", &[])).await;
            assert_eq!((found.status, found.header("location")), (status, Some("https://shop.example:8443/new?q=1")));
        }
        mesh.routes(
            &json!([{"match": [{"uri": {"prefix": "/old"}}], "redirect": {"prefixRewrite": "/new", "derivePort": "FROM_REQUEST_PORT"}}]),
        );
        assert_eq!(mesh.send(request("GET", "/old/a", &[])).await.header("location"), Some("http://reviews:9080/new/a"));
    });
}

#[test]
fn http_direct_response_status_and_body_are_the_answer() {
    run(async {
        let mesh = Mesh::new();
        for (body, expected) in [(json!({"string": "down"}), "down"), (json!({"bytes": "aGk="}), "hi"), (Value::Null, "")] {
            mesh.routes(&json!([{"directResponse": {"status": 418, "body": body}}]));
            let found = mesh.send(request("GET", "/", &[])).await;
            assert_eq!((found.status, found.body.as_str()), (418, expected));
        }
    });
}

#[test]
fn http_rewrite_uri_authority_and_uri_regex_rewrite_are_what_the_endpoint_sees() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("reviews", "v1", "near", "v1").await;
        let prefix = json!([{"uri": {"prefix": "/old"}}]);
        let pattern = json!({"match": "/(v[0-9])/", "rewrite": "/api-\\1/"});
        for (rule, sent, path, host) in [
            (json!({"rewrite": {"authority": "inner.example"}}), "/a", "/a", "inner.example"),
            (json!({"match": prefix, "rewrite": {"uri": "/new", "authority": "b:81"}}), "/old/a?q", "/new/a?q", "b:81"),
            (json!({"rewrite": {"uriRegexRewrite": pattern}}), "/v1/v2/a", "/api-v1/v2/a", "reviews:9080"),
        ] {
            mesh.route(&rule);
            assert_eq!(mesh.body(sent).await, "v1");
            let head = mesh.seen.borrow_mut().pop().unwrap();
            assert_eq!((head.uri.to_string().as_str(), head.headers["host"].to_str().unwrap()), (path, host), "{rule}");
        }
    });
}

#[test]
fn http_timeout_ends_the_request() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.runs("reviews", "v1", "near", |_| std::future::pending::<Response<Body>>()).await;
        mesh.route(&json!({"timeout": "100ms"}));
        let started = Instant::now();
        let found = mesh.send(request("GET", "/in/time", &[])).await;
        assert_eq!((found.status, found.body.as_str()), (504, "upstream request timeout"));
        assert!(started.elapsed() >= Duration::from_millis(100));
        assert_eq!(log::wait_for(&[("path", "/in/time")]).await["response_flags"], json!("UT"));
    });
}

#[test]
fn http_retries_attempts_retry_on_and_per_try_timeout_are_obeyed_together() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh
            .runs("reviews", "v1", "near", |request| async move {
                match request.headers()["x-envoy-attempt-count"].to_str().unwrap() {
                    "1" => Response::builder().status(503).body(full("")).unwrap(),
                    "2" => std::future::pending().await,
                    last => Response::new(full(last.to_owned())),
                }
            })
            .await;
        let retries = |attempts: u32| json!({"attempts": attempts, "perTryTimeout": "50ms", "retryOn": "5xx", "backoff": "1ms"});
        mesh.route(&json!({"retries": retries(2)}));
        assert_eq!(mesh.body("/").await, "3");
        mesh.route(&json!({"retries": retries(1)}));
        let found = mesh.send(request("GET", "/used/up", &[])).await;
        assert_eq!(found.status, 504);
        assert_eq!(log::wait_for(&[("path", "/used/up")]).await["response_flags"], json!("URX,UT"));
    });
}

#[test]
fn http_fault_delay_and_abort_hit_their_share() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("reviews", "v1", "near", "v1").await;
        mesh.route(&json!({"fault": {"abort": {"httpStatus": 599, "percentage": {"value": 25}}}}));
        let counts = mesh.counts(800).await;
        assert!(is_share(counts["fault filter abort"], 800, 25.0), "{counts:?}");
        mesh.route(&json!({"fault": {"abort": {"httpStatus": 599}}}));
        assert_eq!(mesh.counts(50).await["v1"], 50, "without a share nobody is hit");
        mesh.route(&json!({"fault": {"abort": {"grpcStatus": "PERMISSION_DENIED", "percentage": {"value": 100}}}}));
        let found = mesh.send(request("POST", "/", &[("content-type", "application/grpc")])).await;
        assert_eq!((found.status, found.header("grpc-status")), (200, Some("7")));
        for share in [json!({"percentage": {"value": 100}}), json!({"percent": 100})] {
            let mut delay = json!({"fixedDelay": "60ms"});
            delay.as_object_mut().unwrap().extend(share.as_object().unwrap().clone());
            mesh.route(&json!({"fault": {"delay": delay}}));
            let started = Instant::now();
            assert_eq!(mesh.body("/delayed").await, "v1");
            assert!(started.elapsed() >= Duration::from_millis(60), "{share}");
        }
        assert_eq!(log::wait_for(&[("path", "/delayed")]).await["response_flags"], json!("DI"));
    });
}

/// How many of 400 requests were copied to `ratings`.
async fn copies(mesh: &Mesh, mirrored: &Value) -> usize {
    mesh.route(mirrored);
    mesh.seen.borrow_mut().clear();
    mesh.counts(400).await;
    let copied = || mesh.seen.borrow().iter().filter(|head| head.headers.contains_key("x-copy-of-ratings")).count();
    // Copies are sent beside the requests: wait until no more come.
    let mut last = (copied(), Instant::now());
    while last.1.elapsed() < Duration::from_millis(150) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if copied() != last.0 {
            last = (copied(), Instant::now());
        }
    }
    last.0
}

#[test]
fn http_mirror_mirrors_and_their_percentages_copy_a_share() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("reviews", "v1", "near", "v1").await;
        let seen = mesh.seen.clone();
        let _copied = mesh
            .runs("ratings", "v1", "near", move |request| {
                let mut head = request.into_parts().0;
                head.headers.insert("x-copy-of-ratings", "1".parse().unwrap());
                seen.borrow_mut().push(head);
                std::future::ready(Response::new(full("")))
            })
            .await;
        let ratings = json!({"host": "ratings"});
        assert_eq!(copies(&mesh, &json!({"mirror": ratings})).await, 400);
        for written in [
            json!({"mirror": ratings, "mirrorPercentage": {"value": 25.0}}),
            json!({"mirror": ratings, "mirrorPercent": 25}),
            json!({"mirrors": [{"destination": ratings, "percentage": {"value": 25}}]}),
        ] {
            let found = copies(&mesh, &written).await;
            assert!(is_share(found, 400, 25.0), "{written} {found}");
        }
        assert_eq!(copies(&mesh, &json!({"mirror": ratings, "mirrorPercentage": {"value": 0}})).await, 0);
        let twice = json!({"mirrors": [{"destination": ratings}, {"destination": ratings}]});
        assert_eq!(copies(&mesh, &twice).await, 800);
    });
}

async fn preflight(mesh: &Mesh, origin: &str) -> Answer {
    mesh.send(request("OPTIONS", "/", &[("origin", origin), ("access-control-request-method", "PUT")])).await
}

#[test]
fn http_cors_policy_answers_preflights_and_shows_responses() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("reviews", "v1", "near", "v1").await;
        mesh.route(&json!({"corsPolicy": {
            "allowOrigins": [{"exact": "https://a.example"}, {"prefix": "https://b."}, {"regex": "https://[0-9]+\\.example"}],
            "allowMethods": ["GET", "PUT"], "allowHeaders": ["x-a", "x-b"], "exposeHeaders": ["x-c"], "maxAge": "24h", "allowCredentials": true,
        }}));
        for origin in ["https://a.example", "https://b.example", "https://17.example"] {
            let found = preflight(&mesh, origin).await;
            assert_eq!((found.status, found.header("access-control-allow-origin")), (200, Some(origin)));
            assert_eq!(found.header("access-control-allow-methods"), Some("GET,PUT"));
            assert_eq!(found.header("access-control-allow-headers"), Some("x-a,x-b"));
            assert_eq!(
                (found.header("access-control-max-age"), found.header("access-control-allow-credentials")),
                (Some("86400"), Some("true"))
            );
            let found = mesh.send(request("GET", "/", &[("origin", origin)])).await;
            assert_eq!((found.body.as_str(), found.header("access-control-allow-origin")), ("v1", Some(origin)));
            assert_eq!(
                (found.header("access-control-expose-headers"), found.header("access-control-allow-credentials")),
                (Some("x-c"), Some("true"))
            );
        }
        let found = mesh.send(request("GET", "/", &[("origin", "https://a.example.evil")])).await;
        assert_eq!((found.body.as_str(), found.header("access-control-allow-origin")), ("v1", None));
    });
}

#[test]
fn http_cors_policy_unmatched_preflights_are_forwarded_unless_ignored() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("reviews", "v1", "near", "from the endpoint").await;
        for (unmatched, body) in [(Value::Null, "from the endpoint"), (json!("FORWARD"), "from the endpoint"), (json!("IGNORE"), "")] {
            mesh.route(&json!({"corsPolicy": {"allowOrigins": [{"exact": "https://a.example"}], "unmatchedPreflights": unmatched}}));
            let found = preflight(&mesh, "https://elsewhere.example").await;
            assert_eq!((found.status, found.body.as_str(), found.header("access-control-allow-origin")), (200, body, None), "{unmatched}");
        }
    });
}

#[test]
fn http_cors_policy_allow_origin_is_the_older_spelling() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("reviews", "v1", "near", "v1").await;
        for (allowed, shown) in [(json!(["https://a.example"]), true), (json!(["*"]), true), (json!(["https://b.example"]), false)] {
            mesh.route(&json!({"corsPolicy": {"allowOrigin": allowed}}));
            let found = mesh.send(request("GET", "/", &[("origin", "https://a.example")])).await;
            assert_eq!(found.header("access-control-allow-origin"), shown.then_some("https://a.example"), "{allowed}");
        }
    });
}

#[test]
fn http_headers_change_on_the_way_there_and_back() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh
            .runs("reviews", "v1", "near", |request| {
                let came =
                    |name: &str| request.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join("+");
                let body = ["x-set", "x-add", "x-gone"].map(came).join(",");
                std::future::ready(Response::builder().header("server", "app").header("x-old", "1").body(full(body)).unwrap())
            })
            .await;
        mesh.route(&json!({"headers": {
            "request": {"set": {"x-set": "new"}, "add": {"x-add": "more"}, "remove": ["x-gone"]},
            "response": {"set": {"server": "mesh"}, "add": {"x-new": "1"}, "remove": ["x-old"]},
        }}));
        let found = mesh.send(request("GET", "/", &[("x-set", "old"), ("x-add", "first"), ("x-gone", "1")])).await;
        assert_eq!(found.body, "new,first+more,");
        assert_eq!((found.header("server"), found.header("x-new"), found.header("x-old")), (Some("mesh"), Some("1"), None));
        mesh.routes(&json!([{"directResponse": answer("here"), "headers": {"response": {"set": {"x-here": "1"}}}}]));
        assert_eq!(mesh.send(request("GET", "/", &[])).await.header("x-here"), Some("1"));
    });
}
