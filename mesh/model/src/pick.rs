//! Which destination of a route, and which endpoint of its pool.
//!
//! [`Endpoints`] is made when a pool, its members, their health or their ejections change: levels, shares, schedules and hash tables are
//! worked out then, so that a pick costs about the same for ten endpoints as for ten thousand. What changes with each request (the
//! counters, the turn, the time) is passed in.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use thiserror::Error;

use crate::{
    pool::{Balancer, HashAlgorithm, Pool, Warmup},
    resolve::Draw,
    route::Destination,
    workload::Workload,
};

pub mod hash;
mod levels;
mod schedule;

use hash::Table;
use levels::Level;
use schedule::Weights;

/// How often another endpoint is drawn when a retry meets one that was tried (Envoy `host_selection_retry_max_attempts`).
pub const MAX_RESELECTIONS: usize = 5;
/// How often another endpoint is drawn because a new one may not take its full share yet; the last one drawn is taken then.
const MAX_WARMUP_DRAWS: usize = 16;

/// An endpoint of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Where it serves the pool's port.
    pub address: SocketAddr,
    /// Its weight; 0 is never chosen.
    pub weight: u32,
    /// Not ejected, and healthy for all that is known.
    pub healthy: bool,
    /// When it became an endpoint of the pool, on the clock of [`Ask::now`]; `None` was always there (warm-up).
    pub since: Option<Duration>,
}

/// What a pick asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask<'a> {
    /// The hash of the request's key, for consistent hashing; `None` draws.
    pub hash: Option<u64>,
    /// The pick's number in its pool, for taking turns: a counter that all workers share.
    pub turn: u64,
    /// Now, on the clock of [`Candidate::since`].
    pub now: Duration,
    /// Places of the endpoints that earlier tries of this request used, in order; empty if they need not be avoided.
    pub tried: &'a [usize],
    /// A retry prefers other priorities than those tried (`retryRemoteLocalities`; every second try counts them anew).
    pub other_priorities: bool,
    /// The address that was called, for [`Balancer::Passthrough`].
    pub addressed: Option<SocketAddr>,
}

/// Why there is no endpoint. 503 `UH`, `no healthy upstream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PickFailure {
    /// None is healthy, or there is none.
    #[error("no healthy upstream")]
    NoHealthyUpstream,
}

/// The endpoints of a pool, ready to be picked from.
#[derive(Debug, Clone)]
pub struct Endpoints {
    candidates: Vec<Candidate>,
    levels: Vec<Ready>,
    balancer: Balancer,
    warmup: Option<Warmup>,
    /// Until when some endpoint is warming up.
    warm_at: Duration,
}

/// A level with what its balancer needs.
#[derive(Debug, Clone)]
struct Ready {
    level: Level,
    weights: Weights,
    table: Option<Table>,
}

