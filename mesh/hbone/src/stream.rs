//! A tunnel: one CONNECT stream as a stream of bytes each way.
//!
//! The peer gets new credit only when its bytes have gone where they should, so a reader that stalls here makes the application at the
//! other end wait, and nothing piles up. Writing reserves credit first, so nothing piles up on the way out either.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tropis_net::relay::RelayStream;

use crate::connection::StreamGuard;

/// A tunnel, open at both ends. Dropping it before both directions have ended resets it.
pub struct TunnelStream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received but not yet handed over.
    ahead: Ahead,
    /// Handed over, and not yet given back to the peer as credit.
    lent: usize,
    is_finished: bool,
    guard: StreamGuard,
}

/// What was received and has to wait. Small frames are gathered, as each one costs the HTTP/2 layer much more than its bytes.
#[derive(Default)]
struct Ahead {
    chunks: VecDeque<Bytes>,
    small: BytesMut,
}

/// Frames below this are gathered when they have to wait.
const SMALL_BYTES: usize = 1024;

impl Ahead {
    fn push(&mut self, chunk: Bytes) {
        if chunk.len() < SMALL_BYTES {
            self.small.extend_from_slice(&chunk);
        } else {
            self.end_small();
            self.chunks.push_back(chunk);
        }
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.small).freeze());
        }
    }

    /// The next at most `limit` bytes.
    fn pop(&mut self, limit: usize) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.end_small();
        }
        let mut chunk = self.chunks.pop_front()?;
        if chunk.len() > limit {
            let rest = chunk.split_off(limit);
            self.chunks.push_front(rest);
        }
        Some(chunk)
    }
}

impl TunnelStream {
    pub(crate) fn new(send: SendStream<Bytes>, receive: RecvStream, guard: StreamGuard) -> Self {
        Self { send, receive, ahead: Ahead::default(), lent: 0, is_finished: false, guard }
    }

    /// The HTTP/2 stream's number, for logs.
    pub fn id(&self) -> u32 {
        self.send.stream_id().as_u32()
    }

    fn give_back(&mut self) {
        if self.lent > 0 {
            // It fails only when the stream is gone, and its credit with it.
            let _ = self.receive.flow_control().release_capacity(self.lent);
            self.lent = 0;
        }
    }

    /// The next frame; `None` at END_STREAM.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(frame)) if frame.is_empty() => {}
                Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error)))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<Bytes>> {
        self.give_back();
        self.guard.unblock();
        let chunk = match self.ahead.pop(limit) {
            Some(chunk) => chunk,
            None => match ready!(self.poll_frame(cx)).transpose()? {
                None => return Poll::Ready(Ok(Bytes::new())),
                Some(mut frame) => {
                    if frame.len() > limit {
                        self.ahead.chunks.push_front(frame.split_off(limit));
                    }
                    frame
                }
            },
        };
        self.lent = chunk.len();
        Poll::Ready(Ok(chunk))
    }

    fn poll_credit(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let at_hand = self.send.capacity();
        if at_hand > 0 {
            return Poll::Ready(Ok(at_hand));
        }
        self.send.reserve_capacity(wanted);
        loop {
            let at_hand = self.send.capacity();
            if at_hand > 0 {
                self.guard.go_on();
                return Poll::Ready(Ok(at_hand));
            }
            match self.send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
                Poll::Ready(None) => return Poll::Ready(Err(self.ended(cx))),
                Poll::Pending => {
                    self.guard.stall();
                    return Poll::Pending;
                }
            }
        }
    }

    /// Why the stream takes no more data.
    fn ended(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.poll_error(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if !self.is_finished {
            self.send.send_data(Bytes::new(), true).map_err(broken)?;
            self.is_finished = true;
        }
        Ok(())
    }
}

/// A stream that was reset, or whose connection broke, as a TCP reset would be seen.
fn broken(error: h2::Error) -> io::Error {
    let kind = match error.get_io() {
        Some(source) => source.kind(),
        None => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, error)
}

impl RelayStream for TunnelStream {
    fn poll_read_chunk(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<Bytes>> {
        self.poll_receive(cx, limit)
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.poll_credit(cx, wanted)
    }

    fn return_room(&mut self) {
        if !self.is_finished {
            self.send.reserve_capacity(0);
        }
    }

    fn poll_write_chunk(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>> {
        while !chunk.is_empty() {
            let room = ready!(self.poll_credit(cx, chunk.len()))?;
            let part = chunk.split_to(room.min(chunk.len()));
            self.send.send_data(part, false).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.guard.block();
        loop {
            match self.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.ahead.push(frame),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(error),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_error(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => Poll::Ready(broken(reason.into())),
            Poll::Ready(Err(error)) => Poll::Ready(broken(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn reset(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let chunk = ready!(this.poll_receive(cx, buffer.remaining()))?;
        buffer.put_slice(&chunk);
        this.give_back();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_credit(cx, buffer.len()))?;
        let length = room.min(buffer.len());
        this.send.send_data(Bytes::copy_from_slice(&buffer[..length]), false).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_keeps_its_order_whatever_its_size() {
        let mut ahead = Ahead::default();
        let mut expected = Vec::new();
        for (index, length) in [1usize, 2, 5000, 1, 1023, 1024, 3].into_iter().enumerate() {
            let chunk = vec![index as u8; length];
            expected.extend_from_slice(&chunk);
            ahead.push(chunk.into());
        }
        let mut found = Vec::new();
        while let Some(chunk) = ahead.pop(700) {
            assert!(!chunk.is_empty() && chunk.len() <= 700);
            found.extend_from_slice(&chunk);
        }
        assert!(found == expected);
    }
}
