//! Findings, told to the user where the user looks: in `status.conditions` of the object.
//!
//! [`conditions`] decides what stands in the status, [`Reporter`] writes what differs from what stands there already and withdraws what
//! no longer holds, also what an earlier process left. Reports are a courtesy: a status that cannot be written is tried again and holds
//! up nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use tropis_compile::waypoint::binding::Binding;
use tropis_crds::{Finding, Kind, Level, Object, ObjectRef, codes};
use tropis_source::{Report, Source};
use tropis_telemetry::chain;

use crate::{deploy::Made, in_force::Places, metrics::Metrics};

/// Who writes these fields.
const WRITER: &str = "tropisd";
/// Wait before writing again what could not be written.
const RETRY: Duration = Duration::from_secs(2);
/// The condition of policies, as Istio calls it.
const ZTUNNEL_ACCEPTED: &str = "ZtunnelAccepted";
/// The condition of every other kind.
const ACCEPTED: &str = "Accepted";

/// The condition of a Service that has a waypoint or wants one.
const WAYPOINT_BOUND: &str = tropis_compile::waypoint::binding::WAYPOINT_BOUND;

/// What a condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    kind: String,
    accepted: bool,
    reason: String,
    message: String,
    generation: Option<i64>,
}

impl Condition {
    /// What a Service's status says about its waypoint.
    pub(crate) fn of(binding: &Binding) -> Self {
        Self {
            kind: WAYPOINT_BOUND.to_owned(),
            accepted: binding.holds,
            reason: binding.reason.to_owned(),
            message: binding.message.clone(),
            generation: None,
        }
    }
}

/// What should stand in the statuses, and what stood there when the objects were read first.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Reports {
    pub(crate) desired: BTreeMap<ObjectRef, Condition>,
    pub(crate) found: BTreeMap<ObjectRef, Condition>,
    /// What stands for waypoints: objects of ours, and the whole status of their Gateways.
    pub(crate) made: BTreeMap<ObjectRef, Made>,
    /// What of that an earlier process left.
    pub(crate) found_made: BTreeSet<ObjectRef>,
}

/// The kinds whose findings stand in `status.conditions`. The status of a Pod or a Service is Kubernetes', and a route has a status for each
/// gateway that it names.
fn has_status(kind: Kind) -> bool {
    kind.group().ends_with(".istio.io") || matches!(kind, Kind::Gateway | Kind::GatewayClass)
}

fn condition_type(kind: Kind) -> &'static str {
    match kind {
        Kind::AuthorizationPolicy => ZTUNNEL_ACCEPTED,
        Kind::Service => WAYPOINT_BOUND,
        _ => ACCEPTED,
    }
}

/// Policies that a proxy refused, each with that proxy and its reason.
pub(crate) type Refused = BTreeMap<ObjectRef, (String, String)>;

/// The conditions of objects with findings, and even without of the policies that `obeyed` lists and of what some waypoint has in force,
/// which it is named by. A policy that a proxy refused says so before all else.
pub(crate) fn conditions<'a>(
    findings: &[Finding],
    obeyed: impl IntoIterator<Item = &'a ObjectRef>,
    in_force: &'a BTreeMap<ObjectRef, Places>,
    refused: &Refused,
    generation: impl Fn(&ObjectRef) -> Option<i64>,
) -> BTreeMap<ObjectRef, Condition> {
    let mut by_object: BTreeMap<&ObjectRef, Vec<&Finding>> = BTreeMap::new();
    for object in obeyed.into_iter().chain(in_force.keys()) {
        by_object.entry(object).or_default();
    }
    for finding in findings {
        by_object.entry(&finding.object).or_default().push(finding);
    }
    let condition = |object: &ObjectRef, findings: &[&Finding]| {
        let worst = findings.iter().max_by_key(|finding| finding.level);
        let mut message = String::new();
        for finding in findings {
            let separator = if message.is_empty() { "" } else { "; " };
            // Writing to a string cannot fail.
            let _ = write!(message, "{separator}{finding}");
        }
        let is_wrong = worst.is_some_and(|worst| worst.level == Level::Error);
        if let Some(places) = in_force.get(object).filter(|_| !is_wrong) {
            let separator = if message.is_empty() { "" } else { "; " };
            let _ = write!(message, "{separator}{}", places.words());
        }
        Condition {
            kind: condition_type(object.kind).to_owned(),
            accepted: worst.is_none_or(|worst| worst.level == Level::Info),
            reason: worst.map_or_else(|| "Accepted".to_owned(), |worst| reason(worst).to_owned()),
            message: if message.is_empty() { "in force".to_owned() } else { message },
            generation: generation(object),
        }
    };
    let mut conditions: BTreeMap<ObjectRef, Condition> = (by_object.into_iter())
        .filter(|(object, _)| has_status(object.kind) && !object.name.is_empty())
        .map(|(object, findings)| (object.clone(), condition(object, &findings)))
        .collect();
    for (object, (client, reason)) in refused {
        if let Some(condition) = conditions.get_mut(object) {
            condition.accepted = false;
            condition.reason = "RefusedByProxy".to_owned();
            condition.message = format!("{client} refuses it: {reason}; there an older version is in force, or what it selects is denied");
        }
    }
    conditions
}

