//! The application role and its clients against each other, without anything between them.

use tropis_tests::testkit::FailureKind;
use tropis_tests::testkit::calls::{Calls, Conversed, Told, Transferred};

use crate::{Server, client};

fn url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.at("127.0.0.1", "app"))
}

fn told(calls: &Calls) -> Told {
    serde_json::from_str(&calls.last_body).unwrap_or_else(|error| panic!("{error}: {calls:?}"))
}

#[test]
fn every_protocol_is_answered_and_told() {
    let server = Server::start();
    let url = url(&server, "/a?b=c");
    for (protocol, version) in [("h1", "HTTP/1.1"), ("h2", "HTTP/2.0")] {
        let options =
            ["call", &url, "--protocol", protocol, "-n", "20", "-c", "4", "-X", "POST", "--body", "1000", "--authority", "shop:80"];
        let (calls, ok) = client::<Calls>(&options);
        assert!(ok && calls.statuses.get(&200) == Some(&20) && calls.connections == 4, "{calls:?}");
        let told = told(&calls);
        assert_eq!((told.protocol.as_str(), told.authority.as_str(), told.body_bytes), (version, "shop:80", 1000));
        assert_eq!((told.method.as_str(), told.path.as_str(), told.pod.as_str()), ("POST", "/a?b=c", "pod-a"));
        assert_eq!(calls.pods.get("pod-a"), Some(&20));
    }
    let (calls, ok) = client::<Calls>(&["call", &url, "--protocol", "grpc", "-n", "5", "--body", "10"]);
    assert!(ok && calls.grpc_statuses.get(&0) == Some(&5), "{calls:?}");
    let (calls, _) = client::<Calls>(&["call", &url, "--protocol", "grpc", "-H", "x-ask: grpc_status=14"]);
    assert_eq!((calls.grpc_statuses.get(&14), calls.served(), calls.failed()), (Some(&1), 0, 1), "{calls:?}");
    let (calls, _) = client::<Calls>(&["call", &url, "--protocol", "grpc", "-n", "3", "--timeline"]);
    assert!(calls.all_served() && calls.timeline.iter().all(|answer| answer.served && answer.grpc_status == Some(0)), "{calls:?}");
}

#[test]
fn a_request_gets_what_it_asks_for() {
    let server = Server::start();
    let url = url(&server, "/");
    for protocol in ["h1", "h2"] {
        let ask = |what: &str| client::<Calls>(&["call", &url, "--protocol", protocol, "-H", &format!("x-ask: {what}")]);
        for status in [204, 304, 404, 503] {
            let (calls, ok) = ask(&format!("status={status}"));
            assert!(ok && calls.statuses.get(&status) == Some(&1), "{protocol}: {calls:?}");
        }
        let (calls, ok) = ask("trailers");
        assert!(ok && calls.last_trailers.get("x-trailer").map(String::as_str) == Some("yes"), "{protocol}: {calls:?}");
        let (calls, ok) = ask("reset");
        assert!(!ok && calls.errors.get(&FailureKind::Reset) == Some(&1), "{protocol}: {calls:?}");
        let (calls, ok) = ask("delay=300");
        assert!(ok && calls.milliseconds >= 300.0, "{protocol}: {calls:?}");
    }
}

#[test]
fn a_pod_behaves_as_it_was_told_and_counts() {
    let server = Server::start();
    let set = |behaviour: &str| client::<Calls>(&["call", &url(&server, "/-/behaviour"), "-X", "PUT", "--text", behaviour]).1;
    assert!(set(r#"{"status":503}"#));
    let calls = client::<Calls>(&["call", &url(&server, "/"), "-n", "3", "--nonce", "n"]).0;
    assert_eq!(calls.statuses.get(&503), Some(&3));
    assert!(set("{}"));
    let calls = client::<Calls>(&["call", &url(&server, "/"), "-X", "POST", "--nonce", "n"]).0;
    assert_eq!(calls.statuses.get(&200), Some(&1));
    let (calls, _) = client::<Calls>(&["call", &url(&server, "/-/seen?nonces=n0,n7")]);
    let seen: tropis_tests::testkit::calls::Seen = serde_json::from_str(&calls.last_body).expect("it says what it saw");
    assert_eq!((seen.requests, seen.methods["POST"], seen.nonces, seen.known.as_slice()), (4, 1, 3, ["n0".to_owned()].as_slice()));
    assert_eq!(seen.repeated.get("n0"), Some(&2));
}

#[test]
fn bodies_and_conversations_arrive_whole() {
    let server = Server::start();
    let url = url(&server, "/");
    for protocol in ["h1", "h2"] {
        for direction in ["up", "down"] {
            let options = ["transfer", &url, "--direction", direction, "--protocol", protocol, "--bytes", "3M", "--pause", "0.1"];
            let (moved, ok) = client::<Transferred>(&options);
            assert!(ok && moved.bytes == 3 << 20, "{protocol} {direction}: {moved:?}");
        }
    }
    for way in ["websocket", "grpc"] {
        let (said, ok) = client::<Conversed>(&["converse", way, &url, "-n", "10", "--bytes", "70000"]);
        assert!(ok && said.messages == 10, "{way}: {said:?}");
    }
}

#[test]
fn raw_bytes_are_shown_as_they_come() {
    let server = Server::start();
    let request = r"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n";
    let target = server.at("127.0.0.1", "app");
    let options = ["raw", &target, "--send", request, "--until", "100 Continue\\r\\n\\r\\n", "--then", "ok"];
    let (said, ok) = client::<tropis_tests::testkit::Exchange>(&options);
    let reply = said.reply.expect("text");
    assert!(ok && reply.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n") && reply.contains(r#""body_bytes":2"#), "{reply}");
}
