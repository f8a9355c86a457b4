//! Hands pods to the node proxy: the agent's end of ZDS, exactly as istio-cni speaks it.
//!
//! A SOCK_SEQPACKET unix socket on which we listen; one protobuf message a packet; the pod's network namespace rides on its Add. Never
//! more than one message is unanswered, and an answer that takes longer than [`DEADLINE`] costs the proxy its connection (answers carry
//! no number, so a late one would be taken for the next one's). A proxy that connects gets a snapshot of all pods first.

mod packet;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tropis_maps::ProxyAccount;
use tropis_proto::zds::{AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, workload_request::Payload};
use tropis_telemetry::chain;

use self::packet::{Packets, Received};
use crate::foreign::{AdmitError, ForeignProxies, ForeignProxy};

/// How long a proxy may take for anything that we wait for.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// The least time between two proxies that connect (at most five a second).
const ACCEPT_INTERVAL: Duration = Duration::from_millis(200);
/// Messages waiting for one proxy; who sends more waits.
const QUEUE: usize = 100;

/// A pod as it is handed over.
#[derive(Debug, Clone)]
pub struct Handed {
    /// The pod's UID.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace; `None`: enrolled, though the namespace cannot be found now.
    pub netns: Option<Arc<OwnedFd>>,
}

/// Why a pod was not taken over.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HandOverError {
    /// No proxy is connected.
    #[error("no node proxy is connected")]
    NoProxy,
    /// The proxy went away, or took too long.
    #[error("the node proxy did not answer")]
    Lost,
    /// The proxy cannot serve it.
    #[error("the node proxy refused it: {0}")]
    Refused(String),
}

/// What happened on a connection that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ZdsEvent {
    /// A proxy has taken a whole snapshot: pods that wait may be handed over now.
    Connected,
    /// A proxy refused a pod of its snapshot.
    Refused {
        /// The pod's UID.
        uid: String,
        /// What it said.
        error: String,
    },
}

/// Where to listen, and for whom.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The socket.
    pub path: PathBuf,
    /// Who may connect.
    pub proxy: ProxyAccount,
    /// What to do for a proxy that does not know our maps; `None`: it does.
    pub foreign: Option<Arc<ForeignProxies>>,
}

/// The server. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Zds {
    state: Arc<Mutex<State>>,
    events: mpsc::UnboundedSender<ZdsEvent>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Handed>,
    /// The newest last.
    connections: Vec<Connection>,
    next: u64,
}

#[derive(Debug, Clone)]
struct Connection {
    number: u64,
    queue: mpsc::Sender<Command>,
}

#[derive(Debug)]
enum Request {
    Add(Handed),
    Del(String),
}

#[derive(Debug)]
struct Command {
    request: Request,
    answer: oneshot::Sender<Result<(), String>>,
}

