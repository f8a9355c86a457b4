//! The HTTP server on a connection: which version is spoken, the limits of what a caller may send, drain, and upgrades.
//!
//! hyper reads; what it takes and another reader may take for something else is found in [`framing`], and refused as any request is
//! ([`Unreadable`]). [`arrival`] removes what was for the connection alone, [`churn`] sees who makes requests only to give them up,
//! [`tropis_hbone::frames`] who floods with control frames, [`leaving`] what goes another way by now.

mod arrival;
mod churn;
mod framing;
mod leaving;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use http::{HeaderValue, Request, StatusCode, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tropis_hbone::frames;
use tropis_net::drain::{DrainSignal, Phase};

use self::{
    churn::{Answering, Churn},
    framing::{Followed, Follower},
};
use crate::{
    config::HttpLimits,
    entry::{Entry, Way},
    request,
    stages::{
        accept::AcceptError,
        identify::{IdentifyError, Unreadable},
    },
    stream::Stream,
    tunnel,
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
/// How long a caller that floods, or makes requests only to give them up, has to finish the others: time for a GOAWAY to be read.
const HOSTILE_GRACE: Duration = Duration::from_secs(1);

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
    let limits = &entry.worker.shared.config.http;
    let follower = Rc::new(RefCell::new(Follower::new(buffer_bytes(limits))));
    let service = service_fn({
        let (entry, upgrades, follower, drain) = (entry.clone(), upgrades.clone(), follower.clone(), drain.clone());
        let number = Cell::new(0);
        move |mut request: Request<Incoming>| {
            number.set(number.get() + 1);
            let unreadable = follower.borrow().unreadable(number.get());
            if let Some(unreadable) = unreadable {
                request.extensions_mut().insert(unreadable);
            }
            arrival::http1(request.headers_mut());
            // Boxed: 4 KiB that would be moved from place to place with all that waits for it (a tenth of all work in HTTP/2).
            let serving = Box::pin(request::serve(entry.clone(), Some(upgrades.clone()), request));
            let (entry, drain) = (entry.clone(), drain.clone());
            async move {
                let mut response = serving.await?;
                let ends = unreadable.is_some() || drain.phase() > Phase::Running || entry.way() != Way::Here;
                if ends && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    // Nobody knows where the next request begins, or it goes another way.
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        }
    });
    let followed = Followed::new(stream, follower.clone(), limits.header_timeout);
    let mut connection = http1_builder(limits).serve_connection(TokioIo::new(followed), service);
    let (mut to_drain, mut to_cut) = (drain.clone(), drain);
    let (mut idle, mut cut) = (pin!(idle_between_heads(&entry, &mut to_drain, &follower)), pin!(to_cut.cut()));
    let mut is_ending = false;
    let end = loop {
        tokio::select! {
            // What has arrived is served before anything is closed.
            biased;
            end = &mut connection => break end,
            () = &mut idle, if !is_ending => {
                is_ending = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
            () = &mut cut => return,
        }
    };
    match end {
        Ok(()) => {
            let parts = connection.into_parts();
            let stream = parts.io.into_inner().into_stream(parts.read_buf);
            tokio::select! {
                () = upgrade::go_on(&upgrades, stream) => {}
                () = &mut cut => {}
            }
        }
        Err(error) if error.is_parse() => tunnel::refused(&IdentifyError::Malformed(error).into(), entry.source_address),
        Err(error) => tracing::debug!(%error, caller = %entry.source_address, "connection of HTTP/1.1 broke"),
    }
}

fn http1_builder(limits: &HttpLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // hyper's would also end a connection that is idle between requests; ours is in `framing`.
        .header_read_timeout(None)
        .max_headers(limits.headers)
        // What does not fit is answered with 431.
        .max_buf_size(buffer_bytes(limits));
    builder
}

/// The least that hyper can work with is 8 KiB.
fn buffer_bytes(limits: &HttpLimits) -> usize {
    limits.header_bytes.max(8 * 1024)
}

/// How long connections without a request stay in a drain, in which each response asks its caller not to send another: as long as Istio's
/// proxies stay, `terminationDrainDuration`.
const QUIET_DRAIN: Duration = Duration::from_secs(5);
/// How long a connection of HTTP/2 stays when what it addresses has another way: whoever is told at once to open another one may be sent
/// here again, since node proxies hear of it in the same moment.
const HEARSAY: Duration = Duration::from_secs(1);

/// As long, or half of the time that there is.
fn quiet_drain(entry: &Entry) -> Duration {
    QUIET_DRAIN.min(entry.worker.shared.config.drain_limit / 2)
}

/// Waits until a connection without requests has no reason to stay: a drain has gone on for long, or what is addressed has had another way
/// for as long. Until then it stays: a request may be on its way already, and each response tells the caller not to send another
/// (`connection: close`).
pub async fn idle_too_long(entry: &Entry, drain: &mut DrainSignal) {
    let quiet = quiet_drain(entry);
    let late_in_drain = async {
        drain.draining().await;
        tokio::time::sleep(quiet).await;
    };
    tokio::select! {
        () = late_in_drain => {}
        () = leaving::left(entry, quiet) => {}
    }
}

/// The same for HTTP/1.1, where hyper takes a connection for idle on which a head has come in part. That is waited for: it comes, or is late
/// ([`Followed`]). Each byte of it wakes the connection, and this with it.
async fn idle_between_heads(entry: &Entry, drain: &mut DrainSignal, follower: &RefCell<Follower>) {
    idle_too_long(entry, drain).await;
    poll_fn(|_| if follower.borrow().is_within_head() { Poll::Pending } else { Poll::Ready(()) }).await;
}

async fn serve_http2(entry: Rc<Entry>, stream: Stream, drain: DrainSignal) {
    let churn = Rc::new(Churn::default());
    let service = service_fn({
        let (entry, churn) = (entry.clone(), churn.clone());
        move |mut request: Request<Incoming>| {
            let turn = churn.begin();
            let limit = entry.worker.shared.config.http.headers;
            if request.headers().len() > limit {
                request.extensions_mut().insert(Unreadable::Headers { limit });
            }
            arrival::http2(request.headers_mut());
            let serving = Box::pin(request::serve(entry.clone(), None, request));
            async move { serving.await.map(|response| response.map(|body| Answering::new(body, turn))) }
        }
    });
    let limits = &entry.worker.shared.config.http;
    let (stream, conduct) = frames::count(stream);
    let mut connection = pin!(http2_builder(limits).serve_connection(TokioIo::new(stream), service));
    let hostile = async {
        tokio::select! {
            () = churn.too_much() => AcceptError::GivenUp,
            excess = conduct.excess() => AcceptError::Flood(excess),
        }
    };
    let (mut to_drain, mut to_cut) = (drain.clone(), drain);
    let ending = async {
        tokio::select! {
            () = to_drain.draining() => {}
            () = leaving::left(&entry, HEARSAY.min(quiet_drain(&entry))) => {}
        }
    };
    let (mut ending, mut cut, mut hostile) = (pin!(ending), pin!(to_cut.cut()), pin!(hostile));
    let mut is_ending = false;
    let end = loop {
        tokio::select! {
            biased;
            end = &mut connection => break end,
            () = &mut ending, if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut cut => return,
            error = &mut hostile => {
                tunnel::refused(&error.into(), entry.source_address);
                // hyper sends no other GOAWAY (that with ENHANCE_YOUR_CALM is h2's own).
                connection.as_mut().graceful_shutdown();
                break tokio::time::timeout(HOSTILE_GRACE, connection).await.unwrap_or(Ok(()));
            }
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
