//! The control plane's end of delta xDS: one table of resources, many clients.
//!
//! [`Resources`] is the table, or rather one for each [`Audience`]: publish changes, and every client gets what differs from what it has. [`Discovery`] is the gRPC service;
//! who may call it is the `admit` function's business, which tropisd gives. [`Clients`] tells who is connected and how far each one is:
//! whether a change is live everywhere. What a client is sent next, and in which order, is decided in [`subscriber`], without I/O.
//!
//! A client that is slow costs nothing but its own lag: nothing is queued for it, its next response is computed when it has
//! acknowledged the one before, from the table as it is then.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Extensions, Request, Response, Status, Streaming};
use tracing::{info, warn};
use tropis_proto::xds::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};

use self::{
    clients::{Limits, Registration},
    subscriber::Subscriber,
};

mod clients;
mod named;
mod subscriber;
mod table;

pub use clients::{ClientState, Clients, SubscriptionState};
pub use table::{Audience, Published, Resources, Snapshot, Step};

/// Largest request that is read. A client that reconnects names all it holds, about 1 MiB for 10 000 resources; gRPC's usual limit of
/// 4 MiB would lock clients of large meshes out for good.
const MAX_REQUEST_BYTES: usize = 64 << 20;
/// Streams at a time: a mesh has one a node, and nobody may take those of others.
const CLIENTS: Limits = Limits { total: 20_000, of_name: 8 };
/// What is taken away is told after what needed it; a client that has not asked for all its types by then does not want them.
const PATIENCE: Duration = Duration::from_secs(1);

/// A caller that may have the mesh's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// What to call it in logs, for example `istio-system/ztunnel-x7k2p`.
    pub client: String,
    /// Whose table it is told.
    pub audience: Audience,
    /// The namespace that it proved; the xDS node must not claim another.
    pub namespace: String,
    /// The service account that it proved; the xDS node must not claim another.
    pub service_account: String,
}

/// The aggregated discovery service over a table.
pub struct Discovery<A> {
    resources: Resources,
    clients: Clients,
    admit: Arc<A>,
    longest_stream: Option<Duration>,
    stop: CancellationToken,
}

