//! `resolve`: a DNS message of our own to the resolver that the pod was given (or any other), by UDP or TCP; or getaddrinfo.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use clap::Args;
use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tropis_tests::testkit::{FailureKind, Resolved, Step};

use super::milliseconds;
use crate::connection::{Dial, Failure, Patience, plain, seconds};
use crate::print_line;

/// UDP payload that we say we can take (the value that resolvers agreed on to avoid fragments).
const UDP_PAYLOAD_BYTES: u16 = 1232;
const RESOLV_CONF: &str = "/etc/resolv.conf";

#[derive(Debug, Args)]
pub(crate) struct Resolve {
    /// The name; taken as complete unless --search is given
    name: String,
    /// Record type
    #[arg(long = "type", value_name = "TYPE", default_value = "A")]
    record_type: RecordType,
    /// Ask by TCP
    #[arg(long)]
    tcp: bool,
    /// Whom to ask, ADDRESS or ADDRESS:PORT; by default the first nameserver in /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS", value_parser = server_address)]
    server: Option<SocketAddr>,
    /// By UDP: send from an unconnected socket (sendto), as many resolvers do
    #[arg(long, conflicts_with = "tcp")]
    unconnected: bool,
    /// Try the search domains of /etc/resolv.conf as its `ndots` says
    #[arg(long)]
    search: bool,
    /// Ask the system's resolver (getaddrinfo) instead; the type then only chooses between A and AAAA
    #[arg(long, conflicts_with_all = ["tcp", "server", "unconnected", "search"])]
    system: bool,
    /// Use an IPv4 nameserver
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Use an IPv6 nameserver
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Longest wait for an answer
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    timeout: Duration,
}

fn server_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 53));
    }
    text.parse().map_err(|_| format!("{text:?} is neither ADDRESS nor ADDRESS:PORT"))
}

/// What we use of resolv.conf(5).
#[derive(Debug, PartialEq, Eq)]
struct ResolvConf {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl ResolvConf {
    fn parse(text: &str) -> Self {
        let mut conf = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    conf.servers.extend(words.next().and_then(|word| word.split('%').next()).and_then(|word| word.parse::<IpAddr>().ok()))
                }
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let ndots = words.find_map(|word| word.strip_prefix("ndots:"));
                    conf.ndots = ndots.and_then(|dots| dots.parse().ok()).unwrap_or(conf.ndots);
                }
                _ => {}
            }
        }
        conf
    }

    /// The names to try, in order.
    fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let searched = self.search.iter().map(|domain| format!("{name}.{domain}."));
        let complete = std::iter::once(format!("{name}."));
        if name.matches('.').count() >= self.ndots { complete.chain(searched).collect() } else { searched.chain(complete).collect() }
    }
}

impl Resolve {
    pub(crate) async fn run(self) -> bool {
        let started = Instant::now();
        let mut report = Resolved {
            command: "resolve".to_owned(),
            name: self.name.clone(),
            record_type: self.record_type.to_string(),
            transport: if self.system {
                "system"
            } else if self.tcp {
                "tcp"
            } else {
                "udp"
            }
            .to_owned(),
            ..Resolved::default()
        };
        let result = if self.system { self.ask_system(&mut report).await } else { self.ask_server(&mut report).await };
        if let Err(failure) = result {
            report.error = Some(failure.kind);
            report.detail = Some(failure.detail);
        }
        report.ok = report.error.is_none() && !report.answers.is_empty();
        report.milliseconds = milliseconds(started.elapsed());
        print_line(&report);
        report.ok
    }

    async fn ask_system(&self, report: &mut Resolved) -> Result<(), Failure> {
        let dial = Dial {
            ipv4: self.record_type == RecordType::A,
            ipv6: self.record_type == RecordType::AAAA,
            timeout: self.timeout,
            ..Dial::default()
        };
        let target = crate::connection::Target { host: self.name.clone(), port: 0 };
        report.answers = dial.resolve(&target).await?.into_iter().map(|address| address.ip().to_string()).collect();
        Ok(())
    }

