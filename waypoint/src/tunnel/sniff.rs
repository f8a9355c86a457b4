//! What is spoken on a connection: by what its port says, by its first bytes where it does not.

use std::{io, time::Duration};

use bytes::BytesMut;
use http::Method;
use tokio::{io::AsyncReadExt, time::Instant};
use tropis_model::{authorize::request::ServerName, route::PortProtocol};

use crate::{config::HttpLimits, http_server::Spoken, stream::Stream};

/// What a caller of HTTP/2 begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No method that is in use is longer.
const MAX_METHOD_BYTES: usize = 24;
/// A longer ClientHello, with the headers of its records, is not read: real ones have one or two kilobytes.
const MAX_CLIENT_HELLO_BYTES: usize = 16 * 1024;
/// A ClientHello in more records is not read: real ones come in one.
const MAX_CLIENT_HELLO_RECORDS: usize = 16;
/// A longer request line is HTTP's to refuse.
const MAX_REQUEST_LINE_BYTES: usize = 16 * 1024;
/// TLS: a handshake record, and the bytes of a record's header.
const HANDSHAKE: u8 = 22;
const RECORD_HEADER_BYTES: usize = 5;
/// Of a handshake message: its kind and its length.
const MESSAGE_HEADER_BYTES: usize = 4;

/// What is spoken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sniffed {
    /// HTTP.
    Http(Spoken),
    /// Something that is passed on as it is.
    Other {
        /// The server name that it begins with.
        server_name: ServerName<String>,
    },
}

impl Sniffed {
    /// Not HTTP.
    fn other(server_name: ServerName<String>) -> Self {
        Self::Other { server_name }
    }
}

/// Reads as little as it takes, and puts it back.
pub(super) async fn protocol(stream: Stream, declared_as: PortProtocol, limits: &HttpLimits) -> io::Result<(Sniffed, Stream)> {
    // Who says nothing yet may say a name later.
    let unknown = || Sniffed::other(ServerName::Unknown);
    match declared_as {
        PortProtocol::Tcp => Ok((unknown(), stream)),
        PortProtocol::Tls => by_first_bytes(stream, limits.header_timeout, tls, unknown()).await,
        // Whatever the port says of HTTP's version, the preface tells.
        PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Grpc => {
            by_first_bytes(stream, limits.header_timeout, http, Sniffed::Http(Spoken::Http1)).await
        }
        PortProtocol::Auto => by_first_bytes(stream, limits.sniff_wait, anything, unknown()).await,
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
    server_name(seen).map(Sniffed::other)
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
    let other = Some(Sniffed::other(ServerName::Absent));
    let line_end = seen.iter().position(|byte| *byte == b'\n');
    let line = &seen[..line_end.unwrap_or(seen.len())];
    let method_end = line.iter().position(|byte| *byte == b' ');
    let method = &line[..method_end.unwrap_or(line.len())];
    if method.is_empty() || method.len() > MAX_METHOD_BYTES || Method::from_bytes(method).is_err() || !method[0].is_ascii_uppercase() {
        return other;
    }
    match line_end {
        None if line.len() > MAX_REQUEST_LINE_BYTES => Some(Sniffed::Http(Spoken::Http1)),
        None => None,
        Some(_) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let is_http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
            if is_http { Some(Sniffed::Http(Spoken::Http1)) } else { other }
        }
    }
}

/// The server name of a ClientHello (RFC 8446 §4.1.2, RFC 6066 §3), which may be spread over records (RFC 8446 §5.1); `None`: more is
/// needed. What begins as TLS and cannot be read has a name that nobody knows: its server may read more into it.
fn server_name(seen: &[u8]) -> Option<ServerName<String>> {
    if *seen.first()? != HANDSHAKE {
        return Some(ServerName::Absent);
    }
    let mut message = Vec::new();
    let mut rest = seen;
    for _ in 0..MAX_CLIENT_HELLO_RECORDS {
        if seen.len() - rest.len() + RECORD_HEADER_BYTES > MAX_CLIENT_HELLO_BYTES || rest.first().is_some_and(|kind| *kind != HANDSHAKE) {
            return Some(ServerName::Unknown);
        }
        let header = rest.get(..RECORD_HEADER_BYTES)?;
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let end = RECORD_HEADER_BYTES + length;
        if seen.len() - rest.len() + end > MAX_CLIENT_HELLO_BYTES {
            return Some(ServerName::Unknown);
        }
        message.extend_from_slice(rest.get(RECORD_HEADER_BYTES..end)?);
        rest = &rest[end..];
        if let Some(header) = message.get(..MESSAGE_HEADER_BYTES) {
            let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
            if message.len() >= MESSAGE_HEADER_BYTES + length {
                return Some(Reader(&message).server_name().unwrap_or(ServerName::Unknown));
            }
        }
    }
    Some(ServerName::Unknown)
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

    fn server_name(mut self) -> Result<ServerName<String>, TooShort> {
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
        if hello.0.is_empty() {
            return Ok(ServerName::Absent);
        }
        let mut extensions = hello.field(2)?;
        let mut found = ServerName::Absent;
        while !extensions.0.is_empty() {
            let kind = extensions.number(2)?;
            let body = extensions.field(2)?;
            if kind == SERVER_NAME {
                // Said twice, servers may take either.
                found = if found == ServerName::Absent { body.host_name()? } else { ServerName::Unknown };
            }
        }
        Ok(found)
    }

    /// The one name of the extension; what is more or something else is not known.
    fn host_name(mut self) -> Result<ServerName<String>, TooShort> {
        const HOST_NAME: usize = 0;
        let mut names = self.field(2)?;
        let kind = names.number(1)?;
        let name = names.field(2)?.0;
        let is_plain = kind == HOST_NAME && names.0.is_empty() && !name.is_empty() && name.is_ascii() && !name.ends_with(b".");
        Ok(match std::str::from_utf8(name) {
            Ok(name) if is_plain => ServerName::Named(name.to_ascii_lowercase()),
            _ => ServerName::Unknown,
        })
    }
}

#[cfg(test)]
mod tests;
