//! The proxy's end of delta xDS: one stream for all types, kept up for as long as the process lives.
//!
//! [`run`] subscribes to everything of the types in [`ClientConfig::types`], hands what arrives to a function and acknowledges it
//! afterwards, so that an acknowledged version is one that decides. A resource that is refused is named to the sender and changes nothing; a policy that is
//! refused before any version of it was accepted is stood in for by one that denies ([`crate::convert::denying_policy`]). Besides it asks for
//! the addresses in [`ClientConfig::callers`], as they change. When the stream ends, what is held stays in force, and the next stream asks only for what differs. Start with [`run`]; what one response
//! means is in [`held`], how long to wait between streams in [`backoff`]. TLS and tokens belong to the caller's `connect`.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as StdError,
    fmt,
    future::Future,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prost::Message;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status as GrpcStatus,
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, Bytes},
    metadata::{Ascii, MetadataKey, MetadataValue},
};
use tracing::{debug, info, warn};
use tropis_model::view::Change;
use tropis_proto::xds::{
    self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};

use crate::{ResourceType, convert::InvalidResource};

use self::{
    backoff::{Backoff, Ending},
    held::{Held, Together},
};

mod backoff;
mod held;

/// Largest response that is read. The first one carries the whole mesh, some 300 bytes a workload (Istio's proxy has the same limit).
const MAX_RESPONSE_BYTES: usize = 200 << 20;
/// How long the server may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests that may wait to be sent: a subscription to each type and an acknowledgement for each of the responses under way.
const REQUEST_QUEUE: usize = 8;
/// Longest reason of a refusal that is told to the sender, in bytes.
const MAX_REASON_BYTES: usize = 1024;
/// Everything of a type.
const WILDCARD: &str = "*";

/// What a node proxy asks for. Policies first: a workload that names one should find it.
pub const NODE_PROXY_TYPES: &[ResourceType] = &[ResourceType::Authorization, ResourceType::Address];
/// What a waypoint asks for; its policies are in its hosts.
pub const WAYPOINT_TYPES: &[ResourceType] = &[ResourceType::Address, ResourceType::Waypoint, ResourceType::Host];

/// Who asks: the xDS node, which the server checks against the token.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// First part of the xDS node's name: `ztunnel` or `waypoint`.
    pub role: &'static str,
    /// What is asked for, in this order: [`NODE_PROXY_TYPES`] or [`WAYPOINT_TYPES`].
    pub types: &'static [ResourceType],
    /// The proxy's address.
    pub address: IpAddr,
    /// Name of the proxy's pod.
    pub pod_name: String,
    /// Namespace of the proxy's pod.
    pub pod_namespace: String,
    /// Kubernetes node that it runs on.
    pub node_name: String,
    /// The cluster, for example `Kubernetes`.
    pub cluster_id: String,
    /// More metadata (`ISTIO_META_*` without the prefix).
    pub metadata: BTreeMap<String, String>,
    /// More headers of the stream (`XDS_HEADER_*` without the prefix); `clusterid` is set already.
    pub headers: Vec<(String, String)>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Addresses of workloads (`network/address`) that are asked for besides everything of the types; a server takes that from waypoints.
    /// One that nobody has comes as a [`Change::RemoveAddress`] of its own name.
    pub callers: Option<watch::Receiver<BTreeSet<Arc<str>>>>,
}

/// What a client counts; monotonic.
#[derive(Debug)]
pub struct Counters {
    /// Responses, by type.
    pub received: BTreeMap<ResourceType, Received>,
    /// Resources that were refused.
    pub rejected_resources: AtomicU64,
    /// Streams that could not be opened.
    pub ended_by_connection_error: AtomicU64,
    /// Streams that ended with an error.
    pub ended_by_error: AtomicU64,
    /// Streams that ended because the server closes connections from time to time.
    pub ended_by_reconnect: AtomicU64,
    /// Streams that the server completed.
    pub ended_completely: AtomicU64,
}

/// Responses of one type.
#[derive(Debug, Default)]
pub struct Received {
    /// How many.
    pub messages: AtomicU64,
    /// Their encoded size.
    pub bytes: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            received: ResourceType::ALL.into_iter().map(|known| (known, Received::default())).collect(),
            rejected_resources: AtomicU64::new(0),
            ended_by_connection_error: AtomicU64::new(0),
            ended_by_error: AtomicU64::new(0),
            ended_by_reconnect: AtomicU64::new(0),
            ended_completely: AtomicU64::new(0),
        }
    }
}

