//! The framing of HTTP/1.1, read strictly beside hyper: where a message ends must be the same for every reader.
//!
//! hyper takes what RFC 9112 allows a server to take: a line that ends without CR, a length beside an encoding, a length said twice, an
//! encoding before `chunked`. Each is how requests are smuggled, and none is what an application means. [`Follower`] follows the messages
//! of a connection and says with which request it can no longer be followed; [`Followed`] shows it the bytes on their way to hyper, and
//! ends a connection whose next head does not come in time. Bodies are skipped, not looked at.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::{stages::identify::Unreadable, stream::Stream};

/// Where in a message we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    /// Before or in the first line of a request.
    #[default]
    RequestLine,
    /// In its headers.
    Headers,
    /// In a body, with so many bytes to come.
    Body(u64),
    /// In the line that says how long a chunk is.
    ChunkSize,
    /// In a chunk, with so many bytes to come.
    Chunk(u64),
    /// Before the line end after a chunk.
    ChunkEnd,
    /// After the last chunk.
    Trailers,
    /// It cannot be followed any more.
    Lost,
}

/// What the headers so far say about the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Framing {
    /// There is none.
    #[default]
    None,
    /// It is so long.
    Length(u64),
    /// It is chunked.
    Chunked,
}

/// Follows the requests in the bytes of a connection.
#[derive(Debug, Default)]
pub(super) struct Follower {
    at: At,
    framing: Framing,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// Heads that have come.
    heads: u64,
    lost: Option<Unreadable>,
    /// Longest line that is kept; what is longer hyper refuses.
    limit: usize,
}

impl Follower {
    /// At the beginning of a connection, where a line is at most `limit` bytes long.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// What is wrong with request `number` (from 1), or with what was before it, so that nobody knows whether it is one.
    pub(super) fn unreadable(&self, number: u64) -> Option<Unreadable> {
        self.lost.filter(|_| number > self.heads)
    }

    /// Which request's head is awaited, if it is one: the first, or one that has begun.
    fn awaited_head(&self) -> Option<u64> {
        (self.is_within_head() || (self.heads == 0 && self.at == At::RequestLine)).then_some(self.heads)
    }

    /// Whether a head has begun to come.
    pub(super) fn is_within_head(&self) -> bool {
        self.at == At::Headers || (self.at == At::RequestLine && !self.line.is_empty())
    }

