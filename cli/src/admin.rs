//! Asking a program over its unix socket: one HTTP request, bounded in time and size.

use std::{io, path::Path, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// So long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A larger answer is refused: a dump of 10 000 pods has about 20 MiB.
const ANSWER_MAX_BYTES: usize = 512 << 20;

/// GETs JSON.
pub(crate) async fn json(socket: &Path, target: &str) -> anyhow::Result<Value> {
    let answer = ask(Method::GET, socket, target).await?;
    serde_json::from_slice(&answer).with_context(|| format!("{}{target} did not answer with JSON", socket.display()))
}

/// POSTs without a body, and gives the text of the answer.
pub(crate) async fn post(socket: &Path, target: &str) -> anyhow::Result<String> {
    let answer = ask(Method::POST, socket, target).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn ask(method: Method, socket: &Path, target: &str) -> anyhow::Result<Bytes> {
    let answer = tokio::time::timeout(PATIENCE, exchange(method, socket, target)).await;
    answer.with_context(|| format!("{} did not answer within {} s", socket.display(), PATIENCE.as_secs()))?
}

async fn exchange(method: Method, socket: &Path, target: &str) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(socket).await.map_err(|error| refused(socket, &error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("HTTP over the admin socket")?;
    let serving = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(target).header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.with_context(|| format!("ask {}", socket.display()))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("read the answer of {}: {error}", socket.display()))?.to_bytes();
    serving.abort();
    if status != StatusCode::OK {
        bail!("{} answered {status} to {target}: {}", socket.display(), String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

fn refused(socket: &Path, error: &io::Error) -> anyhow::Error {
    let next = match error.kind() {
        io::ErrorKind::PermissionDenied => "admin sockets are their program's own: run this as root (sudo)",
        io::ErrorKind::ConnectionRefused => "the program is gone; `tropis logs PROGRAM` shows its last words",
        _ => "is the program running? `tropis version` lists what is",
    };
    anyhow::anyhow!("cannot ask {}: {error}\n{next}", socket.display())
}

/// Text as a part of a query.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_without_a_program_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ztunnel.a.sock");
        assert!(json(&path, "/").await.unwrap_err().to_string().contains("is the program running?"));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(json(&path, "/").await.unwrap_err().to_string().contains("tropis logs"));
    }

    #[test]
    fn a_filter_survives_the_query() {
        assert_eq!(escaped("info,rbac=debug"), "info%2Crbac%3Ddebug");
    }
}
