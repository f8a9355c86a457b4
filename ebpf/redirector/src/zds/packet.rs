//! Packets on the socket: one message each, a descriptor with some.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen as listen_on, recv, sendmsg,
    socket,
};
use prost::Message as _;
use tokio::{io::unix::AsyncFd, time::timeout};
use tropis_maps::ProxyAccount;
use tropis_proto::zds::{Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request, workload_response};

use super::ConversationError;

/// Both sides receive at most this much; more is an error.
const PACKET_MAX_BYTES: usize = 1024;

/// The listening socket.
pub(super) struct Listener(AsyncFd<OwnedFd>);

/// A connection.
pub(super) struct Packets(AsyncFd<OwnedFd>);

/// What arrived.
pub(super) enum Received {
    /// A packet.
    Packet(Vec<u8>),
    /// The other end is gone.
    Closed,
}

/// Listens at `path`, which replaces a socket that an earlier process left; only `proxy` and root may connect.
pub(super) fn listen(path: &Path, proxy: ProxyAccount) -> io::Result<Listener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let descriptor = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    bind(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
    std::os::unix::fs::chown(path, Some(proxy.uid), Some(proxy.gid))?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listen_on(&descriptor, Backlog::new(16)?)?;
    Ok(Listener(watched(descriptor)?))
}

fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives, and it lives in the AsyncFd.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<Packets> {
        loop {
            let mut ready = self.0.readable().await?;
            let accepted = ready.try_io(|descriptor| {
                let raw = accept4(descriptor.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
                // SAFETY: accept4 returned a new descriptor, which nobody else has.
                Ok(unsafe { OwnedFd::from_raw_fd(raw) })
            });
            if let Ok(accepted) = accepted {
                return Ok(Packets(watched(accepted?)?));
            }
        }
    }
}

impl Packets {
    /// The socket.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }

    /// Waits for the proxy's first packet.
    pub(super) async fn hello(&self, deadline: Duration) -> Result<(), ConversationError> {
        let packet = self.expect("hello", deadline).await?;
        let hello = ZdsHello::decode(packet.as_slice())?;
        match hello.version() {
            Version::V1 => Ok(()),
            Version::NotUsed => Err(ConversationError::Version(hello.version)),
        }
    }

    /// Sends a message and waits for its answer; what the proxy has against it is the inner error.
    pub(super) async fn ask(
        &self,
        message: workload_request::Payload,
        descriptor: Option<&OwnedFd>,
        deadline: Duration,
    ) -> Result<Result<(), String>, ConversationError> {
        let packet = WorkloadRequest { payload: Some(message) }.encode_to_vec();
        timeout(deadline, self.send(&packet, descriptor)).await.map_err(|_| ConversationError::Late("room for a message"))??;
        let answer = WorkloadResponse::decode(self.expect("answer", deadline).await?.as_slice())?;
        match answer.payload {
            Some(workload_response::Payload::Ack(ack)) if ack.error.is_empty() => Ok(Ok(())),
            Some(workload_response::Payload::Ack(ack)) => Ok(Err(ack.error)),
            None => Err(ConversationError::Unasked),
        }
    }

    /// The next packet. Cancel safe.
    pub(super) async fn receive(&self) -> io::Result<Received> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut buffer = [0_u8; PACKET_MAX_BYTES];
            // MSG_TRUNC makes a longer packet say its true length.
            let received = ready.try_io(|descriptor| Ok(recv(descriptor.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?));
            match received {
                Ok(Ok(0)) => return Ok(Received::Closed),
                Ok(Ok(length)) if length > buffer.len() => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a packet of {length} bytes is longer than {PACKET_MAX_BYTES}"),
                    ));
                }
                Ok(Ok(length)) => return Ok(Received::Packet(buffer[..length].to_vec())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Received::Closed),
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => {}
            }
        }
    }

    async fn expect(&self, what: &'static str, deadline: Duration) -> Result<Vec<u8>, ConversationError> {
        match timeout(deadline, self.receive()).await.map_err(|_| ConversationError::Late(what))?? {
            Received::Packet(packet) => Ok(packet),
            Received::Closed => Err(ConversationError::Closed(what)),
        }
    }

    async fn send(&self, packet: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
        let descriptors: Vec<i32> = descriptor.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
        loop {
            let mut ready = self.0.writable().await?;
            let sent = ready
                .try_io(|socket| Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(packet)], control, MsgFlags::MSG_NOSIGNAL, None)?));
            if let Ok(sent) = sent {
                return sent.map(drop);
            }
        }
    }
}
