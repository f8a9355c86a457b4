//! `connect`, `echo`, `banner`, `drip`: a few bytes on one connection.

use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tropis_tests::testkit::{FailureKind, Step};

use super::{Reporter, To, readable};
use crate::bytes::{Pattern, Tally};
use crate::connection::{Connection, Failure, seconds};

/// Longest answer that these commands read.
const ANSWER_BYTES: usize = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Connect {
    #[command(flatten)]
    to: To,
    /// Text to send; the command then reads until as many bytes came back
    #[arg(long, value_name = "TEXT")]
    send: Option<String>,
    /// Read to the end of the answer instead, after finishing our direction
    #[arg(long, requires = "send")]
    to_end: bool,
    /// Then stay connected this long; a reset or an end in that time is the outcome
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    hold: Option<Duration>,
}

impl Connect {
    pub(crate) async fn run(self) -> bool {
        let mut reporter = Reporter::new("connect", &self.to.target);
        let result = self.exchange(&mut reporter).await;
        reporter.finish(result)
    }

    async fn exchange(&self, reporter: &mut Reporter) -> Result<(), Failure> {
        let mut connection = self.to.dial.connect(&self.to.target).await?;
        reporter.connected(&connection);
        if let Some(text) = &self.send {
            connection.send(text.as_bytes()).await?;
            let answer = if self.to_end {
                connection.finish().await?;
                connection.receive_rest(ANSWER_BYTES).await?
            } else {
                connection.receive_exactly(text.len()).await?
            };
            reporter.report.bytes = answer.len() as u64;
            reporter.report.reply = Some(readable(&answer));
        }
        match self.hold {
            Some(time) => stay(&mut connection, time).await,
            None => Ok(()),
        }
    }
}

/// Waits for the time to pass in silence; the other side's end or reset is a failure.
async fn stay(connection: &mut Connection, time: Duration) -> Result<(), Failure> {
    let mut byte = [0];
    match tokio::time::timeout(time, connection.stream.read(&mut byte)).await {
        Err(_) => Ok(()),
        Ok(Ok(0)) => Err(Failure::new(FailureKind::Closed, Step::Receive, "the other side finished")),
        Ok(Ok(_)) => Err(Failure::mismatch("a byte that nobody asked for")),
        Ok(Err(error)) => Err(Failure::new(FailureKind::of(&error), Step::Receive, error.to_string())),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Echo {
    #[command(flatten)]
    to: To,
    /// The text
    text: String,
    /// Send it so many times, one after the other, on the same connection
    #[arg(long, default_value_t = 1)]
    count: u32,
}

impl Echo {
    pub(crate) async fn run(self) -> bool {
        let mut reporter = Reporter::new("echo", &self.to.target);
        let result = self.exchange(&mut reporter).await;
        reporter.finish(result)
    }

    async fn exchange(&self, reporter: &mut Reporter) -> Result<(), Failure> {
        let mut connection = self.to.dial.connect(&self.to.target).await?;
        reporter.connected(&connection);
        for _ in 0..self.count {
            echo(&mut connection, self.text.as_bytes()).await?;
            reporter.report.bytes += self.text.len() as u64;
        }
        reporter.report.reply = Some(self.text.clone());
        leave(&mut connection).await
    }
}

/// Sends bytes and expects the same ones back.
pub(super) async fn echo(connection: &mut Connection, bytes: &[u8]) -> Result<(), Failure> {
    connection.send(bytes).await?;
    let answer = connection.receive_exactly(bytes.len()).await?;
    if answer == bytes { Ok(()) } else { Err(Failure::mismatch(format!("got {:?}", readable(&answer)))) }
}

/// Finishes our direction and expects the other side to finish too, with nothing more to say.
pub(super) async fn leave(connection: &mut Connection) -> Result<(), Failure> {
    connection.finish().await?;
    match connection.receive_rest(0).await {
        Ok(_) => Ok(()),
        Err(failure) => Err(failure),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Banner {
    #[command(flatten)]
    to: To,
    /// Text to echo after the banner
    #[arg(long, default_value = "thank you")]
    text: String,
}

impl Banner {
    pub(crate) async fn run(self) -> bool {
        let mut reporter = Reporter::new("banner", &self.to.target);
        let result = self.exchange(&mut reporter).await;
        reporter.finish(result)
    }

    async fn exchange(&self, reporter: &mut Reporter) -> Result<(), Failure> {
        let mut connection = self.to.dial.connect(&self.to.target).await?;
        reporter.connected(&connection);
        let banner = connection.receive_line(ANSWER_BYTES).await?;
        reporter.report.bytes = banner.len() as u64 + 1;
        reporter.report.reply = Some(banner);
        echo(&mut connection, self.text.as_bytes()).await?;
        reporter.report.bytes += self.text.len() as u64;
        leave(&mut connection).await
    }
}

#[derive(Debug, Args)]
pub(crate) struct Drip {
    #[command(flatten)]
    to: To,
    /// How many bytes
    #[arg(long, default_value_t = 256, value_parser = super::byte_count)]
    bytes: u64,
    /// Rest between two of them
    #[arg(long, value_name = "SECONDS", default_value = "0.001", value_parser = seconds)]
    pause: Duration,
    /// Wait for each byte to come back before the next
    #[arg(long)]
    one_by_one: bool,
}

impl Drip {
    pub(crate) async fn run(self) -> bool {
        let mut reporter = Reporter::new("drip", &self.to.target);
        let result = self.exchange(&mut reporter).await;
        reporter.finish(result)
    }

    async fn exchange(&self, reporter: &mut Reporter) -> Result<(), Failure> {
        let mut connection = self.to.dial.connect(&self.to.target).await?;
        reporter.connected(&connection);
        let payload = Pattern::bytes(1, self.bytes as usize);
        let answer = if self.one_by_one {
            let mut answer = Vec::with_capacity(payload.len());
            for byte in &payload {
                connection.send(&[*byte]).await?;
                answer.extend(connection.receive_exactly(1).await?);
                tokio::time::sleep(self.pause).await;
            }
            answer
        } else {
            self.drip_and_listen(&mut connection, &payload).await?
        };
        reporter.report.bytes = answer.len() as u64;
        if answer != payload {
            return Err(Failure::mismatch("the bytes that came back differ"));
        }
        reporter.report.sha256 = Some(Tally::of(&answer).digest());
        leave(&mut connection).await
    }

    /// Writes and reads at the same time, as a chatty protocol does.
    async fn drip_and_listen(&self, connection: &mut Connection, payload: &[u8]) -> Result<Vec<u8>, Failure> {
        let patience = connection.patience;
        let (mut reader, mut writer) = connection.stream.split();
        let write = async {
            for byte in payload {
                patience.wait(Step::Send, writer.write_all(&[*byte])).await?;
                tokio::time::sleep(self.pause).await;
            }
            Ok(())
        };
        let read = async {
            let mut answer = vec![0; payload.len()];
            for place in answer.chunks_mut(1) {
                patience.wait(Step::Receive, reader.read_exact(place)).await?;
            }
            Ok(answer)
        };
        let ((), answer) = tokio::try_join!(write, read)?;
        Ok(answer)
    }
}
