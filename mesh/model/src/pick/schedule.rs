//! Draws and turns over the endpoints of a level, by weight.

use crate::{pick::Candidate, resolve::Draw};

/// Most turns in a schedule: 4 096 turns give shares to within 0.03 percent, in 16 kB.
const MAX_TURNS: u64 = 4096;

/// What drawing by weight needs.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    /// Places in the pool.
    places: Vec<usize>,
    /// Running sums of the weights; empty if all weights are equal.
    sums: Vec<u64>,
    /// Who has which turn (index into `places`); empty if all weights are equal, or nobody takes turns.
    turns: Vec<u32>,
}

impl Weights {
    pub(super) fn new(usable: &[usize], candidates: &[Candidate], takes_turns: bool) -> Self {
        let weights: Vec<u64> = usable.iter().map(|place| u64::from(candidates[*place].weight)).collect();
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let mut sum = 0;
        let mut running = |weight: &u64| {
            sum += weight;
            sum
        };
        let sums = if equal { Vec::new() } else { weights.iter().map(&mut running).collect() };
        let turns = if equal || !takes_turns { Vec::new() } else { turns(&weights) };
        Self { places: usable.to_vec(), sums, turns }
    }

    /// Any of them, each as likely as the others (Envoy's RANDOM knows no weights).
    pub(super) fn any(&self, draw: &mut Draw) -> Option<usize> {
        (!self.places.is_empty()).then(|| self.places[draw.below(self.places.len() as u64) as usize])
    }

    /// The one whose turn it is.
    pub(super) fn turn(&self, turn: u64) -> Option<usize> {
        if self.turns.is_empty() {
            let count = self.places.len() as u64;
            return (count > 0).then(|| self.places[(turn % count) as usize]);
        }
        Some(self.places[self.turns[(turn % self.turns.len() as u64) as usize] as usize])
    }

    /// Draws two, by weight, and takes the one with fewer active requests for its weight; the first if they are even, so that idle
    /// endpoints are taken by weight.
    pub(super) fn lesser_of_two(&self, active: &impl Fn(usize) -> u32, draw: &mut Draw) -> Option<usize> {
        let count = self.places.len() as u64;
        if count < 2 {
            return self.places.first().copied();
        }
        let (first, second) = match self.sums.last() {
            None => {
                let first = draw.below(count);
                let second = draw.below(count - 1);
                (first as usize, (second + u64::from(second >= first)) as usize)
            }
            Some(total) => (self.weighed(draw.below(*total)), self.weighed(draw.below(*total))),
        };
        let load = |at: usize| u64::from(active(self.places[at]));
        let busier = load(first) * self.weight(second) > load(second) * self.weight(first);
        Some(self.places[if busier { second } else { first }])
    }

    /// The index whose share holds `at`.
    fn weighed(&self, at: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= at)
    }

    fn weight(&self, at: usize) -> u64 {
        match self.sums.get(at) {
            Some(sum) => sum - at.checked_sub(1).map_or(0, |before| self.sums[before]),
            None => 1,
        }
    }
}

/// A schedule in which each has as many turns as its weight says, spread evenly: the one that is furthest behind is next.
fn turns(weights: &[u64]) -> Vec<u32> {
    let divisor = weights.iter().copied().reduce(gcd).unwrap_or(1).max(1);
    let total: u64 = weights.iter().map(|weight| weight / divisor).sum();
    let length = total.min(MAX_TURNS.max(weights.len() as u64));
    let share = |weight: u64| ((weight / divisor) as f64 / total as f64).max(1.0 / length as f64);
    let mut due: std::collections::BinaryHeap<Due> = weights
        .iter()
        .enumerate()
        .map(|(at, weight)| Due { when: 0.5 / share(*weight), every: 1.0 / share(*weight), at: at as u32 })
        .collect();
    let mut turns = Vec::with_capacity(length as usize);
    while (turns.len() as u64) < length {
        let Some(mut next) = due.peek_mut() else { break };
        turns.push(next.at);
        next.when += next.every;
    }
    turns
}

/// Whose turn is due when.
struct Due {
    when: f64,
    every: f64,
    at: u32,
}

impl Ord for Due {
    /// The earliest is the greatest; the first of those that are due together.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.when.total_cmp(&self.when).then_with(|| other.at.cmp(&self.at))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
