//! Requests of HTTP/1.1, written by hand so that the client costs as little as possible, and answers read just far enough.

use tropis_tests::testkit::{FailureKind, Step};

use super::ask::Ask;
use crate::client::readable;
use crate::connection::{Connection, Failure};

/// Largest head or body of an answer.
const ANSWER_BYTES: usize = 1 << 20;
/// By so much the room for answers grows.
const READ_BYTES: usize = 16 * 1024;

/// The bytes of a request.
pub(super) fn request(ask: &Ask, authority: &str, keep_alive: bool) -> Vec<u8> {
    let keep_alive = if keep_alive { "keep-alive" } else { "close" };
    let mut head = format!("GET {} HTTP/1.1\r\nhost: {authority}\r\nconnection: {keep_alive}\r\n", ask.path).into_bytes();
    for (name, value) in ask.fields() {
        head.extend_from_slice(format!("{name}: ").as_bytes());
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Writes the request and reads one answer with a `content-length`; gives the length of its body. `buffer` is room to read into, which
/// grows as it must.
pub(super) async fn ask(connection: &mut Connection, buffer: &mut Vec<u8>, request: &[u8]) -> Result<usize, Failure> {
    connection.send(request).await?;
    let (mut filled, mut end) = (0, None);
    loop {
        if end.is_none() {
            end = answer_end(&buffer[..filled])?;
        }
        if let Some((whole, length)) = end {
            match filled.cmp(&whole) {
                std::cmp::Ordering::Equal => return Ok(length),
                std::cmp::Ordering::Greater => return Err(Failure::mismatch("more bytes than the answer has")),
                std::cmp::Ordering::Less => {}
            }
        }
        if filled >= ANSWER_BYTES {
            return Err(Failure::mismatch("an answer of more than 1 MiB"));
        }
        if filled == buffer.len() {
            buffer.resize(filled + READ_BYTES, 0);
        }
        match connection.receive(&mut buffer[filled..]).await? {
            0 => return Err(Failure::new(FailureKind::Closed, Step::Receive, "the answer was cut")),
            length => filled += length,
        }
    }
}

/// Where the answer ends, and how long its body is; none before its head is there.
fn answer_end(buffer: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
    let Some(head_end) = head_end(buffer) else { return Ok(None) };
    let head = &buffer[..head_end];
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(Failure::mismatch(readable(head.split(|byte| *byte == b'\r').next().unwrap_or_default())));
    }
    let length = content_length(head).ok_or_else(|| Failure::mismatch("an answer without content-length"))?;
    Ok(Some((head_end + length, length)))
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn content_length(head: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(head).ok()?;
    let named =
        |line: &str| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, v)| v.to_owned());
    text.lines().find_map(named)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_understood() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\ndate: x\r\n\r\npong";
        let end = head_end(answer);
        assert_eq!(end, Some(answer.len() - 4));
        assert_eq!(content_length(&answer[..answer.len() - 4]), Some(4));
        assert_eq!(head_end(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\n\r\n"), None);
        assert_eq!(answer_end(answer).expect("200"), Some((answer.len(), 4)));
        assert!(answer_end(b"HTTP/1.1 503 no\r\n\r\n").is_err());
    }

    #[test]
    fn requests_have_their_fields() {
        let ask: Ask = "/a?b=1 end-user:jason".parse().expect("valid");
        let text = String::from_utf8(request(&ask, "x:1", true)).expect("text");
        assert!(text.starts_with("GET /a?b=1 HTTP/1.1\r\nhost: x:1\r\nconnection: keep-alive\r\n"), "{text}");
        assert!(text.ends_with("end-user: jason\r\n\r\n"), "{text}");
    }
}
