//! The frames of a served connection, counted as its peer sends them.

use std::{future::poll_fn, pin::pin};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::advance,
};

use super::*;

const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const UNKNOWN: u8 = 200;

fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
    let length = u32::try_from(payload).unwrap().to_be_bytes();
    [&[length[1], length[2], length[3], kind, flags, 0, 0, 0, 1][..], &vec![7; payload]].concat()
}

/// A connection that has begun, and its peer's end.
struct Connection {
    counted: Counted<DuplexStream>,
    peer: DuplexStream,
    conduct: Rc<Conduct>,
}

impl Connection {
    async fn begin() -> Self {
        let (stream, peer) = duplex(64 * 1024);
        let (counted, conduct) = count(stream);
        let mut begun = Self { counted, peer, conduct };
        begun.sends(&[0; PREFACE_BYTES]).await;
        begun
    }

    /// The peer sends, and it is read.
    async fn sends(&mut self, bytes: &[u8]) {
        self.peer.write_all(bytes).await.unwrap();
        let mut read = vec![0; bytes.len()];
        self.counted.read_exact(&mut read).await.unwrap();
        assert_eq!(read, bytes);
    }

    async fn sends_often(&mut self, times: u64, bytes: &[u8]) {
        for _ in 0..times {
            self.sends(bytes).await;
        }
    }

    /// The peer is sent something, and reads it.
    async fn is_sent(&mut self, bytes: &[u8]) {
        self.counted.write_all(bytes).await.unwrap();
        self.peer.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
    }

    fn excess(&self) -> Option<Excess> {
        self.conduct.excess.get()
    }

    /// The peer may send so many PINGs and no more.
    async fn may_ping(&mut self, times: u64) {
        self.sends_often(times, &frame(PING, 0, 8)).await;
        assert_eq!(self.excess(), None, "{times} are allowed");
        self.sends(&frame(PING, 0, 8)).await;
        assert_eq!(self.conduct.excess().await, Excess::Frames);
    }
}

