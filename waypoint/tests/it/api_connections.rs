//! `tls` and `tcp` rules, and what pools say about connections, with real connections that are not HTTP.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    api_mesh::{Mesh, destination_rule, is_share, virtual_service},
    log,
    world::run,
};

const TCP: &str = "10.96.0.3:5432";
const TLS: &str = "10.96.0.3:5433";
const NAME: &str = "db.shop.svc.cluster.local";

/// The beginning of TLS with a server name (RFC 8446 §4.1.2, RFC 6066 §3).
fn client_hello(name: &str) -> Vec<u8> {
    let short = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let mut extension = vec![0];
    extension.extend(short(name.len()));
    extension.extend(name.as_bytes());
    let mut extensions = vec![0, 0];
    extensions.extend(short(extension.len() + 2));
    extensions.extend(short(extension.len()));
    extensions.extend(extension);
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    hello.extend(short(extensions.len()));
    hello.extend(extensions);
    let mut record = vec![22, 3, 1];
    record.extend(short(hello.len() + 4));
    record.extend([1, 0]);
    record.extend(short(hello.len()));
    record.extend(hello);
    record
}

/// A mesh whose `db` has two subsets and whose `tcp` and `tls` rules are these.
async fn with_rules(more: Value) -> Mesh {
    let mesh = Mesh::new();
    let subset = |name: &str| json!({"name": name, "labels": {"version": name}});
    mesh.apply([destination_rule("shop", "db", &json!({"host": "db", "subsets": [subset("v1"), subset("v2")]}))]);
    let mut spec = json!({"hosts": [NAME], "gateways": ["mesh", "edge"]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    mesh.apply([virtual_service("shop", "db", &spec)]);
    mesh.greets("db", "v1", "v1").await;
    mesh.greets("db", "v2", "v2").await;
    mesh
}

fn to(subset: &str, weight: u32) -> Value {
    json!({"destination": {"host": "db", "subset": subset}, "weight": weight})
}

/// Who greets a connection that sends this.
async fn greeting(mesh: &Mesh, address: &str, sent: &[u8]) -> String {
    let mut stream = mesh.world.tunnel("cart", address).await.unwrap();
    // Refused before anything was sent: reading tells.
    let _ = stream.write_all(sent).await;
    let mut read = [0; 2];
    match stream.read_exact(&mut read).await {
        Ok(_) => String::from_utf8(read.to_vec()).unwrap(),
        Err(error) => error.kind().to_string(),
    }
}

#[test]
fn tcp_match_port_gateways_and_route_destination_say_where_connections_go() {
    run(async {
        let mesh = with_rules(json!({"tcp": [
            {"match": [{"gateways": ["edge"]}], "route": [to("v1", 1)]},
            {"match": [{"port": 5433}], "route": [to("v1", 1)]},
            {"match": [{"port": 5432}], "route": [to("v2", 1)]},
        ]}))
        .await;
        for _ in 0..3 {
            assert_eq!(greeting(&mesh, TCP, b"hi").await, "v2");
            assert_eq!(greeting(&mesh, TLS, &client_hello("any.example")).await, "v1");
        }
    });
}

#[test]
fn tcp_match_destination_subnets_source_labels_and_source_namespace_are_asked_of_the_connection() {
    run(async {
        for (entry, expected) in [
            (json!({"destinationSubnets": ["10.96.0.0/16"]}), "v1"),
            (json!({"destinationSubnets": ["10.97.0.0/16"]}), "v2"),
            (json!({"sourceLabels": {"app": "cart"}}), "v1"),
            (json!({"sourceLabels": {"app": "waypoint"}}), "v2"),
            (json!({"sourceNamespace": "shop"}), "v1"),
            (json!({"sourceNamespace": "bank"}), "v2"),
        ] {
            let mesh = with_rules(json!({"tcp": [{"match": [entry], "route": [to("v1", 1)]}, {"route": [to("v2", 1)]}]})).await;
            assert_eq!(greeting(&mesh, TCP, b"hi").await, expected, "{entry}");
        }
    });
}

#[test]
fn tls_match_source_labels_and_source_namespace_are_asked_of_the_connection() {
    run(async {
        for (entry, expected) in [
            (json!({"sourceLabels": {"app": "cart"}}), "v1"),
            (json!({"sourceLabels": {"app": "waypoint"}}), "v2"),
            (json!({"sourceNamespace": "shop"}), "v1"),
            (json!({"sourceNamespace": "bank"}), "v2"),
        ] {
            let mut asked = entry.clone();
            asked["sniHosts"] = json!([NAME]);
            let rules = json!({"tls": [{"match": [asked], "route": [to("v1", 1)]}], "tcp": [{"route": [to("v2", 1)]}]});
            let mesh = with_rules(rules).await;
            assert_eq!(greeting(&mesh, TLS, &client_hello(NAME)).await, expected, "{entry}");
        }
    });
}

#[test]
fn tcp_route_weight_is_a_share_of_connections() {
    run(async {
        let mesh = with_rules(json!({"tcp": [{"route": [to("v1", 3), to("v2", 1)]}]})).await;
        let mut second = 0;
        for _ in 0..200 {
            second += usize::from(greeting(&mesh, TCP, b"hi").await == "v2");
        }
        assert!(is_share(second, 200, 25.0), "{second}");
    });
}

#[test]
fn tls_match_sni_hosts_port_gateways_and_route_weight_say_where_tls_goes() {
    run(async {
        let rule = |more: Value, route: Value| {
            let mut entry = json!({"sniHosts": [NAME]});
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"match": [entry], "route": route})
        };
        let mesh = with_rules(json!({
            "tls": [
                rule(json!({"gateways": ["edge"]}), json!([to("v2", 1)])),
                rule(json!({"port": 5432}), json!([to("v2", 1)])),
                rule(json!({"port": 5433}), json!([to("v1", 1), to("v2", 0)])),
            ],
            "tcp": [{"route": [to("v2", 1)]}],
        }))
        .await;
        for _ in 0..4 {
            assert_eq!(greeting(&mesh, TLS, &client_hello(NAME)).await, "v1");
            assert_eq!(greeting(&mesh, TLS, &client_hello("other.example")).await, "v2", "by the tcp rules");
        }
    });
}

