//! What is refused in the way that an endpoint is chosen.

use super::super::{ConsistentHash, LoadBalancer, LocalitySetting, SimpleBalancer};
use tropis_model::bounds;

use crate::{decode::About, istio::check};

/// Maglev's largest table.
const TABLE_MAX: i64 = *bounds::TABLE_ENTRIES.end() as i64;
/// The largest ring.
const RING_MAX: i64 = bounds::RING_POINTS as i64;

pub(super) fn validate(about: &mut About<'_>, balancer: &LoadBalancer, path: &str) {
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        about.refuse(path, "simple beside consistentHash", "is ambiguous", "one of them");
    }
    if balancer.simple == Some(SimpleBalancer::LeastConn) {
        check::deprecated(about, &format!("{path}.simple"), "LEAST_REQUEST", "it is read as LEAST_REQUEST");
    }
    if let Some(hash) = &balancer.consistent_hash {
        validate_hash(about, hash, &format!("{path}.consistentHash"));
    }
    if balancer.locality_lb_setting.is_some() && balancer.zone_aware_lb_setting.is_some() {
        about.refuse(path, "localityLbSetting beside zoneAwareLbSetting", "is ambiguous", "one of them");
    }
    if balancer.zone_aware_lb_setting.is_some() {
        check::not_honoured(about, &format!("{path}.zoneAwareLbSetting"), "zones do not count");
    }
    if let Some(setting) = &balancer.locality_lb_setting {
        validate_locality(about, setting, &format!("{path}.localityLbSetting"));
    }
    if balancer.warmup_duration_secs.is_some() {
        let field = format!("{path}.warmupDurationSecs");
        if balancer.warmup.is_some() {
            about.refuse(&field, "warmupDurationSecs beside warmup", "is ambiguous", "warmup.duration");
        }
        check::deprecated(about, &field, "warmup.duration", "it is obeyed");
        check::duration(about, &field, balancer.warmup_duration_secs);
    }
    if let Some(warmup) = &balancer.warmup {
        let path = format!("{path}.warmup");
        if warmup.duration.is_none() {
            about.refuse(&format!("{path}.duration"), "", "is missing", "for example \"30s\"");
        }
        check::duration(about, &format!("{path}.duration"), warmup.duration);
        if let Some(percent) = warmup.minimum_percent.filter(|percent| !(0.0..=100.0).contains(percent)) {
            about.refuse(&format!("{path}.minimumPercent"), percent.to_string(), "is not a share", "0.0 to 100.0");
        }
        if let Some(aggression) = warmup.aggression.filter(|aggression| !(*aggression >= 1.0 && aggression.is_finite())) {
            about.refuse(&format!("{path}.aggression"), aggression.to_string(), "is out of range", "at least 1.0");
        }
    }
}

fn validate_hash(about: &mut About<'_>, hash: &ConsistentHash, path: &str) {
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip.is_some(),
        hash.http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|present| **present).count() != 1 {
        let accepted = "exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
        about.refuse(path, "", "has not one key", accepted);
    }
    for (name, text) in [("httpHeaderName", &hash.http_header_name), ("httpQueryParameterName", &hash.http_query_parameter_name)] {
        if text.as_deref() == Some("") {
            about.refuse(&format!("{path}.{name}"), "\"\"", "is an empty name", "a name");
        }
    }
    if let Some(cookie) = &hash.http_cookie {
        let path = format!("{path}.httpCookie");
        if cookie.name.is_empty() {
            about.refuse(&format!("{path}.name"), "", "is missing", "the cookie's name");
        }
        let texts = cookie.attributes.iter().flat_map(|attribute| [&attribute.name, &attribute.value]).chain([&cookie.name, &cookie.path]);
        for text in texts.filter(|text| text.bytes().any(|byte| byte <= b' ' || byte == b';' || byte >= 127)) {
            about.refuse(&path, format!("{text:?}"), "cannot be part of a cookie", "visible characters without ;");
        }
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        about.refuse(path, "ringHash beside maglev", "is ambiguous", "one of them");
    }
    if hash.minimum_ring_size.is_some() {
        let field = format!("{path}.minimumRingSize");
        check::deprecated(about, &field, "ringHash.minimumRingSize", "it is obeyed where ringHash and maglev are absent");
        check::within(about, &field, hash.minimum_ring_size, 0, RING_MAX);
    }
    let ring = hash.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size);
    check::within(about, &format!("{path}.ringHash.minimumRingSize"), ring, 0, RING_MAX);
    let table = hash.maglev.as_ref().and_then(|maglev| maglev.table_size).filter(|size| *size != 0);
    if let Some(size) = table.filter(|size| !is_prime(*size) || *size >= TABLE_MAX) {
        about.refuse(
            &format!("{path}.maglev.tableSize"),
            size.to_string(),
            "is not a prime in range",
            "a prime below 5000011, for example 65537",
        );
    }
}