impl Zds {
    /// A server without pods, and what it tells.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<ZdsEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        (Self { state: Arc::default(), events }, receiver)
    }

    /// Makes a pod part of every snapshot from now on, without handing it to a proxy that is connected.
    pub fn register(&self, pod: Handed) {
        self.lock().pods.insert(pod.uid.clone(), pod);
    }

    /// Hands a pod to the proxy that connected last, and waits until it serves it. Whatever comes of it, the pod is part of every
    /// snapshot from now on.
    pub async fn add(&self, pod: Handed) -> Result<(), HandOverError> {
        let newest = {
            let mut state = self.lock();
            state.pods.insert(pod.uid.clone(), pod.clone());
            state.connections.last().cloned()
        };
        let connection = newest.ok_or(HandOverError::NoProxy)?;
        connection.ask(Request::Add(pod)).await
    }

    /// Takes a pod back from every proxy, and waits for their answers.
    pub async fn delete(&self, uid: &str) {
        let connections = {
            let mut state = self.lock();
            state.pods.remove(uid);
            state.connections.clone()
        };
        for connection in connections {
            if let Err(error) = connection.ask(Request::Del(uid.to_owned())).await {
                tracing::warn!(uid, error = chain(&error), "a node proxy did not confirm that it let go of a pod");
            }
        }
    }

    /// How many proxies are connected.
    pub fn connected(&self) -> usize {
        self.lock().connections.len()
    }

    /// Listens until stopped.
    pub async fn serve(self, listen: Listen, stop: CancellationToken) -> io::Result<()> {
        let listener = packet::listen(&listen.path, listen.proxy)?;
        loop {
            let packets = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return Ok(()),
            };
            match packets {
                Ok(packets) => {
                    let (server, stop, foreign) = (self.clone(), stop.clone(), listen.foreign.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = server.attend(packets, foreign) => {}
                            () = stop.cancelled() => {}
                        }
                    });
                }
                Err(error) => tracing::warn!(error = chain(&error), "a node proxy could not be accepted"),
            }
            tokio::time::sleep(ACCEPT_INTERVAL).await;
        }
    }

    /// One proxy, from its hello to its end.
    async fn attend(&self, packets: Packets, foreign: Option<Arc<ForeignProxies>>) {
        let (queue, commands) = mpsc::channel(QUEUE);
        // One lock for both: what is handed over from now on waits in the queue, what was before is in the snapshot.
        let (number, snapshot) = {
            let mut state = self.lock();
            state.next += 1;
            let number = state.next;
            state.connections.push(Connection { number, queue });
            (number, state.pods.values().cloned().collect::<Vec<_>>())
        };
        let ended = self.converse(&packets, foreign.as_deref(), snapshot, commands).await;
        self.lock().connections.retain(|connection| connection.number != number);
        match ended {
            Ok(()) => tracing::info!("a node proxy disconnected"),
            Err(error) => tracing::warn!(error = chain(&error), "the connection to a node proxy was dropped"),
        }
    }

    async fn converse(
        &self,
        packets: &Packets,
        foreign: Option<&ForeignProxies>,
        snapshot: Vec<Handed>,
        mut commands: mpsc::Receiver<Command>,
    ) -> Result<(), ConversationError> {
        packets.hello(DEADLINE).await?;
        // Before it is handed a pod: from then on it dials.
        let foreign = foreign.map(|all| all.admit(packets.socket())).transpose()?;
        tracing::info!(pods = snapshot.len(), "a node proxy connected");
        for pod in snapshot {
            if let Err(error) = hand_over(packets, foreign.as_ref(), &pod).await? {
                tracing::warn!(uid = pod.uid, error, "the node proxy refused a pod");
                self.tell(ZdsEvent::Refused { uid: pod.uid, error });
            }
        }
        if let Err(error) = packets.ask(Payload::SnapshotSent(SnapshotSent {}), None, DEADLINE).await? {
            return Err(ConversationError::SnapshotRefused(error));
        }
        self.tell(ZdsEvent::Connected);
        loop {
            tokio::select! {
                command = commands.recv() => {
                    let Some(command) = command else { return Ok(()) };
                    let answer = match command.request {
                        Request::Add(pod) => hand_over(packets, foreign.as_ref(), &pod).await?,
                        Request::Del(uid) => packets.ask(Payload::Del(DelWorkload { uid }), None, DEADLINE).await?,
                    };
                    // Who asked may have stopped waiting.
                    drop(command.answer.send(answer));
                }
                received = packets.receive() => match received? {
                    Received::Closed => return Ok(()),
                    Received::Packet(_) => return Err(ConversationError::Unasked),
                },
            }
        }
    }

    fn tell(&self, event: ZdsEvent) {
        // Nobody listens any more when the agent ends.
        drop(self.events.send(event));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    async fn ask(&self, request: Request) -> Result<(), HandOverError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Command { request, answer }).await.map_err(|_| HandOverError::Lost)?;
        match answered.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(HandOverError::Refused(error)),
            Err(_) => Err(HandOverError::Lost),
        }
    }
}

/// Why a connection to a proxy was dropped. The proxy connects again and gets a new snapshot.
#[derive(Debug, Error)]
pub(crate) enum ConversationError {
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    /// It took too long.
    #[error("no {0} within {DEADLINE:?}")]
    Late(&'static str),
    /// It sent something that cannot be read.
    #[error("a packet cannot be read")]
    Unreadable(#[from] prost::DecodeError),
    /// It closed while we waited for an answer.
    #[error("closed before its {0}")]
    Closed(&'static str),
    /// It answered what nobody asked.
    #[error("it sent a packet that nobody asked for")]
    Unasked,
    /// It speaks another version.
    #[error("it speaks version {0} of the protocol, not 1")]
    Version(i32),
    /// It is to be passed, and cannot be told from pods.
    #[error("it cannot be told from pods")]
    NotAdmitted(#[from] AdmitError),
    /// It did not take the end of the snapshot.
    #[error("it refused the end of its snapshot: {0}")]
    SnapshotRefused(String),
}

/// Hands a pod over and waits until it is served: by a proxy that does not know our maps once its listeners are in them.
async fn hand_over(packets: &Packets, foreign: Option<&ForeignProxy>, pod: &Handed) -> Result<Result<(), String>, ConversationError> {
    let (message, netns) = add_message(pod);
    let answer = packets.ask(message, netns.as_deref(), DEADLINE).await?;
    let (Ok(()), Some(proxy), Some(netns)) = (&answer, foreign, netns) else { return Ok(answer) };
    let (proxy, addresses) = (proxy.clone(), pod.addresses.clone());
    let adopted = tokio::task::spawn_blocking(move || proxy.adopt(netns.as_fd(), &addresses)).await.map_err(io::Error::other)?;
    Ok(adopted.map_err(|error| chain(&error)))
}

fn add_message(pod: &Handed) -> (Payload, Option<Arc<OwnedFd>>) {
    match &pod.netns {
        None => (Payload::Keep(KeepWorkload { uid: pod.uid.clone() }), None),
        Some(netns) => {
            let info =
                WorkloadInfo { name: pod.name.clone(), namespace: pod.namespace.clone(), service_account: pod.service_account.clone() };
            (Payload::Add(AddWorkload { uid: pod.uid.clone(), workload_info: Some(info) }), Some(Arc::clone(netns)))
        }
    }
}
