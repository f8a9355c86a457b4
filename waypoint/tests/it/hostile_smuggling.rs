//! Requests that two readers would cut in two ways: they are refused, and what would be smuggled in them reaches nobody.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    log,
    raw::{Answer, PATIENCE, PROTOCOL_ERROR, RawHttp2, answers, before_plain_witness, frame, plain_world, statuses, until_closed},
    witness::{Answers, Witness},
    world::{App, plain_host, run},
};

/// What each case ends with: the request that would be smuggled.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";

/// What becomes of a case.
enum Outcome {
    /// Refused with this status: no endpoint hears of it.
    Refused(u16),
    /// Its head was good: an endpoint got a part of its body, and no end. The caller is answered 400.
    BrokenOff,
}
use Outcome::{BrokenOff, Refused};

/// Heads, with what of a body follows them.
const HEADS: &[(&str, &str, Outcome)] = &[
    ("CL and TE", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("TE and CL", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", Refused(400)),
    ("CL 0 and TE", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("two CL, the same", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", Refused(400)),
    ("two CL, different", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", Refused(400)),
    ("a list of CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", Refused(400)),
    ("CL with a plus", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", Refused(400)),
    ("CL with a minus", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx", Refused(400)),
    ("CL with a blank inside", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 1\r\n\r\nx", Refused(400)),
    ("CL in hexadecimal", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx", Refused(400)),
    ("CL of nothing", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", Refused(400)),
    ("CL beyond 64 bits", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\nx", Refused(400)),
    ("TE chunked, identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", Refused(400)),
    ("TE identity, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("TE gzip, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("TE chunked, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("TE identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", Refused(400)),
    ("TE xchunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("TE with a vertical tab", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n", Refused(400)),
    ("TE in quotes", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", Refused(400)),
    ("TE of nothing", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", Refused(400)),
    ("two TE", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    (
        "two TE, the second another",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    ("TE in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("a folded header", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n Transfer-Encoding: chunked\r\n\r\n", Refused(400)),
    ("a folded header with a tab", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\t2\r\n\r\n", Refused(400)),
    ("the first header folded", "GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n", Refused(400)),
    ("LF alone after a header", "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", Refused(400)),
    ("LF alone after the first line", "GET / HTTP/1.1\nHost: a\r\n\r\n", Refused(400)),
    ("LF alone at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", Refused(400)),
    ("LF alone everywhere", "GET / HTTP/1.1\nHost: a\n\n", Refused(400)),
    ("CR alone in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rTransfer-Encoding: chunked\r\n\r\n", Refused(400)),
    ("CR alone after a header", "GET / HTTP/1.1\r\nHost: a\rX: 1\r\n\r\n", Refused(400)),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\0\r\n\r\n", Refused(400)),
    ("NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\0: 1\r\n\r\n", Refused(400)),
    ("a blank before the colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n\r\nx", Refused(400)),
    ("a tab before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("a header without colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", Refused(400)),
    ("a header without name", "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", Refused(400)),
    ("a blank in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("two blanks in the first line", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a tab in the first line", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a request in the target", "GET /\r\nX: HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("HTTP/0.9", "GET /\r\n", Refused(400)),
    ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", Refused(400)),
    ("HTTP/2.0 in letters", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refused(400)),
    ("CONNECT", "CONNECT reviews:9080 HTTP/1.1\r\nHost: reviews:9080\r\nConnection: close\r\n\r\n", Refused(400)),
    ("an authority as target", "GET reviews HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n", Refused(400)),
    ("* as target of GET", "GET * HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n", Refused(400)),
    ("another scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", Refused(400)),
    ("a negative chunk", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n", BrokenOff),
    (
        "a chunk beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n",
        BrokenOff,
    ),
    ("a chunk with a prefix", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n", BrokenOff),
    ("a chunk without size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nx\r\n0\r\n\r\n", BrokenOff),
    ("a chunk line with LF alone", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", BrokenOff),
    ("an extension with LF alone", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nx\r\n0\r\n\r\n", BrokenOff),
    ("an extension with CR alone", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\rb\r\nx\r\n0\r\n\r\n", BrokenOff),
    ("a chunk longer than it says", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n", BrokenOff),
    ("a chunk without CRLF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx0\r\n\r\n", BrokenOff),
    ("a chunk that ends with LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n", BrokenOff),
    ("a bad trailer", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nbad trailer\r\n\r\n", BrokenOff),
];

#[test]
fn what_can_be_cut_in_two_ways_is_refused_and_smuggles_nothing() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        for (case, bytes, outcome) in HEADS {
            let statuses = statuses(&world, format!("{bytes}{SMUGGLED}").as_bytes()).await;
            let seen = witness.take();
            match outcome {
                Refused(status) => {
                    assert_eq!(statuses, [*status], "{case}");
                    assert_eq!(seen, [], "{case}");
                }
                BrokenOff => {
                    assert_eq!(statuses, [400], "{case}");
                    assert!(seen.iter().all(|sent| !sent.is_whole && sent.target() == "/"), "{case}: {seen:?}");
                }
            }
        }
        // The matrix would pass before a witness who hears nothing at all.
        assert_eq!(statuses(&world, SMUGGLED.as_bytes()).await, [200]);
        // The beginning of the last case may come only now.
        let whole: Vec<_> = witness.take().into_iter().filter(|sent| sent.is_whole).map(|sent| sent.line).collect();
        assert_eq!(whole, ["GET /smuggled"]);
    });
}

#[test]
fn requests_before_the_one_that_is_refused_are_answered() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let good = "POST /good HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n";
        let bad = "POST /bad HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert_eq!(statuses(&world, format!("{good}{good}{bad}{good}{SMUGGLED}").as_bytes()).await, [200, 200, 400]);
        let seen: Vec<_> = witness.take().into_iter().map(|sent| (sent.line, sent.body)).collect();
        assert_eq!(seen, vec![("POST /good".to_owned(), b"abc".to_vec()); 2]);
        let line = log::wait_for(&[("path", "/bad")]).await;
        assert_eq!((&line["response_code"], &line["stage"], &line["reason"]), (&json!(400), &json!("identify"), &json!("bad_request")));
        assert_eq!(
            (&line["response_flags"], &line["response_code_details"]),
            (&json!("DPE"), &json!("bad_request{a_length_and_an_encoding}"))
        );
    });
}

#[test]
fn good_bodies_arrive_with_one_framing() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        for (case, rest, body) in [
            ("chunks with extensions and blanks", "Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n001 \r\nc\r\n0\r\n\r\n", "abc"),
            ("in another case", "tRANSFER-eNCODING: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc"),
            ("a length between blanks", "Content-Length: \t 3 \r\n\r\nabc", "abc"),
            (
                "a body with a request in it",
                "Content-Length: 27\r\n\r\nGET / HTTP/1.1\nHost: b\r\n\r\n\n",
                "GET / HTTP/1.1\nHost: b\r\n\r\n\n",
            ),
            ("none", "\r\n", ""),
        ] {
            let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{rest}");
            assert_eq!(statuses(&world, bytes.as_bytes()).await, [200], "{case}");
            let seen = witness.take();
            assert!(seen.len() == 1 && seen[0].is_whole && seen[0].body == body.as_bytes(), "{case}: {seen:?}");
        }
    });
}

#[test]
fn extensions_and_trailers_without_end_are_cut_off() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (case, rest) in [
            ("one long extension", format!("1;{}\r\nx\r\n", "x".repeat(100_000))),
            ("many extensions", "1;abcdefgh\r\nx\r\n".repeat(10_000)),
            ("a long trailer", format!("0\r\nx: {}\r\n\r\n", "x".repeat(100_000))),
            ("many trailers", format!("0\r\n{}\r\n", "x: 1\r\n".repeat(1_000))),
        ] {
            let statuses = statuses(&world, format!("{head}{rest}0\r\n\r\n{SMUGGLED}").as_bytes()).await;
            let seen = witness.take();
            assert!(statuses == [400] && seen.iter().all(|sent| sent.target() == "/" && !sent.is_whole), "{case}: {statuses:?} {seen:?}");
        }
    });
}

/// The endpoint answers before it has the body; what is left of the body must not become the next request of another caller.
#[test]
fn an_answer_before_the_end_of_a_body_leaves_no_half_request_behind() {
    run(async {
        let world = plain_world(plain_host("reviews"), &[]);
        let witness = Witness::new(Answers::AtOnce).await;
        world.endpoint("reviews", "v1", &App::elsewhere(witness.address));
        let mut slow = TcpStream::connect(world.bound.plain[0]).await.unwrap();
        slow.write_all(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf").await.unwrap();
        let mut answer = [0; 17];
        timeout(PATIENCE, slow.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK\r\n");
        for _ in 0..5 {
            assert_eq!(statuses(&world, SMUGGLED.as_bytes()).await, [200]);
        }
        drop(slow);
        assert_eq!(statuses(&world, SMUGGLED.as_bytes()).await, [200]);
        let seen: Vec<_> = witness.take().into_iter().map(|sent| sent.line).collect();
        assert_eq!(seen[0], "POST /slow");
        assert!(seen.len() == 7 && seen[1..].iter().all(|line| line == "GET /smuggled"), "{seen:?}");
    });
}

#[test]
fn an_upgrade_to_http_is_an_ordinary_request() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let upgrade = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, x-private\r\nx-private: 1\r\n\
                       Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
        let answer = until_closed(&world, format!("{upgrade}{SMUGGLED}").as_bytes()).await;
        assert_eq!(answers(&answer), [200, 200], "both are requests of HTTP/1.1, each decided for itself");
        let seen = witness.take();
        for name in ["upgrade", "connection", "http2-settings", "x-private"] {
            assert!(seen[0].all(name).is_empty(), "{name}: {:?}", seen[0]);
        }
    });
}

/// The fields of a good request, with changes: `Some` replaces or adds, `None` removes.
fn fields<'f>(changes: &[(&'f str, Option<&'f str>)]) -> Vec<(&'f str, &'f str)> {
    let mut fields = vec![(":method", "POST"), (":scheme", "http"), (":authority", "reviews"), (":path", "/")];
    for (name, value) in changes {
        let at = fields.iter().position(|(found, _)| found == name);
        match (at, value) {
            (Some(at), Some(value)) => fields[at].1 = value,
            (Some(at), None) => drop(fields.remove(at)),
            (None, Some(value)) => fields.push((name, value)),
            (None, None) => {}
        }
    }
    fields
}

#[test]
fn requests_of_http2_that_are_none_are_refused() {
    const RESET: Answer = Answer::Reset(PROTOCOL_ERROR);
    const BAD: Answer = Answer::Status(400);
    const NO_HEADERS: Answer = Answer::GoAway(PROTOCOL_ERROR);
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let late = vec![(":method", "GET"), (":scheme", "http"), (":authority", "reviews"), ("x", "1"), (":path", "/")];
        let twice = |name, value| [fields(&[]), vec![(name, value)]].concat();
        let mut wrong = Vec::new();
        for (case, fields, expected) in [
            ("content-length without DATA", fields(&[("content-length", Some("5"))]), RESET),
            ("content-length with a sign", fields(&[("content-length", Some("+0"))]), RESET),
            ("a list of content-length", fields(&[("content-length", Some("0, 0"))]), RESET),
            ("two content-length", fields(&[("content-length", Some("0"))]).into_iter().chain([("content-length", "0")]).collect(), BAD),
            ("transfer-encoding", fields(&[("transfer-encoding", Some("chunked"))]), RESET),
            ("connection", fields(&[("connection", Some("close"))]), RESET),
            ("keep-alive", fields(&[("keep-alive", Some("1"))]), RESET),
            ("proxy-connection", fields(&[("proxy-connection", Some("close"))]), RESET),
            ("upgrade", fields(&[("upgrade", Some("h2c"))]), RESET),
            ("te", fields(&[("te", Some("gzip"))]), RESET),
            ("an upper-case name", fields(&[("X-Upper", Some("1"))]), NO_HEADERS),
            ("a blank in a name", fields(&[("x y", Some("1"))]), NO_HEADERS),
            ("a colon in a name", fields(&[("x:y", Some("1"))]), NO_HEADERS),
            ("no name", fields(&[("", Some("1"))]), NO_HEADERS),
            ("CR LF in a value", fields(&[("x", Some("1\r\nhost: b"))]), NO_HEADERS),
            ("LF in a value", fields(&[("x", Some("1\nhost: b"))]), NO_HEADERS),
            ("NUL in a value", fields(&[("x", Some("1\0"))]), NO_HEADERS),
            ("CR LF in the path", fields(&[(":path", Some("/ HTTP/1.1\r\nx: y"))]), RESET),
            ("a blank in the path", fields(&[(":path", Some("/a b"))]), RESET),
            ("a blank in the method", fields(&[(":method", Some("GET /admin HTTP/1.1"))]), NO_HEADERS),
            ("CR LF in the authority", fields(&[(":authority", Some("a\r\nx: y"))]), RESET),
            ("no method", fields(&[(":method", None)]), RESET),
            ("no scheme", fields(&[(":scheme", None)]), RESET),
            ("no path", fields(&[(":path", None)]), RESET),
            ("neither path nor authority", fields(&[(":path", None), (":authority", None), ("host", Some("reviews"))]), BAD),
            ("two methods", twice(":method", "GET"), RESET),
            ("two paths", twice(":path", "/admin"), RESET),
            ("two authorities", twice(":authority", "ratings"), RESET),
            ("a path after a header", late, RESET),
            ("an unknown pseudo-header", fields(&[(":x", Some("1"))]), NO_HEADERS),
            ("a status", fields(&[(":status", Some("200"))]), RESET),
            ("an empty path", fields(&[(":path", Some(""))]), RESET),
            ("an absolute path", fields(&[(":path", Some("http://ratings/admin"))]), RESET),
            ("a relative path", fields(&[(":path", Some("admin"))]), RESET),
            ("* for POST", fields(&[(":path", Some("*"))]), BAD),
            ("another scheme", fields(&[(":scheme", Some("ftp"))]), BAD),
            ("host and authority differ", fields(&[("host", Some("ratings"))]), BAD),
            ("neither host nor authority", fields(&[(":authority", None)]), BAD),
            ("two hosts", [fields(&[(":authority", None)]), vec![("host", "reviews"), ("host", "reviews")]].concat(), BAD),
            ("a user in the authority", fields(&[(":authority", Some("user@reviews"))]), BAD),
            ("CONNECT", vec![(":method", "CONNECT"), (":authority", "reviews:9080")], BAD),
            ("CONNECT with :path", fields(&[(":method", Some("CONNECT"))]), RESET),
            ("CONNECT with :protocol", fields(&[(":method", Some("CONNECT")), (":protocol", Some("websocket"))]), RESET),
            (":protocol without CONNECT", fields(&[(":protocol", Some("websocket"))]), RESET),
        ] {
            let mut connection = RawHttp2::open(world.bound.plain[0]).await;
            let flags = frame::END_HEADERS | frame::END_STREAM;
            connection.send(&frame::new(frame::HEADERS, flags, 1, &frame::block(&fields))).await;
            let found = connection.answer(1).await;
            let seen = witness.take();
            if found != expected || !seen.is_empty() {
                wrong.push(format!("{case}: {found:?} in place of {expected:?}, and an endpoint saw {seen:?}"));
            }
        }
        assert_eq!(wrong, Vec::<String>::new());
        let mut connection = RawHttp2::open(world.bound.plain[0]).await;
        connection.send(&frame::new(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &frame::block(&fields(&[])))).await;
        assert_eq!(connection.answer(1).await, Answer::Status(200), "what is changed in the cases is a good request");
    });
}

#[test]
fn a_body_of_http2_that_is_not_as_long_as_it_says_never_ends() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        for (case, data) in [("shorter", &["abc"][..]), ("longer", &["abcdef"]), ("longer, later", &["abc", "def"])] {
            let mut connection = RawHttp2::open(world.bound.plain[0]).await;
            let block = frame::block(&fields(&[("content-length", Some("5"))]));
            connection.send(&frame::new(frame::HEADERS, frame::END_HEADERS, 1, &block)).await;
            for (number, data) in data.iter().enumerate() {
                let flags = if number == 0 && case != "shorter" { 0 } else { frame::END_STREAM };
                connection.send(&frame::new(frame::DATA, flags, 1, data.as_bytes())).await;
            }
            let answer = connection.answer(1).await;
            assert!(matches!(answer, Answer::Reset(PROTOCOL_ERROR) | Answer::Status(400)), "{case}: {answer:?}");
            let seen = witness.take();
            assert!(seen.iter().all(|sent| !sent.is_whole), "{case}: {seen:?}");
        }
    });
}
