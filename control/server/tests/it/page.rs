//! The page and its graph on the debug socket of a real tropisd, with proxies that answer as proxies do; and who is refused there.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{Router, routing};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::Tropisd;

/// Sends a whole request to a unix socket; the head and the body of the answer.
async fn ask(socket: &Path, request: &str) -> (String, String) {
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// A node proxy that saw web call cart: a hundred bytes more each time it is asked.
fn node_proxy(socket: &Path) {
    let asked = Arc::new(AtomicU64::new(0));
    let metrics = move || async move {
        let bytes = 100 * (1 + asked.fetch_add(1, Ordering::Relaxed));
        format!(
            "istio_tcp_sent_bytes_total{{reporter=\"source\",source_workload=\"web\",source_workload_namespace=\"shop\",\
             destination_workload=\"cart\",destination_workload_namespace=\"shop\",connection_security_policy=\"mutual_tls\"}} {bytes}\n"
        )
    };
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let routes = Router::new().route("/stats/prometheus", routing::get(metrics));
    tokio::spawn(async move { axum::serve(listener, routes).await });
}

#[tokio::test]
async fn the_graph_is_made_of_objects_and_of_what_the_proxies_say() {
    let sockets = tempfile::tempdir().unwrap();
    node_proxy(&sockets.path().join("ztunnel.a.sock"));
    let tropisd = Tropisd::start(&["--proxy-sockets", sockets.path().to_str().unwrap()]);
    tropisd.ready().await;
    let graph = tropisd.debug("/graph.json").await;
    assert_eq!(graph["complete"], true, "{graph}");
    let nodes: Vec<&str> = graph["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["plain/old", "shop/cart", "shop/web"], "what is the mesh's own is left out");
    let [edge] = graph["edges"].as_array().unwrap().as_slice() else { panic!("one edge: {graph}") };
    assert_eq!((&edge["from"], &edge["to"], &edge["security"]), (&"shop/web".into(), &"shop/cart".into(), &"mutualTls".into()));
    assert!(edge["bytesPerSecond"].as_f64().unwrap() > 0.0, "{edge}");
    let enrolled: Vec<&Value> = graph["nodes"].as_array().unwrap().iter().map(|node| &node["enrolled"]).collect();
    assert_eq!(enrolled, [0, 1, 1]);
    assert_eq!(graph["nodes"][2]["identities"][0], "spiffe://cluster.local/ns/shop/sa/web");
}

#[tokio::test]
async fn the_page_is_served_to_this_machine_and_lets_nothing_else_in() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let socket = tropisd.path("debug.sock");
    let (head, body) = ask(&socket, &get("/", "127.0.0.1:9081")).await;
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/html"), "{head}");
    assert!(body.starts_with("<!doctype html>"), "{body}");
    for expected in [
        "content-security-policy: default-src 'none'; script-src 'sha256-",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "cross-origin-resource-policy: same-origin",
        "cache-control: no-store",
    ] {
        assert!(head.contains(expected), "{expected}: {head}");
    }
    for path in ["/", "/graph.json", "/debug/clients", "/version"] {
        let (head, body) = ask(&socket, &get(path, "evil.example:9081")).await;
        assert!(head.starts_with("http/1.1 403") && body.contains("localhost"), "{path}: {head} {body}");
    }
    let post = |more: &str| format!("POST /logging HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n{more}\r\n");
    assert!(ask(&socket, &post("Origin: http://evil.example\r\n")).await.0.starts_with("http/1.1 403"));
    assert!(ask(&socket, &post("")).await.0.starts_with("http/1.1 200"), "the CLI is no browser");
}
