//! Accept: a listener gives a connection; we learn where it was going, and whether there is room for it.
//!
//! A connection that nobody captured (someone dialled the listener itself) is refused: guessing where it should go would make us an
//! open relay.

use std::{io, net::SocketAddr, sync::Arc};

use thiserror::Error;
use tokio::net::TcpStream;
use tropis_model::{
    address::{DownstreamAddress, OriginalDestination, canonical},
    outcome::{Reason, Side},
};
use tropis_net::{original_destination::original_destination, sockets::set_linger_reset};

use crate::{
    config::{Capture, MAX_CONNECTIONS_PER_POD},
    node::{ConnectionSlot, Pod, listeners::PASSTHROUGH_PORT},
};

/// A captured connection.
#[derive(Debug)]
pub struct Accepted {
    /// Its socket.
    pub stream: Downstream,
    /// The pod whose listener gave it.
    pub pod: Arc<Pod>,
    /// Where it came from.
    pub downstream: DownstreamAddress,
    /// Where it was going.
    pub original_destination: OriginalDestination,
    /// Its place among the pod's connections.
    pub slot: ConnectionSlot,
}

/// Why a connection was not accepted. It is reset.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// The pod has too many.
    #[error("pod {pod} has {MAX_CONNECTIONS_PER_POD} connections open already")]
    LimitReached {
        /// The pod.
        pod: String,
    },
    /// Nobody captured it.
    #[error("the connection was not captured: somebody dialled the listener itself")]
    NoOriginalDestination,
    /// The kernel cannot say.
    #[error("the original destination cannot be read")]
    Unreadable(#[source] io::Error),
}

impl AcceptError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::LimitReached { .. } => (Reason::LimitReached, Side::Downstream),
            Self::NoOriginalDestination => (Reason::NoOriginalDestination, Side::Downstream),
            Self::Unreadable(_) => (Reason::NoOriginalDestination, Side::Mesh),
        }
    }
}

/// A socket that is reset when it is dropped before bytes were relayed, so that an application learns of a refusal as from a closed
/// port, not as an answer that ended.
#[derive(Debug)]
pub struct Downstream(Option<TcpStream>);

impl Downstream {
    /// Guards a socket.
    pub fn new(stream: TcpStream) -> Self {
        Self(Some(stream))
    }

    /// The socket, from now on ended by whoever relays it.
    pub fn into_inner(mut self) -> TcpStream {
        self.0.take().expect("the socket is taken by this method only, which consumes the guard")
    }
}

impl Drop for Downstream {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            // It fails only when the peer is gone.
            let _ = set_linger_reset(stream);
        }
    }
}

/// Accepts a connection that the pod opened.
pub fn outbound(pod: &Arc<Pod>, stream: TcpStream, from: SocketAddr) -> Result<Accepted, AcceptError> {
    let stream = Downstream::new(stream);
    let slot = place(pod)?;
    let socket = stream.0.as_ref().expect("the guard was just made");
    let found = original_destination(socket).map_err(AcceptError::Unreadable)?;
    let original_destination = found.ok_or(AcceptError::NoOriginalDestination)?;
    let downstream = DownstreamAddress(application_address(pod, from, original_destination));
    Ok(Accepted { stream, pod: pod.clone(), downstream, original_destination, slot })
}

/// The address that the application itself has for its socket: our hooks capture to loopback, and show it the pod's address.
fn application_address(pod: &Pod, from: SocketAddr, to: OriginalDestination) -> SocketAddr {
    if !from.ip().is_loopback() {
        return from;
    }
    let addresses = pod.addresses();
    let own = addresses.iter().find(|own| own.is_ipv4() == to.0.is_ipv4());
    own.map_or(from, |own| SocketAddr::new(*own, from.port()))
}

/// Accepts a plain connection that was opened to the pod. Our hooks hand it over with its own addresses; netfilter rewrites them, and
/// knows what they were.
pub fn passthrough(pod: &Arc<Pod>, capture: &Capture, stream: TcpStream, from: SocketAddr) -> Result<Accepted, AcceptError> {
    let stream = Downstream::new(stream);
    let slot = place(pod)?;
    let socket = stream.0.as_ref().expect("the guard was just made");
    let rewritten = match capture {
        Capture::Hooks { .. } => None,
        Capture::Netfilter { .. } => original_destination(socket).map_err(AcceptError::Unreadable)?,
    };
    let local = || socket.local_addr().map(|local| OriginalDestination(canonical(local)));
    let original_destination = rewritten.map_or_else(local, Ok).map_err(AcceptError::Unreadable)?;
    if original_destination.0.port() == PASSTHROUGH_PORT {
        return Err(AcceptError::NoOriginalDestination);
    }
    Ok(Accepted { stream, pod: pod.clone(), downstream: DownstreamAddress(from), original_destination, slot })
}

/// Takes a place among the pod's connections.
pub fn place(pod: &Arc<Pod>) -> Result<ConnectionSlot, AcceptError> {
    ConnectionSlot::take(pod, MAX_CONNECTIONS_PER_POD).ok_or_else(|| AcceptError::LimitReached { pod: pod.to_string() })
}
