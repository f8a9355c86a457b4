//! What was decided, stage by stage, in the words of the stages.

use serde::Serialize;

/// The whole of it.
#[derive(Debug, Serialize)]
pub(super) struct Story {
    source: String,
    destination: String,
    steps: Vec<Step>,
    verdict: Verdict,
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
        Self { source, destination, steps: Vec::new(), verdict: Verdict::Allowed }
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
