//! What `tropis explain` says, and whether the calls that were really made ended as it says.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use serde::Deserialize;
use tropis_tests::observe::AccessLine;

use super::called::{Called, Ended, is_tls};
use super::drawn::Question;

/// The status of a request that policy refuses at a waypoint.
const FORBIDDEN: u16 = 403;
/// The status of one for which nobody is found, or nobody who lets the waypoint in.
const UNAVAILABLE: u16 = 503;

/// `tropis explain -o json`.
#[derive(Debug, Deserialize)]
pub(super) struct Explained {
    steps: Vec<Step>,
    decided: Decided,
    proxies: Vec<Proxy>,
    verdict: Verdict,
}

/// A proxy that decides on the way.
#[derive(Debug, Deserialize)]
struct Proxy {
    place: String,
    status: String,
}

#[derive(Debug, Deserialize)]
struct Step {
    stage: String,
    says: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decided {
    ways: BTreeSet<String>,
    route: Option<Route>,
    path: Option<String>,
    answer: Option<u16>,
    location: Option<String>,
    refused_by: BTreeSet<String>,
    endpoints: Vec<Endpoint>,
    empty_pools: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Route {
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: String,
    allowed: bool,
    refused_by: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Verdict {
    outcome: String,
    #[serde(default)]
    reason: String,
}

impl Explained {
    /// Everything is in force, and it says so of each proxy on the way.
    pub(super) fn is_in_force(&self) -> anyhow::Result<()> {
        let behind: Vec<&Proxy> = self.proxies.iter().filter(|proxy| proxy.status != "SYNCED").collect();
        ensure!(behind.is_empty(), "it says that {behind:?} are behind");
        let waypoints = self.proxies.iter().filter(|proxy| proxy.place == "waypoint shop/waypoint").count();
        ensure!((waypoints > 0) == self.decided.ways.contains("waypoint"), "on a way {:?} are {:?}", self.decided.ways, self.proxies);
        Ok(())
    }

    /// Way and outcome.
    pub(super) fn kind(&self) -> String {
        let way = self.decided.ways.first().map_or("nowhere", String::as_str);
        format!("{way}: {}", self.verdict.outcome)
    }

    /// How many requests of the question stand in the waypoint's log.
    pub(super) fn logged(&self, question: &Question, called: &Called) -> usize {
        let is_request = self.decided.ways.contains("waypoint") && !is_connection(question) && !self.is_unheard();
        if is_request { called.ended.len() } else { 0 }
    }

    /// Whether it ends before anybody looks for an endpoint or at a request.
    fn is_unheard(&self) -> bool {
        let Decided { route, answer, refused_by, endpoints, empty_pools, .. } = &self.decided;
        route.is_none() && answer.is_none() && refused_by.is_empty() && endpoints.is_empty() && empty_pools.is_empty()
    }

    /// Errors with what is otherwise than it says. `pods` are names by address.
    pub(super) fn holds(
        &self,
        question: &Question,
        called: &Called,
        lines: &[AccessLine],
        pods: &BTreeMap<String, String>,
    ) -> anyhow::Result<()> {
        let logged = self.logged(question, called);
        ensure!(lines.len() == logged, "{} requests stand in the waypoint's log, and not {logged}", lines.len());
        called.ended.iter().try_for_each(|ended| self.may_end(ended, logged > 0, pods))?;
        lines.iter().try_for_each(|line| self.may_be_logged(line))?;
        ensure!(self.decided.location == called.location, "the caller is sent to {:?}", called.location);
        let served = called.ended.iter().filter(|ended| matches!(ended, Ended::Served(_))).count();
        match (self.verdict.outcome.as_str(), self.decided.answer) {
            ("allowed", None) => ensure!(served == called.ended.len(), "{served} of {} were served", called.ended.len()),
            ("allowed" | "refused", _) => ensure!(served == 0, "{served} of {} were served", called.ended.len()),
            ("depends", None) => {}
            other => anyhow::bail!("{other:?} is no outcome"),
        }
        match &called.told {
            Some(told) => self.sent_on(question, (&told.method, &told.path, &told.authority)),
            None => Ok(()),
        }
    }

    /// One call.
    fn may_end(&self, ended: &Ended, at_waypoint: bool, pods: &BTreeMap<String, String>) -> anyhow::Result<()> {
        match ended {
            Ended::Served(pod) => {
                let named = |endpoint: &Endpoint| endpoint.address.rsplit_once(':').and_then(|(address, _)| pods.get(address));
                let allowed = self.decided.endpoints.iter().filter(|endpoint| endpoint.allowed).filter_map(named);
                ensure!(allowed.into_iter().any(|allowed| allowed == pod), "{pod} served it");
            }
            Ended::Answered(status) => ensure!(at_waypoint && self.statuses()?.contains(status), "it was answered {status}"),
            Ended::Broken(kind) => {
                use tropis_tests::testkit::FailureKind::{Closed, Refused, Reset};
                ensure!([Closed, Refused, Reset].contains(kind), "it was not refused, but {kind:?}");
                ensure!(!at_waypoint && self.verdict.outcome != "allowed", "it was refused without an answer");
            }
        }
        Ok(())
    }

    /// What a waypoint may answer in place of an endpoint.
    fn statuses(&self) -> anyhow::Result<BTreeSet<u16>> {
        let Decided { answer, refused_by, endpoints, empty_pools, .. } = &self.decided;
        if let Some(answer) = answer {
            return Ok([*answer].into());
        }
        if !refused_by.is_empty() {
            return Ok([FORBIDDEN].into());
        }
        if self.verdict.outcome == "refused" && endpoints.len() + empty_pools.len() == 1 {
            // It names the status, or the endpoint whose node refuses the waypoint.
            let status = self.verdict.reason.split_once(',').and_then(|(status, _)| status.parse().ok());
            return Ok([status.unwrap_or(UNAVAILABLE)].into());
        }
        let refused = endpoints.iter().any(|endpoint| !endpoint.allowed);
        let statuses = [(FORBIDDEN, refused), (UNAVAILABLE, refused || !empty_pools.is_empty())];
        Ok(statuses.into_iter().filter(|(_, may_be)| *may_be).map(|(status, _)| status).collect())
    }

    /// A request's line: its route, the endpoint that was chosen and the policy that refused.
    fn may_be_logged(&self, line: &AccessLine) -> anyhow::Result<()> {
        let Decided { route, endpoints, refused_by, .. } = &self.decided;
        let name = route.as_ref().and_then(|route| route.name.as_deref()).unwrap_or_default();
        ensure!(line.field("route_name") == name, "the log has route {:?}", line.field("route_name"));
        let upstream = line.field("upstream_host");
        let known = endpoints.iter().any(|endpoint| endpoint.address == upstream);
        ensure!(upstream.is_empty() || known, "{upstream} was chosen");
        let policy = line.field("policy");
        let refuses = refused_by.iter().chain(endpoints.iter().flat_map(|endpoint| &endpoint.refused_by)).any(|known| *known == policy);
        ensure!(policy.is_empty() || refuses, "{policy} refused it");
        Ok(())
    }

    /// What the endpoint saw.
    fn sent_on(&self, question: &Question, (method, path, authority): (&str, &str, &str)) -> anyhow::Result<()> {
        let as_sent = question.target.to_owned();
        let expected = self.decided.path.as_ref().unwrap_or(&as_sent);
        ensure!(path == expected, "the endpoint saw {path}");
        let says = self.steps.iter().filter(|step| step.stage == "forward");
        let rewritten = says.filter_map(|step| step.says.strip_prefix("it is sent on to ")?.split(' ').next()).next();
        let as_sent = question.authority();
        ensure!(authority == rewritten.unwrap_or(&as_sent), "the endpoint saw host {authority}");
        ensure!(method == question.method, "the endpoint saw {method}");
        Ok(())
    }
}

/// Whether it is a connection for a waypoint, not a request: the ports of service `app` say so, and it is behind none else.
fn is_connection(question: &Question) -> bool {
    is_tls(question) || [":90", ":9090"].iter().any(|port| question.destination.ends_with(port))
}

/// Reads what it printed.
pub(super) fn read(text: &str) -> anyhow::Result<Explained> {
    serde_json::from_str(text).with_context(|| format!("not what explain prints: {text}"))
}
