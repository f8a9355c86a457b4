//! Heads that are too large or too slow, and floods of frames: refused within bounds, while others are served.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use tropis_hbone::frames::ALLOWED_AT_ONCE;

use crate::{
    log,
    raw::{
        Answer, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, NO_ERROR, PATIENCE, PROTOCOL_ERROR, RawHttp2, before_plain_witness, frame,
        plain_world, statuses,
    },
    witness::{Answers, Witness},
    world::{App, World, plain_host, run},
};

/// Streams of a connection at once, by default.
const STREAMS: usize = 100;
const REFUSED_STREAM: u32 = 7;
/// Requests of a connection that may be given up before it is judged (`http_server::churn`).
const JUDGED_FROM: usize = 500;

const FIELDS: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":authority", "reviews"), (":path", "/")];

/// The head of a request on `stream`; its body follows, or not.
fn head(stream: u32, flags: u8) -> Vec<u8> {
    frame::new(frame::HEADERS, frame::END_HEADERS | flags, stream, &frame::block(&FIELDS))
}

fn reset(stream: u32) -> Vec<u8> {
    frame::new(frame::RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// The numbers of a caller's streams.
fn streams() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

/// Somebody else is served, and soon.
async fn others_are_served(world: &World) {
    let request = b"GET /other HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";
    assert_eq!(statuses(world, request).await, [200]);
}

#[test]
fn a_head_of_http1_that_is_too_large_is_refused() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let head = |first: &str, headers: &str| format!("{first}Host: reviews\r\nConnection: close\r\n{headers}\r\n");
        let many = |count: usize| (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
        for (case, bytes, status) in [
            ("as many headers as allowed", head("GET / HTTP/1.1\r\n", &many(98)), 200),
            ("one more", head("GET / HTTP/1.1\r\n", &many(99)), 431),
            ("very many", head("GET / HTTP/1.1\r\n", &many(50_000)), 431),
            ("a large header", head("GET / HTTP/1.1\r\n", &format!("x: {}\r\n", "x".repeat(50_000))), 200),
            ("a header without end", head("GET / HTTP/1.1\r\n", &format!("x: {}\r\n", "x".repeat(10_000_000))), 431),
            ("a name without end", head("GET / HTTP/1.1\r\n", &format!("{}: 1\r\n", "x".repeat(100_000))), 431),
            ("a first line without end", head(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(100_000)), ""), 431),
            ("a method without end", head(&format!("{} / HTTP/1.1\r\n", "X".repeat(100_000)), ""), 431),
            ("empty lines before it, without end", "\r\n".repeat(100_000), 431),
        ] {
            assert_eq!(statuses(&world, bytes.as_bytes()).await, [status], "{case}");
            assert_eq!(witness.take().len(), usize::from(status == 200), "{case}");
        }
    });
}

#[test]
fn a_head_of_http2_that_is_too_large_is_refused() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let names: Vec<String> = (0..20_000).map(|number| format!("x-{number}")).collect();
        let many = |count: usize| FIELDS.into_iter().chain(names[..count].iter().map(|name| (name.as_str(), "1"))).collect::<Vec<_>>();
        let long = "x".repeat(10_000_000);
        let of_length = |length: usize| FIELDS.into_iter().chain([("x", &long[..length])]).collect::<Vec<_>>();
        for (case, fields, expected) in [
            ("as many headers as allowed", many(100), Answer::Status(200)),
            ("one more", many(101), Answer::Status(431)),
            ("more than fit", many(5_000), Answer::Status(431)),
            ("very many", many(20_000), Answer::GoAway(ENHANCE_YOUR_CALM)),
            ("a large header", of_length(50_000), Answer::Status(200)),
            ("one that does not fit", of_length(100_000), Answer::Status(431)),
            ("one without end", of_length(10_000_000), Answer::GoAway(ENHANCE_YOUR_CALM)),
        ] {
            let mut connection = RawHttp2::open(world.bound.plain[0]).await;
            let block = frame::block(&fields);
            let mut pieces = block.chunks(16_000).peekable();
            let mut kind = (frame::HEADERS, frame::END_STREAM);
            while let Some(piece) = pieces.next() {
                let last = if pieces.peek().is_none() { frame::END_HEADERS } else { 0 };
                connection.send(&frame::new(kind.0, kind.1 | last, 1, piece)).await;
                kind = (frame::CONTINUATION, 0);
            }
            assert_eq!(connection.answer(1).await, expected, "{case}");
            assert_eq!(witness.take().len(), usize::from(expected == Answer::Status(200)), "{case}");
        }
        others_are_served(&world).await;
    });
}