/// Draws a destination by weight. One alone is taken whatever its weight; several that all weigh nothing give none.
pub fn destination<'a>(destinations: &'a [Destination], draw: &mut Draw) -> Option<&'a Destination> {
    if let [only] = destinations {
        return Some(only);
    }
    let total: u64 = destinations.iter().map(|destination| u64::from(destination.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut at = draw.below(total);
    destinations.iter().find(|destination| match at.checked_sub(u64::from(destination.weight)) {
        Some(rest) => {
            at = rest;
            false
        }
        None => true,
    })
}

/// The share of its weight that an endpoint of this age takes, above 0 and at most 1: max(minimum, (age / duration)^(1 / aggression)).
pub fn warmup_share(warmup: &Warmup, age: Duration) -> f64 {
    if age >= warmup.duration {
        return 1.0;
    }
    let grown = (age.as_secs_f64() / warmup.duration.as_secs_f64()).powf(1.0 / warmup.aggression.max(f64::MIN_POSITIVE));
    grown.max(warmup.minimum_percent / 100.0).clamp(f64::MIN_POSITIVE, 1.0)
}

impl Endpoints {
    /// Prepares the endpoints of `pool` for a proxy that is `own` (its locality and labels; `None` knows no near and far). Takes the time
    /// that a hash table needs: for each change, not for each request.
    pub fn new(pool: &Pool, own: Option<&Workload>, candidates: Vec<Candidate>) -> Self {
        let levels = levels::levels(&pool.locality, pool.panic_threshold_percent, own, &candidates);
        let ready = |level: Level| Ready {
            weights: Weights::new(&level.usable, &candidates, pool.balancer == Balancer::RoundRobin),
            table: match &pool.balancer {
                Balancer::ConsistentHash { algorithm: HashAlgorithm::Ring { minimum_size }, .. } => {
                    Some(Table::ring(&level.usable, &candidates, *minimum_size))
                }
                Balancer::ConsistentHash { algorithm: HashAlgorithm::Maglev { table_size }, .. } => {
                    Some(Table::maglev(&level.usable, &candidates, *table_size))
                }
                Balancer::LeastRequest | Balancer::RoundRobin | Balancer::Random | Balancer::Passthrough => None,
            },
            level,
        };
        let levels = levels.into_iter().map(ready).collect();
        let warms = matches!(pool.balancer, Balancer::LeastRequest | Balancer::RoundRobin);
        let warmup = pool.warmup.filter(|_| warms);
        let warm = |warmup: Warmup| candidates.iter().filter_map(|one| one.since).max().map(|since| since.saturating_add(warmup.duration));
        let warm_at = warmup.and_then(warm).unwrap_or_default();
        Self { candidates, levels, balancer: pool.balancer.clone(), warmup, warm_at }
    }

    /// All endpoints, in the order in which they were given.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Picks an endpoint: its place in [`Self::candidates`]. `active` says how many requests an endpoint has under way.
    pub fn pick(&self, ask: &Ask<'_>, active: impl Fn(usize) -> u32, draw: &mut Draw) -> Result<usize, PickFailure> {
        let level = self.level(ask, draw).ok_or(PickFailure::NoHealthyUpstream)?;
        if let Some((table, hash)) = level.table.as_ref().zip(ask.hash) {
            return table.find(hash).ok_or(PickFailure::NoHealthyUpstream);
        }
        if self.balancer == Balancer::Passthrough
            && let Some(place) = level.level.usable.iter().find(|place| Some(self.candidates[**place].address) == ask.addressed)
        {
            return Ok(*place);
        }
        // Of an endpoint that was tried and one that was not, the latter is always the less busy.
        let active = |place| if ask.tried.contains(&place) { u32::MAX } else { active(place) };
        let mut chosen = None;
        for selection in 0..=MAX_RESELECTIONS {
            let place = self.warm(level, ask, selection, &active, draw).ok_or(PickFailure::NoHealthyUpstream)?;
            chosen = Some(place);
            if !ask.tried.contains(&place) {
                break;
            }
        }
        chosen.ok_or(PickFailure::NoHealthyUpstream)
    }

    /// The level that takes the request, by share. With a key, the key draws: the same key stays in its level.
    fn level(&self, ask: &Ask<'_>, draw: &mut Draw) -> Option<&Ready> {
        let shares = match ask.other_priorities && ask.tried.len() >= 2 {
            true => self.shares_without(&ask.tried[..ask.tried.len() / 2 * 2]),
            false => None,
        };
        let share = |at: usize| shares.as_ref().map_or(self.levels[at].level.share, |shares| shares[at]);
        let total: u64 = (0..self.levels.len()).map(share).sum();
        if total == 0 {
            return None;
        }
        let mut at = ask.hash.map_or_else(|| draw.below(total), |hash| hash % total);
        (0..self.levels.len())
            .find(|level| match at.checked_sub(share(*level)) {
                Some(rest) => {
                    at = rest;
                    false
                }
                None => true,
            })
            .map(|level| &self.levels[level])
    }

    /// The shares if the levels of these endpoints take nothing; `None` if nothing would be left.
    fn shares_without(&self, tried: &[usize]) -> Option<Vec<u64>> {
        let used = |ready: &Ready| tried.iter().any(|place| ready.level.usable.contains(place));
        let open = |ready: &Ready| if used(ready) { 0 } else { ready.level.availability };
        let shares = levels::shares(&self.levels.iter().map(open).collect::<Vec<_>>());
        shares.iter().any(|share| *share > 0).then_some(shares)
    }

    /// One endpoint, drawn again while a new one may not take it yet.
    fn warm(&self, ready: &Ready, ask: &Ask<'_>, selection: usize, active: &impl Fn(usize) -> u32, draw: &mut Draw) -> Option<usize> {
        let warmup = self.warmup.filter(|_| ask.now < self.warm_at);
        let draws = if warmup.is_some() { MAX_WARMUP_DRAWS } else { 1 };
        let mut last = None;
        for again in 0..draws {
            // Whoever may not take its turn yet gives it to all others, not to the next one.
            let turn = if again == 0 { ask.turn.wrapping_add(selection as u64) } else { draw.below(u64::MAX) };
            let place = self.balanced(ready, turn, active, draw)?;
            last = Some(place);
            let Some((warmup, since)) = warmup.zip(self.candidates[place].since) else { break };
            let share = warmup_share(&warmup, ask.now.saturating_sub(since));
            if (draw.below(1 << 32) as f64) < share * (1u64 << 32) as f64 {
                break;
            }
        }
        last
    }

    fn balanced(&self, ready: &Ready, turn: u64, active: &impl Fn(usize) -> u32, draw: &mut Draw) -> Option<usize> {
        match self.balancer {
            Balancer::LeastRequest => ready.weights.lesser_of_two(active, draw),
            Balancer::RoundRobin => ready.weights.turn(turn),
            Balancer::Random | Balancer::ConsistentHash { .. } | Balancer::Passthrough => ready.weights.any(draw),
        }
    }
}

#[cfg(test)]
mod tests;
