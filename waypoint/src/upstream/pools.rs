//! The pools of the process: their members, who of them is ejected, and what is prepared for choosing among them.
//!
//! A pool's state is found by its key and lives as long as the key is used. What choosing needs is made anew when the view, the pool's
//! configuration or an ejection changes, by whoever comes first; everybody else reads it without a lock.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tropis_model::{
    outlier::{Detector, Outcome},
    pick::{Candidate, Endpoints},
    pool::{Pool, PoolKey},
    route::Host,
    view::View,
    workload::Workload,
};

use super::{
    counts::Counts,
    members::{self, Found, Member},
};
use crate::stages::resolve::stands_for_a_workload;

/// Pools of services that the process remembers. Configuration names far fewer; those that it names no more are forgotten when there are
/// more.
const MAX_POOLS: usize = 20_000;
/// Pools of workloads that are addressed themselves, one for each port that a caller thinks of: they remember nothing of worth.
const MAX_POOLS_OF_WORKLOADS: usize = 4_096;

/// All pools.
#[derive(Debug)]
pub struct Pools {
    of_services: RwLock<Table>,
    /// Apart, so that no caller makes us forget the others.
    of_workloads: RwLock<Table>,
    gateway: Arc<str>,
    network: Arc<str>,
    started: Instant,
}

#[derive(Debug)]
struct Table {
    states: HashMap<PoolKey, Arc<PoolState>>,
    most: usize,
    /// With so many, those that nobody uses are forgotten.
    full_at: usize,
}

impl Table {
    fn of(most: usize) -> RwLock<Self> {
        RwLock::new(Self { states: HashMap::new(), most, full_at: most })
    }

    fn state(&mut self, pool: &Arc<Pool>) -> Arc<PoolState> {
        if self.states.len() >= self.full_at && !self.states.contains_key(&pool.key) {
            // What nobody but this table holds has nothing under way.
            self.states.retain(|_, state| Arc::strong_count(state) > 1);
            // Where most are in use, not with each new one again.
            self.full_at = self.most.max(2 * self.states.len());
        }
        self.states.entry(pool.key.clone()).or_insert_with(|| Arc::new(PoolState::new(pool))).clone()
    }
}

/// A pool's state, shared by all workers.
#[derive(Debug)]
pub struct PoolState {
    /// Its name.
    pub key: PoolKey,
    /// What it has under way.
    pub counts: Arc<Counts>,
    /// The turn of the next pick.
    pub turn: AtomicU64,
    ready: ArcSwap<Ready>,
    inner: Mutex<Inner>,
    /// When endpoints may come back next, in nanoseconds of the pools' clock.
    next_sweep: AtomicU64,
    ejections: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    detector: Option<Detector<u64>>,
    found: Vec<Found>,
    members: Vec<Arc<Member>>,
}

/// What choosing among a pool's endpoints needs.
#[derive(Debug)]
pub struct Ready {
    /// The configuration.
    pub pool: Arc<Pool>,
    /// The endpoints, by place.
    pub endpoints: Arc<Endpoints>,
    /// What is counted about each, by the same place.
    pub members: Vec<Arc<Member>>,
    /// The host of the pool's service, of the view that the endpoints are of: its policies are those of who is brought here.
    pub host: Option<Arc<Host>>,
    view_version: u64,
}

/// A pool as it is now.
#[derive(Debug, Clone)]
pub struct Current {
    /// Its state.
    pub state: Arc<PoolState>,
    /// What choosing needs.
    pub ready: Arc<Ready>,
    /// When that was, by the pools' clock.
    pub at: Duration,
}

/// What a pool shows of itself.
#[derive(Debug, Clone)]
pub struct PoolInfo {
    /// Its state.
    pub current: Current,
    /// For how much longer each endpoint is ejected at least, by place; `None` is in use.
    pub ejected: Vec<Option<Duration>>,
    /// Ejections since it is there.
    pub ejections: u64,
}

impl Pools {
    /// No pools yet, for the waypoint of `gateway` on `network`.
    pub fn new(gateway: Arc<str>, network: Arc<str>) -> Self {
        let (of_services, of_workloads) = (Table::of(MAX_POOLS), Table::of(MAX_POOLS_OF_WORKLOADS));
        Self { of_services, of_workloads, gateway, network, started: Instant::now() }
    }