fn reason(finding: &Finding) -> &'static str {
    match finding.level {
        Level::Error if finding.code == codes::REFUSED_BY_PROXY => "RefusedByProxy",
        Level::Error => "Invalid",
        Level::Warning => "UnsupportedValue",
        Level::Info => "Accepted",
    }
}

/// The condition of ours that an object carries already.
pub(crate) fn found(object: &Object) -> Option<Condition> {
    if !has_status(object.kind) && object.kind != Kind::Service {
        return None;
    }
    let kind = condition_type(object.kind);
    let conditions = object.value.get("status")?.get("conditions")?.as_array()?;
    let ours = conditions.iter().find(|condition| condition.get("type").and_then(Value::as_str) == Some(kind))?;
    let text = |key: &str| ours.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(Condition {
        kind: kind.to_owned(),
        accepted: text("status") == "True",
        reason: text("reason"),
        message: text("message"),
        generation: ours.get("observedGeneration").and_then(Value::as_i64),
    })
}

/// Writes statuses.
pub(crate) struct Reporter {
    source: Arc<dyn Source>,
    metrics: Metrics,
    written: BTreeMap<ObjectRef, Condition>,
    /// What was written for waypoints; `None`: by an earlier process.
    made: BTreeMap<ObjectRef, Option<Made>>,
    /// When a condition of a Gateway, by where it stands, got its present truth value.
    made_since: BTreeMap<(ObjectRef, String), (Value, String)>,
    /// When a condition got its present truth value.
    since: BTreeMap<ObjectRef, (bool, String)>,
    started: bool,
}

impl Reporter {
    /// Writes to `source`.
    pub(crate) fn new(source: Arc<dyn Source>, metrics: Metrics) -> Self {
        Self {
            source,
            metrics,
            written: BTreeMap::new(),
            made: BTreeMap::new(),
            made_since: BTreeMap::new(),
            since: BTreeMap::new(),
            started: false,
        }
    }

