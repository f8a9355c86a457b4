//! The access log: one line a connection, on every way out.
//!
//! Fields are Istio's, in Istio's order, then ours: `stage`, `reason`, `side`, `policy` (what denied, or the ALLOW policies none of
//! which matched) and `config_version` (the control plane's name for what decided). `bytes_sent` and `bytes_recv` are from the proxy's
//! own viewpoint, as Istio has it: outbound, sent is what the application sent; inbound, sent is what the application answered.

use std::{fmt, net::SocketAddr, time::Duration};

use tropis_model::{
    identity::Identity,
    outcome::{Outcome, Reason, Stage},
    policy::PolicyKey,
    workload::Workload,
};

/// Which way a connection goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The pod opened it.
    Outbound,
    /// It was opened to the pod.
    Inbound,
}

impl Direction {
    /// The stable word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// One end of a connection, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct End<'a> {
    /// IP and port.
    pub address: Option<SocketAddr>,
    /// The workload there.
    pub workload: Option<&'a Workload>,
    /// The identity that it proved by mTLS; `None` for plain traffic.
    pub identity: Option<&'a Identity>,
}

/// What is written about one connection.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// The end that opened it.
    pub source: End<'a>,
    /// The end that it was opened to.
    pub destination: End<'a>,
    /// The tunnel's authority, for HBONE.
    pub hbone_authority: Option<&'a dyn AuthorityText>,
    /// The hostname of the service that was addressed.
    pub service: Option<&'a str>,
    /// Bytes from the side that opened it.
    pub bytes_from_source: u64,
    /// Bytes to the side that opened it.
    pub bytes_to_source: u64,
    /// From accept to the end.
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// What decided a denial.
    pub policies: &'a [PolicyKey],
    /// What went wrong, with causes; `None` if nothing did.
    pub error: Option<&'a str>,
    /// The control plane's name for the configuration that decided, if there was one.
    pub config_version: Option<&'a str>,
    /// The trace that the connection belongs to.
    pub traceparent: Option<&'a str>,
}

/// Whatever prints an authority and itself for debugging.
pub trait AuthorityText: fmt::Display + fmt::Debug {}

impl<T: fmt::Display + fmt::Debug> AuthorityText for T {}

/// The log target of access lines.
pub const TARGET: &str = "access";

/// Writes the fields of one line at one level.
macro_rules! line {
    ($level:expr, $access:expr, $message:literal) => {{
        let access = $access;
        let (sent, received) = access.bytes();
        let (source, destination) = (&access.source, &access.destination);
        let workload = |end: &End<'_>, part: fn(&Workload) -> &str| end.workload.map(|workload| part(workload).to_owned());
        tracing::event!(
            target: TARGET,
            $level,
            src.addr = source.address.map(tracing::field::display),
            src.workload = workload(source, |it| &it.name),
            src.namespace = workload(source, |it| &it.namespace),
            src.identity = source.identity.map(tracing::field::display),
            src.cluster = workload(source, |it| &it.cluster_id),
            dst.addr = destination.address.map(tracing::field::display),
            dst.hbone_addr = access.hbone_authority.map(tracing::field::display),
            dst.service = access.service,
            dst.workload = workload(destination, |it| &it.name),
            dst.namespace = workload(destination, |it| &it.namespace),
            dst.identity = destination.identity.map(tracing::field::display),
            dst.cluster = workload(destination, |it| &it.cluster_id),
            direction = access.direction.word(),
            bytes_sent = sent,
            bytes_recv = received,
            duration = format!("{}ms", access.duration.as_millis()),
            error = access.error,
            stage = access.outcome.stage.word(),
            reason = access.outcome.reason.word(),
            side = access.side(),
            policy = access.policy(),
            config_version = access.config_version,
            traceparent = access.traceparent,
            $message
        );
    }};
}

impl Access<'_> {
    /// Writes the line: `info` if nothing failed, `warn` for what failed before it was known who talks to whom, else `error`.
    pub fn write(&self) {
        let early = self.outcome.stage <= Stage::Identify;
        match (self.error.is_some(), early) {
            (false, _) => line!(tracing::Level::INFO, self, "connection complete"),
            (true, false) => line!(tracing::Level::ERROR, self, "connection complete"),
            (true, true) => line!(tracing::Level::WARN, self, "connection failed"),
        }
    }

    fn bytes(&self) -> (u64, u64) {
        match self.direction {
            Direction::Outbound => (self.bytes_from_source, self.bytes_to_source),
            Direction::Inbound => (self.bytes_to_source, self.bytes_from_source),
        }
    }

    fn side(&self) -> Option<&'static str> {
        (self.outcome.reason != Reason::Completed).then(|| self.outcome.side.word())
    }

    fn policy(&self) -> Option<String> {
        let keys: Vec<&str> = self.policies.iter().map(|key| &*key.0).collect();
        (!keys.is_empty()).then(|| keys.join(","))
    }
}

#[cfg(test)]
mod tests {
    use tropis_model::outcome::Side;

    use super::*;

    fn access(direction: Direction) -> Access<'static> {
        Access {
            direction,
            source: End::default(),
            destination: End::default(),
            hbone_authority: None,
            service: None,
            bytes_from_source: 3,
            bytes_to_source: 5,
            duration: Duration::from_millis(7),
            outcome: Outcome { stage: Stage::Relay, reason: Reason::Completed, side: Side::Mesh },
            policies: &[],
            error: None,
            config_version: Some("1"),
            traceparent: None,
        }
    }

    #[test]
    fn bytes_are_counted_from_the_proxys_viewpoint() {
        assert_eq!(access(Direction::Outbound).bytes(), (3, 5));
        assert_eq!(access(Direction::Inbound).bytes(), (5, 3));
    }

    #[test]
    fn nobody_is_blamed_for_a_completed_connection() {
        let mut access = access(Direction::Inbound);
        assert_eq!(access.side(), None);
        access.outcome = Outcome { stage: Stage::Authorize, reason: Reason::PolicyDenied, side: Side::Downstream };
        let keys = [PolicyKey("a/b".into()), PolicyKey("c/d".into())];
        access.policies = &keys;
        assert_eq!((access.side(), access.policy().as_deref()), (Some("downstream"), Some("a/b,c/d")));
    }
}
