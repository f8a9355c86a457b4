//! The cluster DNS: a real server at the tenth service address, UDP and TCP, both families. It knows the cluster's names and has
//! no upstream. What it answers is in [`answers`].

pub mod answers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::Snapshot;
use crate::network::namespace::Namespace;
use answers::Names;

/// Where it listens, in the control namespace; the service address leads here.
pub const PORT: u16 = 53;
/// What a question over UDP may be at most.
const DATAGRAM_BYTES: usize = 4096;
/// What an answer over UDP may be at most unless the question allows more (RFC 1035 §4.2.1).
const PLAIN_ANSWER_BYTES: usize = 512;
/// How long a TCP connection may stay without a question.
const IDLE: Duration = Duration::from_secs(10);

/// Starts serving on `addresses` inside `namespace`.
pub fn start(
    namespace: &Namespace,
    addresses: &[SocketAddr],
    snapshots: watch::Receiver<Arc<Snapshot>>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut tasks = Vec::new();
    for address in addresses.iter().copied() {
        let (udp, tcp) =
            namespace.run(|| -> io::Result<_> { Ok((std::net::UdpSocket::bind(address)?, std::net::TcpListener::bind(address)?)) })??;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        tasks.push(tokio::spawn(serve_datagrams(udp, snapshots.clone())));
        tasks.push(tokio::spawn(serve_connections(tcp, snapshots.clone())));
    }
    Ok(tasks)
}

async fn serve_datagrams(socket: UdpSocket, snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Some((question, answer)) = answer(&buffer[..length], &snapshots) else { continue };
        let limit = usize::from(question.max_payload()).max(PLAIN_ANSWER_BYTES);
        let bytes = answer.to_vec().ok().filter(|bytes| bytes.len() <= limit).or_else(|| answer.truncate().to_vec().ok());
        if let Some(bytes) = bytes {
            let _ = socket.send_to(&bytes, from).await;
        }
    }
}

async fn serve_connections(listener: TcpListener, snapshots: watch::Receiver<Arc<Snapshot>>) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_connection(stream, snapshots.clone()));
        }
    }
}

async fn serve_connection(mut stream: TcpStream, snapshots: watch::Receiver<Arc<Snapshot>>) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await?;
        let Some((_, answer)) = answer(&question, &snapshots) else { return Ok(()) };
        let bytes = answer.to_vec().map_err(io::Error::other)?;
        stream.write_u16(u16::try_from(bytes.len()).map_err(io::Error::other)?).await?;
        stream.write_all(&bytes).await?;
    }
}

fn answer(bytes: &[u8], snapshots: &watch::Receiver<Arc<Snapshot>>) -> Option<(Message, Message)> {
    let question = Message::from_vec(bytes).ok()?;
    let snapshot = snapshots.borrow().clone();
    let answer = Names { services: &snapshot.services }.answer(&question)?;
    Some((question, answer))
}
