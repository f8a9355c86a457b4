//! `raw`: bytes as they are, for what no HTTP library would send or show.

use clap::Args;
use tropis_tests::testkit::FailureKind;

use super::{Reporter, To, readable};
use crate::connection::Failure;

/// Longest answer that is read.
const ANSWER_BYTES: usize = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Raw {
    #[command(flatten)]
    to: To,
    /// Text to send; `\r`, `\n`, `\t`, `\0` and `\\` are written so
    #[arg(long, value_name = "TEXT")]
    send: String,
    /// Then wait for this text in the answer, and send the next one
    #[arg(long, value_name = "TEXT", requires = "then")]
    until: Option<String>,
    /// What is sent then
    #[arg(long, value_name = "TEXT")]
    then: Option<String>,
    /// Stop reading at this text, instead of at the end of the connection
    #[arg(long, value_name = "TEXT")]
    end: Option<String>,
}

impl Raw {
    pub(crate) async fn run(self) -> bool {
        let mut reporter = Reporter::new("raw", &self.to.target);
        let result = self.exchange(&mut reporter).await;
        reporter.finish(result)
    }

    /// What came is told also when the end was a failure.
    async fn exchange(&self, reporter: &mut Reporter) -> Result<(), Failure> {
        let mut connection = self.to.dial.connect(&self.to.target).await?;
        reporter.connected(&connection);
        let mut said = Vec::new();
        let result = async {
            connection.send(&unescape(&self.send)).await?;
            if let (Some(until), Some(then)) = (&self.until, &self.then) {
                read_until(&mut connection, &mut said, Some(&unescape(until))).await?;
                connection.send(&unescape(then)).await?;
            }
            read_until(&mut connection, &mut said, self.end.as_deref().map(unescape).as_deref()).await
        };
        let result = result.await;
        reporter.report.bytes = said.len() as u64;
        reporter.report.reply = Some(readable(&said));
        let status = reporter.report.reply.as_deref().and_then(|reply| reply.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        reporter.report.status = status;
        result
    }
}

/// Reads to `end`, or to the end of the connection if there is none.
async fn read_until(connection: &mut crate::connection::Connection, said: &mut Vec<u8>, end: Option<&[u8]>) -> Result<(), Failure> {
    let mut buffer = [0; 4096];
    let begin = said.len();
    loop {
        if end.is_some_and(|end| said[begin..].windows(end.len()).any(|window| window == end)) {
            return Ok(());
        }
        let length = connection.receive(&mut buffer).await?;
        if length == 0 {
            let early = |_| Failure::new(FailureKind::Closed, tropis_tests::testkit::Step::Receive, "the other side finished");
            return end.map_or(Ok(()), |end| Err(early(end)));
        }
        said.extend_from_slice(&buffer[..length]);
        if said.len() > ANSWER_BYTES {
            return Err(Failure::mismatch(format!("more than {ANSWER_BYTES} bytes came")));
        }
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut letters = text.bytes();
    while let Some(letter) = letters.next() {
        bytes.push(match letter {
            b'\\' => match letters.next() {
                Some(b'r') => b'\r',
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'0') => 0,
                other => other.unwrap_or(b'\\'),
            },
            letter => letter,
        });
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_bytes() {
        assert_eq!(unescape(r"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(unescape(r"a\\r\0\"), b"a\\r\0\\");
    }
}
