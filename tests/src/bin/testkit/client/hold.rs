//! `hold`: one connection kept for as long as the test wants. Its lines are [`Held`].

use std::time::{Duration, Instant};

use clap::Args;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines, Stdin};
use tropis_tests::testkit::{FailureKind, Held, Step};

use super::exchange::echo;
use super::{To, milliseconds};
use crate::connection::{Connection, Failure, seconds};
use crate::print_line;

#[derive(Debug, Args)]
#[command(
    after_help = "Commands on standard input, one a line: `ping` echoes and prints a line; `close` finishes, as does the end of input."
)]
pub(crate) struct Hold {
    #[command(flatten)]
    to: To,
    /// Ping by itself so often, and print no line for each; standard input may still say `ping` and `close`
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    every: Option<Duration>,
    /// Close after this time; standard input is then not read
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    hold_for: Option<Duration>,
}

/// What to do next.
enum Next {
    Ping { shown: bool },
    Close,
    Unknown(String),
    Ended(Failure),
}

impl Hold {
    pub(crate) async fn run(self) -> bool {
        let started = Instant::now();
        let mut life = Life { started, last_answer: started, longest_gap: Duration::ZERO, pings: 0 };
        let result = match self.to.dial.connect(&self.to.target).await {
            Ok(mut connection) => {
                let (peer, local) = (connection.peer.to_string(), connection.local.to_string());
                print_line(&Held::Open { peer, local, milliseconds: milliseconds(connection.took) });
                life.last_answer = Instant::now();
                self.live(&mut connection, &mut life).await
            }
            Err(failure) => Err(failure),
        };
        life.end(result)
    }

    async fn live(&self, connection: &mut Connection, life: &mut Life) -> Result<(), Failure> {
        let mut input = self.hold_for.is_none().then(|| BufReader::new(tokio::io::stdin()).lines());
        let mut ticks = self.every.map(|every| tokio::time::interval(every.max(Duration::from_millis(1))));
        let end = self.hold_for.map(|time| tokio::time::Instant::now() + time);
        loop {
            match next(connection, &mut input, &mut ticks, end).await {
                Next::Ping { shown } => {
                    let began = Instant::now();
                    life.pings += 1;
                    let payload = format!("ping {} of {}\n", life.pings, std::process::id());
                    if let Err(failure) = echo(connection, payload.as_bytes()).await {
                        life.pings -= 1;
                        return Err(failure);
                    }
                    life.answered();
                    if shown {
                        print_line(&Held::Pong { number: life.pings, milliseconds: milliseconds(began.elapsed()) });
                    }
                }
                Next::Close => {
                    connection.finish().await?;
                    return connection.receive_rest(0).await.map(|_| ());
                }
                Next::Unknown(line) => eprintln!("{line:?} is neither ping nor close"),
                Next::Ended(failure) => return Err(failure),
            }
        }
    }
}

/// Waits for a command, the next tick, the time to close, or the other side's end, whichever comes first.
async fn next(
    connection: &mut Connection,
    input: &mut Option<Lines<BufReader<Stdin>>>,
    ticks: &mut Option<tokio::time::Interval>,
    end: Option<tokio::time::Instant>,
) -> Next {
    let command = async {
        match input {
            Some(lines) => lines.next_line().await,
            None => std::future::pending().await,
        }
    };
    let tick = async {
        match ticks {
            Some(ticks) => ticks.tick().await,
            None => std::future::pending().await,
        }
    };
    let time_is_up = async {
        match end {
            Some(end) => tokio::time::sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    let mut byte = [0];
    tokio::select! {
        read = connection.stream.read(&mut byte) => Next::Ended(match read {
            Ok(0) => Failure::new(FailureKind::Closed, Step::Receive, "the other side finished"),
            Ok(_) => Failure::mismatch("a byte that nobody asked for"),
            Err(error) => Failure::new(FailureKind::of(&error), Step::Receive, error.to_string()),
        }),
        line = command => match line {
            Ok(Some(line)) => match line.trim() {
                "ping" => Next::Ping { shown: true },
                "close" => Next::Close,
                other => Next::Unknown(other.to_owned()),
            },
            Ok(None) | Err(_) => Next::Close,
        },
        _ = tick => Next::Ping { shown: false },
        () = time_is_up => Next::Close,
    }
}

/// The connection's life so far.
struct Life {
    started: Instant,
    last_answer: Instant,
    longest_gap: Duration,
    pings: u64,
}

impl Life {
    fn answered(&mut self) {
        self.longest_gap = self.longest_gap.max(self.last_answer.elapsed());
        self.last_answer = Instant::now();
    }

    fn end(mut self, result: Result<(), Failure>) -> bool {
        self.answered();
        let ok = result.is_ok();
        let (how, detail) = match result {
            Ok(()) => (FailureKind::Closed, None),
            Err(failure) => (failure.kind, Some(failure.detail)),
        };
        print_line(&Held::Ended {
            ok,
            how,
            detail,
            pings: self.pings,
            longest_gap_milliseconds: milliseconds(self.longest_gap),
            milliseconds: milliseconds(self.started.elapsed()),
        });
        ok
    }
}