    /// The pools' clock.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A pool as `view` and `pool` have it; `own` is the workload that we are, which says what is near.
    pub fn current(&self, view: &View, pool: &Arc<Pool>, own: Option<&Workload>) -> Current {
        let state = self.state(pool);
        let ready = state.ready.load_full();
        let now = self.now();
        let is_current = match ready.view_version.cmp(&view.version()) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => Arc::ptr_eq(&ready.pool, pool) || *ready.pool == **pool,
            std::cmp::Ordering::Less => false,
        };
        if is_current && nanoseconds(now) < state.next_sweep.load(Ordering::Acquire) {
            return Current { state, ready, at: now };
        }
        let ready = state.renew(self, view, pool, own, now);
        Current { state, ready, at: now }
    }

    /// All pools that were used.
    pub fn list(&self) -> Vec<PoolInfo> {
        let now = self.now();
        let tables = [&self.of_services, &self.of_workloads].map(|table| table.read().unwrap_or_else(PoisonError::into_inner));
        tables.iter().flat_map(|table| table.states.values().map(|state| state.info(now))).collect()
    }

    fn state(&self, pool: &Arc<Pool>) -> Arc<PoolState> {
        let table = if stands_for_a_workload(&pool.key) { &self.of_workloads } else { &self.of_services };
        if let Some(state) = table.read().unwrap_or_else(PoisonError::into_inner).states.get(&pool.key) {
            return state.clone();
        }
        table.write().unwrap_or_else(PoisonError::into_inner).state(pool)
    }
}

