//! What `tropis-testkit` prints, as types: one JSON line a client command, one line an event of `serve` and `hold`.
//! The program itself is in `src/bin/testkit`; scenarios and benches read its lines with [`read`].

pub mod calls;
pub mod flood;

use std::collections::BTreeMap;
use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How an exchange failed, as the application saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// `ECONNREFUSED`: nobody listens, or the mesh refuses.
    Refused,
    /// `ECONNRESET`, or `EPIPE` after the other side had finished, or `ENOTCONN` at once: a TCP reset arrived.
    Reset,
    /// Nothing happened for the time allowed.
    Timeout,
    /// The other side finished (FIN) before all of the answer was there.
    Closed,
    /// No route to the host or network.
    Unreachable,
    /// `EPERM` or `EACCES`: the kernel forbids the call.
    Denied,
    /// The local address is not ours, or local ports are exhausted.
    NoAddress,
    /// The name has no address of the wanted family.
    UnknownName,
    /// Bytes came, but not the ones expected.
    Mismatch,
    /// Anything else; the detail says what.
    Other,
}

impl FailureKind {
    /// The kind of a socket error.
    pub fn of(error: &io::Error) -> Self {
        use io::ErrorKind as E;
        match error.kind() {
            E::ConnectionRefused => Self::Refused,
            // `EPIPE` is how Linux reports a reset that met a half-closed socket, `ENOTCONN` one that came before the peer was asked for.
            E::ConnectionReset | E::BrokenPipe | E::ConnectionAborted | E::NotConnected => Self::Reset,
            E::TimedOut => Self::Timeout,
            E::UnexpectedEof => Self::Closed,
            E::HostUnreachable | E::NetworkUnreachable => Self::Unreachable,
            E::PermissionDenied => Self::Denied,
            E::AddrNotAvailable | E::AddrInUse => Self::NoAddress,
            _ => Self::Other,
        }
    }
}

/// The part of an exchange that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Name to address.
    Resolve,
    /// The TCP connect.
    Connect,
    /// Writing to the connection.
    Send,
    /// Reading from it.
    Receive,
}

/// The line of every command that has one connection: `connect`, `echo`, `banner`, `stream`, `drip`, `half-close`, `get`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// Whether everything expected happened.
    pub ok: bool,
    /// The command.
    pub command: String,
    /// What was asked for on the command line.
    pub target: String,
    /// The other side as `getpeername` tells it; IPv4 in IPv6 is shown as IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Our own address as `getsockname` tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<String>,
    /// Payload bytes that were confirmed.
    pub bytes: u64,
    /// Digest of that payload, where the command checks one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// What the other side said, where that is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// Status of an HTTP answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FailureKind>,
    /// Where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Step>,
    /// The error's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Time until the connection stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_milliseconds: Option<f64>,
    /// Time of the whole command.
    pub milliseconds: f64,
}

/// The line of `storm`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Storm {
    /// Whether every connection stood and echoed.
    pub ok: bool,
    /// The command.
    pub command: String,
    /// What was asked for on the command line.
    pub target: String,
    /// Connections tried.
    pub connections: usize,
    /// Connections that stood at the same time.
    pub open_at_once: usize,
    /// Connections that echoed their payload.
    pub succeeded: usize,
    /// Failures by kind.
    pub errors: BTreeMap<FailureKind, usize>,
    /// Time until all stood.
    pub connect_milliseconds: f64,
    /// Time of the whole command.
    pub milliseconds: f64,
}

/// The line of `resolve`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// Whether there was an answer with at least one record of the wanted type.
    pub ok: bool,
    /// The command.
    pub command: String,
    /// The name asked for.
    pub name: String,
    /// Record type asked for (`A`, `AAAA`, …); `any` for `--system` without one.
    #[serde(rename = "type")]
    pub record_type: String,
    /// `udp`, `tcp` or `system`.
    pub transport: String,
    /// Who was asked; absent with `--system`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Where the answer came from, as the socket tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// DNS response code (`NOERROR`, `NXDOMAIN`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rcode: Option<String>,
    /// Records of the wanted type, as text, in the answer's order.
    pub answers: Vec<String>,
    /// Smallest time to live among them, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    /// Whether the answer says that it was cut.
    pub truncated: bool,
    /// How it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FailureKind>,
    /// The error's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Time of the whole command.
    pub milliseconds: f64,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Fastest.
    pub min: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Half are faster.
    pub p50: f64,
    /// Nine in ten are faster.
    pub p90: f64,
    /// 99 in 100 are faster.
    pub p99: f64,
    /// 999 in 1000 are faster.
    pub p999: f64,
    /// Slowest.
    pub max: f64,
}