/// How a client is doing, for readiness and logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// A stream is open.
    pub connected: bool,
    /// The types of which a first response is in force, each with the server's name for the configuration that it came of. Types come
    /// in responses of their own, and a change of the one says nothing about another; so one name would not do.
    pub versions: BTreeMap<ResourceType, Arc<str>>,
    /// These are all that were asked for. It stays true while the server is away: what is held stays in force.
    pub complete: bool,
    /// Why there is no stream, if there is none.
    pub failure: Option<Arc<str>>,
}

impl Status {
    /// Whether everything arrived once.
    pub fn synced(&self) -> bool {
        self.complete
    }
}

/// Why a connection could not be made: whatever the caller's `connect` failed with.
pub type ConnectError = Box<dyn StdError + Send + Sync>;

/// Why a stream ended.
#[derive(Debug, Error)]
enum StreamEnded {
    #[error("cannot connect to the control plane")]
    Connect(#[source] ConnectError),
    #[error("the header {0:?} cannot be sent")]
    Header(String),
    #[error("the control plane did not open the stream in time")]
    OpenTimeout,
    #[error("the control plane refused the stream")]
    Refused(#[source] Told),
    #[error("the stream broke")]
    Broken(#[source] Told),
    #[error("the control plane ended the stream")]
    Completed,
}

/// A gRPC status in words for people: tonic's own are those of `Debug`, cause and all.
#[derive(Debug)]
struct Told(GrpcStatus);

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.0.code(), self.0.message())
    }
}

