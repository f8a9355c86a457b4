//! `half-close`: one direction ends (FIN) while the other still carries data. Client first against `--half-close`, server first
//! against `--farewell`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Reporter, To, byte_count};
use crate::bytes::{Pattern, Tally};
use crate::connection::Failure;
use crate::serve::FarewellGreeting;

/// How often and how long apart the farewell server is asked what it heard: its last bytes may still be on their way.
const QUESTIONS: u32 = 40;
const QUESTION_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum First {
    /// We finish, the server (`--half-close`) then answers with count and digest
    Client,
    /// The server (`--farewell`) finishes, we then send, and ask it on a second connection what it heard
    Server,
}

#[derive(Debug, Args)]
pub(crate) struct HalfClose {
    #[command(flatten)]
    to: To,
    /// Who finishes first
    #[arg(long, value_enum, default_value = "client")]
    first: First,
    /// How many bytes go the other way
    #[arg(long, default_value = "1M", value_parser = byte_count)]
    bytes: u64,
    /// Rest between the one side's end and the other side's data
    #[arg(long, value_name = "SECONDS", default_value = "0.2", value_parser = crate::connection::seconds)]
    pause: Duration,
}

impl HalfClose {
    pub(crate) async fn run(self) -> bool {
        let mut reporter = Reporter::new("half-close", &self.to.target);
        let payload = Pattern::bytes(2, self.bytes as usize);
        let digest = Tally::of(&payload).digest();
        let result = match self.first {
            First::Client => self.client_first(&mut reporter, &payload, &digest).await,
            First::Server => self.server_first(&mut reporter, &payload, &digest).await,
        };
        if result.is_ok() {
            reporter.report.bytes = self.bytes;
            reporter.report.sha256 = Some(digest);
        }
        reporter.finish(result)
    }

    async fn client_first(&self, reporter: &mut Reporter, payload: &[u8], digest: &str) -> Result<(), Failure> {
        let mut connection = self.to.dial.connect(&self.to.target).await?;
        reporter.connected(&connection);
        connection.send(payload).await?;
        connection.finish().await?;
        let answer = super::readable(&connection.receive_rest(1024).await?);
        reporter.report.reply = Some(answer.trim().to_owned());
        let expected = format!("{} {digest}", payload.len());
        if answer.trim() == expected { Ok(()) } else { Err(Failure::mismatch(format!("expected {expected:?}, got {answer:?}"))) }
    }

    async fn server_first(&self, reporter: &mut Reporter, payload: &[u8], digest: &str) -> Result<(), Failure> {
        let mut connection = self.to.dial.connect(&self.to.target).await?;
        reporter.connected(&connection);
        let greeting = greeting(&connection.receive_rest(64 * 1024).await?)?;
        tokio::time::sleep(self.pause).await;
        connection.send(payload).await?;
        connection.finish().await?;
        for _ in 0..QUESTIONS {
            let mut second = self.to.dial.connect_to(connection.peer).await?;
            let heard = self::greeting(&second.receive_rest(64 * 1024).await?)?.heard;
            second.finish().await?;
            if let Some(heard) = heard.iter().find(|heard| heard.number == greeting.number) {
                reporter.report.reply = Some(format!("{} {}", heard.bytes, heard.sha256));
                let same = heard.bytes == payload.len() as u64 && heard.sha256 == digest;
                return if same { Ok(()) } else { Err(Failure::mismatch(format!("the server heard {} {}", heard.bytes, heard.sha256))) };
            }
            tokio::time::sleep(QUESTION_PAUSE).await;
        }
        Err(Failure::mismatch("the server never saw our end"))
    }
}

fn greeting(bytes: &[u8]) -> Result<FarewellGreeting, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|error| Failure::mismatch(format!("not a farewell server ({error}): {:?}", super::readable(bytes))))
}
