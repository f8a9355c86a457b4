//! `stream`: many bytes up, down or both ways, digests compared on both sides.

use clap::{Args, ValueEnum};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tropis_tests::testkit::Step;

use super::{Reporter, To, byte_count};
use crate::bytes::{BLOCK_BYTES, Pattern, Tally};
use crate::connection::{Connection, Failure, Patience};

/// Which way the bytes go, and the server role that the target must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// To a `--sink`, which answers with its digest
    Up,
    /// From a `--source`, whose bytes follow from the seed
    Down,
    /// To a `--tcp-echo` and back, at the same time
    Both,
}

#[derive(Debug, Args)]
pub(crate) struct Stream {
    #[command(flatten)]
    to: To,
    /// How many bytes (64K, 1G, …)
    #[arg(long, default_value = "64M", value_parser = byte_count)]
    bytes: u64,
    /// Which way
    #[arg(long, value_enum, default_value = "up")]
    direction: Direction,
    /// What the bytes are computed from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Stream {
    pub(crate) async fn run(self) -> bool {
        let mut reporter = Reporter::new("stream", &self.to.target);
        let result = self.exchange(&mut reporter).await;
        reporter.finish(result)
    }

    async fn exchange(&self, reporter: &mut Reporter) -> Result<(), Failure> {
        let mut connection = self.to.dial.connect(&self.to.target).await?;
        reporter.connected(&connection);
        let (bytes, digest) = match self.direction {
            Direction::Up => self.up(&mut connection).await?,
            Direction::Down => self.down(&mut connection).await?,
            Direction::Both => self.both(&mut connection).await?,
        };
        reporter.report.bytes = bytes;
        reporter.report.sha256 = Some(digest);
        Ok(())
    }

    async fn up(&self, connection: &mut Connection) -> Result<(u64, String), Failure> {
        connection.send(format!("{}\n", self.bytes).as_bytes()).await?;
        let patience = connection.patience;
        let (_, mut writer) = connection.stream.split();
        let sent = send(patience, &mut writer, self.bytes, self.seed).await?;
        connection.finish().await?;
        let answer = connection.receive_line(128).await?;
        let expected = format!("{} {sent}", self.bytes);
        if answer == expected { Ok((self.bytes, sent)) } else { Err(Failure::mismatch(format!("sent {expected}, the sink got {answer}"))) }
    }

    async fn down(&self, connection: &mut Connection) -> Result<(u64, String), Failure> {
        connection.send(format!("{} {}\n", self.bytes, self.seed).as_bytes()).await?;
        let patience = connection.patience;
        let (mut reader, _) = connection.stream.split();
        let came = receive(patience, &mut reader).await?;
        connection.finish().await?;
        self.compare(came)
    }

    async fn both(&self, connection: &mut Connection) -> Result<(u64, String), Failure> {
        let patience = connection.patience;
        let (mut reader, mut writer) = connection.stream.split();
        let write = async {
            let sent = send(patience, &mut writer, self.bytes, self.seed).await?;
            patience.wait(Step::Send, writer.shutdown()).await.map(|()| sent)
        };
        let (sent, came) = tokio::try_join!(write, receive(patience, &mut reader))?;
        let (bytes, digest) = (came.bytes(), came.digest());
        if (bytes, &digest) == (self.bytes, &sent) { Ok((bytes, digest)) } else { Err(differ(self.bytes, &sent, bytes, &digest)) }
    }

    /// Compares what a source sent with what the seed gives.
    fn compare(&self, came: Tally) -> Result<(u64, String), Failure> {
        let (bytes, digest) = (came.bytes(), came.digest());
        let expected = digest_of(self.bytes, self.seed);
        if (bytes, &digest) == (self.bytes, &expected) { Ok((bytes, digest)) } else { Err(differ(self.bytes, &expected, bytes, &digest)) }
    }
}

fn differ(expected_bytes: u64, expected: &str, bytes: u64, digest: &str) -> Failure {
    Failure::mismatch(format!("expected {expected_bytes} bytes with digest {expected}, got {bytes} with {digest}"))
}

/// Writes the pattern and gives its digest; leaves the direction open.
async fn send(patience: Patience, writer: &mut WriteHalf<'_>, bytes: u64, seed: u64) -> Result<String, Failure> {
    let mut pattern = Pattern::new(seed);
    let mut tally = Tally::default();
    let mut buffer = vec![0; BLOCK_BYTES];
    while tally.bytes() < bytes {
        let block = &mut buffer[..(bytes - tally.bytes()).min(BLOCK_BYTES as u64) as usize];
        pattern.fill(block);
        tally.add(block);
        patience.wait(Step::Send, writer.write_all(block)).await?;
    }
    Ok(tally.digest())
}

/// Reads to the end.
async fn receive(patience: Patience, reader: &mut ReadHalf<'_>) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        match patience.wait(Step::Receive, reader.read(&mut buffer)).await? {
            0 => return Ok(tally),
            length => tally.add(&buffer[..length]),
        }
    }
}

fn digest_of(bytes: u64, seed: u64) -> String {
    let mut pattern = Pattern::new(seed);
    let mut tally = Tally::default();
    let mut buffer = vec![0; BLOCK_BYTES];
    while tally.bytes() < bytes {
        let block = &mut buffer[..(bytes - tally.bytes()).min(BLOCK_BYTES as u64) as usize];
        pattern.fill(block);
        tally.add(block);
    }
    tally.digest()
}
