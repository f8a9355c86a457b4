//! Making a connection to an endpoint, in a task of its own: it goes on when the request that began it gives up, so that those who come
//! after it find the connection, however short their time is.
//!
//! Each ends within the pool's `connectTimeout`; a request begins none while as many are being made that nobody waits for as there are
//! requests that wait, so there are never more than requests that waited at once.

use std::{cell::Cell, future::poll_fn, io, pin::pin, rc::Rc, sync::Arc, time::Instant};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncWriteExt, sync::oneshot, task::spawn_local};

use super::{
    HttpVersion, Lease,
    slot::{Multiplexed, Single, Slot},
};
use crate::{
    stages::connect::{self, ConnectError, Opened},
    stream::Stream,
    upstream::{counts::Held, members::Member, pools::Current},
    worker::{LocalExecutor, Worker},
};

/// Credit of a stream of HTTP/2 to an endpoint, and of a connection: as for tunnels, a quarter of it, since a response is read as it comes.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Streams that a peer is thought to take before it has said so.
const INITIAL_STREAMS: usize = 100;

/// A connection that HTTP/1.1 has let go of, with its place in the pool.
pub type HandedOver = (Stream, Held);

/// To whom a connection goes when HTTP/1.1 lets go of it.
pub(super) type Heir = Rc<Cell<Option<oneshot::Sender<HandedOver>>>>;

/// A connection to be made.
pub(super) struct Making {
    pub(super) worker: Rc<Worker>,
    pub(super) current: Current,
    pub(super) member: Arc<Member>,
    pub(super) version: HttpVersion,
    pub(super) slot: Rc<Slot>,
}

impl Making {
    /// Makes it, in the place that was taken for it. Whoever stops waiting leaves it to the others.
    pub(super) async fn begin(self, held: Held) -> Result<Lease, ConnectError> {
        let (give, made) = oneshot::channel();
        let slot = self.slot.clone();
        let connecting = slot.start_connecting();
        let _awaiting = slot.start_awaiting();
        spawn_local(async move {
            let made = self.limited(held).await;
            if let Err(error) = &made {
                self.slot.failed(error);
            }
            if let Err(Ok(lease)) = give.send(made) {
                lease.give_back();
            }
            drop(connecting);
        });
        // It ends before its time only with the worker.
        made.await.unwrap_or_else(|_| Err(ConnectError::Gone(Rc::new(io::ErrorKind::ConnectionAborted.into()))))
    }

    async fn limited(&self, held: Held) -> Result<Lease, ConnectError> {
        let after = self.current.ready.pool.limits.connect_timeout;
        // With HTTP's beginning, for which others wait as well.
        tokio::time::timeout(after, self.make(held)).await.unwrap_or(Err(ConnectError::Timeout { after }))
    }

    async fn make(&self, held: Held) -> Result<Lease, ConnectError> {
        let pool = &self.current.ready.pool;
        let opened = connect::open(&self.worker, &pool.key, &self.member, &pool.limits, &pool.tls).await?;
        let lease = match self.version {
            HttpVersion::Http1 => self.http1(opened, held).await,
            HttpVersion::Http2 => self.http2(opened, held).await,
        };
        lease.map_err(|error| ConnectError::Handshake(Rc::new(error)))
    }

    async fn http1(&self, opened: Opened, held: Held) -> Result<Lease, hyper::Error> {
        let limits = &self.worker.shared.config.http;
        let mut builder = http1::Builder::new();
        builder.max_headers(limits.headers).max_buf_size(limits.header_bytes.max(8 * 1024));
        let (mut sender, connection) = builder.handshake(TokioIo::new(opened.stream)).await?;
        let number = self.slot.opened();
        let counts = self.current.state.counts.clone();
        let heir = Heir::default();
        spawn_local({
            let (slot, counts, heir) = (self.slot.clone(), counts.clone(), heir.clone());
            async move {
                let mut connection = pin!(connection.without_shutdown());
                let mut heard = pin!(counts.heard());
                let end = loop {
                    tokio::select! {
                        end = &mut connection => break end,
                        () = &mut heard => {
                            heard.set(counts.heard());
                            if counts.is_wanted() {
                                slot.close_idle(number);
                            }
                        }
                    }
                };
                slot.closed(number);
                match end {
                    Ok(parts) => let_go(parts.io.into_inner().with_ahead(parts.read_buf), held, heir.take()).await,
                    Err(error) => tracing::debug!(%error, "connection to an endpoint broke"),
                }
            }
        });
        // Before its task has run it takes no request and hears nothing, and whoever looked for a free one now would pass it by.
        sender.ready().await?;
        let limits = self.current.ready.pool.limits.clone();
        let one = Single { sender, number, requests: 0, born: Instant::now(), limits, counts, heir };
        Ok(Lease::single(self.slot.clone(), Box::new(one), opened.local))
    }

    async fn http2(&self, opened: Opened, held: Held) -> Result<Lease, hyper::Error> {
        let slot = &self.slot;
        let pool = &self.current.ready.pool.limits;
        let limits = &self.worker.shared.config.http;
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(INITIAL_STREAMS)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
        if let Some(keepalive) = pool.http2_keepalive {
            builder.keep_alive_interval(keepalive.interval).keep_alive_timeout(keepalive.timeout).keep_alive_while_idle(true);
        }
        let (sender, connection) = builder.handshake(TokioIo::new(opened.stream)).await?;
        let number = slot.opened();
        let counts = self.current.state.counts.clone();
        let shared = Rc::new(Multiplexed::new(sender, number, opened.local, pool.clone(), counts.clone()));
        shared.peer_streams.set(connection.current_max_send_streams());
        spawn_local({
            let (slot, weak) = (slot.clone(), Rc::downgrade(&shared));
            async move {
                let mut connection = pin!(connection);
                let mut heard = pin!(counts.heard());
                if counts.is_wanted() {
                    slot.close_idle(number);
                }
                let end = poll_fn(|cx| {
                    if heard.as_mut().poll(cx).is_ready() {
                        heard.set(counts.heard());
                        // The new one is to be woken as well.
                        cx.waker().wake_by_ref();
                        if counts.is_wanted() {
                            slot.close_idle(number);
                        }
                    }
                    let end = connection.as_mut().poll(cx);
                    // What the peer takes may have changed since the last turn.
                    if let Some(shared) = weak.upgrade() {
                        let streams = connection.current_max_send_streams();
                        if shared.peer_streams.replace(streams) < streams {
                            slot.news.notify_waiters();
                        }
                    }
                    end
                });
                if let Err(error) = end.await {
                    tracing::debug!(%error, "connection to an endpoint broke");
                }
                slot.closed(number);
                drop(held);
            }
        });
        slot.share(shared.clone());
        Ok(Lease::shared(slot.clone(), shared))
    }
}

/// HTTP/1.1 has let go of a connection: it goes to the request that made it something else, or ends.
async fn let_go(stream: Stream, held: Held, heir: Option<oneshot::Sender<HandedOver>>) {
    let left = match heir {
        Some(heir) => heir.send((stream, held)).err(),
        None => Some((stream, held)),
    };
    if let Some((mut stream, _held)) = left {
        // An endpoint that is gone need not be told.
        let _ = stream.shutdown().await;
    }
}
