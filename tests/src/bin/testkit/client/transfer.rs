//! `transfer`: a large body to or from the application, both ends computing its digest.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures_util::stream;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::Response;
use hyper::body::{Frame, Incoming};
use tropis_tests::testkit::calls::{Told, Transferred};

use super::call::Protocol;
use super::call::sender::{self, Body, Order, failure};
use super::{byte_count, milliseconds};
use crate::bytes::{Pattern, Tally};
use crate::connection::{Dial, Failure, seconds};
use crate::print_line;
use crate::serve::BODY_SEED;

/// Bytes of a frame.
const FRAME_BYTES: u64 = 64 * 1024;
/// Largest answer to an upload.
const ANSWER_BYTES: usize = 1 << 20;
/// How many bytes come before the pause.
const BEFORE_PAUSE: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// To the application
    Up,
    /// From it
    Down,
}

#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// For example http://app:8080/
    #[arg(value_name = "URL")]
    url: http::Uri,
    #[command(flatten)]
    dial: Dial,
    #[arg(long, value_enum)]
    direction: Direction,
    #[arg(long, value_enum, default_value = "h1")]
    protocol: Protocol,
    /// How much: a number, 64K, 1G
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    bytes: u64,
    /// How long the reader rests after the first mebibyte: we, or the application
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    pause: Duration,
    /// A header field to send; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
}

impl Transfer {
    pub(crate) async fn run(self) -> bool {
        let started = Instant::now();
        let mut report = Transferred { command: "transfer".to_owned(), target: self.url.to_string(), ..Transferred::default() };
        let result = match self.direction {
            Direction::Up => self.up(&mut report).await,
            Direction::Down => self.down(&mut report).await,
        };
        report.ok = result.is_ok();
        if let Err(failure) = result {
            (report.error, report.detail) = (Some(failure.kind), Some(failure.detail));
        }
        report.milliseconds = milliseconds(started.elapsed());
        print_line(&report);
        report.ok
    }

    async fn send(&self, ask: Option<String>, method: http::Method, body: Body) -> Result<Response<Incoming>, Failure> {
        let mut fields = self.headers.clone();
        fields.extend(ask.map(|ask| format!("{}: {ask}", tropis_tests::testkit::calls::ASK)));
        let order = Order::to(&self.url, None, self.protocol, &fields)?.with_method(method);
        let mut sender = order.open(&self.dial).await?;
        let request = order.request_with(None, body);
        sender.send(request).await.map_err(|refused| refused.failure)
    }

    async fn up(&self, report: &mut Transferred) -> Result<(), Failure> {
        let ask = (!self.pause.is_zero()).then(|| format!("stall={}", self.pause.as_millis()));
        let response = self.send(ask, http::Method::POST, computed(self.bytes)).await?;
        report.status = Some(response.status().as_u16());
        let answer = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let answer = answer.map_err(|error| Failure::mismatch(error.to_string()))?.to_bytes();
        let told: Told = serde_json::from_slice(&answer).map_err(|error| Failure::mismatch(format!("{error}: {answer:?}")))?;
        report.bytes = told.body_bytes;
        self.compare(told.body_bytes, &told.body_sha256)
    }

    async fn down(&self, report: &mut Transferred) -> Result<(), Failure> {
        let ask = Some(format!("body={},trailers", self.bytes));
        let response = self.send(ask, http::Method::GET, http_body_util::Empty::new().boxed_unsync()).await?;
        report.status = Some(response.status().as_u16());
        let (mut body, mut tally, mut rested) = (response.into_body(), Tally::default(), self.pause.is_zero());
        loop {
            let frame = tokio::time::timeout(self.dial.timeout, body.frame()).await.map_err(|_| sender::timed_out())?;
            let Some(frame) = frame else { break };
            match frame.map_err(|error| failure(&error))?.into_data() {
                Ok(data) => tally.add(&data),
                Err(frame) => report.trailers = frame.trailers_ref().map(sender::fields).unwrap_or_default(),
            }
            report.bytes = tally.bytes();
            if !rested && tally.bytes() >= BEFORE_PAUSE {
                rested = true;
                tokio::time::sleep(self.pause).await;
            }
        }
        let bytes = tally.bytes();
        self.compare(bytes, &tally.digest())
    }

    fn compare(&self, bytes: u64, digest: &str) -> Result<(), Failure> {
        if bytes != self.bytes {
            return Err(Failure::mismatch(format!("{bytes} bytes arrived of {}", self.bytes)));
        }
        let (mut pattern, mut tally, mut left) = (Pattern::new(BODY_SEED), Tally::default(), self.bytes);
        let mut block = vec![0; FRAME_BYTES as usize];
        while left > 0 {
            let length = left.min(FRAME_BYTES);
            pattern.fill(&mut block[..length as usize]);
            tally.add(&block[..length as usize]);
            left -= length;
        }
        let wanted = tally.digest();
        if wanted == digest { Ok(()) } else { Err(Failure::mismatch(format!("digest {digest} instead of {wanted}"))) }
    }
}

fn computed(bytes: u64) -> Body {
    let frames = stream::unfold((Pattern::new(BODY_SEED), bytes), |(mut pattern, left)| async move {
        if left == 0 {
            return None;
        }
        let mut block = vec![0; left.min(FRAME_BYTES) as usize];
        pattern.fill(&mut block);
        let left = left - block.len() as u64;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(block))), (pattern, left)))
    });
    StreamBody::new(frames).boxed_unsync()
}
