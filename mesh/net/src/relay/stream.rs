//! What the relay asks of a side, and how a TCP socket gives it. A tunnel gives it in `tropis-hbone`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{block, sockets};

/// A side of a relay: a stream of chunks each way. Chunks are handed over, not copied, where both sides can.
///
/// The order of calls in a direction is room, read (on the other side), write, and again room: so nothing is read that has no place
/// to go.
pub trait RelayStream: Unpin {
    /// What has arrived, at most `limit` bytes (never 0); empty means FIN. Asking again says that the chunk before went where it
    /// should: a tunnel gives its peer new credit then.
    fn poll_read_chunk(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<Bytes>>;

    /// How many bytes may be written now, at least 1; `wanted` is a hint for sides that have to reserve.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>>;

    /// There is nothing to write after all: others may have what was reserved.
    fn return_room(&mut self) {}

    /// Takes bytes from the front of `chunk`. Ready when it is empty.
    fn poll_write_chunk(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>>;

    /// Nothing more comes for now: what was written should be on its way.
    fn poll_flush_chunks(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Passes a FIN on, after everything written.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Asked while the other side takes nothing, so reading has to wait: has this side broken meanwhile?
    fn poll_broken(&mut self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }

    /// Asked now and then when this side has sent its FIN, so reading tells nothing more: has it been reset since?
    fn poll_error(&mut self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }

    /// Makes the close that follows a reset instead of an orderly end.
    fn reset(&mut self);
}

impl RelayStream for TcpStream {
    fn poll_read_chunk(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<Bytes>> {
        block::read_with(limit, |buffer| Pin::new(self).poll_read(cx, buffer))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, _wanted: usize) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_ready(cx))?;
        Poll::Ready(Ok(usize::MAX))
    }

    fn poll_write_chunk(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>> {
        poll_write_all(self, cx, chunk)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }

    fn poll_error(&mut self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        match self.take_error() {
            Ok(None) => Poll::Pending,
            Ok(Some(error)) | Err(error) => Poll::Ready(error),
        }
    }

    fn reset(&mut self) {
        // It fails only when there is nobody left to tell.
        let _ = sockets::set_linger_reset(self);
    }
}

/// Any other byte stream as a side of a relay. It has no reset: closing is all it can do.
#[derive(Debug)]
pub struct Plain<T>(pub T);

impl<T: AsyncRead + AsyncWrite + Unpin> RelayStream for Plain<T> {
    fn poll_read_chunk(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<Bytes>> {
        block::read_with(limit, |buffer| Pin::new(&mut self.0).poll_read(cx, buffer))
    }

    fn poll_room(&mut self, _cx: &mut Context<'_>, _wanted: usize) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(PLAIN_ROOM_BYTES))
    }

    fn poll_write_chunk(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>> {
        poll_write_all(&mut self.0, cx, chunk)
    }

    fn poll_flush_chunks(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn reset(&mut self) {}
}

/// What is read for a side that cannot say how much it takes; a chunk waits for it at most.
const PLAIN_ROOM_BYTES: usize = 64 * 1024;

fn poll_write_all<T: AsyncWrite + Unpin>(stream: &mut T, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>> {
    while !chunk.is_empty() {
        let written = ready!(Pin::new(&mut *stream).poll_write(cx, chunk))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        chunk.advance(written);
    }
    Poll::Ready(Ok(()))
}
