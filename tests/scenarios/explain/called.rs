//! The calls of a question, really made: HTTP, or the first bytes of TLS, from the pod that is asked about.

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use tropis_tests::testkit::calls::{Calls, Told};
use tropis_tests::testkit::{Exchange, FailureKind};
use tropis_tests::{Family, Lab, PodHandle};

use super::drawn::Question;

/// Requests of a question, each on a connection of its own: enough to see each of three endpoints most of the time.
const REQUESTS: usize = 12;
/// Connections of TLS, each from a process of its own.
const CONNECTIONS: usize = 6;

/// How one call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// By a pod.
    Served(String),
    /// With a status, by no pod.
    Answered(u16),
    /// Without an answer.
    Broken(FailureKind),
}

/// What became of the calls.
#[derive(Debug, Default)]
pub(super) struct Called {
    pub(super) ended: Vec<Ended>,
    /// What the pod that answered the last request saw.
    pub(super) told: Option<Told>,
    /// Where the last answer leads.
    pub(super) location: Option<String>,
}

/// Whether TLS is spoken to this port, to a server that says who it is at once. On every other one it is HTTP: a port of plain TCP does
/// not look.
pub(super) fn is_tls(question: &Question) -> bool {
    question.destination.ends_with(":443")
}

/// Makes the calls of a question. `id` names its requests in the waypoint's log.
pub(super) async fn call(lab: &Lab, pod: &PodHandle, question: &Question, id: &str) -> anyhow::Result<Called> {
    let address = address(lab, question).await?;
    if is_tls(question) { greet(pod, &address, question).await } else { request(pod, &address, question, id).await }
}

/// What is dialled.
async fn address(lab: &Lab, question: &Question) -> anyhow::Result<String> {
    let (host, port) = question.destination.rsplit_once(':').context("a destination has a port")?;
    let family = if question.ipv6 { Family::V6 } else { Family::V4 };
    if let Some(pod) = host.strip_prefix("pod/") {
        let (name, namespace) = pod.split_once('.').context("a pod has a namespace")?;
        return Ok(lab.pod(namespace, name).await?.socket(family, port.parse()?));
    }
    let address = match host.split_once(".shop") {
        Some((service, "")) => lab.service_address("shop", service, family).with_context(|| format!("{host} has no {family} address"))?,
        _ => host.parse()?,
    };
    Ok(std::net::SocketAddr::new(address, port.parse()?).to_string())
}

async fn request(pod: &PodHandle, address: &str, question: &Question, id: &str) -> anyhow::Result<Called> {
    let url = format!("http://{address}{}", question.target);
    let (count, authority, id) = (REQUESTS.to_string(), question.authority(), format!("x-request-id: {id}"));
    let headers: Vec<String> = question.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let mut arguments = vec!["call", url.as_str(), "-X", question.method, "--authority", &authority, "-H", &id];
    arguments.extend(headers.iter().flat_map(|header| ["-H", header]));
    arguments.extend(["-n", &count, "-c", "3", "--fresh", "--timeline"]);
    let calls: Calls = pod.run(&arguments).await?;
    ensure!(calls.timeline.len() == REQUESTS, "{} calls were made: {calls:?}", calls.timeline.len());
    let answered = calls.timeline.iter().filter(|answer| answer.status != 0);
    let mut ended: Vec<Ended> = answered
        .map(|answer| match answer.pod.as_str() {
            "" => Ended::Answered(answer.status),
            pod => Ended::Served(pod.to_owned()),
        })
        .collect();
    for (kind, count) in &calls.errors {
        ended.extend((0..*count).map(|_| Ended::Broken(*kind)));
    }
    // Answers of the mesh are no JSON.
    let told = serde_json::from_str(&calls.last_body).ok();
    Ok(Called { ended, told, location: calls.last_headers.get("location").cloned() })
}

async fn greet(pod: &PodHandle, address: &str, question: &Question) -> anyhow::Result<Called> {
    let hello = question.server_name.map_or_else(|| "no TLS".to_owned(), client_hello);
    let one = async || {
        let said: Exchange = pod.run(&["raw", address, "--send", &hello, "--end", r"\n"]).await?;
        let served = said.reply.as_deref().and_then(|reply| reply.split_once("here is ")?.1.lines().next());
        match (served, said.error) {
            (Some(pod), None) => Ok(Ended::Served(pod.to_owned())),
            (_, Some(kind)) => Ok(Ended::Broken(kind)),
            (None, None) => anyhow::bail!("neither a greeting nor an end: {said:?}"),
        }
    };
    let ended = try_join_all((0..CONNECTIONS).map(|_| one())).await?;
    Ok(Called { ended, ..Called::default() })
}

/// A ClientHello that asks for a server name (RFC 8446 §4.1.2, RFC 6066 §3), as the testkit writes bytes; all of them are ASCII.
fn client_hello(server_name: &str) -> String {
    let name = server_name.as_bytes();
    // A length of two bytes, the first of which is 0.
    let long = |length: usize| [0, u8::try_from(length).expect("it is short")];
    let extension = [&[0, 0][..], &long(name.len() + 5), &long(name.len() + 3), &[0], &long(name.len()), name].concat();
    let body = [&[3, 3][..], &[b'r'; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &long(extension.len()), &extension].concat();
    let message = [&[1, 0][..], &long(body.len()), &body].concat();
    let record = [&[22, 3, 1][..], &long(message.len()), &message].concat();
    let text = String::from_utf8(record).expect("it is ASCII");
    text.replace('\0', r"\0").replace('\n', r"\n").replace('\r', r"\r")
}
