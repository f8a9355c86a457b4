//! Balance: which endpoint of the pool gets a request or a connection. The decisions are `model::pick`'s and `model::limits`'.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use thiserror::Error;
use tropis_model::{
    limits::Overflow,
    outcome::{Reason, Side},
    pick::{Ask, PickFailure, hash},
    pool::{Balancer, HashKey, Pool, PoolKey},
    request::RequestFacts,
    resolve::Draw,
    route::Host,
    workload::Workload,
};

use crate::{
    upstream::{
        members::Member,
        pools::{Active, Current},
    },
    worker::Worker,
};

/// No endpoint may be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BalanceError {
    /// The route names a service or a subset that does not exist.
    #[error("there is no pool {0}")]
    PoolUnknown(PoolKey),
    /// All destinations of the route weigh nothing.
    #[error("the route's destinations weigh nothing")]
    NoDestination,
    /// None is healthy, or there is none.
    #[error("no endpoint of the pool may be used")]
    NoEndpoint(#[source] PickFailure),
    /// The pool takes no more.
    #[error("the pool is full")]
    Full(#[source] Overflow),
}

impl BalanceError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::PoolUnknown(_) | Self::NoDestination => (Reason::PoolUnknown, Side::Mesh),
            Self::NoEndpoint(_) => (Reason::NoEndpoint, Side::Upstream),
            Self::Full(_) => (Reason::LimitReached, Side::Upstream),
        }
    }
}

/// The pool of this name.
pub fn pool<'h>(host: &'h Host, key: &PoolKey) -> Result<&'h Arc<Pool>, BalanceError> {
    host.pools.get(key).ok_or_else(|| BalanceError::PoolUnknown(key.clone()))
}

/// An endpoint that was chosen.
#[derive(Debug)]
pub struct Chosen {
    /// Its pool, as it was then.
    pub current: Current,
    /// What is counted about it.
    pub member: Arc<Member>,
    /// Its workload.
    pub workload: Arc<Workload>,
    /// Where it serves.
    pub address: SocketAddr,
    /// Counts as under way until it is dropped.
    pub active: Active,
}

/// What a choice asks for, besides the pool.
#[derive(Debug, Default)]
pub struct Wish<'a> {
    /// The hash of the request's key.
    pub hash: Option<u64>,
    /// The endpoints of earlier tries, by [`Member::id`]; empty where they need not be avoided.
    pub tried: &'a [u64],
    /// A retry prefers other priorities.
    pub other_priorities: bool,
    /// The address that was called.
    pub addressed: Option<SocketAddr>,
}

/// Chooses an endpoint.
pub fn choose(worker: &Worker, current: Current, wish: &Wish<'_>) -> Result<Chosen, BalanceError> {
    let ready = &current.ready;
    let place_of = |id: &u64| ready.members.iter().position(|member| member.id == *id);
    let tried: Vec<usize> = wish.tried.iter().filter_map(place_of).collect();
    let ask = Ask {
        hash: wish.hash,
        turn: current.state.turn.fetch_add(1, Ordering::Relaxed),
        now: current.at,
        tried: &tried,
        other_priorities: wish.other_priorities,
        addressed: wish.addressed,
    };
    let active = |place: usize| ready.members[place].active.load(Ordering::Relaxed);
    let place = worker.draw(|draw| ready.endpoints.pick(&ask, active, draw)).map_err(BalanceError::NoEndpoint)?;
    let candidate = &ready.endpoints.candidates()[place];
    let member = ready.members[place].clone();
    let active = Active::new(&member);
    Ok(Chosen { workload: candidate.workload.clone(), address: member.reach.address, active, member, current })
}

/// The hash of a request's key, and the cookie to be made if it should have one and has none.
#[derive(Debug, Default)]
pub struct Key {
    /// The hash.
    pub hash: Option<u64>,
    /// `Set-Cookie` for the response.
    pub set_cookie: Option<String>,
}

/// The key of a request for a pool that balances by one.
pub fn key(pool: &Pool, facts: &RequestFacts<'_>, draw: &mut Draw) -> Key {
    let Balancer::ConsistentHash { key, .. } = &pool.balancer else { return Key::default() };
    match hash::key(key, facts) {
        hash::Hashed::Known(hash) => Key { hash: Some(hash), set_cookie: None },
        hash::Hashed::Missing => Key::default(),
        hash::Hashed::CookieToMake => {
            let value = format!("{:016x}", draw.below(u64::MAX));
            Key { hash: Some(hash::of(value.as_bytes())), set_cookie: cookie(key, &value) }
        }
    }
}

fn cookie(key: &HashKey, value: &str) -> Option<String> {
    let HashKey::Cookie { name, path, ttl, attributes } = key else { return None };
    let mut text = format!("{name}=\"{value}\"");
    // None, or zero: the browser's session.
    if let Some(ttl) = ttl.filter(|ttl| !ttl.is_zero()) {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if let Some(path) = path {
        text.push_str(&format!("; Path={path}"));
    }
    for (name, value) in attributes {
        text.push_str(&match value.is_empty() {
            true => format!("; {name}"),
            false => format!("; {name}={value}"),
        });
    }
    text.push_str("; HttpOnly");
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_cookie_says_how_long_it_lives() {
        let key = |ttl: u64, path: Option<&str>| HashKey::Cookie {
            name: "user".into(),
            path: path.map(Into::into),
            ttl: Some(Duration::from_secs(ttl)),
            attributes: vec![("SameSite".into(), "Strict".into())],
        };
        assert_eq!(cookie(&key(60, Some("/a")), "1").unwrap(), "user=\"1\"; Max-Age=60; Path=/a; SameSite=Strict; HttpOnly");
        assert_eq!(cookie(&key(0, None), "1").unwrap(), "user=\"1\"; SameSite=Strict; HttpOnly");
    }
}
