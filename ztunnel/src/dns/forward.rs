//! Passes a question to the resolver that the pod asked, from the pod's own namespace, and brings back what it says, unread.
//!
//! The question leaves with an id and a port of its own, and only a reply with that id and the same question counts, so a forged one
//! has to guess both (RFC 5452).

use std::{cell::RefCell, io, net::SocketAddr, os::fd::AsFd, time::Duration};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};
use tropis_net::{
    dial::{self, DialError, DialFrom, DialOptions},
    listen::{ListenError, ListenOptions, udp_socket},
    namespace::NamespaceError,
};

use super::Transport;
use crate::{app::Shared, node::Pod};

/// How long a resolver may take; the usual patience of those who ask.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a DNS header.
const HEADER_BYTES: usize = 12;

/// Whom a question is for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Settings, and who knows the resolvers.
    pub shared: &'a Shared,
    /// The pod that asks.
    pub pod: &'a Pod,
    /// Which of its resolvers.
    pub slot: u8,
    /// The resolver itself, where the connection says which one was asked.
    pub resolver: Option<SocketAddr>,
}

/// No resolver answered.
#[derive(Debug, Error)]
pub enum ForwardError {
    /// Nobody knows which resolver was asked.
    #[error("the capture does not know resolver {slot} of this pod")]
    NoResolver {
        /// The slot.
        slot: u8,
    },
    /// The question has no question in it.
    #[error("the question is malformed")]
    Malformed,
    /// The namespace cannot be entered.
    #[error("cannot ask from the pod's namespace")]
    Namespace(#[source] NamespaceError),
    /// A socket cannot be made.
    #[error("cannot make a socket to ask {resolver}")]
    Socket {
        /// The resolver.
        resolver: SocketAddr,
        /// Why.
        #[source]
        cause: ListenError,
    },
    /// By TCP: it cannot be reached.
    #[error("cannot reach the resolver")]
    Dial(#[source] DialError),
    /// Sending or receiving failed.
    #[error("asking {resolver} failed")]
    Exchange {
        /// The resolver.
        resolver: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It did not answer in time.
    #[error("{resolver} did not answer within {ANSWER_LIMIT:?}")]
    Timeout {
        /// The resolver.
        resolver: SocketAddr,
    },
}

/// Asks, and gives the reply with the asker's own id.
pub async fn ask(asked: &Asked<'_>, question: &[u8], transport: Transport) -> Result<Vec<u8>, ForwardError> {
    let question_end = question_end(question).ok_or(ForwardError::Malformed)?;
    let mut last = ForwardError::NoResolver { slot: asked.slot };
    for resolver in asked.resolvers() {
        let mut sent = question.to_vec();
        let id: [u8; 2] = rand::random();
        sent[..2].copy_from_slice(&id);
        let answered = match transport {
            Transport::Udp => tokio::time::timeout(ANSWER_LIMIT, ask_udp(asked, resolver, &sent, question_end)).await,
            Transport::Tcp => tokio::time::timeout(ANSWER_LIMIT, ask_tcp(asked, resolver, &sent, question_end)).await,
        };
        match answered {
            Ok(Ok(mut reply)) => {
                reply[..2].copy_from_slice(&question[..2]);
                return Ok(reply);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = ForwardError::Timeout { resolver },
        }
    }
    Err(last)
}

impl Asked<'_> {
    /// The resolver that the pod asked; where nobody can say, ours, in order.
    fn resolvers(&self) -> Vec<SocketAddr> {
        if let Some(resolver) = self.resolver {
            return vec![resolver];
        }
        match (self.shared.capture.get(), &self.pod.namespace) {
            (Some(maps), Some(namespace)) => maps.resolver(namespace.cookie(), self.slot).into_iter().collect(),
            _ => self.shared.resolvers.clone(),
        }
    }
}

async fn ask_udp(asked: &Asked<'_>, resolver: SocketAddr, question: &[u8], question_end: usize) -> Result<Vec<u8>, ForwardError> {
    let failed = |cause| ForwardError::Exchange { resolver, cause };
    let any: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let options = ListenOptions { reuse_port: false, mark: asked.shared.config.capture.mark(), ..ListenOptions::default() };
    let socket = asked.pod.run(|| udp_socket(any, &options)).map_err(ForwardError::Namespace)?;
    let socket = socket.map_err(|cause| ForwardError::Socket { resolver, cause })?;
    asked.shared.capture.mark_own(socket.as_fd()).map_err(failed)?;
    let socket = UdpSocket::from_std(socket).map_err(failed)?;
    socket.connect(resolver).await.map_err(failed)?;
    socket.send(question).await.map_err(failed)?;
    loop {
        socket.readable().await.map_err(failed)?;
        match receive(&socket) {
            Ok(reply) if answers(question, question_end, &reply) => return Ok(reply),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

thread_local! {
    /// A packet may be this long; questions that wait need not each have room for it.
    static PACKET: RefCell<Vec<u8>> = RefCell::new(vec![0; usize::from(u16::MAX)]);
}

fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    PACKET.with_borrow_mut(|packet| {
        let length = socket.try_recv(packet)?;
        Ok(packet[..length].to_vec())
    })
}

async fn ask_tcp(asked: &Asked<'_>, resolver: SocketAddr, question: &[u8], question_end: usize) -> Result<Vec<u8>, ForwardError> {
    let failed = |cause| ForwardError::Exchange { resolver, cause };
    let options = DialOptions { timeout: ANSWER_LIMIT, keepalive: None, mark: asked.shared.config.capture.mark() };
    let dialled =
        dial::connect(asked.pod.namespace.as_ref(), DialFrom::Any, resolver, &options, |socket| asked.shared.capture.mark_own(socket));
    let mut stream = dialled.await.map_err(ForwardError::Dial)?;
    stream.write_all(&framed(question)).await.map_err(failed)?;
    let reply = read_framed(&mut stream).await.map_err(failed)?;
    let reply = reply.filter(|reply| answers(question, question_end, reply));
    reply.ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, "the reply is to another question")))
}

/// Where the first question ends; a question's name is never compressed.
fn question_end(message: &[u8]) -> Option<usize> {
    let questions = u16::from_be_bytes([*message.get(4)?, *message.get(5)?]);
    if questions != 1 {
        return None;
    }
    let mut at = HEADER_BYTES;
    loop {
        match *message.get(at)? {
            0 => break,
            length if length < 64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    let end = at + 1 + 4;
    (end <= message.len()).then_some(end)
}

/// Whether `reply` is a response with the same id and the same question (names ignore case).
fn answers(question: &[u8], question_end: usize, reply: &[u8]) -> bool {
    let is_response = reply.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same_id = reply.get(..2) == question.get(..2);
    let no_question = reply.get(4..6) == Some(&[0, 0]) && reply.len() >= HEADER_BYTES;
    let same_question = match (reply.get(HEADER_BYTES..question_end), question.get(HEADER_BYTES..question_end)) {
        (Some(theirs), Some(ours)) => theirs.eq_ignore_ascii_case(ours),
        _ => false,
    };
    // Servers may leave the question out of an error.
    is_response && same_id && (same_question || no_question)
}

/// A message with its length before it (RFC 1035 §4.2.2), in one piece. One that is too long for that is cut, which no reader accepts.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message[..usize::from(length)]);
    framed
}

/// The next framed message; `None` at the end of the stream.
pub async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if let Err(error) = stream.read_exact(&mut length).await {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Message, Query},
        rr::{Name, RecordType},
    };

    use super::*;

    fn question(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    #[test]
    fn only_the_reply_to_this_question_counts() {
        let asked = question("a.example.");
        let end = question_end(&asked).unwrap();
        assert_eq!(end, asked.len());
        let mut reply = asked.clone();
        assert!(!answers(&asked, end, &reply), "a question is no reply");
        reply[2] |= 0x80;
        assert!(answers(&asked, end, &reply));
        reply[13] = b'A';
        assert!(answers(&asked, end, &reply), "names ignore case");
        let mut forged = reply.clone();
        forged[0] ^= 1;
        assert!(!answers(&asked, end, &forged), "another id");
        let mut other = question("b.example.");
        other[..2].copy_from_slice(&asked[..2]);
        other[2] |= 0x80;
        assert!(!answers(&asked, end, &other), "another question");
        assert!(!answers(&asked, end, &[]));
    }

    #[test]
    fn what_has_no_question_is_not_sent() {
        assert_eq!(question_end(&[0; 12]), None);
        assert_eq!(question_end(&[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63, b'a']), None);
        assert_eq!(question_end(&[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1]), None);
    }
}
