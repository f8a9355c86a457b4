//! `converse`: one message after the other on one WebSocket or one gRPC stream; each must be back before the next is sent.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures_util::stream;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tropis_tests::testkit::calls::Conversed;
use tropis_tests::testkit::{FailureKind, Step};

use super::call::Protocol;
use super::call::sender::{self, Order, failure};
use super::milliseconds;
use crate::bytes::Pattern;
use crate::connection::{Dial, Failure, seconds};
use crate::print_line;
use crate::websocket;

/// Sent as `sec-websocket-key`; the sample of RFC 6455 is as good as any.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Frames, masked on the way there
    Websocket,
    /// Messages of a bidirectional stream
    Grpc,
}

#[derive(Debug, Args)]
pub(crate) struct Converse {
    #[arg(value_enum)]
    way: Way,
    /// For example http://app:8080/
    #[arg(value_name = "URL")]
    url: http::Uri,
    #[command(flatten)]
    dial: Dial,
    /// How many messages
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 3)]
    count: u64,
    /// Bytes of each
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    bytes: usize,
    /// Rest between them
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    pause: Duration,
    /// A header field to send; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
}

impl Converse {
    pub(crate) async fn run(self) -> bool {
        let started = Instant::now();
        let mut report = Conversed { command: "converse".to_owned(), target: self.url.to_string(), ..Conversed::default() };
        let result = match self.way {
            Way::Websocket => self.websocket(&mut report).await,
            Way::Grpc => self.grpc(&mut report).await,
        };
        report.ok = result.is_ok();
        if let Err(failure) = result {
            (report.error, report.detail) = (Some(failure.kind), Some(failure.detail));
        }
        report.milliseconds = milliseconds(started.elapsed());
        print_line(&report);
        report.ok
    }

    async fn websocket(&self, report: &mut Conversed) -> Result<(), Failure> {
        let mut fields = self.headers.clone();
        fields.extend(["upgrade: websocket", "sec-websocket-version: 13"].map(str::to_owned));
        fields.push(format!("sec-websocket-key: {KEY}"));
        let order = Order::to(&self.url, None, Protocol::H1, &fields)?;
        let mut sender = order.open(&self.dial).await?;
        let mut request = order.request_with(None, Empty::new().boxed_unsync());
        request.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
        request.headers_mut().remove(http::header::TE);
        let mut response = sender.send(request).await.map_err(|refused| refused.failure)?;
        report.status = Some(response.status().as_u16());
        let proof = response.headers().get("sec-websocket-accept").and_then(|proof| proof.to_str().ok()).unwrap_or_default();
        if response.status() != http::StatusCode::SWITCHING_PROTOCOLS || proof != websocket::accept(KEY) {
            return Err(Failure::mismatch(format!("{response:?}")));
        }
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(|error| failure(&error))?;
        let mut stream = TokioIo::new(upgraded);
        let mut exchange = async |frame: websocket::Frame, wanted: u8| {
            let talk = async {
                websocket::write(&mut stream, &frame, Some([7, 1, 9, 4])).await?;
                websocket::read(&mut stream).await
            };
            let answer =
                self.patience(talk).await?.map_err(|error| Failure::new(FailureKind::of(&error), Step::Receive, error.to_string()))?;
            if answer.opcode == wanted && answer.payload == frame.payload { Ok(()) } else { Err(Failure::mismatch(format!("{answer:?}"))) }
        };
        for number in 0..self.count {
            let began = Instant::now();
            let (opcode, wanted) =
                if number % 8 == 7 { (websocket::PING, websocket::PONG) } else { (websocket::BINARY, websocket::BINARY) };
            // Control frames are short (RFC 6455 §5.5).
            let length = if opcode == websocket::PING { self.bytes.min(125) } else { self.bytes };
            exchange(websocket::Frame { opcode, payload: Pattern::bytes(number, length) }, wanted).await?;
            self.note(report, began).await;
        }
        exchange(websocket::Frame { opcode: websocket::CLOSE, payload: 1000u16.to_be_bytes().to_vec() }, websocket::CLOSE).await
    }

    async fn grpc(&self, report: &mut Conversed) -> Result<(), Failure> {
        let order = Order::to(&self.url, None, Protocol::Grpc, &self.headers)?.with_method(http::Method::POST);
        let mut connection = order.open(&self.dial).await?;
        let (messages, queue) = mpsc::channel::<Bytes>(1);
        let frames = stream::unfold(queue, |mut queue| async move {
            let message = queue.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(message)), queue))
        });
        let request = order.request_with(None, StreamBody::new(frames).boxed_unsync());
        let response = self.patience(connection.send(request)).await?.map_err(|refused| refused.failure)?;
        report.status = Some(response.status().as_u16());
        let mut body = response.into_body();
        for number in 0..self.count {
            let began = Instant::now();
            let message = Bytes::from(sender::message(&Pattern::bytes(number, self.bytes)));
            if messages.send(message.clone()).await.is_err() {
                return Err(Failure::new(FailureKind::Closed, Step::Send, "the stream ended"));
            }
            self.patience(expect(&mut body, &message)).await??;
            self.note(report, began).await;
        }
        drop(messages);
        report.grpc_status = self.patience(ending(&mut body)).await??;
        if report.grpc_status == Some(0) { Ok(()) } else { Err(Failure::mismatch("no good status at the end")) }
    }

    async fn note(&self, report: &mut Conversed, began: Instant) {
        report.messages += 1;
        report.longest_milliseconds = report.longest_milliseconds.max(milliseconds(began.elapsed()));
        tokio::time::sleep(self.pause).await;
    }

    async fn patience<T>(&self, step: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::time::timeout(self.dial.timeout, step).await.map_err(|_| sender::timed_out())
    }
}

/// Reads as many bytes as `wanted` has; they must be the same.
async fn expect(body: &mut Incoming, wanted: &[u8]) -> Result<(), Failure> {
    let mut came = Vec::new();
    while came.len() < wanted.len() {
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => came.extend_from_slice(&data),
                Err(frame) => return Err(Failure::mismatch(format!("an early end: {:?}", frame.trailers_ref()))),
            },
            Some(Err(error)) => return Err(failure(&error)),
            None => return Err(Failure::new(FailureKind::Closed, Step::Receive, "the stream ended")),
        }
    }
    if came == wanted { Ok(()) } else { Err(Failure::mismatch("another message came back")) }
}

/// The `grpc-status` at the end.
async fn ending(body: &mut Incoming) -> Result<Option<u16>, Failure> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| failure(&error))?;
        if let Some(trailers) = frame.trailers_ref() {
            return Ok(trailers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok()));
        }
    }
    Ok(None)
}