    /// Takes the next bytes.
    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.at != At::Lost {
            bytes = match self.at {
                At::Body(left) => self.skip(bytes, left, At::Body, At::RequestLine),
                At::Chunk(left) => self.skip(bytes, left, At::Chunk, At::ChunkEnd),
                _ => self.lines(bytes),
            };
        }
    }

    fn skip<'b>(&mut self, bytes: &'b [u8], left: u64, more: fn(u64) -> At, then: At) -> &'b [u8] {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - here as u64;
        self.at = if left == 0 { then } else { more(left) };
        &bytes[here..]
    }

    /// Takes a line, or the beginning of one.
    fn lines<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        let (here, rest) = bytes.split_at(end);
        let is_whole = here.ends_with(b"\n");
        if self.line.len() + here.len() > self.limit {
            self.lose(Unreadable::Ambiguous("a line without end"));
        } else if is_whole && self.line.is_empty() {
            self.take(here);
        } else {
            self.line.extend_from_slice(here);
            if is_whole {
                let line = std::mem::take(&mut self.line);
                self.take(&line);
            }
        }
        rest
    }

    fn take(&mut self, line: &[u8]) {
        match self.next(line) {
            Ok(at) => self.at = at,
            Err(unreadable) => self.lose(unreadable),
        }
    }

    fn lose(&mut self, unreadable: Unreadable) {
        self.at = At::Lost;
        self.lost = Some(unreadable);
        self.line = Vec::new();
    }

    /// Where we are after a line.
    fn next(&mut self, line: &[u8]) -> Result<At, Unreadable> {
        let line = line.strip_suffix(b"\r\n").ok_or(Unreadable::Ambiguous("a line that ends without CR"))?;
        if line.contains(&b'\r') {
            return Err(Unreadable::Ambiguous("a CR within a line"));
        }
        match self.at {
            // Empty lines before a request are skipped (RFC 9112 §2.2).
            At::RequestLine if line.is_empty() => Ok(At::RequestLine),
            At::RequestLine => {
                self.framing = Framing::None;
                Ok(At::Headers)
            }
            At::Headers if line.is_empty() => Ok(self.body()),
            At::Headers => self.header(line).map(|()| At::Headers),
            At::ChunkSize => match chunk_size(line)? {
                0 => Ok(At::Trailers),
                size => Ok(At::Chunk(size)),
            },
            At::ChunkEnd if line.is_empty() => Ok(At::ChunkSize),
            At::ChunkEnd => Err(Unreadable::Ambiguous("a chunk that is longer than it says")),
            At::Trailers if line.is_empty() => Ok(At::RequestLine),
            At::Trailers => Ok(At::Trailers),
            At::Body(_) | At::Chunk(_) | At::Lost => Ok(self.at),
        }
    }

    /// The head has come.
    fn body(&mut self) -> At {
        self.heads += 1;
        match self.framing {
            Framing::None | Framing::Length(0) => At::RequestLine,
            Framing::Length(length) => At::Body(length),
            Framing::Chunked => At::ChunkSize,
        }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Unreadable> {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(Unreadable::Ambiguous("a header on several lines"));
        }
        // What is no header hyper refuses.
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Ok(()) };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let said = if name.eq_ignore_ascii_case(b"content-length") {
            Framing::Length(length(value).ok_or(Unreadable::Ambiguous("a length that is no number"))?)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            Framing::Chunked
        } else {
            return Ok(());
        };
        match (self.framing, said) {
            (Framing::None, Framing::Chunked) if !value.eq_ignore_ascii_case(b"chunked") => Err(Unreadable::Encoding),
            (Framing::None, _) => {
                self.framing = said;
                Ok(())
            }
            (Framing::Length(_), Framing::Length(_)) => Err(Unreadable::Ambiguous("several lengths")),
            (Framing::Chunked, Framing::Chunked) => Err(Unreadable::Ambiguous("several encodings")),
            _ => Err(Unreadable::Ambiguous("a length and an encoding")),
        }
    }
}

/// Plain digits (RFC 9110 §8.6); a sign, a blank or a list is none.
fn length(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// Hexadecimal digits, and perhaps an extension that nobody asks for (RFC 9112 §7.1).
fn chunk_size(line: &[u8]) -> Result<u64, Unreadable> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_number);
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or(Unreadable::Ambiguous("a chunk without a size"))
}

/// A connection that is followed.
pub(super) struct Followed {
    stream: Stream,
    follower: Rc<RefCell<Follower>>,
    header_timeout: Duration,
    /// Ends the wait for a head, and for which.
    timer: Option<(u64, Pin<Box<Sleep>>)>,
}

impl Followed {
    /// The next head must come within `header_timeout` of its first byte; the connection's first, of now.
    pub(super) fn new(stream: Stream, follower: Rc<RefCell<Follower>>, header_timeout: Duration) -> Self {
        Self { stream, follower, header_timeout, timer: None }
    }

    /// The connection, with what was read ahead of its end.
    pub(super) fn into_stream(self, ahead: Bytes) -> Stream {
        self.stream.with_ahead(ahead)
    }

