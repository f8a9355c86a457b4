//! One figure: which load makes it, and what its result means.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::testkit::Load;

/// Port of the server's HTTP role.
pub(super) const HTTP_PORT: u16 = 8080;
/// Port of its role that counts and discards.
pub(super) const DISCARD_PORT: u16 = 9000;

/// How long a load runs before it is measured.
pub(super) const WARM_UP: Duration = Duration::from_millis(500);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Figure {
    /// Bits per second from client to server.
    Bulk {
        /// Connections that carry them at the same time.
        streams: usize,
    },
    /// HTTP requests per second on kept-alive connections, one outstanding on each.
    Requests {
        /// Those connections.
        connections: usize,
    },
    /// Connections per second, each with one HTTP request.
    Connections {
        /// Connections at the same time.
        at_once: usize,
    },
}

/// Between which pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Client and server on different nodes.
    AcrossNodes,
    /// On the same node.
    SameNode,
}

/// The figures of a run, in their order.
pub(super) const FIGURES: [Figure; 5] = [
    Figure::Bulk { streams: 1 },
    Figure::Bulk { streams: 16 },
    Figure::Requests { connections: 1 },
    Figure::Requests { connections: 16 },
    Figure::Connections { at_once: 8 },
];

impl Figure {
    /// Arguments of the testkit for this load against `host`.
    pub(super) fn arguments(self, host: &str, family: &str, duration: Duration) -> Vec<String> {
        let (mode, port, at_once) = match self {
            Self::Bulk { streams } => ("bulk", DISCARD_PORT, streams),
            Self::Requests { connections } => ("requests", HTTP_PORT, connections),
            Self::Connections { at_once } => ("connections", HTTP_PORT, at_once),
        };
        let (target, seconds) = (format!("{host}:{port}"), duration.as_secs_f64());
        let warm_up = self.warm_up().as_secs_f64().to_string();
        let words = ["load", mode, &target, family, "-c", &at_once.to_string(), "-d", &seconds.to_string(), "--warm-up", &warm_up];
        words.map(str::to_owned).to_vec()
    }

    /// How long it runs unmeasured before. Bulk has none: only what a whole connection moved is confirmed.
    pub(super) fn warm_up(self) -> Duration {
        match self {
            Self::Bulk { .. } => Duration::ZERO,
            Self::Requests { .. } | Self::Connections { .. } => WARM_UP,
        }
    }

    /// The rate that this load reached.
    pub(super) fn per_second(self, load: &Load) -> f64 {
        match self {
            Self::Bulk { .. } => load.bytes_per_second * 8.0,
            Self::Requests { .. } | Self::Connections { .. } => load.rate_per_second,
        }
    }

    /// A rate as people read it.
    pub fn rate(self, per_second: f64) -> String {
        match self {
            Self::Bulk { .. } => format!("{:.2} Gbit/s", per_second / 1e9),
            Self::Requests { .. } | Self::Connections { .. } => format!("{per_second:.0} /s"),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk { streams: 1 } => f.write_str("bulk, 1 stream"),
            Self::Bulk { streams } => write!(f, "bulk, {streams} streams"),
            Self::Requests { connections: 1 } => f.write_str("requests, 1 connection"),
            Self::Requests { connections } => write!(f, "requests, {connections} connections"),
            Self::Connections { at_once } => write!(f, "connections, {at_once} at once"),
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AcrossNodes => "across nodes",
            Self::SameNode => "same node",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_each_load() {
        let arguments = Figure::Bulk { streams: 16 }.arguments("server", "-6", Duration::from_millis(1500));
        assert_eq!(arguments.join(" "), "load bulk server:9000 -6 -c 16 -d 1.5 --warm-up 0");
        let arguments = Figure::Connections { at_once: 8 }.arguments("server", "-4", Duration::from_secs(2));
        assert_eq!(arguments.join(" "), "load connections server:8080 -4 -c 8 -d 2 --warm-up 0.5");
    }

    #[test]
    fn rates() {
        let load = Load { rate_per_second: 5000.4, bytes_per_second: 125e6, ..Load::default() };
        let rate = |figure: Figure| figure.rate(figure.per_second(&load));
        assert_eq!(rate(Figure::Bulk { streams: 1 }), "1.00 Gbit/s");
        assert_eq!(rate(Figure::Requests { connections: 1 }), "5000 /s");
    }
}