/// One entry of 4 kB in the table, and thousands of references to it: a few kilobytes that would be 60 MB.
#[test]
fn a_small_head_that_grows_is_refused() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let mut connection = RawHttp2::open(world.bound.plain[0]).await;
        let mut bomb = frame::block(&[("x", &"x".repeat(4_000))]);
        // The same literal, to be kept (RFC 7541 §6.2.1), and then the newest entry of the table by its index.
        bomb[0] = 0x40;
        bomb.extend(std::iter::repeat_n(0x80 | 62, 12_000));
        let block = [frame::block(&FIELDS), bomb].concat();
        connection.send(&frame::new(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &block)).await;
        let answer = connection.answer(1).await;
        assert!(matches!(answer, Answer::Status(431) | Answer::GoAway(_)), "{answer:?}");
        assert_eq!(witness.take(), []);
        others_are_served(&world).await;
    });
}

#[test]
fn a_head_that_comes_slowly_is_cut_off_and_a_caller_that_pauses_is_not() {
    const LIMIT: Duration = Duration::from_millis(300);
    run(async {
        let (world, _witness) = before_plain_witness(&[("TROPIS_HEADER_TIMEOUT", "300ms")]).await;
        let mut silent = TcpStream::connect(world.bound.plain[0]).await.unwrap();
        let mut slow = TcpStream::connect(world.bound.plain[0]).await.unwrap();
        let mut patient = TcpStream::connect(world.bound.plain[0]).await.unwrap();
        let mut second_slow = TcpStream::connect(world.bound.plain[0]).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n";
        let mut answer = [0; 12];
        for stream in [&mut patient, &mut second_slow] {
            stream.write_all(request).await.unwrap();
            stream.read_exact(&mut answer).await.unwrap();
        }
        second_slow.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
        let began = Instant::now();
        // A byte at a time, each long before the limit.
        while slow.write_all(b"G").await.is_ok() {
            assert!(began.elapsed() < PATIENCE, "a head that never ends is still read");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(began.elapsed() >= LIMIT);
        for stream in [&mut silent, &mut second_slow] {
            let mut rest = Vec::new();
            timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is closed").unwrap();
        }
        patient.write_all(b"GET /again HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, patient.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(rest).unwrap().matches("HTTP/1.1 200 OK").count(), 1);
    });
}

#[test]
fn streams_beyond_the_limit_are_refused_and_reach_nobody() {
    run(async {
        let world = plain_world(plain_host("reviews"), &[]);
        let witness = Witness::new(Answers::Never).await;
        world.endpoint("reviews", "v1", &App::elsewhere(witness.address));
        let mut connection = RawHttp2::open(world.bound.plain[0]).await;
        let all: Vec<u8> = streams().take(STREAMS + 50).flat_map(|stream| head(stream, frame::END_STREAM)).collect();
        connection.send(&all).await;
        let last = streams().nth(STREAMS + 49).unwrap();
        assert_eq!(connection.answer(last).await, Answer::Reset(REFUSED_STREAM));
        assert!(witness.count() <= STREAMS, "{}", witness.count());
    });
}

#[test]
fn rapid_reset_ends_the_connection() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let mut connection = RawHttp2::open(world.bound.plain[0]).await;
        let flood: Vec<u8> = streams().take(20_000).flat_map(|stream| [head(stream, 0), reset(stream)].concat()).collect();
        let (answer, ()) = tokio::join!(
            async {
                connection.send(&flood).await;
                connection.answer(u32::MAX).await
            },
            others_are_served(&world)
        );
        assert!(matches!(answer, Answer::GoAway(ENHANCE_YOUR_CALM | NO_ERROR) | Answer::Closed), "{answer:?}");
        assert!(witness.count() < 2 * JUDGED_FROM, "{} requests reached the endpoint", witness.count());
        others_are_served(&world).await;
    });
}

/// Each request is given up when it has reached its endpoint: no more than one is open at a time.
#[test]
fn requests_that_are_given_up_at_once_end_the_connection() {
    run(async {
        let world = plain_world(plain_host("reviews"), &[]);
        let witness = Witness::new(Answers::Never).await;
        world.endpoint("reviews", "v1", &App::elsewhere(witness.address));
        let mut connection = RawHttp2::open(world.bound.plain[0]).await;
        for (number, stream) in streams().take(JUDGED_FROM).enumerate() {
            connection.send(&head(stream, frame::END_STREAM)).await;
            timeout(PATIENCE, async {
                while witness.count() <= number {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("the endpoint gets the request");
            connection.send(&reset(stream)).await;
        }
        assert_eq!(connection.answer(u32::MAX).await, Answer::GoAway(NO_ERROR));
        while connection.next().await.is_some() {}
        assert_eq!(witness.count(), JUDGED_FROM);
    });
}

#[test]
fn responses_that_are_given_up_at_once_end_the_connection() {
    run(async {
        let world = plain_world(plain_host("reviews"), &[]);
        let app = world
            .app(|_| async {
                let endless = futures_util::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 1024]))));
                Response::new(StreamBody::new(endless).boxed_unsync())
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let mut connection = RawHttp2::open(world.bound.plain[0]).await;
        let mut ended = Answer::Status(200);
        for stream in streams().take(2 * JUDGED_FROM) {
            connection.send(&head(stream, frame::END_STREAM)).await;
            ended = connection.answer(stream).await;
            if ended != Answer::Status(200) {
                break;
            }
            connection.send(&reset(stream)).await;
        }
        assert_eq!(ended, Answer::GoAway(NO_ERROR));
    });
}