/// The line of `load`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Whether something was done and nothing failed.
    pub ok: bool,
    /// The command.
    pub command: String,
    /// `requests`, `connections` or `bulk`.
    pub mode: String,
    /// What was asked for on the command line.
    pub target: String,
    /// The other side as `getpeername` tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Connections (or streams) used at once.
    pub connections: usize,
    /// Time measured, without warm-up.
    pub seconds: f64,
    /// Requests, connections or streams that finished in that time.
    pub finished: u64,
    /// The same with those of the warm-up: what has to be set against the processor time of the whole run.
    #[serde(default)]
    pub finished_in_all: u64,
    /// Those that were measured, per second.
    pub rate_per_second: f64,
    /// Payload bytes that the other side confirmed (`bulk`) or answered.
    pub bytes: u64,
    /// Those per second.
    pub bytes_per_second: f64,
    /// Time of a request, or of a connection from connect to close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_microseconds: Option<Latency>,
    /// Failures by kind.
    pub errors: BTreeMap<FailureKind, u64>,
}

/// A line of `hold`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Held {
    /// The connection stands; commands are read from now on.
    Open {
        /// The other side as `getpeername` tells it.
        peer: String,
        /// Our own address.
        local: String,
        /// Time until it stood.
        milliseconds: f64,
    },
    /// A ping came back.
    Pong {
        /// Number of the ping, from 1.
        number: u64,
        /// Its round trip.
        milliseconds: f64,
    },
    /// The connection ended; always the last line.
    Ended {
        /// Whether we ended it and the other side finished cleanly.
        ok: bool,
        /// `closed` after a FIN, otherwise how it failed.
        how: FailureKind,
        /// The error's own words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
        /// Pings that came back.
        pings: u64,
        /// Longest time between two answers, or from the last answer to the end.
        longest_gap_milliseconds: f64,
        /// Life of the connection.
        milliseconds: f64,
    },
}

/// A line of `serve`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Served {
    /// A port is in LISTEN.
    Listening {
        /// The role, by its option's name.
        role: String,
        /// The address bound.
        local: String,
    },
    /// A connection came in.
    Connection {
        /// The role, by its option's name.
        role: String,
        /// Number of the connection in this process, from 1.
        number: u64,
        /// The other side as `accept` told it.
        accepted: String,
        /// The other side as `getpeername` tells it.
        peer: String,
        /// Our own address as `getsockname` tells it.
        local: String,
    },
    /// A connection ended.
    Ended {
        /// The role, by its option's name.
        role: String,
        /// Number of the connection in this process.
        number: u64,
        /// Payload bytes received.
        received: u64,
        /// Payload bytes sent.
        sent: u64,
        /// Digest of what was received, where the role computes it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
        /// How it ended, when not in good order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<FailureKind>,
    },
}

/// What the HTTP role answers to `GET /`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Greeting {
    /// The pod: `POD_NAME`, else the host name.
    pub pod: String,
    /// Its namespace: `POD_NAMESPACE`, else empty.
    pub namespace: String,
    /// The other side as `getpeername` tells it.
    pub peer: String,
    /// Our own address.
    pub local: String,
    /// Method and path of the request.
    pub request: String,
    /// Header fields as they came.
    pub headers: BTreeMap<String, String>,
    /// Number of the connection in this process.
    pub connection: u64,
    /// Number of the request on its connection, from 1: above 1, it was kept alive.
    pub request_number: u64,
}

/// Reads the last line of a command's output.
///
/// # Errors
/// The output is empty, or its last line is not such a report; the error quotes the output.
pub fn read<T: DeserializeOwned>(output: &str) -> anyhow::Result<T> {
    let line = output.lines().rev().find(|line| !line.trim().is_empty()).ok_or_else(|| anyhow::anyhow!("the testkit printed nothing"))?;
    serde_json::from_str(line).map_err(|error| anyhow::anyhow!("not a line of the testkit ({error}): {output}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_socket_errors() {
        let cases = [
            (libc::ECONNREFUSED, FailureKind::Refused),
            (libc::ECONNRESET, FailureKind::Reset),
            (libc::EPIPE, FailureKind::Reset),
            (libc::ENOTCONN, FailureKind::Reset),
            (libc::ETIMEDOUT, FailureKind::Timeout),
            (libc::EHOSTUNREACH, FailureKind::Unreachable),
            (libc::ENETUNREACH, FailureKind::Unreachable),
            (libc::EPERM, FailureKind::Denied),
            (libc::EADDRNOTAVAIL, FailureKind::NoAddress),
        ];
        for (number, kind) in cases {
            assert_eq!(FailureKind::of(&io::Error::from_raw_os_error(number)), kind, "errno {number}");
        }
    }

    #[test]
    fn the_last_line_is_the_report() {
        let line = r#"{"ok":false,"command":"echo","target":"a:1","bytes":0,"error":"no-address","at":"connect","milliseconds":1.5}"#;
        let report: Exchange = read(&format!("noise\n{line}\n\n")).unwrap();
        assert_eq!((report.error, report.at), (Some(FailureKind::NoAddress), Some(Step::Connect)));
        assert!(read::<Exchange>("").is_err());
    }
}
