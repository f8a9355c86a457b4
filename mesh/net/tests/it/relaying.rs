//! The relay between two TCP connections.

use std::{future::Future, io::ErrorKind, net::IpAddr, pin::Pin, task::Poll, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tropis_model::outcome::{Reason, Side};
use tropis_net::{
    relay::{Plain, RelayControl, RelayOptions, RelayOutcome, StopReason, relay},
    sockets::set_linger_reset,
};

/// Two ends of a TCP connection.
pub(crate) async fn tcp_pair(ip: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).await.unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (one, other) = (one.unwrap(), other.unwrap().0);
    for stream in [&one, &other] {
        stream.set_nodelay(true).unwrap();
    }
    (one, other)
}

/// A relay under way, polled by the test's own task.
pub(crate) struct Relayed {
    pub(crate) control: RelayControl,
    running: Pin<Box<dyn Future<Output = RelayOutcome>>>,
}

impl Relayed {
    pub(crate) fn start(downstream: TcpStream, upstream: TcpStream) -> Self {
        let control = RelayControl::new();
        let options = RelayOptions { control: control.clone() };
        Self { control, running: Box::pin(async move { relay(downstream, upstream, &options).await }) }
    }

    pub(crate) async fn run_until_sent(&mut self, bytes: u64) {
        std::future::poll_fn(|cx| {
            assert!(self.running.as_mut().poll(cx).is_pending(), "it ended");
            if self.control.sent() >= bytes { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    pub(crate) async fn finish(self) -> RelayOutcome {
        self.running.await
    }
}

/// Caller, callee, and the relay between them.
async fn path(ip: &str) -> (TcpStream, TcpStream, RelayControl, tokio::task::JoinHandle<RelayOutcome>) {
    let (caller, downstream) = tcp_pair(ip).await;
    let (upstream, callee) = tcp_pair(ip).await;
    let options = RelayOptions::default();
    let control = options.control.clone();
    let running = tokio::spawn(async move { relay(downstream, upstream, &options).await });
    (caller, callee, control, running)
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut found = Vec::new();
    stream.read_to_end(&mut found).await.unwrap();
    found
}

const FAMILIES: [&str; 2] = ["127.0.0.1", "::1"];

#[tokio::test]
async fn each_direction_ends_by_itself_and_is_counted_while_it_runs() {
    for ip in FAMILIES {
        let (mut caller, mut callee, control, running) = path(ip).await;
        caller.write_all(b"question").await.unwrap();
        caller.shutdown().await.unwrap();
        assert_eq!(read_all(&mut callee).await, b"question");
        assert_eq!((control.sent(), control.received()), (8, 0));
        callee.write_all(b"an answer").await.unwrap();
        callee.shutdown().await.unwrap();
        assert_eq!(read_all(&mut caller).await, b"an answer");
        let outcome = running.await.unwrap();
        assert_eq!((outcome.end.reason(), outcome.sent.bytes, outcome.received.bytes), (Reason::Completed, 8, 9));
        assert!(outcome.sent.finished && outcome.received.finished);
    }
}

#[tokio::test]
async fn a_reset_is_passed_on_and_blamed() {
    for ip in FAMILIES {
        let (caller, mut callee, _, running) = path(ip).await;
        set_linger_reset(&caller).unwrap();
        drop(caller);
        assert_eq!(callee.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let end = running.await.unwrap().end;
        assert_eq!((end.reason(), end.side()), (Reason::DownstreamReset, Side::Downstream));

        let (mut caller, callee, _, running) = path(ip).await;
        set_linger_reset(&callee).unwrap();
        drop(callee);
        assert_eq!(caller.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let end = running.await.unwrap().end;
        assert_eq!((end.reason(), end.side()), (Reason::UpstreamReset, Side::Upstream));
    }
}

/// Nothing is read from that side any more, and nothing written to it either.
#[tokio::test]
async fn a_reset_after_the_end_is_noticed() {
    for ip in FAMILIES {
        let (mut caller, mut callee, _, running) = path(ip).await;
        caller.shutdown().await.unwrap();
        assert!(read_all(&mut callee).await.is_empty());
        set_linger_reset(&caller).unwrap();
        drop(caller);
        assert_eq!(running.await.unwrap().end.reason(), Reason::DownstreamReset);
        callee.ready(tokio::io::Interest::ERROR).await.unwrap();
        assert!(callee.take_error().unwrap().is_some(), "told the server, which only waits");
    }
}

/// A server that answers early and closes without reading everything: its kernel resets, yet the answer was sent before that.
#[tokio::test]
async fn an_answer_before_a_reset_is_delivered() {
    let (mut caller, mut callee, _, running) = path("127.0.0.1").await;
    caller.write_all(&vec![0; 1024 * 1024]).await.unwrap();
    callee.read_u8().await.unwrap();
    callee.write_all(b"too large").await.unwrap();
    drop(callee);
    let end = running.await.unwrap().end;
    assert_eq!(end.reason(), Reason::UpstreamReset);
    let mut answer = [0; 9];
    caller.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"too large");
    assert_eq!(caller.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn stopping_resets_both_sides_and_says_why() {
    for (reason, expected) in [
        (StopReason::PermitRevoked, Reason::PermitRevoked),
        (StopReason::Drained, Reason::Drained),
        (StopReason::TimeLimit, Reason::TimeLimit),
    ] {
        let (mut caller, mut callee, control, running) = path("::1").await;
        caller.write_u8(1).await.unwrap();
        callee.read_u8().await.unwrap();
        // From another thread, as policy changes do.
        std::thread::spawn(move || control.stop(reason)).join().unwrap();
        assert_eq!(running.await.unwrap().end.reason(), expected);
        for side in [&mut caller, &mut callee] {
            assert_eq!(side.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    }
}

#[tokio::test]
async fn a_relay_is_small() {
    let (_caller, downstream) = tcp_pair("127.0.0.1").await;
    let (upstream, _callee) = tcp_pair("127.0.0.1").await;
    let options = RelayOptions::default();
    let relay = relay(downstream, upstream, &options);
    let bytes = size_of_val(&relay);
    assert!(bytes <= 768, "{bytes} bytes for each connection, before any buffer");
}

#[tokio::test]
async fn stopping_before_the_start_is_remembered() {
    let (_caller, downstream) = tcp_pair("127.0.0.1").await;
    let (upstream, _callee) = tcp_pair("127.0.0.1").await;
    let options = RelayOptions::default();
    options.control.stop(StopReason::PermitRevoked);
    options.control.stop(StopReason::Drained);
    let outcome = relay(downstream, upstream, &options).await;
    assert_eq!((outcome.end.reason(), outcome.sent.bytes), (Reason::PermitRevoked, 0), "the first reason stays");
}

#[tokio::test]
async fn a_reader_that_stalls_makes_the_writer_wait() {
    let (mut caller, mut callee, control, running) = path("127.0.0.1").await;
    let chunk = vec![9; 64 * 1024];
    let mut written = 0usize;
    while let Ok(done) = tokio::time::timeout(Duration::from_millis(200), caller.write(&chunk)).await {
        written += done.unwrap();
        assert!(written < 256 * 1024 * 1024, "nothing holds the writer back");
    }
    let reading = tokio::spawn(async move { read_all(&mut callee).await });
    caller.shutdown().await.unwrap();
    let found = reading.await.unwrap();
    assert!(found.len() == written && found.iter().all(|byte| *byte == 9));
    assert_eq!(control.sent(), written as u64);
    drop(caller);
    assert_eq!(running.await.unwrap().end.reason(), Reason::Completed);
}

#[tokio::test]
async fn any_byte_stream_can_be_a_side() {
    let (mut caller, downstream) = tokio::io::duplex(1000);
    let (upstream, mut callee) = tcp_pair("127.0.0.1").await;
    let running = tokio::spawn(async move { relay(Plain(downstream), upstream, &RelayOptions::default()).await });
    let (mut read, mut write) = callee.split();
    let echo = async {
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let text = vec![5; 300_000];
    let speak = async {
        let (mut read, mut write) = tokio::io::split(&mut caller);
        let mut found = Vec::new();
        let send = async {
            write.write_all(&text).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(send, read.read_to_end(&mut found));
        read.unwrap();
        assert!(found == text);
    };
    tokio::join!(echo, speak);
    assert_eq!(running.await.unwrap().end.reason(), Reason::Completed);
}
