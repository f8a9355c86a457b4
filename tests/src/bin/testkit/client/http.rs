//! `get`: one HTTP request, as `curl` would make it.

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tropis_tests::testkit::{FailureKind, Step};

use super::{Reporter, readable};
use crate::connection::{Dial, Failure, Target};

/// Largest body that is read.
const BODY_BYTES: usize = 4 << 20;

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// For example http://reviews:9080/reviews/0
    #[arg(value_name = "URL")]
    url: http::Uri,
    #[command(flatten)]
    dial: Dial,
    /// A header field to send, for example `end-user: jason`; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Succeed whatever the status is (else only 200 to 299)
    #[arg(long)]
    any_status: bool,
}

impl Get {
    pub(crate) async fn run(self) -> bool {
        let mut reporter = Reporter::new("get", &self.url);
        let result = self.exchange(&mut reporter).await;
        reporter.finish(result)
    }

    async fn exchange(&self, reporter: &mut Reporter) -> Result<(), Failure> {
        let invalid = |detail: String| Failure::new(FailureKind::Other, Step::Resolve, detail);
        if self.url.scheme_str() != Some("http") {
            return Err(invalid(format!("{} is not an http:// URL", self.url)));
        }
        let authority = self.url.authority().ok_or_else(|| invalid(format!("{} names no host", self.url)))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let target = Target { host, port: authority.port_u16().unwrap_or(80) };
        let mut request = Request::get(self.url.path_and_query().map_or("/", |path| path.as_str())).header("host", authority.as_str());
        for field in &self.headers {
            let (name, value) = field.split_once(':').ok_or_else(|| invalid(format!("{field:?} is not NAME: VALUE")))?;
            request = request.header(name.trim(), value.trim());
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| invalid(error.to_string()))?;

        let connection = self.dial.connect(&target).await?;
        reporter.connected(&connection);
        let talk = async {
            let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(connection.stream)).await?;
            let driver = tokio::spawn(driver);
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_BYTES).collect().await.map_err(into_hyper)?.to_bytes();
            driver.abort();
            Ok::<_, TalkError>((status, body))
        };
        let (status, body) = match tokio::time::timeout(self.dial.timeout, talk).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(error.failure()),
            Err(_) => return Err(Failure::new(FailureKind::Timeout, Step::Receive, "no complete answer in time")),
        };
        reporter.report.status = Some(status.as_u16());
        reporter.report.bytes = body.len() as u64;
        reporter.report.reply = Some(readable(&body));
        if self.any_status || status.is_success() { Ok(()) } else { Err(Failure::mismatch(format!("status {status}"))) }
    }
}

/// What can go wrong on a connection that stands.
enum TalkError {
    Hyper(hyper::Error),
    Body(Box<dyn std::error::Error + Send + Sync>),
}

impl From<hyper::Error> for TalkError {
    fn from(error: hyper::Error) -> Self {
        Self::Hyper(error)
    }
}

fn into_hyper(error: Box<dyn std::error::Error + Send + Sync>) -> TalkError {
    TalkError::Body(error)
}

impl TalkError {
    /// Looks for the socket's error below hyper's.
    fn failure(&self) -> Failure {
        let error: &(dyn std::error::Error + 'static) = match self {
            Self::Hyper(error) => error,
            Self::Body(error) => error.as_ref(),
        };
        let mut kind = match self {
            Self::Hyper(error) if error.is_incomplete_message() => FailureKind::Closed,
            _ => FailureKind::Other,
        };
        let mut cause = Some(error);
        while let Some(current) = cause {
            if let Some(io) = current.downcast_ref::<std::io::Error>() {
                kind = FailureKind::of(io);
            }
            cause = current.source();
        }
        Failure::new(kind, Step::Receive, error.to_string())
    }
}
