//! What a DestinationRule does to real requests: whom it is for, how endpoints are chosen, how connections are kept.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use http::{Response, Version};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tropis_crds::Kind;

use crate::{
    api_mesh::{Mesh, REVIEWS, destination_rule, is_share, node, request, to},
    log,
    world::{App, fetch, full, get2, run, text},
};

/// Apps of `reviews` that answer with their names.
async fn several(mesh: &Mesh, names: &[&'static str]) -> Vec<App> {
    let mut apps = Vec::new();
    for name in names {
        apps.push(mesh.says("reviews", name, "near", name).await);
    }
    apps
}

fn balancer(mesh: &Mesh, written: Value) {
    mesh.traffic_policy(&json!({"loadBalancer": written}));
}

#[test]
fn host_export_to_and_subsets_say_whose_pool_it_is() {
    run(async {
        let full_name = "reviews.shop.svc.cluster.local";
        let own = |more: Value| {
            let mut spec = json!({"trafficPolicy": {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        for (namespace, spec, is_used) in [
            ("shop", own(json!({"host": "reviews"})), true),
            ("shop", own(json!({"host": "*.shop.svc.cluster.local"})), true),
            ("shop", own(json!({"host": "ratings"})), false),
            ("bank", own(json!({"host": full_name})), false),
            ("istio-system", own(json!({"host": full_name})), true),
            ("istio-system", own(json!({"host": full_name, "exportTo": ["."]})), false),
        ] {
            let mesh = Mesh::new();
            let _apps = several(&mesh, &["v1"]).await;
            mesh.apply([destination_rule(namespace, "r", &spec)]);
            mesh.body("/").await;
            let version = if is_used { Version::HTTP_2 } else { Version::HTTP_11 };
            assert_eq!(mesh.seen.borrow()[0].version, version, "{namespace} {spec}");
        }
    });
}

#[test]
fn subsets_and_port_level_settings_have_policies_of_their_own() {
    run(async {
        let mesh = Mesh::new();
        let _apps = several(&mesh, &["v1", "v2"]).await;
        let upgrade = json!({"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}});
        let mut policy = json!({"portLevelSettings": [{"port": {"number": 9081}, "loadBalancer": {"simple": "RANDOM"}}]});
        policy.as_object_mut().unwrap().extend(upgrade.as_object().unwrap().clone());
        let plain = json!({"connectionPool": {"http": {"h2UpgradePolicy": "DO_NOT_UPGRADE"}}});
        let subset = |name: &str, policy: &Value| json!({"name": name, "labels": {"version": name}, "trafficPolicy": policy});
        let spec = json!({"host": "reviews", "trafficPolicy": policy, "subsets": [subset("v1", &Value::Null), subset("v2", &plain)]});
        mesh.apply([destination_rule("shop", "reviews", &spec)]);
        for (subset, address, version) in [
            (None, REVIEWS, Version::HTTP_2),
            (Some("v1"), REVIEWS, Version::HTTP_2),
            (Some("v2"), REVIEWS, Version::HTTP_11),
            (None, "10.96.0.1:9081", Version::HTTP_11),
        ] {
            mesh.route(&json!({"route": [to("reviews", subset)]}));
            let found = mesh.send_to("cart", address, request("GET", "/", &[])).await;
            assert!(subset.is_none_or(|subset| found.body == subset));
            assert_eq!(mesh.seen.borrow_mut().pop().unwrap().version, version, "{subset:?} {address}");
        }
    });
}

#[test]
fn load_balancer_simple_decides_who_is_next() {
    run(async {
        let mesh = Mesh::new();
        let _apps = several(&mesh, &["a", "b"]).await;
        balancer(&mesh, json!({"simple": "ROUND_ROBIN"}));
        assert_eq!(mesh.counts(100).await, HashMap::from([("a".to_owned(), 50), ("b".to_owned(), 50)]));
        // The service's own address is no endpoint's, so that PASSTHROUGH takes any.
        for simple in ["RANDOM", "LEAST_REQUEST", "LEAST_CONN", "UNSPECIFIED", "PASSTHROUGH"] {
            balancer(&mesh, json!({"simple": simple}));
            let counts = mesh.counts(400).await;
            assert!(is_share(counts["a"], 400, 50.0), "{simple} {counts:?}");
        }
    });
}

#[test]
fn consistent_hash_leads_one_key_to_one_endpoint() {
    run(async {
        let mesh = Mesh::new();
        let _apps = several(&mesh, &["a", "b", "c", "d"]).await;
        for (written, keyed) in [
            (json!({"httpHeaderName": "x-user", "ringHash": {"minimumRingSize": 256}}), "header"),
            (json!({"httpHeaderName": "x-user", "maglev": {"tableSize": 251}}), "header"),
            (json!({"httpQueryParameterName": "user", "minimumRingSize": 512}), "query"),
            (json!({"httpCookie": {"name": "user"}}), "cookie"),
            (json!({"useSourceIp": true}), "nothing"),
        ] {
            balancer(&mesh, json!({"consistentHash": written}));
            let mut reached = std::collections::HashSet::new();
            for user in 0..24 {
                let mut found = std::collections::HashSet::new();
                for _ in 0..3 {
                    let request = match keyed {
                        "header" => request("GET", "/", &[("x-user", &user.to_string())]),
                        "query" => request("GET", &format!("/?user={user}"), &[]),
                        "cookie" => request("GET", "/", &[("cookie", &format!("user={user}"))]),
                        _ => request("GET", "/", &[]),
                    };
                    found.insert(mesh.send(request).await.body);
                }
                assert_eq!(found.len(), 1, "{written}: user {user}");
                reached.extend(found);
            }
            // Every caller here has one address; 24 other keys leave out one of four with a probability of 0.4 percent.
            assert!(if keyed == "nothing" { reached.len() == 1 } else { reached.len() >= 3 }, "{written} {reached:?}");
        }
    });
}

#[test]
fn consistent_hash_http_cookie_is_made_with_its_path_ttl_and_attributes() {
    run(async {
        let mesh = Mesh::new();
        let _apps = several(&mesh, &["a"]).await;
        let cookie = json!({"name": "user", "path": "/p", "ttl": "60s", "attributes": [{"name": "SameSite", "value": "Lax"}]});
        balancer(&mesh, json!({"consistentHash": {"httpCookie": cookie}}));
        let made = mesh.send(request("GET", "/", &[])).await.header("set-cookie").unwrap().to_owned();
        for part in ["user=\"", "; Max-Age=60", "; Path=/p", "; SameSite=Lax", "; HttpOnly"] {
            assert!(made.contains(part), "{made}");
        }
        balancer(&mesh, json!({"consistentHash": {"httpCookie": {"name": "user"}}}));
        assert_eq!(mesh.send(request("GET", "/", &[])).await.header("set-cookie"), None, "only with a ttl");
    });
}

/// Endpoints named after their nodes: one beside the waypoint, one in another zone, one each in two other regions.
async fn places(mesh: &Mesh) -> Vec<App> {
    mesh.apply([node("zone", "r1", "z2"), node("region", "r2", "z1"), node("far", "r3", "z1")]);
    let mut apps = Vec::new();
    for name in ["near", "zone", "region", "far"] {
        apps.push(mesh.says("reviews", name, name, name).await);
    }
    apps
}

fn only(name: &str, count: usize) -> HashMap<String, usize> {
    HashMap::from([(name.to_owned(), count)])
}

#[test]
fn locality_lb_setting_prefers_the_near_once_there_is_outlier_detection() {
    run(async {
        let mesh = Mesh::new();
        let _apps = places(&mesh).await;
        let all = |counts: &HashMap<String, usize>| counts.len() == 4;
        assert!(all(&mesh.counts(100).await));
        mesh.traffic_policy(&json!({"outlierDetection": {}}));
        assert_eq!(mesh.counts(50).await, only("near", 50));
        for setting in [json!({"enabled": false}), json!({"enabled": false, "failover": [{"from": "r1", "to": "r2"}]})] {
            mesh.traffic_policy(&json!({"outlierDetection": {}, "loadBalancer": {"localityLbSetting": setting}}));
            assert!(all(&mesh.counts(100).await));
        }
    });
}

#[test]
fn locality_lb_setting_failover_and_failover_priority_say_who_is_next() {
    run(async {
        let mesh = Mesh::new();
        mesh.apply([node("region", "r2", "z1"), node("far", "r3", "z1")]);
        let _apps = [mesh.says("reviews", "region", "region", "region").await, mesh.says("reviews", "far", "far", "far").await];
        for (to, expected) in [("r3", "far"), ("r2", "region")] {
            let setting = json!({"failover": [{"from": "r1", "to": to}]});
            mesh.traffic_policy(&json!({"outlierDetection": {}, "loadBalancer": {"localityLbSetting": setting}}));
            assert_eq!(mesh.counts(30).await, only(expected, 30));
        }
        for version in ["far", "region"] {
            let setting = json!({"failoverPriority": [format!("version={version}")]});
            mesh.traffic_policy(&json!({"outlierDetection": {}, "loadBalancer": {"localityLbSetting": setting}}));
            assert_eq!(mesh.counts(30).await, only(version, 30));
        }
    });
}

#[test]
fn locality_lb_setting_distribute_gives_each_place_its_share() {
    run(async {
        let mesh = Mesh::new();
        let _apps = places(&mesh).await;
        balancer(&mesh, json!({"localityLbSetting": {"distribute": [{"from": "r1/z1", "to": {"r1/z1": 80, "r2/*": 20}}]}}));
        let counts = mesh.counts(500).await;
        assert!(is_share(counts["region"], 500, 20.0) && counts["near"] + counts["region"] == 500, "{counts:?}");
    });
}

#[test]
fn warmup_and_warmup_duration_secs_spare_who_is_new() {
    run(async {
        for written in [json!({"warmup": {"duration": "1h", "minimumPercent": 10}}), json!({"warmupDurationSecs": "1h"})] {
            let mesh = Mesh::new();
            let _old = several(&mesh, &["old"]).await;
            let mut policy = written.clone();
            policy["simple"] = json!("ROUND_ROBIN");
            balancer(&mesh, policy);
            assert_eq!(mesh.counts(1).await, only("old", 1));
            let _new = several(&mesh, &["new"]).await;
            let counts = mesh.counts(400).await;
            // A tenth of the other's share: one of eleven.
            assert!(is_share(counts["new"], 400, 100.0 / 11.0), "{written} {counts:?}");
        }
    });
}

#[test]
fn tcp_connect_timeout_gives_up_on_who_does_not_answer() {
    run(async {
        let mesh = Mesh::new();
        let listener = mesh.listens("reviews", "v1").await;
        let address = listener.local_addr().unwrap();
        drop(listener);
        // A queue of connections that is full takes no more: further ones are not answered.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let _full = socket.listen(1).unwrap();
        let _waiting = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        mesh.traffic_policy(&json!({"connectionPool": {"tcp": {"connectTimeout": "60ms"}}}));
        mesh.route(&json!({"retries": {"attempts": 0}}));
        let started = Instant::now();
        assert_eq!(mesh.send(request("GET", "/slow/to/connect", &[])).await.status, 503);
        assert!(started.elapsed() >= Duration::from_millis(60) && started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
        let line = log::wait_for(&[("path", "/slow/to/connect")]).await;
        assert_eq!((&line["response_flags"], &line["reason"]), (&json!("UF"), &json!("connect_timeout")));
    });
}

/// The kernel's keepalive timer of the waypoint's connection to an address, in seconds from now.
fn keepalive_seconds(to: SocketAddr) -> Option<u64> {
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    let wanted = format!("{:08X}:{:04X}", u32::from_le_bytes(to.ip().octets()), to.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|line| line[2] == wanted)?;
    // `tr:tm->when`: 02 is keepalive; the time is in hundredths of a second.
    let ticks = line[5].strip_prefix("02:")?;
    Some(u64::from_str_radix(ticks, 16).unwrap() / 100)
}

#[test]
fn tcp_tcp_keepalive_sets_the_kernels_timer() {
    run(async {
        let mesh = Mesh::new();
        let apps = several(&mesh, &["v1"]).await;
        mesh.traffic_policy(&json!({"connectionPool": {"tcp": {"tcpKeepalive": {"time": "1234s", "interval": "75s", "probes": 3}}}}));
        mesh.body("/").await;
        let found = keepalive_seconds(apps[0].address).unwrap();
        assert!((1200..=1234).contains(&found), "{found}");
    });
}

#[test]
fn tcp_max_connection_duration_takes_a_new_connection_for_what_comes_later() {
    run(async {
        let mesh = Mesh::new();
        let apps = several(&mesh, &["v1"]).await;
        for (policy, connections) in [(json!({"maxConnectionDuration": "1h"}), 1), (json!({"maxConnectionDuration": "20ms"}), 3)] {
            mesh.traffic_policy(&json!({"connectionPool": {"tcp": policy}}));
            apps[0].connections.set(0);
            for _ in 0..3 {
                mesh.body("/").await;
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            assert!(apps[0].connections.get() <= connections, "{policy}");
            assert!(connections == 1 || apps[0].connections.get() >= 2, "{policy}");
        }
    });
}

#[test]
fn http_idle_timeout_closes_what_nobody_uses() {
    run(async {
        let mesh = Mesh::new();
        let _apps = several(&mesh, &["v1"]).await;
        mesh.traffic_policy(&json!({"connectionPool": {"tcp": {"idleTimeout": "1h"}, "http": {"idleTimeout": "30ms"}}}));
        mesh.body("/").await;
        let open = || mesh.world.shared.pools.list()[0].current.state.counts.under_way().connections;
        assert_eq!(open(), 1);
        let deadline = Instant::now() + Duration::from_secs(10);
        while open() > 0 {
            assert!(Instant::now() < deadline, "it stays open");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn http_h2_upgrade_policy_and_use_client_protocol_choose_the_version() {
    run(async {
        let mesh = Mesh::new();
        let _apps = several(&mesh, &["v1"]).await;
        for (policy, of_http1, of_http2) in [
            (json!({"h2UpgradePolicy": "DO_NOT_UPGRADE"}), Version::HTTP_11, Version::HTTP_11),
            (json!({"h2UpgradePolicy": "UPGRADE"}), Version::HTTP_2, Version::HTTP_2),
            (json!({"useClientProtocol": true}), Version::HTTP_11, Version::HTTP_2),
        ] {
            mesh.traffic_policy(&json!({"connectionPool": {"http": policy}}));
            mesh.body("/").await;
            let mut sender = mesh.world.http2("cart", REVIEWS).await;
            text(sender.send_request(get2("/")).await.unwrap()).await;
            let versions: Vec<Version> = mesh.seen.borrow_mut().drain(..).map(|head| head.version).collect();
            assert_eq!(versions, [of_http1, of_http2], "{policy}");
        }
    });
}

#[test]
fn http_max_concurrent_streams_opens_another_connection() {
    run(async {
        let mesh = Mesh::new();
        let barrier = std::rc::Rc::new(tokio::sync::Barrier::new(3));
        let app = mesh
            .runs("reviews", "v1", "near", move |_| {
                let barrier = barrier.clone();
                async move {
                    barrier.wait().await;
                    Response::new(full(""))
                }
            })
            .await;
        for (streams, connections) in [(1, 3), (3, 1)] {
            mesh.traffic_policy(&json!({"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE", "maxConcurrentStreams": streams}}}));
            app.connections.set(0);
            let get = || mesh.send(request("GET", "/", &[]));
            let answers = tokio::join!(get(), get(), get());
            assert_eq!([answers.0.status, answers.1.status, answers.2.status], [200; 3]);
            assert!(app.connections.get() <= connections, "{streams}: {}", app.connections.get());
            assert!(streams == 3 || app.connections.get() >= 2, "{streams}: {}", app.connections.get());
        }
    });
}

#[test]
fn http_http2_keep_alive_asks_at_its_interval_and_gives_up_after_its_timeout() {
    run(async {
        let mesh = Mesh::new();
        let listener = mesh.listens("reviews", "v1").await;
        mesh.traffic_policy(&json!({"connectionPool": {"http": {
            "h2UpgradePolicy": "UPGRADE", "http2KeepAlive": {"interval": "60ms", "timeout": "60ms"},
        }}}));
        mesh.route(&json!({"retries": {"attempts": 0}}));
        let silent = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Empty SETTINGS, and nothing more: no answer to a PING.
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            let mut read = Vec::new();
            let _ = stream.read_to_end(&mut read).await;
            read
        };
        let started = Instant::now();
        let (read, found) = tokio::join!(silent, mesh.send(request("GET", "/", &[])));
        // A frame of 8 bytes and type 6.
        assert!(read.windows(5).any(|frame| frame == [0, 0, 8, 6, 0]), "no PING in {read:?}");
        assert_eq!(found.status, 503);
        assert!((Duration::from_millis(100)..Duration::from_secs(10)).contains(&started.elapsed()), "{:?}", started.elapsed());
    });
}

#[test]
fn http_max_requests_per_connection_ends_the_connection() {
    run(async {
        let mesh = Mesh::new();
        let apps = several(&mesh, &["v1"]).await;
        mesh.traffic_policy(&json!({"connectionPool": {"http": {"maxRequestsPerConnection": 2}}}));
        mesh.counts(6).await;
        assert_eq!(apps[0].connections.get(), 3);
    });
}

#[test]
fn outlier_detection_http_error_codes_are_what_ejects() {
    run(async {
        let mesh = Mesh::new();
        let status = std::rc::Rc::new(std::cell::Cell::new(503));
        let shown = status.clone();
        let _app = mesh
            .runs("reviews", "v1", "near", move |_| std::future::ready(Response::builder().status(shown.get()).body(full("")).unwrap()))
            .await;
        let detection = json!({"consecutive5xxErrors": 2, "maxEjectionPercent": 100, "outlierDetectionHttpErrorCodes": [429]});
        mesh.traffic_policy(&json!({"outlierDetection": detection}));
        let mut sender = mesh.world.http1("cart", REVIEWS).await;
        for (said, expected) in [(503, 503), (503, 503), (503, 503), (429, 429), (429, 429)] {
            status.set(said);
            assert_eq!(fetch(&mut sender, request("GET", "/", &[])).await, (expected, String::new()));
        }
        assert_eq!(fetch(&mut sender, request("GET", "/", &[])).await, (503, "no healthy upstream".to_owned()));
    });
}

#[test]
fn tls_mode_that_is_not_the_meshs_own_never_goes_on_without() {
    run(async {
        let mesh = Mesh::new();
        let _apps = several(&mesh, &["v1"]).await;
        mesh.route(&json!({"retries": {"attempts": 0}}));
        for (mode, status, flag) in [("DISABLE", 200, "-"), ("ISTIO_MUTUAL", 200, "-"), ("SIMPLE", 503, "UF"), ("MUTUAL", 503, "NC")] {
            let mut tls = json!({"mode": mode});
            if mode == "MUTUAL" {
                tls["credentialName"] = json!("own");
            }
            mesh.traffic_policy(&json!({"tls": tls}));
            let path = format!("/tls/{mode}");
            assert_eq!(mesh.send(request("GET", &path, &[])).await.status, status, "{mode}");
            assert_eq!(log::wait_for(&[("path", &path)]).await["response_flags"], json!(flag), "{mode}");
        }
        mesh.delete(Kind::DestinationRule, "reviews");
        assert_eq!(mesh.body("/").await, "v1");
    });
}