#[test]
fn tls_match_destination_subnets_are_asked_of_the_connection() {
    run(async {
        for (blocks, expected) in
            [(json!(["10.96.0.0/16"]), "v1"), (json!(["10.97.0.0/16"]), "v2"), (json!(["10.97.0.0/16", "10.96.0.3"]), "v1")]
        {
            let first = json!({"match": [{"sniHosts": [NAME], "destinationSubnets": blocks}], "route": [to("v1", 1)]});
            let mesh = with_rules(json!({"tls": [first, {"match": [{"sniHosts": [NAME]}], "route": [to("v2", 1)]}]})).await;
            assert_eq!(greeting(&mesh, TLS, &client_hello(NAME)).await, expected, "{blocks}");
        }
    });
}

/// Waits until the waypoint closes a connection that is silent after its greeting, or sends in between if it is told to.
async fn lives(mesh: &Mesh, talk: Option<Duration>) -> Duration {
    let mut stream = mesh.world.tunnel("cart", TCP).await.unwrap();
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.unwrap();
    let started = Instant::now();
    let mut byte = [0; 1];
    loop {
        let pause = talk.unwrap_or(Duration::from_secs(20));
        match tokio::time::timeout(pause, stream.read(&mut byte)).await {
            Ok(Ok(0) | Err(_)) => return started.elapsed(),
            Ok(Ok(_)) => panic!("nobody says more"),
            Err(_) if started.elapsed() > Duration::from_secs(10) => panic!("it lives too long"),
            Err(_) => drop(stream.write_all(b"more").await),
        }
    }
}

#[test]
fn tcp_idle_timeout_ends_silent_connections_only() {
    run(async {
        let mesh = Mesh::new();
        mesh.greets("db", "v1", "v1").await;
        mesh.apply([destination_rule(
            "shop",
            "db",
            &json!({"host": "db", "trafficPolicy": {"connectionPool": {"tcp": {
                "idleTimeout": "150ms", "maxConnectionDuration": "900ms",
            }}}}),
        )]);
        let silent = lives(&mesh, None).await;
        assert!((Duration::from_millis(140)..Duration::from_millis(800)).contains(&silent), "{silent:?}");
        assert_eq!(log::wait_for(&[("reason", "time_limit")]).await["stage"], json!("relay"));
        let talking = lives(&mesh, Some(Duration::from_millis(30))).await;
        assert!(talking >= Duration::from_millis(850), "{talking:?}: as long as it may last");
    });
}

#[test]
fn tcp_max_connections_refuses_the_next_connection() {
    run(async {
        let mesh = Mesh::new();
        mesh.greets("db", "v1", "v1").await;
        let limit = json!({"host": "db", "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 1}}}});
        mesh.apply([destination_rule("shop", "db", &limit)]);
        let mut first = mesh.world.tunnel("cart", TCP).await.unwrap();
        let mut read = [0; 2];
        first.read_exact(&mut read).await.unwrap();
        assert_ne!(greeting(&mesh, TCP, b"hi").await, "v1");
        let line = log::wait_for(&[("response_flags", "UO"), ("requested_server_name", "null"), ("reason", "limit_reached")]).await;
        assert_eq!(line["stage"], json!("balance"));
    });
}
