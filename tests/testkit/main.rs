//! The testkit against itself on loopback: what its clients say must be true before any test of the mesh believes them.

mod app;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tropis_tests::testkit::{Exchange, FailureKind, Greeting, Held, Load, Resolved, Served, Step, Storm, read};

const TESTKIT: &str = env!("CARGO_BIN_EXE_tropis-testkit");
const ROLES: [&str; 10] = ["tcp-echo", "server-first", "half-close", "farewell", "sink", "source", "discard", "slow-reader", "http", "app"];
const LOOPBACKS: [&str; 2] = ["127.0.0.1", "[::1]"];

/// A server with all roles on free ports; it ends with the test.
struct Server {
    child: Child,
    lines: Receiver<String>,
    ports: BTreeMap<String, u16>,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(TESTKIT);
        command.arg("serve").env("POD_NAME", "pod-a").stdout(Stdio::piped());
        for role in ROLES {
            command.arg(format!("--{role}")).arg("0");
        }
        let mut child = command.spawn().expect("the testkit starts");
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let (sender, lines) = mpsc::channel();
        // Always reading: a server whose output nobody takes would stop serving.
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut server = Self { child, lines, ports: BTreeMap::new() };
        while server.ports.len() < ROLES.len() {
            match server.next_line() {
                Served::Listening { role, local } => {
                    let port = local.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("an address with a port");
                    server.ports.insert(role, port);
                }
                other => panic!("{other:?} before all roles listen"),
            }
        }
        server
    }

    fn next_line(&mut self) -> Served {
        let line = self.lines.recv_timeout(Duration::from_secs(10)).expect("the server writes lines");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn at(&self, host: &str, role: &str) -> String {
        format!("{host}:{}", self.ports[role])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client; checks that exit code and report agree.
fn client<T: DeserializeOwned>(arguments: &[&str]) -> (T, bool) {
    let output = Command::new(TESTKIT).args(arguments).stdin(Stdio::null()).output().expect("the testkit starts");
    let text = String::from_utf8(output.stdout).expect("its output is text");
    let ok = serde_json::from_str::<serde_json::Value>(text.lines().last().unwrap_or_default()).expect("a JSON line")["ok"] == true;
    assert_eq!(output.status.code(), Some(if ok { 0 } else { 1 }), "{arguments:?}: {text}");
    (read(&text).expect("a report"), ok)
}

fn succeeds(arguments: &[&str]) -> Exchange {
    let (report, ok) = client::<Exchange>(arguments);
    assert!(ok, "{arguments:?}: {report:?}");
    report
}

#[test]
fn both_sides_tell_the_same_addresses() {
    let mut server = Server::start();
    for host in LOOPBACKS {
        let target = server.at(host, "tcp-echo");
        let report = succeeds(&["echo", &target, "hello", "--count", "3"]);
        assert_eq!((report.peer.as_deref(), report.bytes), (Some(target.as_str()), 15));
        match server.next_line() {
            Served::Connection { role, accepted, peer, local, .. } => {
                assert_eq!((role.as_str(), Some(&peer), &local), ("tcp-echo", report.local.as_ref(), &target));
                assert_eq!(accepted, peer);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(server.next_line(), Served::Ended { received: 15, sent: 15, error: None, .. }));
    }
    let mapped = succeeds(&["echo", &server.at("127.0.0.1", "tcp-echo"), "x", "--mapped"]);
    assert_eq!(mapped.peer, Some(server.at("127.0.0.1", "tcp-echo")));
}

#[test]
fn every_protocol_works_on_both_families() {
    let server = Server::start();
    for host in LOOPBACKS {
        let banner = succeeds(&["banner", &server.at(host, "server-first")]);
        assert_eq!(banner.reply, banner.local.map(|local| format!("hello {local}, here is pod-a")));
        succeeds(&["connect", &server.at(host, "tcp-echo"), "--send", "hi", "--hold", "0.05"]);
        succeeds(&["drip", &server.at(host, "tcp-echo"), "--bytes", "64"]);
        succeeds(&["drip", &server.at(host, "tcp-echo"), "--bytes", "8", "--one-by-one"]);
        let digests = [("up", "sink"), ("down", "source"), ("both", "tcp-echo")].map(|(direction, role)| {
            let report = succeeds(&["stream", &server.at(host, role), "--direction", direction, "--bytes", "3M"]);
            assert_eq!(report.bytes, 3 << 20);
            report.sha256
        });
        assert!(digests.iter().all(|digest| digest.is_some() && *digest == digests[0]), "{digests:?}");
        succeeds(&["half-close", &server.at(host, "half-close")]);
        succeeds(&["half-close", &server.at(host, "slow-reader"), "--bytes", "3000"]);
        succeeds(&["half-close", &server.at(host, "farewell"), "--first", "server"]);
        let (storm, ok) = client::<Storm>(&["storm", &server.at(host, "tcp-echo"), "--connections", "100"]);
        assert!(ok && storm.open_at_once == 100, "{storm:?}");
    }
}

#[test]
fn http_tells_pod_peer_and_header_fields() {
    let server = Server::start();
    let url = format!("http://{}/", server.at("[::1]", "http"));
    let report = succeeds(&["get", &url, "-H", "end-user: jason"]);
    let greeting: Greeting = serde_json::from_str(report.reply.as_deref().expect("a body")).expect("a greeting");
    assert_eq!((greeting.pod.as_str(), Some(greeting.peer), greeting.request_number), ("pod-a", report.local, 1));
    assert_eq!(greeting.headers.get("end-user").map(String::as_str), Some("jason"));
    let (missing, ok) = client::<Exchange>(&["get", &format!("{url}nothing")]);
    assert_eq!((ok, missing.status, missing.error), (false, Some(404), Some(FailureKind::Mismatch)));
}

#[test]
fn loads_measure_something() {
    let server = Server::start();
    for (mode, role) in [("requests", "http"), ("connections", "http"), ("bulk", "discard")] {
        let arguments = ["load", mode, &server.at("127.0.0.1", role), "-c", "2", "-d", "0.3", "--warm-up", "0.05"];
        let (load, ok) = client::<Load>(&arguments);
        assert!(ok && load.seconds >= 0.3 && load.bytes > 0, "{load:?}");
        match (mode, load.latency_microseconds) {
            ("bulk", latency) => assert!(latency.is_none() && load.finished == 2),
            (_, Some(latency)) => assert!(latency.min <= latency.p50 && latency.p50 <= latency.p99 && latency.p99 <= latency.max),
            (_, None) => panic!("{load:?}"),
        }
    }
}

#[test]
fn a_load_of_http2_asks_in_turn_on_its_streams_and_keeps_its_rate() {
    let server = Server::start();
    let target = server.at("[::1]", "http");
    let words = ["load", "requests", &target, "-c", "2", "-d", "0.5", "--warm-up", "0.1", "--ask", "/a?bytes=100 end-user:jason"];
    let of = |more: &[&str]| client::<Load>(&[&words[..], more].concat());
    let (full, ok) = of(&["--http2", "--streams", "3", "--ask", "/b?bytes=300"]);
    assert!(ok && full.finished_in_all > full.finished, "{full:?}");
    let mean = full.bytes as f64 / full.finished as f64;
    assert!((195.0..205.0).contains(&mean), "both are asked for equally often: {full:?}");
    for protocol in [&["--http2", "--streams", "3", "--rate", "200"][..], &["--rate", "200"]] {
        let (steady, ok) = of(protocol);
        assert!(ok && (160.0..=220.0).contains(&steady.rate_per_second), "200 a second: {steady:?}");
        assert_eq!(steady.bytes, steady.finished * 100);
    }
    let (refused, ok) = client::<Load>(&["load", "requests", &target, "-d", "0.1", "--http2", "--ask", "/missing"]);
    assert_eq!((ok, refused.errors.keys().collect::<Vec<_>>()), (false, vec![&FailureKind::Mismatch]));
}

#[test]
fn failures_have_their_kind() {
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("it is bound").to_string()
    };
    let (refused, _) = client::<Exchange>(&["connect", &nobody]);
    assert_eq!((refused.error, refused.at), (Some(FailureKind::Refused), Some(Step::Connect)));

    let server = Server::start();
    let (silent, _) = client::<Exchange>(&["banner", &server.at("127.0.0.1", "tcp-echo"), "--timeout", "0.1"]);
    assert_eq!((silent.error, silent.at), (Some(FailureKind::Timeout), Some(Step::Receive)));
    let (closed, _) = client::<Exchange>(&["stream", &server.at("127.0.0.1", "farewell"), "--direction", "up", "--bytes", "1"]);
    assert_eq!(closed.error, Some(FailureKind::Mismatch), "{closed:?}");
    let (unasked, _) = client::<Exchange>(&["connect", &server.at("127.0.0.1", "server-first"), "--hold", "5"]);
    assert_eq!(unasked.error, Some(FailureKind::Mismatch), "{unasked:?}");
    let (unknown, _) = client::<Exchange>(&["connect", "name.invalid:1"]);
    assert_eq!((unknown.error, unknown.at), (Some(FailureKind::UnknownName), Some(Step::Resolve)));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = listener.local_addr().expect("it is bound").to_string();
    let resetting = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        // Only once something came has the client seen its connection stand.
        stream.read_exact(&mut [0]).expect("a byte");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("lingering can be set");
    });
    let (reset, _) = client::<Exchange>(&["connect", &target, "--send", "x"]);
    resetting.join().expect("the server thread ends");
    assert_eq!((reset.error, reset.at), (Some(FailureKind::Reset), Some(Step::Receive)));
}

