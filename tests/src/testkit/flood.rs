//! What the testkit's `flood` prints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FailureKind;

/// The line of `flood`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Flood {
    /// Whether any connection stood.
    pub ok: bool,
    /// The command.
    pub command: String,
    /// What was asked for on the command line.
    pub target: String,
    /// Connections that stood.
    pub connections: u64,
    /// Those that the other side ended.
    pub ended: u64,
    /// Bytes that the other side took.
    pub bytes: u64,
    /// Connections that did not stand, by kind of failure.
    pub errors: BTreeMap<FailureKind, u64>,
    /// Time of the whole command.
    pub milliseconds: f64,
}
