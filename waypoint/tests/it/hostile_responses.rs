//! Responses that two readers would understand in two ways: the caller gets 502, and nothing of them.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::spawn_local,
};

use crate::{
    log,
    raw::{answers, plain_world, until_closed},
    world::{App, World, get2, plain_host, run, text},
};

/// What an endpoint answers, and the error in the log; each is whole and good for who takes one thing it says and not the other.
const RESPONSES: &[(&str, &str, &str)] = &[
    (
        "short-length",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n01234567890123456789\r\n0\r\n\r\n",
        "it has both a length and a transfer encoding",
    ),
    (
        "long-length",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n5\r\n01234\r\n0\r\n\r\n",
        "it has both a length and a transfer encoding",
    ),
    (
        "gzip-chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\n\x1f01234\r\n0\r\n\r\n",
        "its transfer encoding is another than chunked",
    ),
    ("gzip", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n\x1f01234", "its transfer encoding is another than chunked"),
    (
        "two-encodings",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\n\r\n",
        "its transfer encoding is another than chunked",
    ),
    (
        "unasked-upgrade",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "it changes the protocol, which nobody asked for",
    ),
    ("no-http", "SSH-2.0-OpenSSH_9.9\r\n\r\n", "it cannot be read"),
    (
        "many-headers",
        "HTTP/1.1 200 OK\r\na: 1\r\na: 2\r\na: 3\r\na: 4\r\na: 5\r\na: 6\r\na: 7\r\na: 8\r\na: 9\r\na: 10\r\na: 11\r\n\r\n",
        "it cannot be read",
    ),
];

/// An endpoint that answers the first request on each connection with the response whose name is its path; any other well.
async fn answers_by_path(world: &World) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.endpoint("reviews", "v1", &App::elsewhere(listener.local_addr().unwrap()));
    spawn_local(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            spawn_local(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                        return;
                    }
                }
                let head = String::from_utf8(head).unwrap();
                let path = head.split(' ').nth(1).unwrap().rsplit('/').next().unwrap();
                let good = "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n";
                let answer = RESPONSES.iter().find(|(name, ..)| *name == path).map_or(good, |(_, answer, _)| answer);
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
}

#[test]
fn a_response_that_can_be_cut_in_two_ways_is_a_protocol_error() {
    run(async {
        let world = plain_world(plain_host("reviews"), &[("TROPIS_MAX_HEADERS", "10")]);
        answers_by_path(&world).await;
        let mut http2 = world.http2("cart", "10.96.0.1:9080").await;
        for (name, _, why) in RESPONSES {
            let request = format!("GET /by1/{name} HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n");
            assert_eq!(answers(&until_closed(&world, request.as_bytes()).await), [502], "{name}");
            assert_eq!(http2.send_request(get2(&format!("/by2/{name}"))).await.unwrap().status(), 502, "{name}");
            for way in ["by1", "by2"] {
                let line = log::wait_for(&[("path", &format!("/{way}/{name}"))]).await;
                assert_eq!((&line["response_flags"], &line["reason"]), (&json!("UPE"), &json!("upstream_reset")), "{name}");
                assert!(log::text(&line["upstream_transport_failure_reason"]).contains(why), "{name}: {line}");
            }
        }
        assert_eq!(text(http2.send_request(get2("/by2/good")).await.unwrap()).await, (200, "good".into()));
    });
}

#[test]
fn the_same_as_the_answer_to_an_upgrade_is_one_too() {
    run(async {
        let world = plain_world(plain_host("reviews"), &[("TROPIS_MAX_HEADERS", "10")]);
        answers_by_path(&world).await;
        let names = [("short-length", 502), ("gzip", 502), ("no-http", 502), ("many-headers", 502), ("unasked-upgrade", 101)];
        for (name, expected) in names {
            let request = format!("GET /up/{name} HTTP/1.1\r\nHost: reviews\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
            let request = if expected == 101 { request } else { request.replace("upgrade\r\nUpgrade", "upgrade, close\r\nUpgrade") };
            let answer = until_closed(&world, request.as_bytes()).await;
            assert_eq!(answers(&answer), [expected], "{name}");
        }
        for path in ["/up/gzip", "/up/no-http", "/up/many-headers"] {
            assert_eq!(log::wait_for(&[("path", path)]).await["response_flags"], json!("UPE"), "{path}");
        }
    });
}
