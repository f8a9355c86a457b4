//! Asking the node proxy: a task of its own does it, one question after the other. A proxy that does not answer keeps nobody from being
//! captured, and nothing from being noticed.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tropis_telemetry::chain;

use super::{
    ENABLED, Enroller, PENDING, handed,
    member::{Asked, Phase},
};
use crate::{
    namespaces::Place,
    pods::PodFacts,
    zds::{HandOverError, Handed, Zds},
};

/// How long a proxy gets to listen before a pod is captured without it (ADR 4).
const PATIENT: Duration = Duration::from_millis(500);

/// What the proxy is to be asked.
#[derive(Debug)]
pub(super) enum Question {
    /// Serve a pod; the number is of the question.
    Add(Handed, u64),
    /// Let go of a pod, by UID; then something is to be removed.
    Delete(String, Option<Removal>),
}

/// What is removed from the kernel once the proxy has let go.
#[derive(Debug)]
pub(super) struct Removal {
    pub(super) cookie: u64,
    pub(super) addresses: Vec<IpAddr>,
}

/// What came of a question.
#[derive(Debug)]
pub(super) enum Answer {
    Added { uid: String, number: u64, outcome: Result<(), HandOverError> },
    Deleted { uid: String, removal: Removal },
}

/// The ends that the enrolling task has. What waits is bounded by the pods: one question to serve each, one to let go for each that leaves.
pub(super) struct Asking {
    questions: mpsc::UnboundedSender<Question>,
    answers: mpsc::UnboundedReceiver<Answer>,
    next: u64,
}

impl Asking {
    /// Starts the task, which ends with this.
    pub(super) fn start(zds: Zds) -> Self {
        let (questions, mut asked) = mpsc::unbounded_channel();
        let (answer, answers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(question) = asked.recv().await {
                let said = match question {
                    Question::Add(pod, number) => Answer::Added { uid: pod.uid.clone(), number, outcome: zds.add(pod).await },
                    Question::Delete(uid, removal) => {
                        zds.delete(&uid).await;
                        let Some(removal) = removal else { continue };
                        Answer::Deleted { uid, removal }
                    }
                };
                if answer.send(said).is_err() {
                    return;
                }
            }
        });
        Self { questions, answers, next: 0 }
    }

    /// The next answer.
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }

    fn ask(&self, question: Question) {
        // The task ends after this end does.
        drop(self.questions.send(question));
    }
}

impl Enroller {
    /// Has the proxy asked to serve a pod at a place, unless it is being asked. Captured without it when that takes long.
    pub(super) async fn ask_to_serve(&mut self, uid: &str, place: &Place) {
        let Some(member) = self.members.get_mut(uid) else { return };
        member.place = Some(place.clone());
        let now = Instant::now();
        let asked = member.asked.filter(|asked| asked.cookie == place.cookie());
        if asked.is_some_and(|asked| asked.late <= now) {
            return self.unserved(uid, "it does not answer").await;
        }
        let asked = asked.unwrap_or_else(|| {
            self.asking.next += 1;
            let number = self.asking.next;
            self.asking.ask(Question::Add(handed(&member.facts, Some(place)), number));
            Asked { number, cookie: place.cookie(), late: now + PATIENT, connections: self.connections }
        });
        member.asked = Some(asked);
        member.due = Some(asked.late);
    }

    /// Has the proxies asked to let go of a pod.
    pub(super) fn ask_to_let_go(&self, uid: &str, removal: Option<Removal>) {
        self.asking.ask(Question::Delete(uid.to_owned(), removal));
    }

    /// Heeds an answer, unless it is to a question that does not matter any more.
    pub(super) async fn heed_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Added { uid, number, outcome } => self.heed_added(&uid, number, outcome).await,
            Answer::Deleted { uid, removal: Removal { cookie, addresses } } => {
                // Captured again meanwhile: what is there is not what was to go.
                let again = self.retired.contains_key(&cookie) || self.members.values().any(|member| member.cookie == Some(cookie));
                if !again {
                    self.remove_from_kernel(&uid, cookie, addresses);
                }
            }
        }
    }

    async fn heed_added(&mut self, uid: &str, number: u64, outcome: Result<(), HandOverError>) {
        let Some(member) = self.members.get_mut(uid) else { return };
        let Some(asked) = member.asked.filter(|asked| asked.number == number) else { return };
        member.asked = None;
        member.due = None;
        let facts = Arc::clone(&member.facts);
        let shares = outcome.is_ok() && (!self.capture.has_older() || self.shares_maps(&facts));
        let held = !shares && self.capture.older_holds(asked.cookie);
        self.newer_proxy |= shares;
        if let Some(member) = self.members.get_mut(uid) {
            member.held_by_older = held;
            if held {
                return member.retry();
            }
        }
        match outcome {
            Ok(()) if shares => self.served(uid, &facts).await,
            Ok(()) => {
                // It would dial what we capture, and take its own connection for the pod's, without end.
                self.ask_to_let_go(uid, None);
                self.unserved(uid, "it is of another version").await;
                if let Some(member) = self.members.get_mut(uid).filter(|_| self.connections != asked.connections) {
                    // Another one has connected meanwhile. Otherwise the next one to connect is asked.
                    member.retry();
                }
            }
            Err(error) => {
                self.unserved(uid, &chain(&error)).await;
                if let Some(member) = self.members.get_mut(uid) {
                    member.retry();
                }
            }
        }
    }

    /// The proxy listens: what arrives and what is opened is captured, and peers hear of it.
    async fn served(&mut self, uid: &str, facts: &PodFacts) {
        let captured = self.capture_in_kernel(uid);
        let annotated = captured && self.annotate(facts, ENABLED).await;
        let Some(member) = self.members.get_mut(uid) else { return };
        if !captured {
            return member.retry();
        }
        tracing::info!(pod = facts.name(), netns_cookie = member.cookie, addresses = ?facts.addresses, "enrolled");
        member.phase = Phase::Enrolled;
        member.attempts = 0;
        member.said = annotated.then_some(ENABLED);
        if !annotated {
            member.phase = Phase::Waiting;
            member.retry();
        }
    }

    /// Marked for the mesh: until a proxy serves it, its connections are refused, never plain (ADR 4). Left to the programs of another
    /// version where those do so.
    async fn unserved(&mut self, uid: &str, why: &str) {
        let Some(member) = self.members.get_mut(uid) else { return };
        member.due = None;
        member.held_by_older = member.place.as_ref().is_some_and(|place| self.capture.older_holds(place.cookie()));
        if member.held_by_older {
            return;
        }
        // A pod that is captured is still served: saying `pending` would send its peers to it in plaintext.
        let first = member.cookie.is_none() && member.said != Some(PENDING);
        let facts = Arc::clone(&member.facts);
        if first {
            tracing::warn!(pod = facts.name(), why, "waiting for the node proxy");
        }
        let captured = self.capture_in_kernel(uid);
        let said = first && self.annotate(&facts, PENDING).await;
        let Some(member) = self.members.get_mut(uid) else { return };
        member.said = if said { Some(PENDING) } else { member.said };
        if !captured {
            member.retry();
        }
    }
}