    /// Follows what is desired until `stop`.
    pub(crate) async fn run(mut self, mut reports: watch::Receiver<Option<Arc<Reports>>>, stop: CancellationToken) {
        loop {
            let desired = reports.borrow_and_update().clone();
            let done = match desired {
                Some(desired) => self.write(&desired).await,
                None => true,
            };
            tokio::select! {
                changed = reports.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !done => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Whether everything that differs was written.
    async fn write(&mut self, reports: &Reports) -> bool {
        if !self.started {
            self.written.clone_from(&reports.found);
            self.made = reports.found_made.iter().map(|object| (object.clone(), None)).collect();
            self.started = true;
        }
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let mut done = self.make(reports, &now).await;
        for (object, condition) in &reports.desired {
            if self.written.get(object) == Some(condition) {
                continue;
            }
            let since = match self.since.get(object) {
                Some((accepted, since)) if *accepted == condition.accepted => since.clone(),
                _ => now.clone(),
            };
            let report = Report::new(WRITER, object.clone(), status(condition, &since));
            match self.source.report(report).await {
                Ok(()) => {
                    self.since.insert(object.clone(), (condition.accepted, since));
                    self.written.insert(object.clone(), condition.clone());
                }
                Err(error) => {
                    self.failed(object, &error);
                    done = false;
                }
            }
        }
        // A waypoint's Gateway has its status with all else that is made: to withdraw it here would take away its address, or the Gateway.
        self.written.retain(|object, _| !reports.made.contains_key(object));
        let gone: BTreeSet<ObjectRef> = self.written.keys().filter(|object| !reports.desired.contains_key(object)).cloned().collect();
        for object in gone {
            match self.source.withdraw(WRITER, &object).await {
                Ok(()) => {
                    self.written.remove(&object);
                    self.since.remove(&object);
                }
                Err(error) => {
                    self.failed(&object, &error);
                    done = false;
                }
            }
        }
        done
    }

    /// Whether everything that waypoints need was written.
    async fn make(&mut self, reports: &Reports, now: &str) -> bool {
        let mut done = true;
        for (object, made) in &reports.made {
            if self.made.get(object).is_some_and(|before| before.as_ref() == Some(made)) {
                continue;
            }
            let mut fields = made.fields.clone();
            if let Some(status) = fields.get_mut("status") {
                self.date(object, "", status, now);
            }
            let report =
                if made.owned { Report::owned(WRITER, object.clone(), fields) } else { Report::new(WRITER, object.clone(), fields) };
            match self.source.report(report).await {
                Ok(()) => _ = self.made.insert(object.clone(), Some(made.clone())),
                Err(error) => {
                    self.failed(object, &error);
                    done = false;
                }
            }
        }
        let gone: Vec<ObjectRef> = self.made.keys().filter(|object| !reports.made.contains_key(object)).cloned().collect();
        for object in gone {
            match self.source.withdraw(WRITER, &object).await {
                Ok(()) => {
                    self.made.remove(&object);
                    self.made_since.retain(|(of, _), _| *of != object);
                }
                Err(error) => {
                    self.failed(&object, &error);
                    done = false;
                }
            }
        }
        done
    }

    /// Dates the conditions of a Gateway's status and of its listeners.
    fn date(&mut self, object: &ObjectRef, place: &str, status: &mut Value, now: &str) {
        for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            let place = format!("{place}{}", condition.get("type").and_then(Value::as_str).unwrap_or_default());
            let holds = condition.get("status").cloned().unwrap_or_default();
            let since = self.made_since.entry((object.clone(), place)).or_insert_with(|| (holds.clone(), now.to_owned()));
            if since.0 != holds {
                *since = (holds, now.to_owned());
            }
            condition["lastTransitionTime"] = since.1.as_str().into();
        }
        for listener in status.get_mut("listeners").and_then(Value::as_array_mut).into_iter().flatten() {
            let name = format!("{}/", listener.get("name").and_then(Value::as_str).unwrap_or_default());
            self.date(object, &name, listener, now);
        }
    }

    fn failed(&self, object: &ObjectRef, error: &(dyn std::error::Error + 'static)) {
        self.metrics.report_failed();
        warn!(%object, error = chain(error), retry = ?RETRY, "status not written");
    }
}

fn status(condition: &Condition, since: &str) -> Value {
    let mut fields = json!({
        "type": condition.kind,
        "status": if condition.accepted { "True" } else { "False" },
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": since,
    });
    if let Some(generation) = condition.generation {
        fields["observedGeneration"] = generation.into();
    }
    json!({ "status": { "conditions": [fields] } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: Kind, name: &str) -> ObjectRef {
        ObjectRef::new(kind, "shop", name)
    }

    #[test]
    fn conditions_tell_the_worst_and_stand_on_the_meshs_own_kinds() {
        let policies =
            [object(Kind::AuthorizationPolicy, "good"), object(Kind::AuthorizationPolicy, "l7"), object(Kind::AuthorizationPolicy, "odd")];
        let findings = [
            Finding::warning(codes::NEEDS_WAYPOINT, policies[1].clone()).problem("looks at HTTP").effect("denied"),
            Finding::error(codes::UNREADABLE_VALUE, object(Kind::VirtualService, "route")).problem("is wrong").effect("nothing"),
            Finding::warning(codes::FIELD_NOT_HONOURED, object(Kind::VirtualService, "partly")).problem("is odd").effect("a part"),
            Finding::warning(codes::FIELD_NOT_HONOURED, object(Kind::Service, "web")).problem("is UDP").effect("nothing"),
        ];
        let refused = Refused::from([
            (policies[2].clone(), ("istio-system/z".into(), "a string match of an unknown kind".into())),
            (object(Kind::AuthorizationPolicy, "gone"), ("istio-system/z".into(), "late".into())),
        ]);
        let at = Places { waypoints: ["shop/gw".to_owned()].into(), node_proxies: false };
        let names = ["route", "canary", "partly"];
        let in_force = names.map(|name| (object(Kind::VirtualService, name), at.clone())).into();
        let found = conditions(&findings, &policies, &in_force, &refused, |_| Some(7));
        let told: Vec<(&str, &str, bool, &str)> = (found.iter())
            .map(|(object, condition)| (object.name.as_str(), condition.kind.as_str(), condition.accepted, condition.reason.as_str()))
            .collect();
        let mut expected = [
            ("good", ZTUNNEL_ACCEPTED, true, "Accepted"),
            ("l7", ZTUNNEL_ACCEPTED, false, "UnsupportedValue"),
            ("odd", ZTUNNEL_ACCEPTED, false, "RefusedByProxy"),
            ("canary", ACCEPTED, true, "Accepted"),
            ("partly", ACCEPTED, false, "UnsupportedValue"),
            ("route", ACCEPTED, false, "Invalid"),
        ];
        expected.sort_by_key(|(name, kind, ..)| (*kind != ZTUNNEL_ACCEPTED, *name));
        assert_eq!(told, expected, "a Service's status is not ours, and what is gone has none");
        let message = |name: &str| found[&object(Kind::VirtualService, name)].message.as_str();
        assert_eq!((message("canary"), found[&policies[0]].message.as_str()), ("in force at waypoint shop/gw", "in force"));
        assert!(message("partly").ends_with("; in force at waypoint shop/gw"), "{}", message("partly"));
        assert!(!message("route").contains("in force at"), "what is wrong is in force nowhere: {}", message("route"));
        assert!(found[&policies[2]].message.contains("istio-system/z refuses it: a string match of an unknown kind"));
    }

    #[test]
    fn a_condition_is_found_again_where_it_was_written() {
        let condition = Condition {
            kind: ZTUNNEL_ACCEPTED.into(),
            accepted: true,
            reason: "Accepted".into(),
            message: "in force".into(),
            generation: Some(3),
        };
        let mut value = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": {},
        });
        let without = tropis_crds::decode(value.clone()).unwrap().0;
        assert_eq!(super::found(&without), None);
        value["status"] = status(&condition, "2026-01-01T00:00:00Z")["status"].clone();
        let with = tropis_crds::decode(value).unwrap().0;
        assert_eq!(super::found(&with), Some(condition));
    }
}
