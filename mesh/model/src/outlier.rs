//! When an endpoint is left out: passive health by consecutive errors, with Envoy's algorithm (DestinationRule `outlierDetection`).
//!
//! One [`Detector`] a pool, shared by all workers of a process. It is a state machine without a clock: time is a [`Duration`] since
//! whatever moment its user likes, and must not run backwards. An ejection is immediate; endpoints come back at [`Detector::sweep`]
//! only, which is due every `interval`.

use std::{collections::HashMap, hash::Hash, time::Duration};

use crate::pool::OutlierDetection;

/// The longest ejection, unless the base is longer (Envoy `max_ejection_time`; Istio has no field for it).
pub const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

/// What a request, or a connection, told about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status; for gRPC [`status_of_grpc`].
    Response(u16),
    /// A connection was made, and a response is still to come. It only counts for local failures that are split.
    Connected,
    /// A connection was made, and nothing else will be known (TCP).
    Served,
    /// No connection could be made.
    ConnectFailure,
    /// The endpoint reset or closed before its response.
    Reset,
    /// The endpoint did not answer in time.
    Timeout,
    /// The endpoint answered what is no response.
    Broken,
}

/// Which counter reached its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// `consecutive5xxErrors`.
    Consecutive5xx,
    /// `consecutiveGatewayErrors`.
    ConsecutiveGatewayErrors,
    /// `consecutiveLocalOriginFailures`.
    ConsecutiveLocalOriginFailures,
}

/// An endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected {
    /// Why.
    pub cause: Cause,
    /// At least for so long; it ends with the sweep after that.
    pub duration: Duration,
    /// It is the n-th ejection of late.
    pub backoff: u32,
}

/// The state of a pool's endpoints. `H` names one.
#[derive(Debug, Clone)]
pub struct Detector<H> {
    settings: OutlierDetection,
    hosts: HashMap<H, State>,
    ejected: u32,
    overflows: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    consecutive_5xx: u32,
    consecutive_gateway_errors: u32,
    consecutive_local_origin_failures: u32,
    ejected_at: Option<Duration>,
    returned_at: Option<Duration>,
    backoff: u32,
}

impl State {
    fn counter(&mut self, cause: Cause) -> &mut u32 {
        match cause {
            Cause::Consecutive5xx => &mut self.consecutive_5xx,
            Cause::ConsecutiveGatewayErrors => &mut self.consecutive_gateway_errors,
            Cause::ConsecutiveLocalOriginFailures => &mut self.consecutive_local_origin_failures,
        }
    }
}

/// What an outcome means for the counters.
enum Meaning {
    /// The endpoint's own answer, or what stands for it.
    Status(u16),
    /// A failure before any answer, counted by itself.
    LocalFailure,
    /// The end of such failures.
    LocalSuccess,
    /// Nothing.
    Nothing,
}

impl<H: Clone + Eq + Hash> Detector<H> {
    /// A detector that knows no endpoints yet.
    pub fn new(settings: OutlierDetection) -> Self {
        Self { settings, hosts: HashMap::new(), ejected: 0, overflows: 0 }
    }

    /// New settings. Ejections stay; counters start again, because a limit that is lowered below one would never be met.
    pub fn configure(&mut self, settings: OutlierDetection) {
        self.settings = settings;
        for state in self.hosts.values_mut() {
            *state = State { ejected_at: state.ejected_at, returned_at: state.returned_at, backoff: state.backoff, ..State::default() };
        }
    }

    /// The pool's endpoints from now on: all of them, whatever their health. One that left and comes back starts afresh.
    pub fn set_hosts(&mut self, hosts: impl IntoIterator<Item = H>) {
        let mut old = std::mem::take(&mut self.hosts);
        for host in hosts {
            let state = old.remove(&host).unwrap_or_default();
            self.hosts.insert(host, state);
        }
        self.ejected = self.hosts.values().filter(|state| state.ejected_at.is_some()).count() as u32;
    }

    /// Whether it is left out now.
    pub fn is_ejected(&self, host: &H) -> bool {
        self.hosts.get(host).is_some_and(|state| state.ejected_at.is_some())
    }

    /// When its time is over, if it is left out; it comes back at the first sweep from then on.
    pub fn returns_at(&self, host: &H) -> Option<Duration> {
        let state = self.hosts.get(host)?;
        Some(state.ejected_at? + duration(&self.settings, state.backoff))
    }

    /// How many are left out now.
    pub fn ejected(&self) -> u32 {
        self.ejected
    }

