//! The DNS proxy: answers names of the mesh from the view, passes every other question to the resolver that the pod asked.
//!
//! It listens inside each pod, on one port for each resolver that the pod asks; `answer.rs` decides (a pure function on the view),
//! `forward.rs` asks. A question is answered once or not at all, like any DNS server does.

pub mod answer;
pub mod forward;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};
use rand::seq::SliceRandom;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::spawn_local,
};
use tropis_model::{
    resolve::{Plan, ResolveError},
    workload::Workload,
};
use tropis_net::{accept, original_destination::original_destination};
use tropis_telemetry::{chain, metrics::Labels};

use self::{
    answer::{Answer, Family, Question},
    forward::Asked,
};
use crate::{
    node::{Pod, listeners::DnsListeners},
    outbound,
    stages::resolve,
    view::{self, local_workload},
    worker::Node,
};

/// Questions of one pod that may be open at once on one of its resolvers. Others wait; UDP ones that do not fit the socket's buffer
/// meanwhile are lost, as at any busy resolver.
const MAX_QUESTIONS: usize = 256;
/// TCP connections of one pod to one of its resolvers.
const MAX_CONNECTIONS: usize = 64;
/// A TCP connection without a question ends after this.
const TCP_IDLE_LIMIT: Duration = Duration::from_secs(10);
/// Largest question by UDP (what EDNS makes usual, RFC 6891 §6.2.5).
const MAX_UDP_BYTES: usize = 4096;
/// How long an answer of ours may be kept, as Istio has it: names of the mesh change rarely, and silently.
const TTL_SECONDS: u32 = 30;

/// Where resolvers listen.
const RESOLVER_PORT: u16 = 53;

/// What a question came by; it goes on by the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A packet each.
    Udp,
    /// Length-framed (RFC 1035 §4.2.2).
    Tcp,
}

impl Transport {
    /// The stable word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// One of a pod's resolvers, as we stand in for it.
#[derive(Debug)]
struct Proxy {
    node: Rc<Node>,
    pod: Arc<Pod>,
    slot: u8,
    questions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// Serves one DNS slot of a pod until it is drained.
pub fn serve(node: &Rc<Node>, pod: &Arc<Pod>, listeners: DnsListeners) -> io::Result<()> {
    let proxy = Rc::new(Proxy {
        node: node.clone(),
        pod: pod.clone(),
        slot: listeners.slot,
        questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
    });
    for socket in listeners.udp {
        spawn_local(serve_udp(proxy.clone(), Rc::new(UdpSocket::from_std(socket)?)));
    }
    for listener in listeners.tcp {
        spawn_local(serve_tcp(proxy.clone(), TcpListener::from_std(listener)?));
    }
    Ok(())
}

async fn serve_udp(proxy: Rc<Proxy>, socket: Rc<UdpSocket>) {
    let mut drain = proxy.pod.drain_signal();
    let mut buffer = vec![0; MAX_UDP_BYTES];
    loop {
        // A place first, so that what cannot be worked on stays with the kernel.
        let Ok(place) = proxy.questions.clone().acquire_owned().await else { return };
        let received = tokio::select! {
            biased;
            () = drain.draining() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                // An earlier answer bounced; the socket is fine.
                tracing::debug!(target: "dns", pod = %proxy.pod, %error, "receiving failed");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let question = buffer[..length].to_vec();
        let (proxy, socket) = (proxy.clone(), socket.clone());
        spawn_local(async move {
            if let Some(reply) = proxy.handle(&question, Transport::Udp, None).await {
                // Whoever asked may be gone.
                let _ = socket.send_to(&reply, from).await;
            }
            drop(place);
        });
    }
}

async fn serve_tcp(proxy: Rc<Proxy>, listener: TcpListener) {
    let mut drain = proxy.pod.drain_signal();
    loop {
        let Ok(place) = proxy.connections.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = drain.draining() => return,
            accepted = accept::next(&listener) => accepted,
        };
        let Ok((stream, from)) = accepted else { return };
        let proxy = proxy.clone();
        spawn_local(async move {
            if proxy.leads_into_mesh(&stream).await {
                // From here on it is a connection of the pod like any other, with a limit of its own.
                drop(place);
                return outbound::serve(proxy.node.clone(), proxy.pod.clone(), stream, from).await;
            }
            if let Err(error) = converse(&proxy, stream).await {
                tracing::debug!(target: "dns", pod = %proxy.pod, %error, "connection ended");
            }
            drop(place);
        });
    }
}

/// Answers the questions of one TCP connection, one after another.
async fn converse(proxy: &Proxy, mut stream: TcpStream) -> io::Result<()> {
    // A captured connection knows where it was going; one that somebody opened to the listener itself does not.
    let asked = original_destination(&stream)?.map(|asked| asked.0);
    let resolver = asked.filter(|asked| !asked.ip().is_loopback() || asked.port() == RESOLVER_PORT);
    loop {
        let question = match tokio::time::timeout(TCP_IDLE_LIMIT, forward::read_framed(&mut stream)).await {
            Ok(question) => question?,
            Err(_) => return Ok(()),
        };
        let Some(question) = question else { return Ok(()) };
        let Ok(_place) = proxy.questions.acquire().await else { return Ok(()) };
        let Some(reply) = proxy.handle(&question, Transport::Tcp, resolver).await else { return Ok(()) };
        tokio::time::timeout(TCP_IDLE_LIMIT, stream.write_all(&forward::framed(&reply))).await??;
    }
}

impl Proxy {
    /// Whether a connection to port 53 belongs in a tunnel: what a member of the mesh serves there is its traffic like any other, and
    /// never leaves in plaintext.
    async fn leads_into_mesh(&self, stream: &TcpStream) -> bool {
        let Ok(Some(destination)) = original_destination(stream) else { return false };
        let shared = &self.node.shared;
        let view = view::covering(&shared.view, &shared.config.node, &self.pod).await.view;
        let Some(client) = local_workload(&view, &shared.config.node, &self.pod) else { return false };
        let plan = resolve::outbound(&self.node, &view, client, destination, &[]);
        matches!(
            plan,
            Ok(Plan::Tunnel { .. } | Plan::Nested { .. }) | Err(ResolveError::NoWaypoint { .. } | ResolveError::NoGateway { .. })
        )
    }