#[test]
fn frames_are_followed_however_they_are_cut() {
    let kinds = [(SETTINGS, 0, 0), (HEADERS, 5, 300), (DATA, 0, 70_000), (DATA, 1, 0), (UNKNOWN, 9, 1), (PING, ACK, 8)];
    let bytes: Vec<u8> = kinds.iter().flat_map(|(kind, flags, length)| frame(*kind, *flags, *length)).collect();
    for piece in [1, 2, 8, 9, 10, 17, 4096, bytes.len()] {
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        for bytes in bytes.chunks(piece) {
            frames.follow(bytes, |kind, flags, length| seen.push((kind, flags, length)));
        }
        assert_eq!(seen, kinds, "in pieces of {piece}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_control_frame_is_allowed_so_often_and_no_more_is_read() {
    for kind in [PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, UNKNOWN] {
        let mut connection = Connection::begin().await;
        connection.sends_often(ALLOWED_AT_ONCE, &frame(kind, 0, 8)).await;
        assert_eq!(connection.excess(), None, "kind {kind}");
        connection.sends(&frame(kind, 0, 8)).await;
        assert_eq!(connection.excess(), Some(Excess::Frames), "kind {kind}");
        connection.peer.write_all(b"more").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), connection.counted.read_u8()).await.is_err(), "kind {kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_of_control_is_not_counted() {
    let mut connection = Connection::begin().await;
    connection.sends_often(3 * ALLOWED_AT_ONCE, &[frame(DATA, 0, 1), frame(DATA, 1, 0), frame(CONTINUATION, 0, 1)].concat()).await;
    connection.may_ping(ALLOWED_AT_ONCE).await;
}

#[tokio::test(start_paused = true)]
async fn requests_answers_and_time_allow_more() {
    let mut requests = Connection::begin().await;
    let request = [frame(HEADERS, 5, 30), frame(PING, 0, 8).repeat(ALLOWED_PER_REQUEST as usize)].concat();
    requests.sends_often(2 * ALLOWED_AT_ONCE, &request).await;
    requests.may_ping(ALLOWED_AT_ONCE).await;

    // A stream of small messages: credit for stream and connection and a PING for each.
    let mut answers = Connection::begin().await;
    let each = [frame(WINDOW_UPDATE, 0, 4).repeat(2), frame(PING, 0, 8)].concat();
    for _ in 0..2 * ALLOWED_AT_ONCE {
        answers.is_sent(&frame(DATA, 0, 20)).await;
        answers.sends(&each).await;
    }
    answers.may_ping(ALLOWED_AT_ONCE + 2 * ALLOWED_AT_ONCE * (ALLOWED_PER_DATA - 3)).await;

    // Whoever gives credit for stream and connection with each 4096 bytes that it reads, of frames of any length.
    for length in [16 * 1024, 60 * 1024] {
        let mut reader = Connection::begin().await;
        let credit = frame(WINDOW_UPDATE, 0, 4).repeat(2 * length / 4096);
        for _ in 0..(64 << 20) / length {
            reader.is_sent(&frame(DATA, 0, length)).await;
            reader.sends(&credit).await;
        }
        assert_eq!(reader.excess(), None, "frames of {length} bytes");
    }

    let mut patient = Connection::begin().await;
    for _ in 0..10 * ALLOWED_AT_ONCE {
        patient.sends(&frame(PING, 0, 8)).await;
        advance(Duration::from_millis(1000 / ALLOWED_PER_SECOND)).await;
    }
    assert_eq!(patient.excess(), None);
    advance(Duration::from_secs(3600)).await;
    // What is left, and as many as are allowed at once after any silence.
    let mut sent = 0;
    while patient.excess().is_none() {
        patient.sends(&frame(PING, 0, 8)).await;
        sent += 1;
    }
    assert!((ALLOWED_AT_ONCE + 1..=2 * ALLOWED_AT_ONCE + 1).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn what_is_saved_has_a_limit() {
    let mut connection = Connection::begin().await;
    connection.sends_often(ALLOWED_MOST / ALLOWED_PER_REQUEST + 1, &frame(HEADERS, 5, 1)).await;
    connection.may_ping(ALLOWED_MOST).await;
}

/// Writes until nothing more is taken; `written` says how much.
async fn fill(counted: &mut Counted<DuplexStream>) {
    let bytes = [0; 4096];
    poll_fn(|cx| {
        while Pin::new(&mut *counted).poll_write(cx, &bytes).is_ready() {}
        Poll::Ready(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_wants_answers_and_takes_none_is_told_of() {
    let mut connection = Connection::begin().await;
    connection.is_sent(&frame(SETTINGS, 0, 6)).await;
    fill(&mut connection.counted).await;
    advance(10 * UNREAD_LIMIT).await;
    fill(&mut connection.counted).await;
    assert_eq!(connection.excess(), None, "who wants no answer may pause for as long as it likes");

    connection.sends(&frame(PING, 0, 8)).await;
    fill(&mut connection.counted).await;
    advance(UNREAD_LIMIT - Duration::from_millis(1)).await;
    connection.peer.read_exact(&mut [0; 4096]).await.unwrap();
    fill(&mut connection.counted).await;
    advance(UNREAD_LIMIT - Duration::from_millis(1)).await;
    fill(&mut connection.counted).await;
    assert_eq!(connection.excess(), None, "it takes something now and then");

    // The writer is woken by the limit itself.
    let Connection { mut counted, peer: _peer, conduct, .. } = connection;
    let writing = async { counted.write_all(&[0; 4096]).await };
    let mut writing = pin!(writing);
    tokio::select! {
        _ = &mut writing => panic!("nobody reads"),
        excess = conduct.excess() => assert_eq!(excess, Excess::Unread),
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_its_answers_may_pause() {
    let mut connection = Connection::begin().await;
    connection.sends(&[frame(PING, 0, 8), frame(SETTINGS, 0, 0)].concat()).await;
    connection.is_sent(&[frame(PING, ACK, 8), frame(SETTINGS, ACK, 0)].concat()).await;
    fill(&mut connection.counted).await;
    advance(10 * UNREAD_LIMIT).await;
    fill(&mut connection.counted).await;
    assert_eq!(connection.excess(), None);
}
