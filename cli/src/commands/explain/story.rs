//! What was decided, stage by stage, in the words of the stages.

use std::{collections::BTreeSet, net::SocketAddr};

use serde::Serialize;

use super::in_force::Proxy;

/// The whole of it.
#[derive(Debug, Serialize)]
pub(super) struct Story {
    source: String,
    destination: String,
    steps: Vec<Step>,
    /// What the steps decided, in facts.
    pub(super) decided: Decided,
    /// The proxies that decide, and whether each has in force what was told.
    pub(super) proxies: Vec<Proxy>,
    verdict: Verdict,
}

/// What was decided, for programs to compare.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Decided {
    /// How the caller's traffic goes on, by the endpoint that is chosen; none if it cannot.
    pub(super) ways: BTreeSet<Way>,
    /// The next processes, one of which is taken.
    pub(super) next_hops: BTreeSet<SocketAddr>,
    /// The route that is taken, where there are routes.
    pub(super) route: Option<Route>,
    /// Path and query as they are sent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    /// The status that is answered before any endpoint is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<u16>,
    /// Where a redirect leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) location: Option<String>,
    /// The policies that refuse what is addressed, before any endpoint is chosen.
    pub(super) refused_by: BTreeSet<String>,
    /// The endpoints, one of which is chosen.
    pub(super) endpoints: BTreeSet<Endpoint>,
    /// The pools that have no endpoint, or do not exist.
    pub(super) empty_pools: BTreeSet<String>,
}

/// How traffic goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Way {
    /// The caller is not in the mesh: as it is, and Kubernetes chooses.
    Uncaptured,
    /// In plain TCP.
    Direct,
    /// In a tunnel to the endpoint.
    Tunnel,
    /// In a tunnel to a waypoint.
    Waypoint,
    /// Through the gateway of another network.
    Gateway,
}

/// A route that is taken.
#[derive(Debug, Serialize)]
pub(super) struct Route {
    /// What the access log calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// The object and field that it is written in.
    pub(super) origin: String,
}

/// An endpoint that may be chosen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    /// The pool that it is of; `None` without a waypoint.
    pub(super) pool: Option<String>,
    /// Where it is called.
    pub(super) address: String,
    /// Whether it, and its own node proxy, let the caller pass.
    pub(super) allowed: bool,
    /// The policies that do not.
    pub(super) refused_by: BTreeSet<String>,
}

/// How it ends at one endpoint.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) verdict: Verdict,
    pub(super) refused_by: BTreeSet<String>,
}

impl Ending {
    /// It passes.
    pub(super) fn allowed() -> Self {
        Self { verdict: Verdict::Allowed, refused_by: BTreeSet::new() }
    }

    /// It does not, for this reason, by these policies.
    pub(super) fn refused(reason: String, policies: impl IntoIterator<Item = String>) -> Self {
        Self { verdict: Verdict::Refused(reason), refused_by: policies.into_iter().collect() }
    }
}

/// One stage's decision.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    /// A stage of ARCHITECTURE.md: identify, resolve, authorize, route, balance, connect.
    stage: &'static str,
    /// What it decided.
    says: String,
    /// Why: rules, routes and endpoints that were looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    because: Vec<String>,
}

/// How it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "camelCase")]
pub(super) enum Verdict {
    /// It passes.
    Allowed,
    /// It does not, for this reason.
    Refused(String),
    /// It depends on which endpoint is chosen.
    Depends(String),
}

impl Verdict {
    /// The verdict about endpoints, each of which may be chosen. None of them is a refusal.
    pub(super) fn of_any(verdicts: &[Self], nothing: &str) -> Self {
        let reason = |verdict: &Self| match verdict {
            Self::Allowed => None,
            Self::Refused(reason) | Self::Depends(reason) => Some(reason.clone()),
        };
        let reasons: Vec<String> = verdicts.iter().filter_map(reason).collect();
        let allowed = verdicts.len() - reasons.len();
        match (reasons.first(), allowed) {
            (None, 0) => Self::Refused(nothing.to_owned()),
            (None, _) => Self::Allowed,
            (Some(first), 0) if verdicts.iter().all(|verdict| matches!(verdict, Self::Refused(_))) => Self::Refused(first.clone()),
            (Some(first), _) => Self::Depends(format!("{allowed} of {} endpoints let it pass; one does not: {first}", verdicts.len())),
        }
    }
}

impl Story {
    /// A story that has not begun.
    pub(super) fn new(source: String, destination: String) -> Self {
        Self { source, destination, steps: Vec::new(), decided: Decided::default(), proxies: Vec::new(), verdict: Verdict::Allowed }
    }

    /// Notes how it ends at one endpoint.
    pub(super) fn end(&mut self, pool: Option<String>, address: impl ToString, ending: Ending) -> Verdict {
        let allowed = ending.verdict == Verdict::Allowed;
        self.decided.endpoints.insert(Endpoint { pool, address: address.to_string(), allowed, refused_by: ending.refused_by });
        ending.verdict
    }

    /// Tells what a stage decided.
    pub(super) fn step(&mut self, stage: &'static str, says: impl Into<String>, because: Vec<String>) {
        self.steps.push(Step { stage, says: says.into(), because });
    }

    /// Ends it.
    pub(super) fn ends(mut self, verdict: Verdict) -> Self {
        self.verdict = verdict;
        self
    }

    /// How it ends.
    #[cfg(test)]
    pub(super) fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{} -> {}\n\n", self.source, self.destination);
        for step in &self.steps {
            text += &format!("{:<10} {}\n", step.stage, step.says);
            text.extend(step.because.iter().map(|line| format!("{:<10}   {line}\n", "")));
        }
        let notes: Vec<String> = self.proxies.iter().filter_map(Proxy::note).collect();
        if !notes.is_empty() {
            text += "\nNot everywhere in force:\n";
            text.extend(notes.iter().map(|note| format!("  {note}\n")));
        }
        text += &match &self.verdict {
            Verdict::Allowed => "\nAllowed.\n".to_owned(),
            Verdict::Refused(reason) => format!("\nRefused: {reason}.\n"),
            Verdict::Depends(reason) => format!("\nIt depends: {reason}.\n"),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_disagree_leave_it_open() {
        let no = || Verdict::Refused("no".to_owned());
        assert_eq!(Verdict::of_any(&[], "nobody"), Verdict::Refused("nobody".to_owned()));
        assert_eq!(Verdict::of_any(&[Verdict::Allowed], "nobody"), Verdict::Allowed);
        assert_eq!(Verdict::of_any(&[no(), no()], "nobody"), no());
        assert!(matches!(Verdict::of_any(&[Verdict::Allowed, no()], "nobody"), Verdict::Depends(reason) if reason.contains("1 of 2")));
    }
}