    /// Ready when the wait for a head is over. What a caller does between requests, and how long, is its own affair.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(awaited) = self.follower.borrow().awaited_head() else { return Poll::Pending };
        let deadline = || Instant::now() + self.header_timeout;
        let timer = match &mut self.timer {
            Some((of, timer)) => {
                if *of != awaited {
                    *of = awaited;
                    timer.as_mut().reset(deadline());
                }
                timer
            }
            None => &mut self.timer.insert((awaited, Box::pin(sleep_until(deadline())))).1,
        };
        timer.as_mut().poll(cx).map(|()| io::Error::new(io::ErrorKind::TimedOut, "the head of a request did not come in time"))
    }
}

impl AsyncRead for Followed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                this.follower.borrow_mut().follow(&buffer.filled()[before..]);
                Poll::Ready(read)
            }
            Poll::Pending => this.poll_late(cx).map(Err),
        }
    }
}

impl AsyncWrite for Followed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buffer)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with which request, however the bytes are cut.
    fn fault(text: &str) -> Option<(u64, String)> {
        let found = [1, 2, 3, 7, text.len()].map(|cut| {
            let mut follower = Follower::new(1024);
            text.as_bytes().chunks(cut).for_each(|bytes| follower.follow(bytes));
            follower.lost.map(|lost| (follower.heads + 1, lost.to_string()))
        });
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{text:?}: {found:?}");
        found.into_iter().next().flatten()
    }

    #[test]
    fn plain_requests_are_followed_to_the_last() {
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\nab\r\nc\r\n1 \r\n\n\r\n0\r\nx-trailer: 1\r\n\r\n";
        let counted = "POST / HTTP/1.1\r\ncontent-length:  8 \r\n\r\n\nGET / \n\r\nGET / HTTP/1.1\r\n\r\n";
        assert_eq!(fault(&chunked.repeat(3)), None);
        assert_eq!(fault(&counted.repeat(3)), None);
        let text = format!("{chunked}{counted}GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\n\r\n");
        assert_eq!(fault(&text), Some((5, "a line that ends without CR".to_owned())));
    }

    #[test]
    fn what_can_be_cut_in_two_ways_is_told() {
        for (headers, expected) in [
            ("content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "a length and an encoding"),
            ("transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", "a length and an encoding"),
            ("content-length: 1\r\ncontent-length: 1\r\n\r\n", "several lengths"),
            ("content-length: 1, 1\r\n\r\n", "a length that is no number"),
            ("content-length: +1\r\n\r\n", "a length that is no number"),
            ("content-length: 18446744073709551616\r\n\r\n", "a length that is no number"),
            ("content-length:\r\n\r\n", "a length that is no number"),
            ("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", "several encodings"),
            ("transfer-encoding: gzip, chunked\r\n\r\n", "a transfer encoding that is not chunked"),
            ("transfer-encoding: chunked, identity\r\n\r\n", "a transfer encoding that is not chunked"),
            ("x: 1\r\n y\r\n\r\n", "a header on several lines"),
            ("x: 1\ry\r\n\r\n", "a CR within a line"),
            ("x: 1\n\r\n", "a line that ends without CR"),
        ] {
            assert_eq!(fault(&format!("POST / HTTP/1.1\r\n{headers}")), Some((1, expected.to_owned())), "{headers:?}");
        }
        for (body, expected) in [
            ("5\r\nabcdef\r\n0\r\n\r\n", "a chunk that is longer than it says"),
            ("-1\r\n", "a chunk without a size"),
            ("\r\n", "a chunk without a size"),
            ("0x5\r\n", "a chunk without a size"),
            ("10000000000000000\r\n", "a chunk without a size"),
            ("5\nabcde\r\n", "a line that ends without CR"),
        ] {
            let text = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{body}");
            assert_eq!(fault(&text), Some((2, expected.to_owned())), "{body:?}");
        }
    }

    #[test]
    fn a_line_that_never_ends_is_not_kept() {
        let mut follower = Follower::new(1024);
        for _ in 0..100 {
            follower.follow(&[b'a'; 100]);
        }
        assert!(follower.line.capacity() < 2048 && follower.unreadable(1).is_some());
    }
}