#[test]
fn a_held_connection_tells_how_it_ends() {
    let mut server = Server::start();
    let mut child = Command::new(TESTKIT)
        .args(["hold", &server.at("[::1]", "tcp-echo")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the testkit starts");
    let mut lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
    let mut next = || read::<Held>(&lines.next().expect("a line").expect("text")).expect("a line of hold");
    assert!(matches!(next(), Held::Open { .. }));
    let mut input = child.stdin.take().expect("its input is piped");
    for number in 1..=2 {
        input.write_all(b"ping\n").expect("it reads commands");
        assert!(matches!(next(), Held::Pong { number: got, .. } if got == number));
    }
    server.child.kill().expect("the server can be killed");
    match next() {
        Held::Ended { ok, how, pings, .. } => assert_eq!((ok, how, pings), (false, FailureKind::Closed, 2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(child.wait().expect("it ends").code(), Some(1));

    let server = Server::start();
    let (ended, ok) = client::<Held>(&["hold", &server.at("127.0.0.1", "tcp-echo"), "--every", "0.02", "--for", "0.2"]);
    assert!(ok && matches!(ended, Held::Ended { how: FailureKind::Closed, pings: 5.., .. }), "{ended:?}");
}

/// A resolver that knows one name, on UDP and TCP at the same port.
#[test]
fn names_resolve_by_udp_and_tcp() {
    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::{RData, Record, RecordType};

    fn answer(question: &[u8]) -> Vec<u8> {
        let question = Message::from_vec(question).expect("a DNS message");
        let query = question.queries[0].clone();
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(query.clone());
        if query.name().to_ascii() == "shop.test." {
            let data = match query.query_type() {
                RecordType::AAAA => RData::AAAA("fd00::7".parse().expect("an address")),
                _ => RData::A("192.0.2.7".parse().expect("an address")),
            };
            answer.add_answer(Record::from_rdata(query.name().clone(), 30, data));
        } else {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.to_vec().expect("it fits")
    }

    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = tcp.local_addr().expect("it is bound");
    let udp = std::net::UdpSocket::bind(address).expect("the same port by UDP");
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            udp.send_to(&answer(&buffer[..length]), from).expect("it is sent");
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.expect("a connection");
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a length");
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).expect("a question");
            let answer = answer(&question);
            stream.write_all(&(answer.len() as u16).to_be_bytes()).and_then(|()| stream.write_all(&answer)).expect("it is sent");
        }
    });
    let server = address.to_string();
    for way in [&[][..], &["--unconnected"], &["--tcp"]] {
        let (ipv4, ok) = client::<Resolved>(&[&["resolve", "shop.test", "--server", &server], way].concat());
        assert!(ok && ipv4.answers == ["192.0.2.7"] && ipv4.ttl == Some(30) && ipv4.peer.as_ref() == Some(&server), "{ipv4:?}");
        let (ipv6, ok) = client::<Resolved>(&[&["resolve", "shop.test", "--server", &server, "--type", "AAAA"], way].concat());
        assert!(ok && ipv6.answers == ["fd00::7"], "{ipv6:?}");
        let (missing, ok) = client::<Resolved>(&[&["resolve", "other.test", "--server", &server], way].concat());
        assert!(!ok && missing.rcode.as_deref() == Some("NXDOMAIN") && missing.error == Some(FailureKind::UnknownName), "{missing:?}");
    }
}
