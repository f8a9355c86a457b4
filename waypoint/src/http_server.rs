//! The HTTP server on a connection: which version is spoken, the limits of what a caller may send, drain, and upgrades.

use std::{pin::pin, rc::Rc};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tropis_net::drain::DrainSignal;

use crate::{
    config::HttpLimits,
    entry::Entry,
    request,
    stream::Stream,
    upgrade::{self, UpgradeSlot},
    worker::LocalExecutor,
};

/// Credit of a stream of HTTP/2 from a caller: bytes that it may send before the endpoint has taken any.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Credit of a connection of HTTP/2 from a caller, for all its streams.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Streams that we had to reset for the caller's errors, in all the life of a connection.
const ERROR_RESETS: usize = 1024;
/// Bytes of a response that may wait for the caller of HTTP/2 to take them.
const SEND_BUFFER_BYTES: usize = 400 * 1024;

/// A version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.1, or 1.0.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Serves the requests of a connection until it ends or is drained.
pub async fn serve(entry: Rc<Entry>, stream: Stream, spoken: Spoken, drain: DrainSignal) {
    match spoken {
        Spoken::Http1 => serve_http1(entry, stream, drain).await,
        Spoken::Http2 => serve_http2(entry, stream, drain).await,
    }
}

async fn serve_http1(entry: Rc<Entry>, stream: Stream, drain: DrainSignal) {
    let upgrades = Rc::new(UpgradeSlot::default());
    let service = service_fn({
        let (entry, upgrades) = (entry.clone(), upgrades.clone());
        move |request| request::serve(entry.clone(), Some(upgrades.clone()), request)
    });
    let limits = &entry.worker.shared.config.http;
    let mut connection = http1_builder(limits).serve_connection(TokioIo::new(stream), service);
    let (mut to_drain, mut to_cut) = (drain.clone(), drain);
    let (mut draining, mut cut) = (pin!(to_drain.draining()), pin!(to_cut.cut()));
    let mut is_draining = false;
    let end = loop {
        tokio::select! {
            end = &mut connection => break end,
            () = &mut draining, if !is_draining => {
                is_draining = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
            () = &mut cut, if is_draining => return,
        }
    };
    match end {
        Ok(()) => {
            let parts = connection.into_parts();
            let stream = parts.io.into_inner().with_ahead(parts.read_buf);
            tokio::select! {
                () = upgrade::go_on(&upgrades, stream) => {}
                () = &mut cut => {}
            }
        }
        Err(error) => tracing::debug!(%error, caller = %entry.source_address, "connection of HTTP/1.1 broke"),
    }
}

fn http1_builder(limits: &HttpLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.headers)
        // What does not fit is answered with 431.
        .max_buf_size(limits.header_bytes.max(8 * 1024));
    builder
}

async fn serve_http2(entry: Rc<Entry>, stream: Stream, drain: DrainSignal) {
    let service = service_fn({
        let entry = entry.clone();
        move |request| request::serve(entry.clone(), None, request)
    });
    let limits = &entry.worker.shared.config.http;
    let mut connection = pin!(http2_builder(limits).serve_connection(TokioIo::new(stream), service));
    let (mut to_drain, mut to_cut) = (drain.clone(), drain);
    let (mut draining, mut cut) = (pin!(to_drain.draining()), pin!(to_cut.cut()));
    let mut is_draining = false;
    let end = loop {
        tokio::select! {
            end = &mut connection => break end,
            () = &mut draining, if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut cut, if is_draining => return,
        }
    };
    if let Err(error) = end {
        tracing::debug!(%error, caller = %entry.source_address, "connection of HTTP/2 broke");
    }
}

fn http2_builder(limits: &HttpLimits) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(limits.resets)
        .max_local_error_reset_streams(ERROR_RESETS)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
    builder
}
