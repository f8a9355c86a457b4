//! Near and far: which endpoints share the requests, and how much each level of them takes.

use std::sync::Arc;

use crate::{
    pick::Candidate,
    pool::{Distribution, LocalityPreference},
    workload::Workload,
};

/// Shares are of so many.
const WHOLE: u64 = 10_000;
/// A level is full while its healthy share times this is 100: 5 of 7 endpoints (Envoy `overprovisioning_factor`), in percent.
const OVERPROVISIONING_PERCENT: u64 = 140;

/// Endpoints that are equally near.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Level {
    /// Places of those that may be picked.
    pub(super) usable: Vec<usize>,
    /// Its share of the sum of all shares.
    pub(super) share: u64,
    /// How much it could take, of [`WHOLE`]; 0 where shares are fixed.
    pub(super) availability: u64,
}

/// The levels of a pool, nearest first. Without a preference there is one.
pub(super) fn levels(
    preference: &LocalityPreference,
    panic_threshold_percent: u8,
    own: Option<&Workload>,
    candidates: &[Candidate],
) -> Vec<Level> {
    let all = || (0..candidates.len()).filter(|place| candidates[*place].weight > 0);
    let by_priority = |priority: &dyn Fn(&Workload) -> usize| {
        let mut groups = std::collections::BTreeMap::<usize, Vec<usize>>::new();
        for place in all() {
            groups.entry(priority(&candidates[place].workload)).or_default().push(place);
        }
        failover(groups.into_values().collect(), panic_threshold_percent, candidates)
    };
    match (preference, own) {
        (LocalityPreference::Failover { regions, labels }, Some(own)) if labels.is_empty() => {
            by_priority(&|workload| distance(own, workload, regions))
        }
        (LocalityPreference::Failover { labels, .. }, Some(own)) => by_priority(&|workload| first_mismatch(own, workload, labels)),
        (LocalityPreference::Distribute(rules), Some(own)) => match rules.iter().find(|rule| rule.from.holds(&own.locality)) {
            Some(rule) => distributed(rule, all().collect(), panic_threshold_percent, candidates),
            None => by_priority(&|_| 0),
        },
        (LocalityPreference::None, _) | (_, None) => by_priority(&|_| 0),
    }
}

/// 0 for the same subzone, 1 zone, 2 region, 3 the region that takes over (or any other, if none is named), 4 the rest.
fn distance(own: &Workload, other: &Workload, regions: &[(Arc<str>, Arc<str>)]) -> usize {
    let (own, other) = (&own.locality, &other.locality);
    if own.region != other.region {
        let next = regions.iter().find(|(from, _)| *from == own.region);
        return if next.is_none_or(|(_, to)| *to == other.region) { 3 } else { 4 };
    }
    match (own.zone == other.zone, own.subzone == other.subzone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

/// How many labels there are from the first that differs.
fn first_mismatch(own: &Workload, other: &Workload, labels: &[(Arc<str>, Option<Arc<str>>)]) -> usize {
    let same = |(key, fixed): &&(Arc<str>, Option<Arc<str>>)| {
        let wanted = fixed.as_deref().unwrap_or_else(|| label(own, key));
        wanted == label(other, key)
    };
    labels.len() - labels.iter().take_while(same).count()
}

/// A label, or what the mesh knows under its name; empty if it is missing.
fn label<'a>(workload: &'a Workload, key: &str) -> &'a str {
    if let Some(value) = workload.labels.get(key) {
        return value;
    }
    match key {
        "topology.kubernetes.io/region" => &workload.locality.region,
        "topology.kubernetes.io/zone" => &workload.locality.zone,
        "topology.istio.io/subzone" => &workload.locality.subzone,
        "topology.istio.io/network" => &workload.network,
        "topology.istio.io/cluster" => &workload.cluster_id,
        "kubernetes.io/hostname" => &workload.node,
        _ => "",
    }
}

/// Levels of which each takes what those before it cannot.
fn failover(groups: Vec<Vec<usize>>, panic_threshold_percent: u8, candidates: &[Candidate]) -> Vec<Level> {
    let availabilities: Vec<u64> = groups.iter().map(|group| availability(group, candidates)).collect();
    let together: u64 = availabilities.iter().sum();
    let shares = shares(&availabilities);
    let alone = groups.len() == 1;
    let level = |((group, availability), share): ((Vec<usize>, u64), u64)| {
        let panics = panics(&group, panic_threshold_percent, candidates);
        // Nothing is left anywhere: everything is used, by number.
        if together == 0 && panics {
            let share = group.len() as u64;
            return Level { usable: group, share, availability: 0 };
        }
        let usable = match panics && (alone || together < WHOLE) {
            true => group,
            false => healthy(&group, candidates),
        };
        Level { usable, share, availability }
    };
    groups.into_iter().zip(availabilities).zip(shares).map(level).collect()
}

/// Localities with fixed shares; one without enough healthy endpoints gives of its share to the others.
fn distributed(rule: &Distribution, all: Vec<usize>, panic_threshold_percent: u8, candidates: &[Candidate]) -> Vec<Level> {
    let mut groups = vec![Vec::new(); rule.to.len()];
    for place in all {
        if let Some(at) = rule.to.iter().position(|(to, _)| to.holds(&candidates[place].workload.locality)) {
            groups[at].push(place);
        }
    }
    let named: Vec<usize> = groups.iter().flatten().copied().collect();
    let panics = panics(&named, panic_threshold_percent, candidates);
    let level = |(group, (_, weight)): (Vec<usize>, &(_, u32))| {
        let availability = if panics { WHOLE.min(group.len() as u64 * WHOLE) } else { availability(&group, candidates) };
        let usable = if panics { group } else { healthy(&group, candidates) };
        Level { usable, share: u64::from(*weight) * availability, availability: 0 }
    };
    groups.into_iter().zip(&rule.to).map(level).collect()
}

fn healthy(group: &[usize], candidates: &[Candidate]) -> Vec<usize> {
    group.iter().copied().filter(|place| candidates[*place].healthy).collect()
}

/// How much a level could take, of [`WHOLE`].
fn availability(group: &[usize], candidates: &[Candidate]) -> u64 {
    let healthy = group.iter().filter(|place| candidates[**place].healthy).count() as u64;
    (healthy * WHOLE * OVERPROVISIONING_PERCENT / 100).checked_div(group.len() as u64).unwrap_or(0).min(WHOLE)
}

fn panics(group: &[usize], threshold_percent: u8, candidates: &[Candidate]) -> bool {
    let healthy = group.iter().filter(|place| candidates[**place].healthy).count();
    healthy * 100 < group.len() * usize::from(threshold_percent)
}

/// Shares of [`WHOLE`] by priority: each level takes what it can of what is left. All 0 if none can take anything.
pub(super) fn shares(availabilities: &[u64]) -> Vec<u64> {
    let together = availabilities.iter().sum::<u64>().min(WHOLE);
    let mut left = WHOLE;
    let take = |availability: &u64| {
        let share = (availability * WHOLE).checked_div(together).unwrap_or(0).min(left);
        left -= share;
        share
    };
    let mut shares: Vec<u64> = availabilities.iter().map(take).collect();
    if let Some(first) = shares.iter_mut().find(|share| **share > 0) {
        *first += left;
    }
    shares
}
