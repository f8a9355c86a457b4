//! The frames of a served connection of HTTP/2, counted below the crate that speaks it: a peer that sends PING, SETTINGS, PRIORITY and the
//! like without end is served for ever by h2, which answers each, or stalls with answers that nobody takes.
//!
//! [`count`] puts a [`Counted`] between the connection and its bytes. It follows the frames both ways, passes each byte on as it is and
//! keeps none. Requests that the peer makes and DATA that it is sent let it send so many control frames, and so does time; a peer that
//! sends more, or that takes no answer for long, is told of by [`Conduct::excess`], and no more is read of it. Its server ends the
//! connection. CONTINUATION, DATA without content, and requests that are reset are h2's own to count.
//!
//! It costs nothing per byte, and 9 ns per frame (nine bytes copied and a match, measured alone with `rustc -O` on a cloud's Xeon; 24 ns where
//! the head is in no near cache): a gigabyte per second in frames of 16 KiB is 65 000 of them, a sixth of a percent of a core.

#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, Sleep, sleep},
};

/// Control frames that a peer may send for nothing: at first, and again after [`ALLOWED_AT_ONCE`] / [`ALLOWED_PER_SECOND`] seconds.
/// Keepalives are some per minute; what a peer's library sends when a connection begins is ten.
pub const ALLOWED_AT_ONCE: u64 = 1000;
/// Control frames that a peer may send in each second for nothing.
pub const ALLOWED_PER_SECOND: u64 = 100;
/// Control frames for each request that a peer makes: its priority, credit for its response, its reset, and as many again.
pub const ALLOWED_PER_REQUEST: u64 = 8;
/// Control frames for each frame of DATA that a peer is sent: credit for stream and connection, the PING by which gRPC measures the way,
/// and one more.
pub const ALLOWED_PER_DATA: u64 = 4;
/// Bytes of DATA for which a peer may send one more: Go's client gives credit for stream and connection with each 4096 bytes that its
/// application reads, which is half of this.
pub const BYTES_PER_ALLOWED: u64 = 1024;
/// What a peer may have saved of all this: it may read long after we have sent.
pub const ALLOWED_MOST: u64 = 100_000;
/// How long a peer may take nothing of what we send while it has an answer to come: a process that lives reads its socket (RFC 9113 §5.2.2).
pub const UNREAD_LIMIT: Duration = Duration::from_secs(60);

/// What a connection of HTTP/2 begins with (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
/// The head of a frame (RFC 9113 §4.1).
const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
/// The flag of an answer to SETTINGS or PING.
const ACK: u8 = 1;

/// Why a connection is not worth serving any further. The reason for logs is `limit_reached`, the side `downstream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Excess {
    /// The peer sends more control frames than its requests, our answers and time account for.
    #[error("a flood of control frames")]
    Frames,
    /// The peer wants answers to control frames, and takes none of what it is sent.
    #[error("answers to control frames were not taken for {UNREAD_LIMIT:?}")]
    Unread,
}

/// Counts the frames of the connection that `stream` is about to be.
pub fn count<S>(stream: S) -> (Counted<S>, Rc<Conduct>) {
    let conduct = Rc::<Conduct>::default();
    let counted = Counted {
        stream,
        received: Frames { payload_left: PREFACE_BYTES, ..Frames::default() },
        sent: Frames::default(),
        allowance: Allowance { left: ALLOWED_AT_ONCE, earned_until: Instant::now() },
        answers_owed: 0,
        unread: None,
        conduct: conduct.clone(),
    };
    (counted, conduct)
}

/// How the peer of a connection behaves.
#[derive(Debug, Default)]
pub struct Conduct {
    excess: Cell<Option<Excess>>,
    found: Notify,
}

impl Conduct {
    /// Waits until the connection should be ended.
    pub async fn excess(&self) -> Excess {
        loop {
            if let Some(excess) = self.excess.get() {
                return excess;
            }
            self.found.notified().await;
        }
    }

    fn find(&self, excess: Excess) {
        self.excess.set(Some(excess));
        self.found.notify_one();
    }
}

