//! What is spoken on a connection: by what its port says, by its first bytes where it does not.

use std::{io, time::Duration};

use bytes::BytesMut;
use http::Method;
use tokio::{io::AsyncReadExt, time::Instant};
use tropis_model::route::PortProtocol;

use crate::{config::HttpLimits, http_server::Spoken, stream::Stream};

/// What a caller of HTTP/2 begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No method that is in use is longer.
const MAX_METHOD_BYTES: usize = 24;
/// A client's first TLS message fits in one record.
const MAX_CLIENT_HELLO_BYTES: usize = 16 * 1024 + 5;
/// TLS: a handshake record.
const HANDSHAKE: u8 = 22;

/// What is spoken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sniffed {
    /// HTTP.
    Http(Spoken),
    /// Something that is passed on as it is.
    Other {
        /// The server name of a TLS connection.
        server_name: Option<String>,
    },
}

/// Reads as little as it takes, and puts it back.
pub(super) async fn protocol(stream: Stream, declared_as: PortProtocol, limits: &HttpLimits) -> io::Result<(Sniffed, Stream)> {
    match declared_as {
        PortProtocol::Tcp => Ok((Sniffed::Other { server_name: None }, stream)),
        PortProtocol::Tls => by_first_bytes(stream, limits.header_timeout, tls, Sniffed::Other { server_name: None }).await,
        // Whatever the port says of HTTP's version, the preface tells.
        PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Grpc => {
            by_first_bytes(stream, limits.header_timeout, http, Sniffed::Http(Spoken::Http1)).await
        }
        PortProtocol::Auto => by_first_bytes(stream, limits.sniff_wait, anything, Sniffed::Other { server_name: None }).await,
    }
}

/// Reads until `decide` knows; `otherwise` when the caller has said all, or nothing more for as long as we `wait`.
async fn by_first_bytes(
    mut stream: Stream,
    wait: Duration,
    decide: impl Fn(&[u8]) -> Option<Sniffed>,
    otherwise: Sniffed,
) -> io::Result<(Sniffed, Stream)> {
    let deadline = Instant::now() + wait;
    let mut seen = BytesMut::new();
    loop {
        let read = tokio::time::timeout_at(deadline, stream.read_buf(&mut seen)).await;
        let is_over = match read {
            Ok(read) => read? == 0,
            Err(_) => true,
        };
        match decide(&seen) {
            Some(sniffed) => return Ok((sniffed, stream.with_ahead(seen.freeze()))),
            None if is_over => return Ok((otherwise, stream.with_ahead(seen.freeze()))),
            None => {}
        }
    }
}

fn http(seen: &[u8]) -> Option<Sniffed> {
    let length = seen.len().min(PREFACE.len());
    match seen[..length] == PREFACE[..length] {
        true if length == PREFACE.len() => Some(Sniffed::Http(Spoken::Http2)),
        true => None,
        false => Some(Sniffed::Http(Spoken::Http1)),
    }
}

fn tls(seen: &[u8]) -> Option<Sniffed> {
    match client_hello(seen) {
        ClientHello::Incomplete => None,
        ClientHello::Read { server_name } => Some(Sniffed::Other { server_name }),
        ClientHello::None => Some(Sniffed::Other { server_name: None }),
    }
}

fn anything(seen: &[u8]) -> Option<Sniffed> {
    if seen.is_empty() {
        return None;
    }
    if seen[0] == HANDSHAKE {
        return tls(seen);
    }
    let length = seen.len().min(PREFACE.len());
    if seen[..length] == PREFACE[..length] {
        return (length == PREFACE.len()).then_some(Sniffed::Http(Spoken::Http2));
    }
    request_line(seen)
}

/// `METHOD TARGET HTTP/1.`: the whole line is looked at, since words and blanks begin other protocols too.
fn request_line(seen: &[u8]) -> Option<Sniffed> {
    let other = Some(Sniffed::Other { server_name: None });
    let line_end = seen.iter().position(|byte| *byte == b'\n');
    let line = &seen[..line_end.unwrap_or(seen.len())];
    let method_end = line.iter().position(|byte| *byte == b' ');
    let method = &line[..method_end.unwrap_or(line.len())];
    if method.is_empty() || method.len() > MAX_METHOD_BYTES || Method::from_bytes(method).is_err() || !method[0].is_ascii_uppercase() {
        return other;
    }
    match line_end {
        None if line.len() > MAX_CLIENT_HELLO_BYTES => Some(Sniffed::Http(Spoken::Http1)),
        None => None,
        Some(_) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let is_http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
            if is_http { Some(Sniffed::Http(Spoken::Http1)) } else { other }
        }
    }
}

/// What the first bytes of a TLS connection say.
#[derive(Debug, PartialEq, Eq)]
enum ClientHello {
    /// More is needed.
    Incomplete,
    /// It was read.
    Read { server_name: Option<String> },
    /// It is none.
    None,
}

/// Reads the server name of a ClientHello (RFC 8446 §4.1.2, RFC 6066 §3).
fn client_hello(seen: &[u8]) -> ClientHello {
    if seen.first().is_some_and(|first| *first != HANDSHAKE) {
        return ClientHello::None;
    }
    let Some(header) = seen.get(..5) else { return ClientHello::Incomplete };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length + 5 > MAX_CLIENT_HELLO_BYTES {
        return ClientHello::None;
    }
    let Some(record) = seen.get(5..5 + length) else { return ClientHello::Incomplete };
    match Reader(record).server_name() {
        Ok(server_name) => ClientHello::Read { server_name },
        Err(TooShort) => ClientHello::None,
    }
}

struct TooShort;

/// Takes fields from the front of bytes.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> Result<&'b [u8], TooShort> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TooShort)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, bytes: usize) -> Result<usize, TooShort> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// A field that says its length in so many bytes.
    fn field(&mut self, length_bytes: usize) -> Result<Reader<'b>, TooShort> {
        let length = self.number(length_bytes)?;
        self.take(length).map(Reader)
    }

    fn server_name(mut self) -> Result<Option<String>, TooShort> {
        const CLIENT_HELLO: usize = 1;
        const SERVER_NAME: usize = 0;
        if self.number(1)? != CLIENT_HELLO {
            return Err(TooShort);
        }
        let mut hello = self.field(3)?;
        hello.take(2 + 32)?;
        hello.field(1)?;
        hello.field(2)?;
        hello.field(1)?;
        let Ok(mut extensions) = hello.field(2) else { return Ok(None) };
        while !extensions.0.is_empty() {
            let kind = extensions.number(2)?;
            let mut body = extensions.field(2)?;
            if kind == SERVER_NAME {
                let mut names = body.field(2)?;
                names.number(1)?;
                let name = names.field(2)?.0;
                return Ok(std::str::from_utf8(name).ok().filter(|name| name.is_ascii()).map(str::to_ascii_lowercase));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