#[test]
fn floods_of_frames_end_their_connection() {
    run(async {
        let (world, witness) = before_plain_witness(&[]).await;
        let open_head = frame::new(frame::HEADERS, 0, 1, &frame::block(&FIELDS));
        let update = |stream: u32, credit: u32| frame::new(frame::WINDOW_UPDATE, 0, stream, &credit.to_be_bytes());
        let most = i32::MAX as u32;
        for (case, bytes, expected) in [
            (
                "CONTINUATION without content",
                [open_head.clone(), frame::new(frame::CONTINUATION, 0, 1, &[]).repeat(100_000)].concat(),
                Answer::GoAway(ENHANCE_YOUR_CALM),
            ),
            (
                "CONTINUATION with headers",
                [open_head.clone(), frame::new(frame::CONTINUATION, 0, 1, &frame::block(&[("x", "1")])).repeat(100_000)].concat(),
                Answer::GoAway(ENHANCE_YOUR_CALM),
            ),
            ("another frame within a head", [open_head, frame::new(frame::PING, 0, 0, &[0; 8])].concat(), Answer::GoAway(PROTOCOL_ERROR)),
            (
                "DATA without content",
                [head(1, 0), frame::new(frame::DATA, 0, 1, &[]).repeat(100_000)].concat(),
                Answer::GoAway(ENHANCE_YOUR_CALM),
            ),
            ("WINDOW_UPDATE of nothing", [head(1, 0), update(1, 0)].concat(), Answer::GoAway(PROTOCOL_ERROR)),
            (
                "WINDOW_UPDATE beyond the largest window",
                [head(1, 0), update(1, most), update(1, most)].concat(),
                Answer::Reset(FLOW_CONTROL_ERROR),
            ),
            ("the same of the connection", [update(0, most), update(0, most)].concat(), Answer::GoAway(FLOW_CONTROL_ERROR)),
            ("DATA of no stream", frame::new(frame::DATA, 0, 1, b"x"), Answer::GoAway(PROTOCOL_ERROR)),
        ] {
            let mut connection = RawHttp2::open(world.bound.plain[0]).await;
            connection.send(&bytes).await;
            assert_eq!(connection.answer(1).await, expected, "{case}");
            others_are_served(&world).await;
            assert!(witness.take().iter().filter(|sent| sent.target() != "/other").all(|sent| !sent.is_whole), "{case}");
        }
    });
}