/// A connection's bytes, whose frames are counted.
#[derive(Debug)]
pub struct Counted<S> {
    stream: S,
    received: Frames,
    sent: Frames,
    allowance: Allowance,
    /// PINGs and SETTINGS whose answer has not left.
    answers_owed: u64,
    /// Runs while the peer takes nothing.
    unread: Option<Pin<Box<Sleep>>>,
    conduct: Rc<Conduct>,
}

/// Where in the frames of one direction we are.
#[derive(Debug, Default)]
struct Frames {
    payload_left: usize,
    head: [u8; HEAD_BYTES],
    head_length: usize,
}

impl Frames {
    /// Takes the next bytes, and tells `each` the kind, the flags and the length of each frame whose head ends in them.
    fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, u8, usize)) {
        loop {
            let skipped = self.payload_left.min(bytes.len());
            self.payload_left -= skipped;
            bytes = &bytes[skipped..];
            let here = (HEAD_BYTES - self.head_length).min(bytes.len());
            self.head[self.head_length..][..here].copy_from_slice(&bytes[..here]);
            self.head_length += here;
            if self.head_length < HEAD_BYTES {
                return;
            }
            bytes = &bytes[here..];
            self.head_length = 0;
            let [first, second, third, kind, flags, ..] = self.head;
            self.payload_left = u32::from_be_bytes([0, first, second, third]) as usize;
            each(kind, flags, self.payload_left);
        }
    }
}

/// What a peer may still send.
#[derive(Debug)]
struct Allowance {
    left: u64,
    earned_until: Instant,
}

impl Allowance {
    fn earn(&mut self, frames: u64) {
        self.left = (self.left + frames).min(ALLOWED_MOST);
    }

    /// Takes one; no if there is none. The clock is asked only then.
    fn spend(&mut self) -> bool {
        if self.left == 0 {
            let elapsed = self.earned_until.elapsed().as_millis();
            let earned = u64::try_from(elapsed).unwrap_or(u64::MAX).saturating_mul(ALLOWED_PER_SECOND) / 1000;
            if earned == 0 {
                return false;
            }
            self.earned_until = Instant::now();
            self.left = earned.min(ALLOWED_AT_ONCE);
        }
        self.left -= 1;
        true
    }
}

impl<S> Counted<S> {
    fn receive(&mut self, bytes: &[u8]) {
        let Self { received, allowance, answers_owed, conduct, .. } = self;
        received.follow(bytes, |kind, flags, _| {
            *answers_owed += u64::from(is_asking(kind, flags));
            match kind {
                HEADERS => allowance.earn(ALLOWED_PER_REQUEST),
                DATA | CONTINUATION => {}
                _ if allowance.spend() => {}
                _ => conduct.find(Excess::Frames),
            }
        });
    }

    fn send(&mut self, bytes: &[u8]) {
        let Self { sent, allowance, answers_owed, .. } = self;
        sent.follow(bytes, |kind, flags, length| match kind {
            DATA => allowance.earn(ALLOWED_PER_DATA + length as u64 / BYTES_PER_ALLOWED),
            PING | SETTINGS if flags & ACK != 0 => *answers_owed = answers_owed.saturating_sub(1),
            _ => {}
        });
    }

    /// What came of writing `slices`.
    fn written(&mut self, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>], written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(mut length)) => {
                self.unread = None;
                for slice in slices {
                    let here = length.min(slice.len());
                    self.send(&slice[..here]);
                    length -= here;
                }
            }
            Poll::Pending if self.answers_owed > 0 && self.conduct.excess.get().is_none() => {
                let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(UNREAD_LIMIT)));
                if unread.as_mut().poll(cx).is_ready() {
                    self.conduct.find(Excess::Unread);
                }
            }
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        written
    }
}

/// Whether a frame wants an answer.
fn is_asking(kind: u8, flags: u8) -> bool {
    matches!(kind, PING | SETTINGS) && flags & ACK == 0
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.conduct.excess.get().is_some() {
            // Whoever serves it has been told and ends it.
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        this.receive(&buffer.filled()[before..]);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buffer);
        this.written(cx, &[io::IoSlice::new(buffer)], written)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.written(cx, slices, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