    /// The reply to a question; `None` for what is no question at all.
    async fn handle(&self, packet: &[u8], transport: Transport, resolver: Option<SocketAddr>) -> Option<Vec<u8>> {
        let Ok(message) = Message::from_vec(packet) else { return malformed(packet) };
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let shared = &self.node.shared;
        let view = view::covering(&shared.view, &shared.config.node, &self.pod).await.view;
        let Some(client) = local_workload(&view, &shared.config.node, &self.pod) else {
            return failure(&message, ResponseCode::ServFail);
        };
        let labels = labels(client, &message, transport);
        shared.metrics.dns.requests.get_or_create(&labels).inc();
        if let Some((query, family)) = addresses_asked(&message) {
            let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
            let domain = &shared.config.cluster_domain;
            match answer::answer(&view, &Question { client, domain, name: &name, family }) {
                Answer::Here { alias, addresses } => {
                    log(client, &name, "local", addresses.len());
                    return reply(&message, query, alias, addresses, transport);
                }
                Answer::Elsewhere => log(client, &name, "forwarded", 0),
            }
        }
        let asked = Asked { shared, pod: &self.pod, slot: self.slot, resolver };
        self.pass_on(&asked, packet, &message, transport, &labels).await
    }

    async fn pass_on(&self, asked: &Asked<'_>, packet: &[u8], message: &Message, transport: Transport, labels: &Labels) -> Option<Vec<u8>> {
        let metrics = &self.node.shared.metrics.dns;
        metrics.upstream_requests.get_or_create(labels).inc();
        let started = Instant::now();
        match forward::ask(asked, packet, transport).await {
            Ok(reply) => {
                metrics.upstream_seconds.get_or_create(labels).observe(started.elapsed().as_secs_f64());
                Some(reply)
            }
            Err(error) => {
                metrics.upstream_failures.get_or_create(labels).inc();
                tracing::debug!(target: "dns", pod = %self.pod, slot = self.slot, error = chain(&error), "no resolver answered");
                failure(message, ResponseCode::ServFail)
            }
        }
    }
}

/// Istio's line about a question.
fn log(client: &Workload, query: &str, result: &'static str, endpoints: usize) {
    tracing::event!(
        target: "dns",
        tracing::Level::DEBUG,
        src.workload = %client.name,
        src.namespace = %client.namespace,
        query,
        result,
        endpoints,
        "dns"
    );
}

/// The one question of a message, if it asks for addresses on the internet.
fn addresses_asked(message: &Message) -> Option<(&Query, Family)> {
    let [query] = message.queries.as_slice() else { return None };
    if message.metadata.op_code != OpCode::Query || query.query_class() != DNSClass::IN {
        return None;
    }
    match query.query_type() {
        RecordType::A => Some((query, Family::V4)),
        RecordType::AAAA => Some((query, Family::V6)),
        _ => None,
    }
}

fn labels(client: &Workload, message: &Message, transport: Transport) -> Labels {
    // Types come from outside: only the usual ones make a label of their own.
    let kind = match message.queries.first().map(Query::query_type) {
        Some(RecordType::A) => "A",
        Some(RecordType::AAAA) => "AAAA",
        Some(RecordType::SRV) => "SRV",
        Some(RecordType::PTR) => "PTR",
        Some(RecordType::CNAME) => "CNAME",
        Some(RecordType::TXT) => "TXT",
        Some(RecordType::MX) => "MX",
        Some(RecordType::NS) => "NS",
        _ => "other",
    };
    Labels::new([
        ("request_query_type", kind.into()),
        ("request_protocol", transport.word().into()),
        ("source_canonical_service", client.canonical_name.clone()),
        ("source_canonical_revision", client.canonical_revision.clone()),
    ])
}

/// A reply of ours: authoritative, addresses in random order, cut to what the asker can take.
fn reply(message: &Message, query: &Query, alias: Option<String>, mut addresses: Vec<IpAddr>, transport: Transport) -> Option<Vec<u8>> {
    let mut reply = response(message);
    reply.metadata.authoritative = true;
    let mut owner = query.name().clone();
    if let Some(alias) = alias {
        let alias = Name::from_ascii(alias + ".").ok()?;
        reply.add_answer(Record::from_rdata(owner, TTL_SECONDS, RData::CNAME(CNAME(alias.clone()))));
        owner = alias;
    }
    addresses.shuffle(&mut rand::rng());
    for address in addresses {
        let data = match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        reply.add_answer(Record::from_rdata(owner.clone(), TTL_SECONDS, data));
    }
    let limit = match transport {
        Transport::Udp => usize::from(message.edns.as_ref().map_or(512, |edns| edns.max_payload().max(512))),
        Transport::Tcp => usize::from(u16::MAX),
    };
    let bytes = reply.to_vec().ok()?;
    match bytes.len() <= limit {
        true => Some(bytes),
        false => reply.truncate().to_vec().ok(),
    }
}

fn response(message: &Message) -> Message {
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(message.queries.iter().cloned());
    if message.edns.is_some() {
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(MAX_UDP_BYTES as u16);
        reply.set_edns(edns);
    }
    reply
}

fn failure(message: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    let mut reply = response(message);
    reply.metadata.response_code = code;
    reply.to_vec().ok()
}

/// FORMERR with the id of a packet that is not a message; nothing for one that has no id, or that is itself a response.
fn malformed(packet: &[u8]) -> Option<Vec<u8>> {
    let [high, low, flags, ..] = *packet else { return None };
    if packet.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    Message::error_msg(u16::from_be_bytes([high, low]), OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

/// Where a pod's questions go when nobody can tell us which resolver was asked (istio-cni): our own.
pub fn system_resolvers(resolv_conf: &str) -> Vec<SocketAddr> {
    let addresses =
        resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).filter_map(|rest| rest.trim().parse().ok());
    addresses.map(|address: IpAddr| SocketAddr::new(address, RESOLVER_PORT)).collect()
}