impl<A> Discovery<A>
where
    A: Fn(&Extensions) -> Result<Admitted, Status> + Send + Sync + 'static,
{
    /// A service that serves `resources` to whom `admit` lets in (it sees what the server's interceptors put into the request), until
    /// `stop`. It is asked again whenever there is something new to tell: who lost its right loses its stream.
    pub fn new(resources: Resources, clients: Clients, admit: A, stop: CancellationToken) -> Self {
        Self { resources, clients, admit: Arc::new(admit), longest_stream: None, stop }
    }

    /// Ends streams at about this age (a tenth more or less), so that clients spread over replicas that came later. A client comes back
    /// at once and is told only what differs.
    #[must_use]
    pub fn longest_stream(mut self, age: Option<Duration>) -> Self {
        self.longest_stream = age;
        self
    }

    /// The service as tonic wants it, with its limits.
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

#[tonic::async_trait]
impl<A> AggregatedDiscoveryService for Discovery<A>
where
    A: Fn(&Extensions) -> Result<Admitted, Status> + Send + Sync + 'static,
{
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let admitted = (self.admit)(request.extensions())?;
        let registration = self
            .clients
            .register(&admitted.client, &admitted.audience, CLIENTS)
            .ok_or_else(|| Status::resource_exhausted(format!("{CLIENTS} have a stream already")))?;
        info!(client = admitted.client, audience = %admitted.audience, "client connected");
        // One response under way: the next one is computed when there is room for it.
        let (outgoing, responses) = mpsc::channel(1);
        let stream = Stream {
            subscriber: Subscriber::new(admitted.audience.clone()),
            resources: self.resources.clone(),
            registration,
            admitted,
            admit: self.admit.clone(),
            proof: request.extensions().clone(),
            age: self.longest_stream.map(|age| age.mul_f64(rand::random_range(0.9..1.1))),
            outgoing,
            stop: self.stop.clone(),
        };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

struct Stream<A> {
    subscriber: Subscriber,
    resources: Resources,
    registration: Registration,
    admitted: Admitted,
    admit: Arc<A>,
    /// What the caller proved itself with.
    proof: Extensions,
    /// When the stream has lasted long enough.
    age: Option<Duration>,
    outgoing: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    stop: CancellationToken,
}

impl<A> Stream<A>
where
    A: Fn(&Extensions) -> Result<Admitted, Status> + Send + Sync + 'static,
{
    async fn run(mut self, incoming: Streaming<DeltaDiscoveryRequest>) {
        let client = self.admitted.client.clone();
        match self.serve(incoming).await {
            Ok(()) => info!(client, "client disconnected"),
            Err(status) if status.code() == Code::Unavailable => {
                info!(client, reason = status.message(), "client sent away");
                let _ = self.outgoing.try_send(Err(status));
            }
            Err(status) => {
                warn!(client, code = ?status.code(), reason = status.message(), "client's stream ended");
                // If the client is gone, nobody needs to know why it should go.
                let _ = self.outgoing.try_send(Err(status));
            }
        }
    }

    async fn serve(&mut self, mut incoming: Streaming<DeltaDiscoveryRequest>) -> Result<(), Status> {
        let mut snapshots = self.resources.subscribe();
        let mut patient_enough = false;
        let mut patience = pin!(tokio::time::sleep(PATIENCE));
        let mut old = pin!(tokio::time::sleep(self.age.unwrap_or_default()));
        loop {
            // Before the table's first snapshot clients wait: an empty answer would be taken for the truth.
            let snapshot: Option<Arc<Snapshot>> = snapshots.borrow_and_update().clone();
            if let Some(snapshot) = snapshot
                && let Some(response) = self.subscriber.next(&snapshot, patient_enough)
            {
                if (self.admit)(&self.proof)?.audience != self.admitted.audience {
                    return Err(routine("the client belongs to another audience now"));
                }
                self.registration.update(self.subscriber.state());
                tokio::select! {
                    sent = self.outgoing.send(Ok(response)) => if sent.is_err() { return Ok(()) },
                    () = self.stop.cancelled() => return Err(routine("the control plane is stopping")),
                }
                continue;
            }
            self.registration.update(self.subscriber.state());
            tokio::select! {
                request = incoming.message() => match request {
                    Ok(Some(request)) => self.request(request)?,
                    Ok(None) => return Ok(()),
                    // The connection is gone; the client knows.
                    Err(_) => return Ok(()),
                },
                changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
                () = &mut patience, if !patient_enough => patient_enough = true,
                () = &mut old, if self.age.is_some() => return Err(routine("the stream is old enough")),
                () = self.outgoing.closed() => return Ok(()),
                () = self.stop.cancelled() => return Err(routine("the control plane is stopping")),
            }
        }
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(node) = &request.node {
            check_node(node, &self.admitted)?;
            self.registration.name(&node.id);
        }
        if let Some(error) = &request.error_detail {
            let reason = subscriber::shortened(&error.message);
            warn!(client = self.admitted.client, type_url = request.type_url, reason, "client refused resources");
        }
        self.subscriber.request(request).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// An end that clients know to be no failure, by the words of gRPC's own libraries.
fn routine(reason: &str) -> Status {
    Status::unavailable(format!("{reason}; transport is closing"))
}

/// A node may not pose as one of another account than its credentials prove.
fn check_node(node: &Node, admitted: &Admitted) -> Result<(), Status> {
    let claim = |key: &str| match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) if !text.is_empty() => Some(text.as_str()),
        _ => None,
    };
    for (key, proved) in [("NAMESPACE", &admitted.namespace), ("SERVICE_ACCOUNT", &admitted.service_account)] {
        if let Some(claimed) = claim(key)
            && claimed != proved
        {
            return Err(Status::permission_denied(format!("the node claims {key} {claimed:?}, but its credentials prove {proved:?}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_claim_only_what_its_credentials_prove() {
        let admitted = Admitted {
            client: "istio-system/z".into(),
            audience: Audience::NodeProxies,
            namespace: "istio-system".into(),
            service_account: "ztunnel".into(),
        };
        let node = |claims: &[(&str, &str)]| {
            let fields = claims.iter().map(|(key, value)| ((*key).to_owned(), prost_types::Value::from(*value))).collect();
            Node { metadata: Some(prost_types::Struct { fields }), ..Default::default() }
        };
        assert!(check_node(&Node::default(), &admitted).is_ok());
        assert!(check_node(&node(&[("NAMESPACE", "istio-system"), ("SERVICE_ACCOUNT", "ztunnel")]), &admitted).is_ok());
        assert!(check_node(&node(&[("NAMESPACE", "shop")]), &admitted).is_err());
        assert!(check_node(&node(&[("SERVICE_ACCOUNT", "cart")]), &admitted).is_err());
    }
}
