//! Consistent hashing: the same key gives the same endpoint while it is there.

use std::net::SocketAddr;

use xxhash_rust::xxh64::xxh64;

use crate::{
    pick::Candidate,
    pool::HashKey,
    request::{RequestFacts, query_parameter},
};

/// Most points of a ring, whatever is asked for: 16 MB.
pub const MAX_RING_SIZE: u64 = 1 << 20;
/// Largest table of Maglev (Envoy's limit).
pub const MAX_TABLE_SIZE: u32 = 5_000_011;

/// What the key of a request gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashed {
    /// This hash.
    Known(u64),
    /// There is no key: any endpoint.
    Missing,
    /// There is no cookie and one is to be made: draw a value, hash it by [`of`], and set it in the response.
    CookieToMake,
}

/// The hash of a key's bytes (xxHash64, as Envoy).
pub fn of(key: &[u8]) -> u64 {
    xxh64(key, 0)
}

/// The hash of a request. Of several headers of a name the first counts.
pub fn key(key: &HashKey, facts: &RequestFacts<'_>) -> Hashed {
    let known = |bytes: Option<&[u8]>| bytes.map_or(Hashed::Missing, |bytes| Hashed::Known(of(bytes)));
    match key {
        HashKey::Header(name) => known(facts.headers.get(&**name).map(|value| value.as_bytes())),
        HashKey::QueryParameter(name) => known(query_parameter(facts.query, name).map(str::as_bytes)),
        HashKey::SourceAddress => {
            facts.caller.address.map_or(Hashed::Missing, |address| Hashed::Known(of(address.to_canonical().to_string().as_bytes())))
        }
        HashKey::Cookie { name, ttl, .. } => match (cookie(facts, name.as_bytes()), ttl) {
            (Some(value), _) => Hashed::Known(of(value)),
            (None, Some(_)) => Hashed::CookieToMake,
            (None, None) => Hashed::Missing,
        },
    }
}

/// The value of a cookie that was sent, without quotes (RFC 6265 §4.2.1). An empty one is none.
fn cookie<'a>(facts: &RequestFacts<'a>, name: &[u8]) -> Option<&'a [u8]> {
    let cookies = facts.headers.get_all("cookie").iter().flat_map(|header| header.as_bytes().split(|byte| *byte == b';'));
    let value = cookies.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))?;
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    (!unquoted.is_empty()).then_some(unquoted)
}

/// From hash to endpoint.
#[derive(Debug, Clone)]
pub(super) enum Table {
    /// Points in order, each with its endpoint's place.
    Ring(Vec<(u64, u32)>),
    /// Places by remainder.
    Maglev(Vec<u32>),
}

impl Table {
    /// A ring on which each endpoint has points by its weight, and which has at least `minimum_size` of them.
    pub(super) fn ring(usable: &[usize], candidates: &[Candidate], minimum_size: u32) -> Self {
        let total: u64 = usable.iter().map(|place| u64::from(candidates[*place].weight)).sum();
        let least = usable.iter().map(|place| u64::from(candidates[*place].weight)).min().unwrap_or(1);
        // Points of the lightest endpoint; the others follow by weight. A power of two, so that the number stays mostly the same when
        // endpoints come and go, and with it the keys of those that stay.
        let each = (u128::from(least) * u128::from(minimum_size)).div_ceil(u128::from(total.max(1))).max(1).next_power_of_two();
        let (few, many) = (usable.len() as u128, u128::from(MAX_RING_SIZE).max(usable.len() as u128));
        let size = (u128::from(total) * each / u128::from(least.max(1))).clamp(few, many);
        let mut points = Vec::with_capacity(size as usize);
        for place in usable {
            let candidate = &candidates[*place];
            let count = (u128::from(candidate.weight) * size).div_ceil(u128::from(total.max(1)));
            let name = candidate.address.to_string();
            points.extend((0..count).map(|point| (of(format!("{name}_{point}").as_bytes()), *place as u32)));
        }
        points.sort_unstable();
        Self::Ring(points)
    }

    /// Maglev's table (Eisenbud et al., NSDI 2016 §3.4): each endpoint has a permutation of the entries and takes the next free one in it
    /// when its turn comes; turns by weight. A size that is no prime becomes the next one, or an endpoint might miss entries for ever.
    pub(super) fn maglev(usable: &[usize], candidates: &[Candidate], table_size: u32) -> Self {
        let size = (u64::from(table_size.clamp(2, MAX_TABLE_SIZE))..).find(|size| is_prime(*size)).unwrap_or(2);
        let heaviest = usable.iter().map(|place| candidates[*place].weight).max().unwrap_or(0);
        if heaviest == 0 {
            return Self::Maglev(Vec::new());
        }
        let mut builds: Vec<Build> = usable.iter().map(|place| Build::new(*place, &candidates[*place], size)).collect();
        // The order decides who takes an entry first; it must be the same at every replica.
        builds.sort_unstable_by_key(|build| candidates[build.place as usize].address);
        let mut entries: Vec<Option<u32>> = vec![None; size as usize];
        let mut filled = 0;
        let mut round = 0;
        while filled < size {
            round += 1;
            for build in &mut builds {
                // As many entries as its share of the rounds so far.
                if round * u64::from(build.weight) < build.taken * u64::from(heaviest) || filled == size {
                    continue;
                }
                build.taken += 1;
                while entries[build.next as usize].is_some() {
                    build.next = (build.next + build.skip) % size;
                }
                entries[build.next as usize] = Some(build.place);
                filled += 1;
            }
        }
        Self::Maglev(entries.into_iter().flatten().collect())
    }

    /// The endpoint of a hash; `None` if there is none at all.
    pub(super) fn find(&self, hash: u64) -> Option<usize> {
        match self {
            Self::Ring(points) => {
                let at = points.partition_point(|(point, _)| *point < hash);
                points.get(at).or_else(|| points.first()).map(|(_, place)| *place as usize)
            }
            Self::Maglev(entries) if entries.is_empty() => None,
            Self::Maglev(entries) => Some(entries[(hash % entries.len() as u64) as usize] as usize),
        }
    }
}

/// An endpoint's way through Maglev's table.
struct Build {
    place: u32,
    weight: u32,
    next: u64,
    skip: u64,
    taken: u64,
}

impl Build {
    /// Offset and skip come from two hashes of the address. With a prime size each skip visits every entry.
    fn new(place: usize, candidate: &Candidate, size: u64) -> Self {
        let name = name(candidate.address);
        let (offset, skip) = (xxh64(&name, 0) % size, xxh64(&name, 1) % (size - 1) + 1);
        Self { place: place as u32, weight: candidate.weight, next: offset, skip, taken: 0 }
    }
}

fn is_prime(number: u64) -> bool {
    (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

fn name(address: SocketAddr) -> Vec<u8> {
    address.to_string().into_bytes()
}
