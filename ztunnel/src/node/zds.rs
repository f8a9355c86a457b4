//! The ZDS client: the node agent tells us over a unix socket which pods to serve, and hands over their network namespaces.
//!
//! One protobuf message is one SOCK_SEQPACKET packet; each is answered before the next comes. What a message means for the pods is
//! [`super::pods`]'s business. While nobody answers on the socket, everything that runs keeps running, and we try again.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg, send, socket},
    unistd::close,
};
use prost::Message;
use thiserror::Error;
use tokio::{io::Interest, net::UnixStream};
use tropis_net::namespace::NetworkNamespace;
use tropis_proto::zds::{Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request::Payload, workload_response};
use tropis_telemetry::chain;

use super::{PodInfo, pods::Pods};

/// Packets are at most this long, in both directions (what Istio's ends read).
const MAX_PACKET_BYTES: usize = 1024;
/// An acknowledgement's error text must leave room for its frame.
const MAX_ERROR_BYTES: usize = 900;
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
const BACKOFF_LAST: Duration = Duration::from_secs(15);
/// Pods that could not be started are tried again this often.
const PENDING_RETRY: Duration = Duration::from_secs(5);

/// The connection to the node agent ended. It is made again.
#[derive(Debug, Error)]
pub enum ZdsError {
    /// Nobody listens there.
    #[error("cannot connect to the node agent at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What connect(2) said.
        #[source]
        cause: io::Error,
    },
    /// Reading or writing failed.
    #[error("the connection to the node agent broke")]
    Broken(#[source] io::Error),
    /// The agent closed it.
    #[error("the node agent closed the connection")]
    Closed,
    /// A packet was longer than agreed, or had more descriptors.
    #[error("the node agent sent a packet that is too long")]
    TooLong,
    /// Not a message.
    #[error("the node agent sent a packet that cannot be read")]
    Unreadable(#[source] prost::DecodeError),
    /// A message that does not belong here. It was refused.
    #[error("the node agent broke the protocol: {0}")]
    Protocol(&'static str),
}

/// Keeps the connection to the node agent up, for ever.
pub async fn run(path: &Path, mut pods: Pods) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let mut productive = false;
        let ended = session(path, &mut pods, &mut productive).await;
        pods.disconnected();
        if productive {
            backoff = BACKOFF_FIRST;
        }
        match ended {
            ZdsError::Connect { .. } => tracing::debug!(error = chain(&ended), retry = ?backoff, "waiting for the node agent"),
            _ => tracing::warn!(error = chain(&ended), "node agent lost; pods are served on"),
        }
        let pause = tokio::time::sleep(backoff);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                () = pods.follow_view() => {}
            }
        }
        backoff = (backoff * 2).min(BACKOFF_LAST);
    }
}

async fn session(path: &Path, pods: &mut Pods, productive: &mut bool) -> ZdsError {
    let connection = match Connection::open(path) {
        Ok(connection) => connection,
        Err(cause) => return ZdsError::Connect { path: path.to_owned(), cause },
    };
    if let Err(error) = connection.send(&ZdsHello { version: Version::V1.into() }.encode_to_vec()).await {
        return ZdsError::Broken(error);
    }
    tracing::info!(socket = %path.display(), "node agent connected");
    pods.connected();
    let mut retry = tokio::time::interval(PENDING_RETRY);
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let packet = tokio::select! {
            packet = connection.receive() => packet,
            _ = retry.tick() => {
                pods.retry_pending().await;
                continue;
            }
            () = pods.follow_view() => continue,
        };
        let packet = match packet {
            Ok(packet) => packet,
            Err(ended) => return ended,
        };
        *productive = true;
        let handled = handle(pods, packet).await;
        let error = match &handled {
            Ok(()) => String::new(),
            Err(Refusal::Message(error)) => error.clone(),
            Err(Refusal::Connection(error)) => chain(error),
        };
        if let Err(broken) = connection.send(&acknowledgement(&error)).await {
            return ZdsError::Broken(broken);
        }
        if let Err(Refusal::Connection(ended)) = handled {
            return ended;
        }
    }
}