impl PoolState {
    fn new(pool: &Arc<Pool>) -> Self {
        let endpoints = Arc::new(Endpoints::new(pool, None, Vec::new()));
        let ready = Ready { pool: pool.clone(), endpoints, members: Vec::new(), host: None, view_version: 0 };
        Self {
            key: pool.key.clone(),
            counts: Arc::default(),
            turn: AtomicU64::new(0),
            ready: ArcSwap::from_pointee(ready),
            inner: Mutex::new(Inner { detector: None, found: Vec::new(), members: Vec::new() }),
            // The first use prepares it.
            next_sweep: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings it up to date: members, returns from ejection, and what is prepared for choosing.
    fn renew(&self, pools: &Pools, view: &View, pool: &Arc<Pool>, own: Option<&Workload>, now: Duration) -> Arc<Ready> {
        let mut inner = self.lock();
        let before = self.ready.load_full();
        let mut changed = before.view_version == 0;
        // Who still has an older view, as a retry may, brings nothing of it back.
        let is_older = before.view_version > view.version();
        let pool = if is_older { &before.pool } else { pool };
        let host = if is_older { before.host.clone() } else { view.host(&pool.key.host).cloned() };
        let same_pool = Arc::ptr_eq(&before.pool, pool) || *before.pool == **pool;
        if before.view_version < view.version() || !same_pool {
            let found = members::find(view, &pools.gateway, &pools.network, pool);
            changed |= !same_pool || found != inner.found || pool.locality != Default::default();
            // Who is there from the beginning has nothing to warm up for.
            let since = (before.view_version > 0).then_some(now);
            inner.renew_members(pool, same_pool, found, since);
            if let Some(settings) = pool.outlier.as_ref().filter(|_| !same_pool) {
                // A shorter interval does not wait for a tick of the longer one.
                self.next_sweep.fetch_min(nanoseconds(now + settings.interval), Ordering::AcqRel);
            }
        }
        if self.sweep(&mut inner, pool, now) {
            changed = true;
        }
        let version = before.view_version.max(view.version());
        let (endpoints, members) = match changed {
            true => (Arc::new(Endpoints::new(pool, own, inner.candidates())), inner.members.clone()),
            false => (before.endpoints.clone(), before.members.clone()),
        };
        let ready = Arc::new(Ready { pool: pool.clone(), endpoints, members, host, view_version: version });
        self.ready.store(ready.clone());
        ready
    }

    /// Lets endpoints back whose time is over, at each tick of the interval. Says whether any came back.
    fn sweep(&self, inner: &mut Inner, pool: &Pool, now: Duration) -> bool {
        let Some((detector, settings)) = inner.detector.as_mut().zip(pool.outlier.as_ref()) else {
            self.next_sweep.store(u64::MAX, Ordering::Release);
            return false;
        };
        let interval = settings.interval.max(Duration::from_millis(1));
        let next = Duration::from_nanos(self.next_sweep.load(Ordering::Acquire));
        if next.is_zero() || next == Duration::from_nanos(u64::MAX) {
            self.next_sweep.store(nanoseconds(now + interval), Ordering::Release);
            return false;
        }
        let mut returned = false;
        let mut tick = next;
        // Ticks that nobody was there for are made up for, a bounded number of them: more would change nothing any more.
        let missed = now.saturating_sub(tick).as_nanos() / interval.as_nanos();
        if missed > MAX_TICKS {
            tick = now.saturating_sub(interval * MAX_TICKS as u32);
        }
        while tick <= now {
            returned |= !detector.sweep(tick).is_empty();
            tick += interval;
        }
        self.next_sweep.store(nanoseconds(tick), Ordering::Release);
        returned
    }

    /// Whether outliers are looked for: what requests bring is of interest.
    pub fn has_detector(&self) -> bool {
        self.ready.load().pool.outlier.is_some()
    }

    /// Takes in how a request to `member` went. An ejection holds for the next pick.
    pub fn record(&self, member: &Member, outcome: Outcome, now: Duration, own: Option<&Workload>) {
        let ready = self.ready.load();
        if ready.pool.outlier.is_none() {
            return;
        }
        let mut inner = self.lock();
        let Some(ejected) = inner.detector.as_mut().and_then(|detector| detector.record(&member.id, outcome, now)) else { return };
        self.ejections.fetch_add(1, Ordering::Relaxed);
        tracing::info!(pool = %self.key, endpoint = %member.reach, cause = ?ejected.cause, duration = ?ejected.duration, "endpoint ejected");
        let ready = self.ready.load_full();
        let next = Ready {
            pool: ready.pool.clone(),
            endpoints: Arc::new(Endpoints::new(&ready.pool, own, inner.candidates())),
            members: inner.members.clone(),
            host: ready.host.clone(),
            view_version: ready.view_version,
        };
        self.ready.store(Arc::new(next));
    }

    fn info(self: &Arc<Self>, now: Duration) -> PoolInfo {
        let inner = self.lock();
        let ready = self.ready.load_full();
        let returns_at = |member: &Arc<Member>| inner.detector.as_ref()?.returns_at(&member.id);
        PoolInfo {
            ejected: ready.members.iter().map(|member| Some(returns_at(member)?.saturating_sub(now))).collect(),
            ejections: self.ejections.load(Ordering::Relaxed),
            current: Current { state: self.clone(), ready, at: now },
        }
    }
}

/// After so many ticks the longest row of ejections is forgiven.
const MAX_TICKS: u128 = 1000;

impl Inner {
    fn renew_members(&mut self, pool: &Pool, same_pool: bool, found: Vec<Found>, since: Option<Duration>) {
        self.members = members::members(&self.members, &found, since);
        self.found = found;
        match (&pool.outlier, &mut self.detector) {
            (None, detector) => *detector = None,
            (Some(settings), Some(detector)) if !same_pool => detector.configure(settings.clone()),
            (Some(_), Some(_)) => {}
            (Some(settings), detector @ None) => *detector = Some(Detector::new(settings.clone())),
        }
        if let Some(detector) = &mut self.detector {
            detector.set_hosts(self.members.iter().map(|member| member.id));
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let each = self.found.iter().zip(&self.members);
        each.map(|(found, member)| Candidate {
            workload: found.workload.clone(),
            address: found.own_address(),
            weight: found.workload.capacity,
            healthy: self.detector.as_ref().is_none_or(|detector| !detector.is_ejected(&member.id)),
            since: member.since,
        })
        .collect()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - 1)
}

/// A request under way to an endpoint; dropping it ends it.
#[derive(Debug)]
pub struct Active(Arc<Member>);

impl Active {
    /// Counts a request to `member`.
    pub fn new(member: &Arc<Member>) -> Self {
        member.active.fetch_add(1, Ordering::Relaxed);
        Self(member.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let _: u32 = AtomicU32::fetch_sub(&self.0.active, 1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
