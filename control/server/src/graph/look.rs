//! Looking at the mesh: asks the proxies when somebody asks for the graph, and never otherwise.
//!
//! Rates need two moments. The samples of the last seconds are kept from one question to the next, so that whoever asks every second
//! gets an answer at once, and everybody who looks at the same time gets the same one. Who asks first after a while waits a second.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::body::Bytes;
use thiserror::Error;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep},
};

use super::{
    Facts, draw,
    inventory::Inventory,
    numbers::{self, Numbers},
    proxies::{self, Proxy, Said},
};

/// An answer is given to everybody who asks within this time.
const FRESH: Duration = Duration::from_millis(900);
/// Rates are over at most this time: long enough not to flicker, short enough to show what is.
const WINDOW: Duration = Duration::from_secs(4);
/// What is kept of the window, at a question a second.
const MAX_SAMPLES: usize = 5;
/// Between the two moments that a first answer needs.
const FIRST_WINDOW: Duration = Duration::from_secs(1);

/// Asks for the inventory as it is now.
pub(crate) type InventoryAsk = oneshot::Sender<Inventory>;

/// The graph cannot be drawn.
#[derive(Debug, Error)]
pub(crate) enum LookError {
    /// The control plane stops.
    #[error("the control plane stops")]
    Stopping,
    /// The folder of sockets cannot be read.
    #[error("the proxies' sockets in {folder} cannot be listed")]
    Sockets {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// Never: the graph has no map keys but text.
    #[error("the graph cannot be written")]
    Write(#[source] serde_json::Error),
}

/// Somebody looks. Clones look together.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    inventory: mpsc::Sender<InventoryAsk>,
    sockets: Option<PathBuf>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    samples: VecDeque<Sample>,
    /// The last answer, with the moment of its sample.
    answer: Option<(Instant, Bytes)>,
}

/// What all proxies had counted at a moment.
#[derive(Debug)]
struct Sample {
    at: Instant,
    numbers: BTreeMap<Proxy, Numbers>,
}

impl Look {
    /// Asks `inventory` for what there is, and the proxies whose sockets are in the folder `sockets`.
    pub(crate) fn new(inventory: mpsc::Sender<InventoryAsk>, sockets: Option<PathBuf>) -> Self {
        Self { inventory, sockets, seen: Arc::default() }
    }

    /// The graph as it is now, as JSON.
    pub(crate) async fn graph(&self) -> Result<Bytes, LookError> {
        // Who looks at the same time waits here, and finds the answer made.
        let mut seen = self.seen.lock().await;
        if let Some((at, answer)) = &seen.answer
            && at.elapsed() < FRESH
        {
            return Ok(answer.clone());
        }
        let seen = &mut *seen;
        seen.samples.retain(|sample| sample.at.elapsed() <= WINDOW);
        if seen.samples.is_empty() && self.sockets.is_some() {
            let (at, said, _) = self.ask().await?;
            seen.samples.push_back(Sample::of(at, &said));
            sleep(FIRST_WINDOW).await;
        }
        let (at, said, unasked) = self.ask().await?;
        let mut facts = Facts { inventory: self.inventory().await?, unasked, ..Facts::default() };
        if let Some(before) = seen.samples.front() {
            facts.window = at - before.at;
            facts.moved = before.moved(&said);
        }
        while seen.samples.len() >= MAX_SAMPLES {
            seen.samples.pop_front();
        }
        seen.samples.push_back(Sample::of(at, &said));
        facts.proxies = self.sockets.is_some().then_some(said);
        let answer = Bytes::from(serde_json::to_vec(&draw(&facts)).map_err(LookError::Write)?);
        seen.answer = Some((at, answer.clone()));
        Ok(answer)
    }

    async fn ask(&self) -> Result<(Instant, BTreeMap<Proxy, Result<Said, String>>, usize), LookError> {
        let at = Instant::now();
        let Some(folder) = &self.sockets else { return Ok((at, BTreeMap::new(), 0)) };
        let (said, unasked) = proxies::ask_all(folder).await.map_err(|cause| LookError::Sockets { folder: folder.clone(), cause })?;
        Ok((at, said, unasked))
    }

    async fn inventory(&self) -> Result<Inventory, LookError> {
        let (ask, answer) = oneshot::channel();
        self.inventory.send(ask).await.map_err(|_| LookError::Stopping)?;
        answer.await.map_err(|_| LookError::Stopping)
    }
}

impl Sample {
    fn of(at: Instant, said: &BTreeMap<Proxy, Result<Said, String>>) -> Self {
        let numbers = said.iter().filter_map(|(proxy, said)| Some((proxy.clone(), said.as_ref().ok()?.numbers.clone())));
        Self { at, numbers: numbers.collect() }
    }

    /// What was counted since. A proxy that did not answer then says nothing of the time between.
    fn moved(&self, said: &BTreeMap<Proxy, Result<Said, String>>) -> BTreeMap<Proxy, Numbers> {
        let each = said
            .iter()
            .filter_map(|(proxy, said)| Some((proxy.clone(), numbers::since(&said.as_ref().ok()?.numbers, self.numbers.get(proxy)?))));
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::{Router, routing};
    use serde_json::Value;

    use super::*;

    /// Answers each question with the same inventory, as `Watch` does.
    fn inventory() -> mpsc::Sender<InventoryAsk> {
        let (asks, mut asked) = mpsc::channel::<InventoryAsk>(1);
        tokio::spawn(async move {
            while let Some(ask) = asked.recv().await {
                let _ = ask.send(Inventory::with(&[("shop", "web"), ("shop", "cart")]));
            }
        });
        asks
    }

    #[tokio::test]
    async fn proxies_are_asked_only_while_somebody_looks_and_once_for_all_who_do() {
        let folder = tempfile::tempdir().unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let counting = asked.clone();
        let metrics = move || async move {
            let asked = counting.fetch_add(1, Ordering::Relaxed) + 1;
            let tls = "connection_security_policy=\"mutual_tls\"";
            numbers::tests::line("istio_tcp_sent_bytes_total", "source", ["shop/web", "shop/cart"], tls, 1000 * asked)
        };
        let listener = tokio::net::UnixListener::bind(folder.path().join("ztunnel.a.sock")).unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/stats/prometheus", routing::get(metrics))).await });
        let look = Look::new(inventory(), Some(folder.path().to_owned()));
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        let (one, other) = tokio::join!(look.graph(), look.graph());
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!((&one, asked.load(Ordering::Relaxed)), (&other, 2), "a first answer takes two samples, for both");
        let graph: Value = serde_json::from_slice(&one).unwrap();
        let (rate, window) = (graph["edges"][0]["bytesPerSecond"].as_f64().unwrap(), graph["windowSeconds"].as_f64().unwrap());
        assert!((rate * window - 1000.0).abs() < 1.0 && window >= 1.0, "{graph}");
    }

    #[tokio::test]
    async fn without_a_folder_there_are_workloads_and_no_traffic() {
        let graph: Value = serde_json::from_slice(&Look::new(inventory(), None).graph().await.unwrap()).unwrap();
        assert_eq!((graph["nodes"].as_array().unwrap().len(), &graph["proxies"]["known"]), (2, &Value::Bool(false)));
        let look = Look::new(mpsc::channel(1).0, Some("/nonexistent".into()));
        assert!(look.graph().await.unwrap_err().to_string().contains("/nonexistent"));
    }
}
