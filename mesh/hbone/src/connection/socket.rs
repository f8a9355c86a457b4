//! The TCP socket under TLS: big reads, and writes gathered until a turn of the connection is over.
//!
//! TLS reads a few kilobytes at a time and HTTP/2 flushes after each frame, so left to themselves they make many small system calls.
//! Here a read takes what the kernel has (up to [`READ_BYTES`], into the thread's block), and what is written is kept until the driver
//! has let all streams write, then sent at once. A large write goes straight to the kernel.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tropis_net::relay::RelayStream;

/// The most that one read takes.
const READ_BYTES: usize = 256 * 1024;
/// More than this is not gathered.
const GATHER_BYTES: usize = 256 * 1024;
/// A write of this size is not worth a copy when nothing waits before it.
const DIRECT_BYTES: usize = 32 * 1024;

/// What TLS reads from and writes to.
pub(crate) struct TunnelSocket {
    output: Output,
    /// Read and not yet taken.
    ahead: Bytes,
}

/// The writing side, which the driver of the connection flushes at the end of its turn.
#[derive(Clone)]
pub(crate) struct Output {
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    stream: TcpStream,
    gathered: Vec<u8>,
    sent: usize,
    /// Writes go through at once: before there is a driver, and when the connection ends.
    is_direct: bool,
}

impl TunnelSocket {
    /// Wraps a connected socket. Until [`Output::gather`] is called, it writes through.
    pub(crate) fn new(stream: TcpStream) -> Self {
        let shared = Shared { stream, gathered: Vec::new(), sent: 0, is_direct: true };
        Self { output: Output { shared: Rc::new(RefCell::new(shared)) }, ahead: Bytes::new() }
    }

    /// A handle on the writing side.
    pub(crate) fn output(&self) -> Output {
        self.output.clone()
    }
}

impl Output {
    /// From now on writes are gathered, and the caller promises to call [`Self::poll_send`] after each turn.
    pub(crate) fn gather(&self) {
        self.shared.borrow_mut().is_direct = false;
    }

    /// Sends what was gathered. Ready when nothing waits.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.borrow_mut().poll_send(cx)
    }
}

impl Shared {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.gathered.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.gathered[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.sent = 0;
        // An idle connection keeps only a small buffer.
        if self.gathered.capacity() > DIRECT_BYTES {
            self.gathered = Vec::new();
        } else {
            self.gathered.clear();
        }
        Poll::Ready(Ok(()))
    }

    fn waiting(&self) -> usize {
        self.gathered.len() - self.sent
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.is_direct || (self.waiting() == 0 && length >= DIRECT_BYTES) {
            ready!(self.poll_send(cx))?;
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        if self.waiting() + length > GATHER_BYTES && self.waiting() > 0 {
            ready!(self.poll_send(cx))?;
            return self.poll_write(cx, slices);
        }
        if self.sent > self.waiting() {
            // Under steady load there may never be a moment when nothing waits.
            self.gathered.drain(..self.sent);
            self.sent = 0;
        }
        for slice in slices {
            self.gathered.extend_from_slice(slice);
        }
        Poll::Ready(Ok(length))
    }
}

impl AsyncRead for TunnelSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            this.ahead = ready!(this.output.shared.borrow_mut().stream.poll_read_chunk(cx, READ_BYTES))?;
        }
        let length = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[..length]);
        this.ahead.advance(length);
        if this.ahead.is_empty() {
            // Lets the thread's block be used again.
            this.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.output.shared.borrow_mut().poll_write(cx, &[io::IoSlice::new(buffer)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.output.shared.borrow_mut().poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.output.shared.borrow_mut();
        // While gathering, the turn's end is the driver's to know.
        if shared.is_direct { shared.poll_send(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.output.shared.borrow_mut();
        ready!(shared.poll_send(cx))?;
        Pin::new(&mut shared.stream).poll_shutdown(cx)
    }
}