    /// How many ejections `max_ejection_percent` prevented.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Takes a result in; says so if it ejected the endpoint. Results of endpoints that are gone count for nothing.
    pub fn record(&mut self, host: &H, outcome: Outcome, now: Duration) -> Option<Ejected> {
        let meaning = self.meaning(outcome);
        let state = self.hosts.get_mut(host)?;
        let settings = &self.settings;
        // Who answers, however badly, was reached.
        if settings.split_local_origin && matches!(outcome, Outcome::Response(_) | Outcome::Broken) {
            state.consecutive_local_origin_failures = 0;
        }
        let reached = match meaning {
            Meaning::Nothing => [None; 2],
            Meaning::LocalSuccess => {
                state.consecutive_local_origin_failures = 0;
                [None; 2]
            }
            Meaning::LocalFailure => {
                [count(state, Cause::ConsecutiveLocalOriginFailures, settings.consecutive_local_origin_failures), None]
            }
            Meaning::Status(status) if is_error(settings, status) => {
                let gateway = match status {
                    502..=504 => count(state, Cause::ConsecutiveGatewayErrors, settings.consecutive_gateway_errors),
                    _ => {
                        state.consecutive_gateway_errors = 0;
                        None
                    }
                };
                [gateway, count(state, Cause::Consecutive5xx, settings.consecutive_5xx)]
            }
            Meaning::Status(_) => {
                state.consecutive_5xx = 0;
                state.consecutive_gateway_errors = 0;
                [None; 2]
            }
        };
        let mut ejected = None;
        for cause in reached.into_iter().flatten() {
            ejected = ejected.or(self.candidate(host, cause, now));
        }
        ejected
    }

    /// Lets back those whose time is over, and forgives the others a little. To be called every `interval`.
    pub fn sweep(&mut self, now: Duration) -> Vec<H> {
        let mut returned = Vec::new();
        for (host, state) in &mut self.hosts {
            match state.ejected_at {
                Some(at) if now.saturating_sub(at) >= duration(&self.settings, state.backoff) => {
                    *state = State { returned_at: Some(now), backoff: state.backoff, ..State::default() };
                    self.ejected -= 1;
                    returned.push(host.clone());
                }
                Some(_) => {}
                None if state.returned_at.is_some_and(|at| now.saturating_sub(at) >= self.settings.interval) => {
                    state.backoff = state.backoff.saturating_sub(1);
                }
                None => {}
            }
        }
        returned
    }

    fn meaning(&self, outcome: Outcome) -> Meaning {
        let split = self.settings.split_local_origin;
        match outcome {
            Outcome::Response(status) => Meaning::Status(status),
            Outcome::Connected if split => Meaning::LocalSuccess,
            Outcome::Connected => Meaning::Nothing,
            Outcome::Served if split => Meaning::LocalSuccess,
            Outcome::Served => Meaning::Status(200),
            Outcome::ConnectFailure | Outcome::Reset | Outcome::Timeout if split => Meaning::LocalFailure,
            Outcome::ConnectFailure | Outcome::Reset => Meaning::Status(503),
            Outcome::Timeout => Meaning::Status(504),
            Outcome::Broken => Meaning::Status(if split { 503 } else { 500 }),
        }
    }

    /// A counter reached its limit: the endpoint goes, unless too many would be gone. The counter starts again either way.
    fn candidate(&mut self, host: &H, cause: Cause, now: Duration) -> Option<Ejected> {
        let all = self.hosts.len() as u64;
        let state = self.hosts.get_mut(host)?;
        if state.ejected_at.is_some() {
            return None;
        }
        *state.counter(cause) = 0;
        let would_be = (u64::from(self.ejected) + 1) * 100 / all.max(1);
        if would_be > u64::from(self.settings.max_ejection_percent) {
            self.overflows += 1;
            return None;
        }
        let base = self.settings.base_ejection_time;
        if base.saturating_mul(state.backoff) < longest(&self.settings).saturating_add(base) {
            state.backoff += 1;
        }
        state.ejected_at = Some(now);
        self.ejected += 1;
        Some(Ejected { cause, duration: duration(&self.settings, state.backoff), backoff: state.backoff })
    }
}

/// Counts, and says so when the counter is at its limit. A limit of 0 is never reached.
fn count(state: &mut State, cause: Cause, limit: u32) -> Option<Cause> {
    let counter = state.counter(cause);
    *counter = counter.saturating_add(1);
    (*counter == limit).then_some(cause)
}

fn is_error(settings: &OutlierDetection, status: u16) -> bool {
    match settings.error_statuses.as_slice() {
        [] => (500..600).contains(&status),
        statuses => statuses.contains(&status),
    }
}

fn longest(settings: &OutlierDetection) -> Duration {
    MAX_EJECTION_TIME.max(settings.base_ejection_time)
}

fn duration(settings: &OutlierDetection, backoff: u32) -> Duration {
    settings.base_ejection_time.saturating_mul(backoff).min(longest(settings))
}

/// The HTTP status that a gRPC status counts as, wherever in the response it came (Envoy's mapping).
pub fn status_of_grpc(code: u16) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests;