    async fn ask_server(&self, report: &mut Resolved) -> Result<(), Failure> {
        let conf = match tokio::fs::read_to_string(RESOLV_CONF).await {
            Ok(text) => ResolvConf::parse(&text),
            Err(_) if self.server.is_some() => ResolvConf::parse(""),
            Err(error) => return Err(other(format!("cannot read {RESOLV_CONF}: {error}"))),
        };
        let server = match self.server {
            Some(server) => server,
            None => {
                let wanted = |address: &&IpAddr| if self.ipv4 { address.is_ipv4() } else { !self.ipv6 || address.is_ipv6() };
                let address = conf.servers.iter().find(wanted).ok_or_else(|| other(format!("no such nameserver in {RESOLV_CONF}")))?;
                SocketAddr::new(*address, 53)
            }
        };
        report.server = Some(server.to_string());
        let names = if self.search { conf.candidates(&self.name) } else { vec![format!("{}.", self.name.trim_end_matches('.'))] };
        for name in names {
            report.name = name.trim_end_matches('.').to_owned();
            let answer = self.ask(server, &name, report).await?;
            self.note(&answer, report);
            if !report.answers.is_empty() {
                return Ok(());
            }
        }
        Err(Failure::new(FailureKind::UnknownName, Step::Resolve, "no record of that type"))
    }

    fn note(&self, answer: &Message, report: &mut Resolved) {
        report.rcode = Some(match answer.metadata.response_code {
            ResponseCode::NoError => "NOERROR".to_owned(),
            ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
            ResponseCode::ServFail => "SERVFAIL".to_owned(),
            ResponseCode::Refused => "REFUSED".to_owned(),
            ResponseCode::FormErr => "FORMERR".to_owned(),
            ResponseCode::NotImp => "NOTIMP".to_owned(),
            other => other.to_string(),
        });
        report.truncated = answer.metadata.truncation;
        let records = || answer.answers.iter().filter(|record| record.record_type() == self.record_type);
        report.answers = records().map(|record| record.data.to_string()).collect();
        report.ttl = records().map(|record| record.ttl).min();
    }

    async fn ask(&self, server: SocketAddr, name: &str, report: &mut Resolved) -> Result<Message, Failure> {
        let name = Name::from_ascii(name).map_err(|error| other(format!("{name:?} is not a name: {error}")))?;
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name, self.record_type));
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD_BYTES);
        question.set_edns(edns);
        let bytes = question.to_vec().map_err(|error| other(error.to_string()))?;
        let patience = Patience(self.timeout);
        let asked =
            patience.wait(Step::Resolve, async { if self.tcp { by_tcp(server, &bytes).await } else { self.by_udp(server, &bytes).await } });
        let (answer, from) = asked.await?;
        report.peer = Some(plain(from).to_string());
        let answer = Message::from_vec(&answer).map_err(|error| Failure::mismatch(format!("not a DNS message: {error}")))?;
        if answer.metadata.message_type != MessageType::Response {
            return Err(Failure::mismatch("the answer is no response"));
        }
        if answer.metadata.id != question.metadata.id || answer.queries != question.queries {
            return Err(Failure::mismatch("the answer is to another question"));
        }
        Ok(answer)
    }

    async fn by_udp(&self, server: SocketAddr, question: &[u8]) -> io::Result<(Vec<u8>, SocketAddr)> {
        let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let (length, from) = if self.unconnected {
            socket.send_to(question, server).await?;
            socket.recv_from(&mut buffer).await?
        } else {
            socket.connect(server).await?;
            socket.send(question).await?;
            let length = socket.recv(&mut buffer).await?;
            (length, socket.peer_addr()?)
        };
        buffer.truncate(length);
        Ok((buffer, from))
    }
}

async fn by_tcp(server: SocketAddr, question: &[u8]) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut stream = tokio::net::TcpStream::connect(server).await?;
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok((answer, stream.peer_addr()?))
}

fn other(detail: String) -> Failure {
    Failure::new(FailureKind::Other, Step::Resolve, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_of_a_pod() {
        let conf = ResolvConf::parse(
            "nameserver 10.96.0.10 # dns\nnameserver fd00:10:96::a\nsearch shop.svc.cluster.local svc.cluster.local\noptions ndots:5 edns0\n",
        );
        assert_eq!(conf.servers.len(), 2);
        assert_eq!(conf.ndots, 5);
        assert_eq!(conf.candidates("reviews"), ["reviews.shop.svc.cluster.local.", "reviews.svc.cluster.local.", "reviews."]);
        assert_eq!(conf.candidates("a.example."), ["a.example."]);
        let plain = ResolvConf::parse("nameserver 192.0.2.1\nsearch example");
        assert_eq!(plain.candidates("a.b"), ["a.b.", "a.b.example."]);
    }

    #[test]
    fn servers_with_and_without_port() {
        assert_eq!(server_address("192.0.2.1"), Ok(SocketAddr::from(([192, 0, 2, 1], 53))));
        assert_eq!(server_address("[::1]:5353").map(|address| address.port()), Ok(5353));
        assert!(server_address("dns").is_err());
    }
}