/// Frames of which each is answered, or looked at for nothing.
fn control_frames() -> [(&'static str, Vec<u8>); 6] {
    [
        ("SETTINGS", frame::new(frame::SETTINGS, 0, 0, &[])),
        ("PING", frame::new(frame::PING, 0, 0, &[7; 8])),
        ("PRIORITY", frame::new(frame::PRIORITY, 0, 1, &[0, 0, 0, 0, 7])),
        ("RST_STREAM", reset(1)),
        ("WINDOW_UPDATE", frame::new(frame::WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
        ("a frame of no kind that is known", frame::new(200, 0, 0, &[7; 8])),
    ]
}

#[test]
fn floods_of_control_frames_are_told_to_go_away_and_ended() {
    run(async {
        let (world, _witness) = before_plain_witness(&[]).await;
        for (case, flood) in control_frames() {
            let mut connection = RawHttp2::open(world.bound.plain[0]).await;
            let caller = connection.stream.local_addr().unwrap().to_string();
            // A request that was answered is not what it is ended for.
            connection.send(&head(1, frame::END_STREAM)).await;
            assert_eq!(connection.answer(1).await, Answer::Status(200), "{case}");
            let began = Instant::now();
            connection.send(&flood.repeat(4 * ALLOWED_AT_ONCE as usize)).await;
            let mut acknowledged = 0;
            let mut goodbye = None;
            while let Some((kind, flags, _, payload)) = connection.next().await {
                acknowledged += u64::from(matches!(kind, frame::PING | frame::SETTINGS) && flags == 1);
                if kind == frame::GOAWAY {
                    goodbye = goodbye.or(Some(payload[4..8].to_vec()));
                }
            }
            assert_eq!(goodbye, Some(NO_ERROR.to_be_bytes().to_vec()), "{case}");
            assert!(acknowledged < 3 * ALLOWED_AT_ONCE, "{case}: {acknowledged} answers");
            assert!(began.elapsed() < PATIENCE, "{case}");
            // Another test may have had the same port.
            let line = log::wait_for(&[("src.addr", &caller), ("error", "a flood of control frames")]).await;
            let told = ["stage", "reason", "side"].map(|field| log::text(&line[field]));
            assert_eq!(told, ["accept", "limit_reached", "downstream"], "{case}");
            others_are_served(&world).await;
        }
    });
}

/// Nothing is read of it when its answers fill the buffers, and it is ended all the same.
#[test]
fn floods_whose_answers_nobody_reads_are_ended() {
    const FLOOD_BYTES: usize = 32 << 20;
    const TAKEN_BYTES: usize = 8 << 20;
    run(async {
        let (world, _witness) = before_plain_witness(&[]).await;
        for (case, flood) in control_frames() {
            let socket = TcpSocket::new_v4().unwrap();
            // Small buffers on this side; those of the other grow to some megabytes.
            socket.set_recv_buffer_size(4096).unwrap();
            socket.set_send_buffer_size(64 * 1024).unwrap();
            let mut connection = RawHttp2::begin(socket.connect(world.bound.plain[0]).await.unwrap()).await;
            let batch = flood.repeat((64 << 10) / flood.len());
            let mut taken = 0;
            while taken < FLOOD_BYTES {
                match timeout(PATIENCE, connection.stream.write(&batch)).await.unwrap_or_else(|_| panic!("{case} is not ended")) {
                    Ok(written) => taken += written,
                    Err(_) => break,
                }
            }
            assert!(taken < TAKEN_BYTES, "{case}: {taken} bytes were taken");
            others_are_served(&world).await;
        }
    });
}

/// The pieces of a response's body, to its end; `each` is sent for each.
async fn pieces(connection: &mut RawHttp2, stream: u32, each: &[u8]) -> usize {
    let mut pieces = 0;
    loop {
        let (kind, flags, of, payload) = connection.next().await.expect("it goes on");
        assert_ne!(kind, frame::GOAWAY);
        if of == stream && matches!(kind, frame::DATA | frame::HEADERS) {
            if kind == frame::DATA && !payload.is_empty() {
                pieces += 1;
                connection.send(each).await;
            }
            if flags & frame::END_STREAM != 0 {
                return pieces;
            }
        }
    }
}

/// As many control frames as libraries send at most, for each request and for each piece of a response.
#[test]
fn control_frames_that_go_with_requests_and_answers_are_no_flood() {
    const PIECES: usize = 3000;
    run(async {
        let world = plain_world(plain_host("reviews"), &[]);
        let app = world
            .app(|request| async move {
                let pieces = if request.uri().path() == "/stream" { PIECES } else { 1 };
                let body = futures_util::stream::unfold(pieces, |left| async move {
                    tokio::task::yield_now().await;
                    left.checked_sub(1).map(|left| (Ok(Frame::data(Bytes::from_static(b"x"))), left))
                });
                Response::new(StreamBody::new(body).boxed_unsync())
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let mut connection = RawHttp2::open(world.bound.plain[0]).await;
        let ping = frame::new(frame::PING, 0, 0, &[7; 8]);
        let credit = |stream: u32| frame::new(frame::WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes());
        let mut numbers = streams();
        for stream in numbers.by_ref().take(400) {
            let about = [frame::new(frame::PRIORITY, 0, stream, &[0, 0, 0, 0, 7]), credit(stream), credit(0)].concat();
            connection.send(&[head(stream, frame::END_STREAM), about, ping.repeat(3)].concat()).await;
            assert_eq!(pieces(&mut connection, stream, &[]).await, 1, "{stream}");
        }
        let stream = numbers.next().unwrap();
        let mut fields = FIELDS;
        fields[3].1 = "/stream";
        connection.send(&frame::new(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, stream, &frame::block(&fields))).await;
        let came = pieces(&mut connection, stream, &[credit(stream), credit(0), ping].concat()).await;
        assert!(came > 1000, "the answer came in {came} pieces, too few to show anything");
        let last = numbers.next().unwrap();
        connection.send(&head(last, frame::END_STREAM)).await;
        assert_eq!(connection.answer(last).await, Answer::Status(200));
    });
}
