//! The plain TCP roles of `serve`: a function a protocol. Each notes in its [`Transfer`] what it moved, also when it fails half-way.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Accepted, Server};
use crate::bytes::{BLOCK_BYTES, Pattern, Tally};

/// Longest request line of a role.
const LINE_BYTES: usize = 128;
/// Results that a farewell greeting repeats; older ones are forgotten.
const FAREWELLS_KEPT: usize = 64;

/// What a connection moved.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) sha256: Option<String>,
}

impl Transfer {
    /// Notes a payload and gives the line `COUNT SHA256` that answers it.
    fn received(&mut self, tally: Tally) -> String {
        self.received = tally.bytes();
        let digest = tally.digest();
        let line = format!("{} {digest}\n", self.received);
        self.sha256 = Some(digest);
        line
    }
}

pub(super) async fn echo(connection: &mut Accepted, transfer: &mut Transfer) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let length = connection.stream.read(&mut buffer).await?;
        if length == 0 {
            return connection.stream.shutdown().await;
        }
        transfer.received += length as u64;
        connection.stream.write_all(&buffer[..length]).await?;
        transfer.sent += length as u64;
    }
}

pub(super) async fn server_first(server: &Server, connection: &mut Accepted, transfer: &mut Transfer) -> io::Result<()> {
    let banner = format!("hello {}, here is {}\n", connection.peer, server.pod);
    connection.stream.write_all(banner.as_bytes()).await?;
    echo(connection, transfer).await
}

pub(super) async fn half_close(connection: &mut Accepted, transfer: &mut Transfer) -> io::Result<()> {
    let tally = drain(&mut connection.stream, transfer, None).await?;
    let answer = transfer.received(tally);
    reply(connection, transfer, &answer).await
}

pub(super) async fn slow_reader(server: &Server, connection: &mut Accepted, transfer: &mut Transfer) -> io::Result<()> {
    let mut buffer = vec![0; server.slow_bytes];
    let mut tally = Tally::default();
    loop {
        let length = connection.stream.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        tally.add(&buffer[..length]);
        transfer.received = tally.bytes();
        tokio::time::sleep(server.slow_pause).await;
    }
    let answer = transfer.received(tally);
    reply(connection, transfer, &answer).await
}

pub(super) async fn sink(connection: &mut Accepted, transfer: &mut Transfer) -> io::Result<()> {
    let count: u64 = read_line(&mut connection.stream).await?.trim().parse().map_err(invalid)?;
    let tally = drain(&mut connection.stream, transfer, Some(count)).await?;
    let answer = transfer.received(tally);
    reply(connection, transfer, &answer).await
}

pub(super) async fn source(connection: &mut Accepted, transfer: &mut Transfer) -> io::Result<()> {
    let line = read_line(&mut connection.stream).await?;
    let (count, seed) = line.trim().split_once(' ').ok_or_else(|| invalid("the line is not COUNT SEED"))?;
    let mut left: u64 = count.parse().map_err(invalid)?;
    let mut pattern = Pattern::new(seed.parse().map_err(invalid)?);
    let mut buffer = vec![0; BLOCK_BYTES];
    while left > 0 {
        let length = left.min(BLOCK_BYTES as u64) as usize;
        pattern.fill(&mut buffer[..length]);
        connection.stream.write_all(&buffer[..length]).await?;
        transfer.sent += length as u64;
        left -= length as u64;
    }
    connection.stream.shutdown().await?;
    // Reading to the client's end keeps our close from resetting what is still on its way.
    drain(&mut connection.stream, transfer, None).await.map(|_| ())
}

pub(super) async fn discard(connection: &mut Accepted, transfer: &mut Transfer) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let length = connection.stream.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        transfer.received += length as u64;
    }
    let answer = format!("{}\n", transfer.received);
    reply(connection, transfer, &answer).await
}

/// What the farewell role heard after it had finished its own direction, newest last.
#[derive(Debug, Default)]
pub(super) struct Farewells(Mutex<VecDeque<Heard>>);

/// The greeting line of the farewell role, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FarewellGreeting {
    /// Number of this connection.
    pub(crate) number: u64,
    /// What earlier connections sent.
    pub(crate) heard: Vec<Heard>,
}

/// What one connection of the farewell role sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heard {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Farewells {
    fn add(&self, heard: Heard) {
        let mut kept = self.0.lock().expect("nothing panics while it is held");
        if kept.len() == FAREWELLS_KEPT {
            kept.pop_front();
        }
        kept.push_back(heard);
    }

    fn all(&self) -> Vec<Heard> {
        self.0.lock().expect("nothing panics while it is held").iter().cloned().collect()
    }
}

pub(super) async fn farewell(server: &Server, connection: &mut Accepted, transfer: &mut Transfer) -> io::Result<()> {
    let greeting = FarewellGreeting { number: connection.number, heard: server.farewells.all() };
    let mut line = serde_json::to_string(&greeting).map_err(invalid)?;
    line.push('\n');
    connection.stream.write_all(line.as_bytes()).await?;
    transfer.sent = line.len() as u64;
    connection.stream.shutdown().await?;
    let tally = drain(&mut connection.stream, transfer, None).await?;
    transfer.received(tally);
    let sha256 = transfer.sha256.clone().unwrap_or_default();
    server.farewells.add(Heard { number: connection.number, bytes: transfer.received, sha256 });
    Ok(())
}

/// Reads `count` bytes, or to the end.
async fn drain(stream: &mut TcpStream, transfer: &mut Transfer, count: Option<u64>) -> io::Result<Tally> {
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut tally = Tally::default();
    while count.is_none_or(|count| tally.bytes() < count) {
        let wanted = count.map_or(BLOCK_BYTES, |count| (count - tally.bytes()).min(BLOCK_BYTES as u64) as usize);
        let length = stream.read(&mut buffer[..wanted]).await?;
        if length == 0 {
            return if count.is_some() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(tally) };
        }
        tally.add(&buffer[..length]);
        transfer.received = tally.bytes();
    }
    Ok(tally)
}

async fn reply(connection: &mut Accepted, transfer: &mut Transfer, answer: &str) -> io::Result<()> {
    connection.stream.write_all(answer.as_bytes()).await?;
    transfer.sent += answer.len() as u64;
    connection.stream.shutdown().await
}

/// Reads one short line, a byte at a time: what follows it belongs to the payload.
async fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return String::from_utf8(line).map_err(invalid),
            byte => line.push(byte),
        }
        if line.len() > LINE_BYTES {
            return Err(invalid("the request line is too long"));
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
