//! How a channel to the control plane gets its connection: resolve, dial, TLS 1.3 with the roots of this moment.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::codegen::Service;

use super::{RootError, RootSource};
use crate::crypto::{ALPN_H2, VERSIONS, provider};

/// Connects once each time it is called; tonic calls it when the connection before is gone.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    target: Arc<ConnectTarget>,
}

#[derive(Debug)]
struct ConnectTarget {
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    root: RootSource,
    limit: Duration,
}

/// The control plane cannot be reached. What runs goes on; the caller tries again.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("cannot check the control plane's certificate")]
    Roots(#[source] RootError),
    #[error("cannot prepare TLS")]
    Config(#[source] rustls::Error),
    #[error("cannot connect to {host}:{port}")]
    Dial {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("TLS with {host}:{port} (as {server_name}) failed")]
    Handshake {
        host: String,
        port: u16,
        server_name: String,
        #[source]
        source: io::Error,
    },
    #[error("no connection to {host}:{port} within {after:?}")]
    Timeout { host: String, port: u16, after: Duration },
}

impl Connector {
    pub(super) fn new(host: &str, port: u16, server_name: &str, root: RootSource, limit: Duration) -> Result<Self, String> {
        let name = ServerName::try_from(server_name.to_owned()).map_err(|_| format!("{server_name:?} is not a name for a certificate"))?;
        Ok(Self { target: Arc::new(ConnectTarget { host: host.to_owned(), port, server_name: name, root, limit }) })
    }
}

impl ConnectTarget {
    async fn connect(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let (host, port) = (&self.host, self.port);
        let roots = self.root.load().map_err(ConnectError::Roots)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(ConnectError::Config)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        let dial = |source| ConnectError::Dial { host: host.clone(), port, source };
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(dial)?;
        stream.set_nodelay(true).map_err(dial)?;
        TlsConnector::from(Arc::new(config)).connect(self.server_name.clone(), stream).await.map_err(|source| ConnectError::Handshake {
            host: host.clone(),
            port,
            server_name: self.server_name.to_str().into_owned(),
            source,
        })
    }

    async fn connect_in_time(&self) -> Result<TokioIo<TlsStream<TcpStream>>, ConnectError> {
        let connected = tokio::time::timeout(self.limit, self.connect()).await;
        let late = |_| ConnectError::Timeout { host: self.host.clone(), port: self.port, after: self.limit };
        connected.map_err(late)?.map(TokioIo::new)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let target = Arc::clone(&self.target);
        Box::pin(async move { target.connect_in_time().await })
    }
}
