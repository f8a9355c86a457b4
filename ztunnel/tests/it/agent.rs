//! A node agent: listens on a unix socket of packets and hands pods over, as istio-cni and our redirector do.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv, recvmsg, sendmsg, socket,
};
use prost::Message;
use tropis_proto::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, Version, WorkloadInfo, WorkloadRequest, WorkloadResponse, ZdsHello,
    workload_request::Payload, workload_response,
};

/// Listens.
pub(crate) struct Agent {
    listener: OwnedFd,
}

/// A proxy that connected and said hello.
pub(crate) struct Connected {
    socket: Arc<std::os::unix::net::UnixStream>,
}

impl Agent {
    pub(crate) fn new(path: &Path) -> Self {
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        Self { listener }
    }

    /// Waits for a proxy.
    pub(crate) fn accept(&self) -> Connected {
        let raw = accept(self.listener.as_raw_fd()).unwrap();
        // Opened anew, so that a descriptor owns it; sockets cannot be opened by their link, so it is passed to ourselves.
        let socket = adopt(raw);
        let mut packet = [0; 1024];
        let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        let hello = ZdsHello::decode(&packet[..length]).unwrap();
        assert_eq!(hello.version, i32::from(Version::V1));
        Connected { socket: Arc::new(socket) }
    }
}

#[allow(unsafe_code, reason = "nix accepts as a bare number, and sockets have no other door")]
fn adopt(raw: std::os::fd::RawFd) -> std::os::unix::net::UnixStream {
    use std::os::fd::FromRawFd;
    // SAFETY: accept(2) has just made this descriptor for us, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(raw) }.into()
}

impl Connected {
    /// Sends a message, with a descriptor if one belongs to it, and gives the acknowledgement's error (empty for success).
    pub(crate) fn ask(&self, payload: Payload, descriptor: Option<&OwnedFd>) -> String {
        let packet = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
        let numbers: Vec<_> = descriptor.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let ancillary: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&packet)], ancillary, MsgFlags::MSG_NOSIGNAL, None).unwrap();
        let mut buffer = [0; 1024];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let length = recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, None, MsgFlags::empty()).unwrap().bytes;
        assert!(length > 0, "the proxy closed the connection");
        match WorkloadResponse::decode(&buffer[..length]).unwrap().payload {
            Some(workload_response::Payload::Ack(ack)) => ack.error,
            None => panic!("an answer without an acknowledgement"),
        }
    }

    pub(crate) fn add(&self, uid: &str, namespace: &str, name: &str, account: &str, netns: &OwnedFd) -> String {
        let info = WorkloadInfo { name: name.into(), namespace: namespace.into(), service_account: account.into() };
        self.ask(Payload::Add(AddWorkload { uid: uid.into(), workload_info: Some(info) }), Some(netns))
    }

    pub(crate) fn keep(&self, uid: &str) -> String {
        self.ask(Payload::Keep(KeepWorkload { uid: uid.into() }), None)
    }

    pub(crate) fn remove(&self, uid: &str) -> String {
        self.ask(Payload::Del(DelWorkload { uid: uid.into() }), None)
    }

    pub(crate) fn snapshot_sent(&self) -> String {
        self.ask(Payload::SnapshotSent(SnapshotSent {}), None)
    }
}