impl StdError for Told {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// Keeps a stream up until `stop`. `connect` makes a fresh transport (channel, TLS, token) for each attempt; `apply` puts changes in
/// force before it returns, in the order of the wire; `status` always shows the present.
pub async fn run<T, C, F>(
    config: ClientConfig,
    mut connect: C,
    mut apply: impl FnMut(Vec<Change>) + Send,
    status: watch::Sender<Status>,
    stop: CancellationToken,
) where
    C: FnMut() -> F + Send,
    F: Future<Output = Result<T, ConnectError>> + Send,
    T: GrpcService<Body> + Send,
    T::Error: Into<ConnectError>,
    T::Future: Send,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<ConnectError> + Send,
{
    let mut held = Held::default();
    let mut backoff = Backoff::default();
    loop {
        let mut productive = false;
        let ended = tokio::select! {
            ended = stream(&config, connect(), &mut held, &mut apply, &status, &mut productive) => ended,
            () = stop.cancelled() => return,
        };
        let ending = ending(&ended);
        count_end(&config.counters, &ended, ending);
        let wait = backoff.after(ending, productive, rand::random_range(0.8..1.2));
        let failure: Arc<str> = chain(&ended).into();
        match ending {
            Ending::Routine => debug!(reason = %failure, ?wait, "control plane stream ended"),
            Ending::Failed => warn!(reason = %failure, ?wait, "control plane stream ended; what is held stays in force"),
        }
        status.send_modify(|status| {
            status.connected = false;
            status.failure = Some(failure);
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn stream<T>(
    config: &ClientConfig,
    connect: impl Future<Output = Result<T, ConnectError>>,
    held: &mut Held,
    apply: &mut (impl FnMut(Vec<Change>) + Send),
    status: &watch::Sender<Status>,
    productive: &mut bool,
) -> StreamEnded
where
    T: GrpcService<Body> + Send,
    T::Error: Into<ConnectError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<ConnectError> + Send,
{
    let transport = match connect.await {
        Ok(transport) => transport,
        Err(error) => return StreamEnded::Connect(error),
    };
    let (requests, outgoing) = mpsc::channel(REQUEST_QUEUE);
    let mut callers = config.callers.clone();
    let mut asked = callers.as_mut().map(|callers| callers.borrow_and_update().clone()).unwrap_or_default();
    // The queue has room for all of them before the stream is read.
    for r#type in config.types {
        let names = if *r#type == ResourceType::Address { first_names(&asked) } else { Vec::new() };
        let subscription = DeltaDiscoveryRequest {
            node: Some(node(config)),
            type_url: r#type.url().to_owned(),
            resource_names_subscribe: names,
            initial_resource_versions: held.versions(*r#type),
            ..Default::default()
        };
        if requests.try_send(subscription).is_err() {
            return StreamEnded::Completed;
        }
    }
    let mut request = Request::new(ReceiverStream::new(outgoing));
    if let Err(ended) = add_headers(config, &mut request) {
        return ended;
    }
    let mut client = AggregatedDiscoveryServiceClient::new(transport).max_decoding_message_size(MAX_RESPONSE_BYTES);
    let mut responses = match tokio::time::timeout(OPEN_TIMEOUT, client.delta_aggregated_resources(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(refusal)) => return StreamEnded::Refused(Told(refusal)),
        Err(_) => return StreamEnded::OpenTimeout,
    };
    info!("control plane stream open");
    status.send_modify(|status| {
        status.connected = true;
        status.failure = None;
    });
    loop {
        let request = tokio::select! {
            response = responses.message() => match response {
                Ok(Some(response)) => {
                    *productive = true;
                    absorb(config, held, apply, status, response)
                }
                Ok(None) => return StreamEnded::Completed,
                Err(error) => return StreamEnded::Broken(Told(error)),
            },
            wanted = changed(&mut callers) => question(&mut asked, wanted),
        };
        if requests.send(request).await.is_err() {
            return StreamEnded::Completed;
        }
    }
}

/// The names in a first subscription: none says everything, and so does `*` beside others.
fn first_names(asked: &BTreeSet<Arc<str>>) -> Vec<String> {
    let everything = (!asked.is_empty()).then(|| WILDCARD.to_owned());
    everything.into_iter().chain(asked.iter().map(|name| name.to_string())).collect()
}

/// The addresses that are asked for, once they are others.
async fn changed(callers: &mut Option<watch::Receiver<BTreeSet<Arc<str>>>>) -> BTreeSet<Arc<str>> {
    if let Some(callers) = callers
        && callers.changed().await.is_ok()
    {
        return callers.borrow_and_update().clone();
    }
    // Nobody asks, or asks any more.
    std::future::pending().await
}

/// Asks for what is `wanted` and is not asked for yet, and no more for the rest.
fn question(asked: &mut BTreeSet<Arc<str>>, wanted: BTreeSet<Arc<str>>) -> DeltaDiscoveryRequest {
    let names = |names: std::collections::btree_set::Difference<'_, Arc<str>>| names.map(|name| name.to_string()).collect();
    let request = DeltaDiscoveryRequest {
        type_url: ResourceType::Address.url().to_owned(),
        resource_names_subscribe: names(wanted.difference(asked)),
        resource_names_unsubscribe: names(asked.difference(&wanted)),
        ..Default::default()
    };
    *asked = wanted;
    request
}

/// Puts a response in force, with those that it belongs to once they are there, and gives the acknowledgement.
fn absorb(
    config: &ClientConfig,
    held: &mut Held,
    apply: &mut (impl FnMut(Vec<Change>) + Send),
    status: &watch::Sender<Status>,
    response: DeltaDiscoveryResponse,
) -> DeltaDiscoveryRequest {
    count_response(&config.counters, &response);
    let version = if response.system_version_info.is_empty() { &response.nonce } else { &response.system_version_info };
    let (version, nonce, type_url) = (Arc::from(version.as_str()), response.nonce.clone(), response.type_url.clone());
    let continued = response.continued;
    let absorbed = held.absorb(response);
    debug!(type_url, %version, changes = absorbed.changes.len(), rejections = absorbed.rejections.len(), "configuration received");
    config.counters.rejected_resources.fetch_add(absorbed.rejections.len() as u64, Ordering::Relaxed);
    for (name, reason) in &absorbed.rejections {
        warn!(type_url, resource = %name, %version, %reason, "resource refused");
    }
    let known = ResourceType::from_url(&type_url);
    if let Some(Together { versions, changes }) = known.and_then(|known| held.gather(known, version, absorbed.changes, continued)) {
        if !changes.is_empty() {
            apply(changes);
        }
        status.send_modify(|status| {
            // A refusal does not keep a proxy from being ready: what was refused is named, and denies where it would have decided.
            status.versions.extend(versions);
            status.complete = config.types.iter().all(|wanted| status.versions.contains_key(wanted));
        });
    }
    let rejections: Vec<String> = absorbed.rejections.iter().map(|(name, reason)| format!("{name}: {}", told(reason))).collect();
    DeltaDiscoveryRequest {
        type_url,
        response_nonce: nonce,
        error_detail: (!rejections.is_empty()).then(|| xds::Status { code: 0, message: rejections.join("; "), details: Vec::new() }),
        ..Default::default()
    }
}

/// A reason in a refusal, where `; ` separates resources: on one line, of bounded length.
fn told(reason: &InvalidResource) -> String {
    let mut text = reason.to_string().replace(';', ",").replace(char::is_control, " ");
    if text.len() > MAX_REASON_BYTES {
        text.truncate(text.floor_char_boundary(MAX_REASON_BYTES));
        text.push('…');
    }
    text
}

fn node(config: &ClientConfig) -> xds::Node {
    let (name, namespace) = (&config.pod_name, &config.pod_namespace);
    let own = [
        ("NAME", name.clone()),
        ("NAMESPACE", namespace.clone()),
        ("INSTANCE_IPS", config.address.to_string()),
        ("NODE_NAME", config.node_name.clone()),
        ("CLUSTER_ID", config.cluster_id.clone()),
    ];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
    let more = config.metadata.iter().map(|(key, value)| (key.clone(), value.clone()));
    let fields = more.chain(own).map(|(key, value)| (key, prost_types::Value::from(value))).collect();
    xds::Node {
        id: format!("{}~{}~{name}.{namespace}~{namespace}.svc.cluster.local", config.role, config.address),
        metadata: Some(prost_types::Struct { fields }),
        ..Default::default()
    }
}

fn add_headers<B>(config: &ClientConfig, request: &mut Request<B>) -> Result<(), StreamEnded> {
    let own = [("clusterid".to_owned(), config.cluster_id.clone())];
    for (name, value) in own.iter().chain(&config.headers) {
        let invalid = || StreamEnded::Header(name.clone());
        let key: MetadataKey<Ascii> = name.to_ascii_lowercase().parse().map_err(|_| invalid())?;
        let value: MetadataValue<Ascii> = value.parse().map_err(|_| invalid())?;
        request.metadata_mut().insert(key, value);
    }
    Ok(())
}

/// Whether the server meant no harm: it closes old connections as a matter of course.
fn ending(ended: &StreamEnded) -> Ending {
    match ended {
        StreamEnded::Completed => Ending::Routine,
        StreamEnded::Broken(Told(status)) => match status.code() {
            Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => Ending::Routine,
            Code::Unavailable if ["transport is closing", "received prior goaway"].iter().any(|text| status.message().contains(text)) => {
                Ending::Routine
            }
            _ => Ending::Failed,
        },
        StreamEnded::Connect(_) | StreamEnded::Header(_) | StreamEnded::OpenTimeout | StreamEnded::Refused(_) => Ending::Failed,
    }
}

fn count_end(counters: &Counters, ended: &StreamEnded, ending: Ending) {
    let counter = match (ended, ending) {
        (StreamEnded::Completed, _) => &counters.ended_completely,
        (StreamEnded::Connect(_), _) => &counters.ended_by_connection_error,
        (_, Ending::Routine) => &counters.ended_by_reconnect,
        (_, Ending::Failed) => &counters.ended_by_error,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn count_response(counters: &Counters, response: &DeltaDiscoveryResponse) {
    let Some(received) = ResourceType::from_url(&response.type_url).and_then(|known| counters.received.get(&known)) else { return };
    received.messages.fetch_add(1, Ordering::Relaxed);
    received.bytes.fetch_add(response.encoded_len() as u64, Ordering::Relaxed);
}

fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_cannot_speak_for_another_resource() {
        let hostile = InvalidResource::OtherName("x; ns/other: fine\n".repeat(200));
        let text = told(&hostile);
        assert!(!text.contains(';') && !text.contains('\n'));
        assert!(text.len() <= MAX_REASON_BYTES + '…'.len_utf8() && text.ends_with('…'));
    }

    #[test]
    fn a_reason_is_told_in_words_for_people() {
        let refused = StreamEnded::Refused(Told(GrpcStatus::unauthenticated("the token is expired")));
        assert_eq!(chain(&refused), "the control plane refused the stream: Unauthenticated: the token is expired");
        let broken = GrpcStatus::from_error(Box::new(std::io::Error::other("no route to it")));
        let broken = chain(&StreamEnded::Broken(Told(broken)));
        assert!(broken.starts_with("the stream broke: Unknown: no route to it"), "{broken}");
        assert!(!broken.contains("Custom") && !broken.contains("source"), "{broken}");
    }
}
