//! Ways out: what was taken from a waypoint is no more under way through it when the node proxies have acknowledged that, and what was open
//! has had its time to end.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How long node proxies are waited for at most: one that does not answer would keep a waypoint for ever.
const LONGEST_ACKNOWLEDGEMENT: Duration = Duration::from_secs(60);

/// How far one is on its way out.
#[derive(Debug, Clone, Copy)]
enum Exit {
    /// Detached in this generation of the configuration; node proxies are waited for until then.
    Detached { generation: u64, at_most: Instant },
    /// Detached everywhere; it has time until then.
    Draining { until: Instant },
}

/// All that is on its way out.
#[derive(Debug)]
pub(crate) struct Exits<K> {
    drain: Duration,
    exits: BTreeMap<K, Exit>,
}

impl<K: Ord + Clone> Exits<K> {
    /// What is detached everywhere has `drain` to end.
    pub(crate) fn new(drain: Duration) -> Self {
        Self { drain, exits: BTreeMap::new() }
    }

    /// Whether something is out. The first call says that it was detached in `generation`; `acknowledged` says whether the node proxies
    /// have one.
    pub(crate) fn is_out(&mut self, of: &K, generation: u64, acknowledged: impl FnOnce(u64) -> bool, now: Instant) -> bool {
        let detached = Exit::Detached { generation, at_most: now + LONGEST_ACKNOWLEDGEMENT };
        let exit = self.exits.entry(of.clone()).or_insert(detached);
        if let Exit::Detached { generation, at_most } = *exit
            && (acknowledged(generation) || now >= at_most)
        {
            *exit = Exit::Draining { until: now + self.drain };
        }
        matches!(*exit, Exit::Draining { until } if now >= until)
    }

    /// Forgets what is not on its way out any more.
    pub(crate) fn retain(&mut self, stays: impl Fn(&K) -> bool) {
        self.exits.retain(|of, _| stays(of));
    }

    /// When to ask again, if nothing happens before.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let times = self.exits.values().map(|exit| match exit {
            Exit::Detached { at_most, .. } => *at_most,
            Exit::Draining { until } => *until,
        });
        times.filter(|time| *time > now).min()
    }
}
