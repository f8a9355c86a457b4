//! What the API server's schema and Istio's webhook check in every networking kind: hosts, shares, ports, durations, patterns.

use std::{collections::BTreeMap, net::IpAddr, time};

use tropis_model::bounds;

use super::value::{Duration, Percent, PortSelector, StringMatch};
use crate::{codes, decode::About, finding::Finding, names};

/// The longest pattern that Istio takes.
pub(crate) const PATTERN_MAX: usize = 1024;
/// Bytes that a pattern may take once it is compiled, as the proxies have it.
const PATTERN_PROGRAM_MAX_BYTES: usize = 256 * 1024;
/// The shortest duration where zero makes no sense.
const DURATION_MIN: time::Duration = time::Duration::from_millis(1);

/// A host: an IP address, a DNS name, `*.` before one, or `*`.
pub(crate) fn is_host(text: &str) -> bool {
    let name = text.to_ascii_lowercase();
    text == "*" || text.parse::<IpAddr>().is_ok() || names::is_dns_subdomain(name.strip_prefix("*.").unwrap_or(&name))
}

/// Whether every name that `other` stands for is one that `host` stands for; both lower case.
pub fn covers(host: &str, other: &str) -> bool {
    host == other || host.strip_prefix('*').is_some_and(|suffix| other.len() >= suffix.len() && other.ends_with(suffix))
}

pub(crate) fn export_to(about: &mut About<'_>, list: &[String]) {
    for (index, entry) in list.iter().enumerate() {
        let field = format!("spec.exportTo[{index}]");
        if entry != "." && entry != "*" && !names::is_dns_label(entry) {
            about.refuse(&field, format!("{entry:?}"), "is not a namespace", "a namespace, \".\" or \"*\"");
        } else if list[..index].contains(entry) {
            about.refuse(&field, format!("{entry:?}"), "is written twice", "");
        }
    }
    if list.len() > 1 && list.iter().any(|entry| entry == "*") {
        about.refuse("spec.exportTo", "\"*\" beside others", "is ambiguous", "\"*\" alone");
    }
}

pub(crate) fn gateways(about: &mut About<'_>, list: &[String], path: &str) {
    for (index, gateway) in list.iter().enumerate() {
        let good = match gateway.split_once('/') {
            Some((namespace, name)) => (namespace == "." || names::is_dns_label(namespace)) && names::is_dns_subdomain(name),
            None => names::is_dns_subdomain(gateway),
        };
        if !good {
            let accepted = "mesh, NAME, NAMESPACE/NAME or ./NAME";
            about.refuse(&format!("{path}[{index}]"), format!("{gateway:?}"), "is not a gateway's name", accepted);
        }
    }
}

pub(crate) fn port(about: &mut About<'_>, field: &str, port: Option<i64>) {
    if let Some(number) = port.filter(|number| !names::is_port(*number)) {
        about.refuse(field, number.to_string(), "is not a port", "1 to 65535");
    }
}

pub(crate) fn port_selector(about: &mut About<'_>, field: &str, selector: Option<PortSelector>) {
    port(about, &format!("{field}.number"), selector.map(|selector| selector.number));
}

pub(crate) fn percent(about: &mut About<'_>, field: &str, percent: Option<Percent>) {
    if let Some(percent) = percent.filter(|percent| !(0.0..=100.0).contains(&percent.value)) {
        about.refuse(&format!("{field}.value"), percent.value.to_string(), "is not a share", "0.0 to 100.0");
    }
}

pub(crate) fn within(about: &mut About<'_>, field: &str, number: Option<i64>, low: i64, high: i64) {
    if let Some(number) = number.filter(|number| !(low..=high).contains(number)) {
        about.refuse(field, number.to_string(), "is out of range", &format!("{low} to {high}"));
    }
}

/// The status of an answer that is made up.
pub(crate) fn status(about: &mut About<'_>, field: &str, status: Option<i64>) {
    let (low, high) = bounds::ANSWER_STATUSES.into_inner();
    within(about, field, status, low.into(), high.into());
}

/// A count that has no upper end but its type's.
pub(crate) fn count(about: &mut About<'_>, field: &str, number: Option<i64>) {
    within(about, field, number, 0, i64::from(u32::MAX));
}

pub(crate) fn duration(about: &mut About<'_>, field: &str, duration: Option<Duration>) {
    if let Some(short) = duration.filter(|duration| duration.0 < DURATION_MIN) {
        about.refuse(field, format!("{:?}", format!("{:?}", short.0)), "is too short", "at least \"1ms\"");
    }
}

pub(crate) fn blocks(about: &mut About<'_>, list: &[String], path: &str) {
    for (index, text) in list.iter().enumerate() {
        if super::block(text).is_none() {
            let accepted = "for example \"10.0.0.0/8\" or \"fd00::1\"";
            about.refuse(&format!("{path}[{index}]"), format!("{text:?}"), "is neither an IP address nor a CIDR block", accepted);
        }
    }
}

pub(crate) fn labels(about: &mut About<'_>, labels: &BTreeMap<String, String>, path: &str) {
    for (key, value) in labels {
        let field = format!("{path}[{key}]");
        if !names::is_label_key(key) {
            about.refuse(&field, "", "the key is not a label key", "letters, digits, -, _ and ., with an optional DNS prefix/");
        } else if !names::is_label_value(value) {
            about.refuse(&field, format!("{value:?}"), "is not a label value", "at most 63 letters, digits, -, _ and ., without wildcards");
        }
    }
}

/// A regular expression: not too long, and one that compiles, alone and between the anchors that make it match all of a text.
pub(crate) fn pattern(about: &mut About<'_>, field: &str, pattern: &str) {
    let compiles = |source: &str| regex::RegexBuilder::new(source).size_limit(PATTERN_PROGRAM_MAX_BYTES).build();
    if pattern.len() > PATTERN_MAX {
        about.refuse(field, format!("{} bytes", pattern.len()), "are too many for a pattern", "at most 1024");
    } else if let Err(error) = compiles(pattern).and_then(|_| compiles(&format!("^(?:{pattern})$"))) {
        // The last line says what is wrong; those before draw it.
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let problem = format!("is not a regular expression: {reason}");
        about.refuse(field, format!("{pattern:?}"), &problem, "RE2 syntax, for example \"/api/v[0-9]+/.*\"");
    }
}

/// A match that must say something; `empty_prefix` where a prefix of nothing does.
pub(crate) fn text_match(about: &mut About<'_>, field: &str, text: &StringMatch, empty_prefix: bool) {
    match text {
        StringMatch::Present => about.refuse(field, "an empty mapping", "matches nothing in particular", "exact, prefix or regex"),
        StringMatch::Prefix(prefix) if prefix.is_empty() && !empty_prefix => {
            about.refuse(&format!("{field}.prefix"), "\"\"", "is an empty prefix", "leave the match out to match everything");
        }
        StringMatch::Regex(source) => pattern(about, &format!("{field}.regex"), source),
        StringMatch::Exact(_) | StringMatch::Prefix(_) => {}
    }
}

/// A field that is valid and that nothing obeys.
pub(crate) fn not_honoured(about: &mut About<'_>, field: &str, effect: &str) {
    let object = about.object.clone();
    about.push(Finding::warning(codes::FIELD_NOT_HONOURED, object).field(field).problem("is not obeyed here").effect(effect));
}

/// A field that Istio has replaced by another.
pub(crate) fn deprecated(about: &mut About<'_>, field: &str, instead: &str, effect: &str) {
    let object = about.object.clone();
    about.push(Finding::warning(codes::DEPRECATED, object).field(field).problem("is deprecated").accepted(instead).effect(effect));
}
