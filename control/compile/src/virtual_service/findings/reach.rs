//! Rules and matches that never decide, because others before them do.

use std::{collections::HashMap, sync::Arc};

use tropis_crds::{
    Finding, Object, codes,
    istio::{
        value::StringMatch,
        virtual_service::{HttpMatch, HttpRoute},
    },
};

use super::super::{Merged, delegate, delegate_key, delegate_of, in_full};
use crate::{Index, destination_rule::shown};

/// Rules after one that takes everything, rules and matches that repeat earlier ones, and delegates' rules that contradict their root's.
pub(super) fn unreachable(index: &Index, object: &Arc<Object>) -> Vec<Finding> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let mut findings = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut all: Option<usize> = None;
    for (place, rule) in service.spec.http.iter().enumerate() {
        let field = format!("spec.http[{place}]");
        if let Some(before) = all {
            findings.push(hidden(object, &field, &format!("spec.http[{before}] takes every request before it")));
            continue;
        }
        let bare: Vec<String> = rule.matches.iter().map(bare).collect();
        let repeated: Vec<Option<usize>> = bare.iter().map(|entry| seen.get(entry).copied()).collect();
        match repeated.iter().flatten().next() {
            Some(before) if repeated.iter().all(Option::is_some) => {
                findings.push(hidden(object, &field, &format!("spec.http[{before}] matches the same")));
            }
            _ => findings.extend(repeated.iter().enumerate().filter_map(|(entry, before)| {
                let before = (*before)?;
                Some(
                    Finding::info(codes::INEFFECTIVE_MATCH, object.reference())
                        .field(format!("{field}.match[{entry}]"))
                        .problem(format!("never decides: spec.http[{before}] matches the same"))
                        .effect("the rule is taken by its other matches only"),
                )
            })),
        }
        for entry in bare {
            seen.entry(entry).or_insert(place);
        }
        let everything = rule.matches.is_empty() || rule.matches.iter().any(takes_all);
        // A delegating rule takes what its delegate takes.
        if everything && rule.delegate.is_none() {
            all = Some(place);
        }
        findings.extend(dropped(index, object, rule, &field));
    }
    findings
}

fn hidden(object: &Object, field: &str, why: &str) -> Finding {
    Finding::warning(codes::UNREACHABLE_RULE, object.reference())
        .field(field)
        .problem(format!("is never reached: {why}"))
        .accepted("rules in order, the most specific first")
        .effect("no request is routed by this rule")
}

/// Rules of a delegate that no request can meet.
fn dropped(index: &Index, object: &Arc<Object>, rule: &HttpRoute, field: &str) -> Vec<Finding> {
    let Some((delegate, spec)) = delegate_key(object, rule).and_then(|key| delegate_of(index, object, &key)) else { return Vec::new() };
    let root = in_full(index, object, rule);
    let contradicts = |more: &HttpRoute| matches!(delegate::merge(&root, &in_full(index, delegate, more)), Merged::Nothing);
    let contradicting = spec.http.iter().enumerate().filter(|(_, more)| contradicts(more));
    contradicting
        .map(|(place, _)| {
            Finding::warning(codes::UNREACHABLE_RULE, object.reference())
                .field(format!("{field}.delegate"))
                .found(format!("spec.http[{place}] of {}", shown(delegate)))
                .problem("has a match that no match of this rule lets through")
                .accepted("matches of the delegate that are narrower than the root's")
                .effect("that rule of the delegate is left out")
        })
        .collect()
}

/// A match without what it is called: the same for matches that hold for the same requests.
fn bare(entry: &HttpMatch) -> String {
    format!("{:?}", HttpMatch { name: String::new(), stat_prefix: String::new(), ..entry.clone() })
}

fn takes_all(entry: &HttpMatch) -> bool {
    let any_path = match &entry.uri {
        None => true,
        Some(StringMatch::Prefix(prefix)) => prefix.is_empty() || prefix == "/",
        Some(_) => false,
    };
    let rest = HttpMatch {
        name: String::new(),
        stat_prefix: String::new(),
        uri: None,
        ignore_uri_case: false,
        gateways: entry.gateways.clone(),
        ..entry.clone()
    };
    any_path && entry.gateways.is_empty() && rest == HttpMatch::default()
}

/// Matches of what a waypoint never knows: claims of tokens as headers.
pub(super) fn unmatchable(object: &Object) -> Vec<Finding> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let mut findings = Vec::new();
    for (place, rule) in service.spec.http.iter().enumerate() {
        for (entry, matched) in rule.matches.iter().enumerate() {
            let lists = [("headers", &matched.headers), ("withoutHeaders", &matched.without_headers)];
            for (list, names) in lists {
                for name in names.0.keys().filter(|name| name.starts_with("@request.auth.claims")) {
                    findings.push(
                        Finding::warning(codes::FIELD_NOT_HONOURED, object.reference())
                            .field(format!("spec.http[{place}].match[{entry}].{list}[{name}]"))
                            .problem("asks for a claim of a token, which only a gateway routes by")
                            .effect("it is read as a header of that name, which no request has"),
                    );
                }
            }
        }
    }
    findings
}