fn is_prime(number: i64) -> bool {
    (2..TABLE_MAX).contains(&number) && (2..).take_while(|factor| factor * factor <= number).all(|factor| number % factor != 0)
}

/// Localities that a setting names in one list: each is compared with all others.
const LOCALITIES_MAX: usize = 256;

fn validate_locality(about: &mut About<'_>, setting: &LocalitySetting, path: &str) {
    let longest = setting.distribute.iter().map(|rule| rule.to.len()).chain([setting.distribute.len()]).max().unwrap_or_default();
    if longest > LOCALITIES_MAX {
        return about.refuse(&format!("{path}.distribute"), format!("{longest} localities"), "are too many for one list", "at most 256");
    }
    if !setting.distribute.is_empty() && (!setting.failover.is_empty() || !setting.failover_priority.is_empty()) {
        about.refuse(path, "distribute beside failover", "is ambiguous", "one of them");
    }
    for (index, rule) in setting.distribute.iter().enumerate() {
        let path = format!("{path}.distribute[{index}]");
        validate_place(about, &rule.from, &format!("{path}.from"));
        if setting.distribute[..index].iter().any(|other| overlap(&other.from, &rule.from)) {
            about.refuse(
                &format!("{path}.from"),
                format!("{:?}", rule.from),
                "overlaps with an earlier one",
                "localities that do not overlap",
            );
        }
        for (to, weight) in &rule.to {
            validate_place(about, to, &format!("{path}.to[{to}]"));
            check::within(about, &format!("{path}.to[{to}]"), Some(*weight), 1, 100);
        }
        let places: Vec<&String> = rule.to.keys().collect();
        let overlapping = places.iter().enumerate().find(|(index, to)| places[..*index].iter().any(|other| overlap(other, to)));
        if let Some((_, to)) = overlapping {
            about.refuse(&format!("{path}.to"), format!("{to:?}"), "overlaps with another one", "localities that do not overlap");
        }
        let sum = rule.to.values().fold(0_i64, |sum, weight| sum.saturating_add(*weight));
        if sum != 100 {
            about.refuse(&format!("{path}.to"), format!("a sum of {sum}"), "is not all of the traffic", "100");
        }
    }
    for (index, rule) in setting.failover.iter().enumerate() {
        let path = format!("{path}.failover[{index}]");
        for (name, region) in [("from", &rule.from), ("to", &rule.to)] {
            if region.is_empty() || region.contains(['/', '*']) {
                about.refuse(&format!("{path}.{name}"), format!("{region:?}"), "is not a region", "a region without /zone and *");
            }
        }
        if rule.from == rule.to {
            about.refuse(&path, format!("{:?}", rule.from), "takes over from itself", "another region");
        }
    }
    for (index, entry) in setting.failover_priority.iter().enumerate() {
        let key = entry.split_once('=').map_or(entry.as_str(), |(key, _)| key);
        if !crate::names::is_label_key(key) {
            about.refuse(&format!("{path}.failoverPriority[{index}]"), format!("{entry:?}"), "is not a label", "KEY or KEY=VALUE");
        }
    }
}

fn validate_place(about: &mut About<'_>, place: &str, field: &str) {
    let parts: Vec<&str> = place.split('/').collect();
    let starred = parts.iter().position(|part| part.contains('*'));
    let good = parts.len() <= 3
        && parts.iter().all(|part| !part.is_empty())
        && starred.is_none_or(|index| index + 1 == parts.len() && parts[index] == "*");
    if !good {
        about.refuse(field, format!("{place:?}"), "is not a locality", "REGION/ZONE/SUBZONE, or with * at the end");
    }
}

/// Whether there is a locality that both stand for.
fn overlap(one: &str, other: &str) -> bool {
    let open = |text: &str| text.trim_end_matches('*').trim_end_matches('/').to_owned();
    let (one, other) = (open(one), open(other));
    let within = |inner: &str, outer: &str| {
        outer.is_empty() || inner == outer || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
    };
    within(&one, &other) || within(&other, &one)
}
