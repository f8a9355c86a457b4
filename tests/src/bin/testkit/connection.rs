//! A client's connection: where to, over which family, from which address, and how long each step may take.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tropis_tests::testkit::{FailureKind, Step};

/// HOST:PORT as typed; `[::1]:80` for an IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not HOST:PORT (for example reviews:9080 or [fd00::1]:9080)");
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(invalid)?,
            None if host.contains(':') => return Err(invalid()),
            None => host,
        };
        if host.is_empty() {
            return Err(invalid());
        }
        Ok(Self { host: host.to_owned(), port: port.parse().map_err(|_| invalid())? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

/// Options of every client.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Dial {
    /// Use IPv4 only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub(crate) ipv4: bool,
    /// Use IPv6 only
    #[arg(short = '6', long)]
    pub(crate) ipv6: bool,
    /// Send IPv4 through an IPv6 socket, as dual-stack applications do (`::ffff:10.0.0.1`)
    #[arg(long, conflicts_with = "ipv6")]
    pub(crate) mapped: bool,
    /// Local address to connect from
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind: Option<IpAddr>,
    /// Longest wait for any one step: resolving, connecting, one read, one write
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

/// Parses a number of seconds, with a fraction if wanted.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

/// Why a step did not succeed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) at: Step,
    pub(crate) detail: String,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, at: Step, detail: impl Into<String>) -> Self {
        Self { kind, at, detail: detail.into() }
    }

    fn io(at: Step, error: &io::Error) -> Self {
        Self::new(FailureKind::of(error), at, error.to_string())
    }

    /// What came is not what should have come.
    pub(crate) fn mismatch(detail: impl Into<String>) -> Self {
        Self::new(FailureKind::Mismatch, Step::Receive, detail)
    }
}

/// A limit for one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience(pub(crate) Duration);

impl Patience {
    pub(crate) async fn wait<T>(self, at: Step, step: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.0, step).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Failure::io(at, &error)),
            Err(_) => Err(Failure::new(FailureKind::Timeout, at, format!("nothing for {} s", self.0.as_secs_f64()))),
        }
    }
}

/// A connection that stands.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) took: Duration,
    pub(crate) patience: Patience,
}

impl Connection {
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.patience.wait(Step::Send, self.stream.write_all(bytes)).await
    }

    pub(crate) async fn finish(&mut self) -> Result<(), Failure> {
        self.patience.wait(Step::Send, self.stream.shutdown()).await
    }

    /// Reads once; 0 is the end.
    pub(crate) async fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        self.patience.wait(Step::Receive, self.stream.read(buffer)).await
    }

    pub(crate) async fn receive_exactly(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; length];
        self.patience.wait(Step::Receive, self.stream.read_exact(&mut bytes)).await?;
        Ok(bytes)
    }

    /// Reads to the end, at most `limit` bytes.
    pub(crate) async fn receive_rest(&mut self, limit: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = self.receive(&mut buffer).await?;
            if length == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&buffer[..length]);
            if bytes.len() > limit {
                return Err(Failure::mismatch(format!("more than {limit} bytes came")));
            }
        }
    }

    /// Reads one line, without its end, a byte at a time so that nothing behind it is consumed.
    pub(crate) async fn receive_line(&mut self, limit: usize) -> Result<String, Failure> {
        let mut line = Vec::new();
        loop {
            let byte = self.receive_exactly(1).await?[0];
            if byte == b'\n' {
                return String::from_utf8(line).map_err(|_| Failure::mismatch("the line is not UTF-8"));
            }
            line.push(byte);
            if line.len() > limit {
                return Err(Failure::mismatch(format!("a line longer than {limit} bytes")));
            }
        }
    }
}

/// Shows IPv4 in IPv6 as IPv4.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Dial {
    /// Addresses of the target in the resolver's order, of the wanted family.
    pub(crate) async fn resolve(&self, target: &Target) -> Result<Vec<SocketAddr>, Failure> {
        let lookup = tokio::net::lookup_host((target.host.as_str(), target.port));
        let found = match tokio::time::timeout(self.timeout, lookup).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(Failure::new(FailureKind::UnknownName, Step::Resolve, error.to_string())),
            Err(_) => return Err(Failure::new(FailureKind::Timeout, Step::Resolve, "the resolver did not answer")),
        };
        let only_ipv4 = self.ipv4 || self.mapped;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found.filter(|address| if only_ipv4 { address.is_ipv4() } else { !self.ipv6 || address.is_ipv6() }) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(Failure::new(FailureKind::UnknownName, Step::Resolve, format!("{} has no address of that family", target.host)));
        }
        Ok(addresses)
    }

    /// Connects to the first address that accepts.
    pub(crate) async fn connect(&self, target: &Target) -> Result<Connection, Failure> {
        let mut last = None;
        for address in self.resolve(target).await? {
            match self.connect_to(address).await {
                Ok(connection) => return Ok(connection),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.expect("resolve gives at least one address"))
    }

    /// Connects to one address.
    pub(crate) async fn connect_to(&self, address: SocketAddr) -> Result<Connection, Failure> {
        let patience = Patience(self.timeout);
        let started = Instant::now();
        let to = match address {
            SocketAddr::V4(v4) if self.mapped => SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port()),
            other => other,
        };
        let stream = patience
            .wait(Step::Connect, async {
                let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                if let Some(from) = self.bind {
                    let from = match from {
                        IpAddr::V4(v4) if to.is_ipv6() => IpAddr::V6(v4.to_ipv6_mapped()),
                        other => other,
                    };
                    socket.bind(SocketAddr::new(from, 0))?;
                }
                let stream = socket.connect(to).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            })
            .await?;
        let took = started.elapsed();
        let peer = plain(stream.peer_addr().map_err(|error| Failure::io(Step::Connect, &error))?);
        let local = plain(stream.local_addr().map_err(|error| Failure::io(Step::Connect, &error))?);
        Ok(Connection { stream, peer, local, took, patience })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let target: Target = "[fd00::1]:80".parse().unwrap();
        assert_eq!((target.host.as_str(), target.port), ("fd00::1", 80));
        assert_eq!(target.to_string(), "[fd00::1]:80");
        assert_eq!("a.b:1".parse::<Target>().unwrap().to_string(), "a.b:1");
        for bad in ["", "a", ":1", "fd00::1:80x", "fd00::1", "a:99999", "[::1:80"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_take_fractions_and_refuse_nonsense() {
        assert_eq!(seconds("0.25").unwrap(), Duration::from_millis(250));
        for bad in ["-1", "x", "inf", "NaN"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
