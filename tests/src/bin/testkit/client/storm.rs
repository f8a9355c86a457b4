//! `storm`: many connections at once.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::Args;
use futures_util::future::join_all;
use tropis_tests::testkit::{self, FailureKind};

use super::exchange::{echo, leave};
use super::{To, milliseconds};
use crate::bytes::Pattern;
use crate::connection::{Connection, Failure};
use crate::print_line;

#[derive(Debug, Args)]
pub(crate) struct Storm {
    #[command(flatten)]
    to: To,
    /// How many
    #[arg(long, default_value_t = 500)]
    connections: usize,
    /// Bytes that each echoes, different ones each
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
}

impl Storm {
    pub(crate) async fn run(self) -> bool {
        let started = Instant::now();
        let mut errors: BTreeMap<FailureKind, usize> = BTreeMap::new();
        let mut count = |failure: Failure| *errors.entry(failure.kind).or_default() += 1;

        let addresses = self.to.dial.resolve(&self.to.target).await;
        let mut open = Vec::new();
        match addresses {
            Ok(addresses) => {
                let dials = (0..self.connections).map(|_| self.to.dial.connect_to(addresses[0]));
                for result in join_all(dials).await {
                    match result {
                        Ok(connection) => open.push(connection),
                        Err(failure) => count(failure),
                    }
                }
            }
            Err(failure) => count(failure),
        }
        let connected = started.elapsed();
        let open_at_once = open.len();
        let mut succeeded = 0;
        for result in join_all(open.into_iter().enumerate().map(|(seed, connection)| self.talk(seed, connection))).await {
            match result {
                Ok(()) => succeeded += 1,
                Err(failure) => count(failure),
            }
        }
        let report = testkit::Storm {
            ok: succeeded == self.connections,
            command: "storm".to_owned(),
            target: self.to.target.to_string(),
            connections: self.connections,
            open_at_once,
            succeeded,
            errors,
            connect_milliseconds: milliseconds(connected),
            milliseconds: milliseconds(started.elapsed()),
        };
        print_line(&report);
        report.ok
    }

    async fn talk(&self, seed: usize, mut connection: Connection) -> Result<(), Failure> {
        echo(&mut connection, &Pattern::bytes(seed as u64, self.bytes)).await?;
        leave(&mut connection).await
    }
}
