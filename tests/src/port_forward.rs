//! Port-forward as the kubelet does it: enter the pod's network namespace, connect to its loopback. Works under STRICT, because no
//! packet comes from outside.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::network::namespace::Namespace;

/// A port of the host that leads into a pod. Ends when dropped.
#[derive(Debug)]
pub struct PortForward {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl PortForward {
    /// Listens on the host's loopback (`port` 0: any) and passes each connection on to `target` inside `namespace`.
    pub async fn start(port: u16, namespace: Arc<Namespace>, target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(pass_on(stream, namespace.clone(), target));
                }
            }
        });
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes a connection on to a loopback port inside `namespace`, to both ends.
pub(crate) async fn pass_on(mut stream: impl AsyncRead + AsyncWrite + Unpin, namespace: Arc<Namespace>, port: u16) -> io::Result<()> {
    let mut inside = connect(namespace, port).await?;
    tokio::io::copy_bidirectional(&mut stream, &mut inside).await?;
    Ok(())
}

/// Connects to a loopback port inside `namespace`.
async fn connect(namespace: Arc<Namespace>, port: u16) -> io::Result<TcpStream> {
    let dial = move || {
        namespace.run(|| {
            std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).or_else(|_| std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)))
        })
    };
    let stream = tokio::task::spawn_blocking(dial).await.map_err(io::Error::other)???;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}