fn acknowledgement(error: &str) -> Vec<u8> {
    let error = error.chars().scan(0, |bytes, next| {
        *bytes += next.len_utf8();
        (*bytes <= MAX_ERROR_BYTES).then_some(next)
    });
    WorkloadResponse { payload: Some(workload_response::Payload::Ack(Ack { error: error.collect() })) }.encode_to_vec()
}

/// Why a message was refused.
enum Refusal {
    /// This message only; the agent sends it again or not.
    Message(String),
    /// The two sides no longer understand each other.
    Connection(ZdsError),
}

async fn handle(pods: &mut Pods, packet: Packet) -> Result<(), Refusal> {
    let protocol = |text| Refusal::Connection(ZdsError::Protocol(text));
    let request = WorkloadRequest::decode(&*packet.bytes).map_err(|cause| Refusal::Connection(ZdsError::Unreadable(cause)))?;
    let payload = request.payload.ok_or_else(|| protocol("a message without content"))?;
    if packet.descriptor.is_some() && !matches!(payload, Payload::Add(_)) {
        return Err(protocol("a descriptor with a message that has none"));
    }
    match payload {
        Payload::Add(add) => {
            let descriptor = packet.descriptor.ok_or_else(|| protocol("a pod without its network namespace"))?;
            let info = add.workload_info.ok_or_else(|| protocol("a pod without its name"))?;
            // An empty account is Kubernetes' default one.
            let account = if info.service_account.is_empty() { "default" } else { &info.service_account };
            let info = PodInfo { name: info.name.into(), namespace: info.namespace.into(), service_account: account.into() };
            let namespace = NetworkNamespace::from_fd(descriptor).map_err(|error| Refusal::Message(chain(&error)))?;
            pods.add(add.uid.into(), info, namespace).await.map_err(|error| Refusal::Message(chain(&error)))
        }
        Payload::Keep(keep) => pods.keep(keep.uid.into()).map_err(protocol),
        Payload::Del(del) => {
            pods.remove(&del.uid);
            Ok(())
        }
        Payload::SnapshotSent(_) => pods.snapshot_complete().map_err(protocol),
    }
}

/// One packet, with the descriptor that came along.
struct Packet {
    bytes: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

/// The socket. The runtime knows sockets of packets as streams, which is all it needs to wait for them.
struct Connection {
    socket: UnixStream,
}

impl Connection {
    fn open(path: &Path) -> io::Result<Self> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { socket: UnixStream::from_std(socket.into())? })
    }

    async fn send(&self, packet: &[u8]) -> io::Result<()> {
        let send = || Ok(send(self.socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL)?);
        self.socket.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    async fn receive(&self) -> Result<Packet, ZdsError> {
        let packet = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await;
        packet.map_err(ZdsError::Broken)?
    }
}

/// Reads one packet. The outer error is the socket's, the inner one the packet's.
fn receive(socket: &UnixStream) -> io::Result<Result<Packet, ZdsError>> {
    let mut bytes = vec![0; MAX_PACKET_BYTES];
    let mut ancillary = cmsg_space!([RawFd; 4]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut ancillary), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let (length, flags) = (message.bytes, message.flags);
    let mut descriptors = Vec::new();
    for ancillary in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = ancillary {
            descriptors.extend(received.into_iter().map(own));
        }
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) || descriptors.len() > 1 {
        return Ok(Err(ZdsError::TooLong));
    }
    if length == 0 {
        return Ok(Err(ZdsError::Closed));
    }
    bytes.truncate(length);
    let descriptor = descriptors.pop().transpose()?;
    Ok(Ok(Packet { bytes, descriptor }))
}

/// A descriptor of our own for what was received as a bare number: opened anew by its link, the number closed.
fn own(received: RawFd) -> io::Result<OwnedFd> {
    let opened = File::open(format!("/proc/self/fd/{received}"));
    close(received)?;
    Ok(opened?.into())
}
