//! Shares are counted over many draws of a fixed seed; what must always hold is a property.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::{hash::Hashed, *};
use crate::{
    address::NamespacedHostname,
    identity::Identity,
    pool::{Distribution, HashKey, Limits, LocalityMatch, LocalityPreference, PoolKey, UpstreamTls, UpstreamVersion},
    request::RequestFacts,
    route::{Caller, HeaderChanges},
    workload::Locality,
};

const DRAWS: u32 = 20_000;

fn key() -> PoolKey {
    let host = NamespacedHostname { namespace: "shop".into(), hostname: "reviews.shop.svc.cluster.local".into() };
    PoolKey { host, port: 9080, subset: None }
}

fn pool(balancer: Balancer) -> Pool {
    Pool {
        key: key(),
        labels: BTreeMap::new(),
        balancer,
        locality: LocalityPreference::None,
        warmup: None,
        limits: Limits::default(),
        outlier: None,
        panic_threshold_percent: 0,
        upstream_version: UpstreamVersion::default(),
        tls: UpstreamTls::None,
    }
}

fn locality(text: &str) -> Locality {
    let mut parts = text.split('/').map(Arc::from).chain(std::iter::repeat_with(|| Arc::from("")));
    let mut part = || parts.next().unwrap();
    Locality { region: part(), zone: part(), subzone: part() }
}

fn workload(name: &str, at: &str) -> Workload {
    let mut workload = Workload::new(format!("c//Pod/shop/{name}"), name, Identity::new("cluster.local", "shop", "w"));
    workload.locality = locality(at);
    workload
}

fn candidate(number: usize, at: &str) -> Candidate {
    Candidate {
        workload: Arc::new(workload(&format!("w{number}"), at)),
        address: SocketAddr::from(([10, 0, (number / 256) as u8, (number % 256) as u8], 8080)),
        weight: 1,
        healthy: true,
        since: None,
    }
}

fn candidates(weights: &[u32]) -> Vec<Candidate> {
    weights.iter().enumerate().map(|(number, weight)| Candidate { weight: *weight, ..candidate(number, "") }).collect()
}

/// Endpoints at these localities; a `!` in front is unhealthy.
fn located(places: &[&str]) -> Vec<Candidate> {
    let one = |(number, place): (usize, &&str)| Candidate {
        healthy: !place.starts_with('!'),
        ..candidate(number, place.trim_start_matches('!'))
    };
    places.iter().enumerate().map(one).collect()
}

fn endpoints(balancer: Balancer, candidates: Vec<Candidate>) -> Endpoints {
    Endpoints::new(&pool(balancer), None, candidates)
}

fn idle(_: usize) -> u32 {
    0
}

/// How many of the draws each endpoint got, in percent of all.
fn percents(endpoints: &Endpoints, ask: &Ask<'_>, active: impl Fn(usize) -> u32) -> Vec<u32> {
    let mut counts = vec![0; endpoints.candidates().len()];
    let mut draw = Draw::new(7);
    for turn in 0..DRAWS {
        let ask = Ask { turn: u64::from(turn), ..*ask };
        counts[endpoints.pick(&ask, &active, &mut draw).unwrap()] += 1;
    }
    counts.iter().map(|count| (count * 100 + DRAWS / 2) / DRAWS).collect()
}

fn near(found: &[u32], expected: &[u32]) {
    let close = found.len() == expected.len() && found.iter().zip(expected).all(|(found, expected)| found.abs_diff(*expected) <= 2);
    assert!(close, "{found:?} is not about {expected:?}");
}

const NONE: Result<usize, PickFailure> = Err(PickFailure::NoHealthyUpstream);

fn destinations(weights: &[u32]) -> Vec<Destination> {
    weights.iter().map(|weight| Destination { pool: key(), weight: *weight, headers: HeaderChanges::default() }).collect()
}

fn destination_percents(weights: &[u32]) -> Vec<u32> {
    let destinations = destinations(weights);
    let mut draw = Draw::new(3);
    let mut counts = vec![0; weights.len()];
    for _ in 0..DRAWS {
        let chosen = destination(&destinations, &mut draw).unwrap();
        counts[destinations.iter().position(|one| std::ptr::eq(one, chosen)).unwrap()] += 1;
    }
    counts.iter().map(|count| (count * 100 + DRAWS / 2) / DRAWS).collect()
}

#[test]
fn weight_is_a_share_of_the_sum() {
    near(&destination_percents(&[90, 10]), &[90, 10]);
    near(&destination_percents(&[1, 2, 1]), &[25, 50, 25]);
    near(&destination_percents(&[u32::MAX, u32::MAX]), &[50, 50]);
}

#[test]
fn weight_0_is_never_chosen() {
    assert_eq!(destination_percents(&[0, 5, 0]), [0, 100, 0]);
}

#[test]
fn weight_of_a_single_destination_is_ignored() {
    assert!(destination(&destinations(&[0]), &mut Draw::new(0)).is_some());
}

#[test]
fn weights_that_are_all_0_give_no_destination() {
    assert!(destination(&destinations(&[0, 0]), &mut Draw::new(0)).is_none());
    assert!(destination(&[], &mut Draw::new(0)).is_none());
}

#[test]
fn mirror_percentage_and_fault_percentage_are_shares_of_a_million() {
    let happened = |share_ppm| {
        let mut draw = Draw::new(5);
        (0..DRAWS).filter(|_| draw.happens(share_ppm)).count() as u32 * 100 / DRAWS
    };
    assert_eq!((happened(0), happened(1_000_000)), (0, 100));
    near(&[happened(250_000), happened(1)], &[25, 0]);
}

#[test]
fn least_request_takes_the_less_busy_of_two() {
    let endpoints = endpoints(Balancer::LeastRequest, candidates(&[1, 1]));
    let active = |place| [5, 4][place];
    assert_eq!(percents(&endpoints, &Ask::default(), active), [0, 100]);
}

#[test]
fn least_request_of_idle_endpoints_is_even() {
    near(&percents(&endpoints(Balancer::LeastRequest, candidates(&[1; 4])), &Ask::default(), idle), &[25; 4]);
}

#[test]
fn least_request_never_takes_the_busiest_of_many() {
    let active = |place| if place == 2 { 9 } else { 1 };
    assert_eq!(percents(&endpoints(Balancer::LeastRequest, candidates(&[1; 4])), &Ask::default(), active)[2], 0);
}

#[test]
fn least_request_follows_weights() {
    let found =
        |active: [u32; 2]| percents(&endpoints(Balancer::LeastRequest, candidates(&[3, 1])), &Ask::default(), |place| active[place]);
    near(&found([0, 0]), &[75, 25]);
    near(&found([9, 3]), &[75, 25]);
    // Each draw is the first one with 3/4, and only if both are it is taken although it is the busier one for its weight.
    near(&found([9, 2]), &[56, 44]);
    near(&found([8, 3]), &[94, 6]);
}

fn order(endpoints: &Endpoints, turns: u64) -> Vec<usize> {
    (0..turns).map(|turn| endpoints.pick(&Ask { turn, ..Ask::default() }, idle, &mut Draw::new(turn)).unwrap()).collect()
}

#[test]
fn round_robin_takes_turns() {
    assert_eq!(order(&endpoints(Balancer::RoundRobin, candidates(&[1, 1, 1])), 6), [0, 1, 2, 0, 1, 2]);
}

#[test]
fn round_robin_turns_follow_weights_and_are_spread() {
    assert_eq!(order(&endpoints(Balancer::RoundRobin, candidates(&[2, 1, 1])), 8), [0, 1, 2, 0, 0, 1, 2, 0]);
    let counted = order(&endpoints(Balancer::RoundRobin, candidates(&[70, 20, 10])), 100);
    assert_eq!([0, 1, 2].map(|place| counted.iter().filter(|one| **one == place).count()), [70, 20, 10]);
    let huge = endpoints(Balancer::RoundRobin, candidates(&[u32::MAX, u32::MAX - 1, 1]));
    near(&percents(&huge, &Ask::default(), idle), &[50, 50, 0]);
}

#[test]
fn random_is_even_whatever_the_weights() {
    near(&percents(&endpoints(Balancer::Random, candidates(&[1, 9])), &Ask::default(), idle), &[50, 50]);
}

#[test]
fn passthrough_takes_the_endpoint_that_was_called() {
    let endpoints = endpoints(Balancer::Passthrough, candidates(&[1; 5]));
    let addressed = Some(endpoints.candidates()[3].address);
    let ask = Ask { addressed, ..Ask::default() };
    assert_eq!(percents(&endpoints, &ask, idle), [0, 0, 0, 100, 0]);
    near(&percents(&endpoints, &Ask::default(), idle), &[20; 5]);
}

#[test]
fn endpoints_of_weight_0_are_never_chosen() {
    for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random, ring(64), maglev(67)] {
        let endpoints = endpoints(balancer, candidates(&[0, 1]));
        for hash in 0..50 {
            let ask = Ask { hash: Some(hash::of(&[hash])), ..Ask::default() };
            assert_eq!(endpoints.pick(&ask, idle, &mut Draw::new(1)), Ok(1));
        }
    }
}

#[test]
fn nothing_to_choose_from_is_no_healthy_upstream() {
    let ejected = || vec![Candidate { healthy: false, ..candidate(0, "") }];
    for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random, Balancer::Passthrough, ring(64), maglev(67)] {
        for candidates in [vec![], candidates(&[0, 0]), ejected()] {
            let endpoints = endpoints(balancer.clone(), candidates);
            assert_eq!(endpoints.pick(&Ask { hash: Some(1), ..Ask::default() }, idle, &mut Draw::new(1)), NONE);
            assert_eq!(endpoints.pick(&Ask::default(), idle, &mut Draw::new(1)), NONE);
        }
    }
}

#[test]
fn ejected_endpoints_are_never_chosen() {
    for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random, ring(64), maglev(67)] {
        let endpoints = endpoints(balancer, located(&["", "!", ""]));
        for hash in 0..50 {
            let ask = Ask { hash: Some(hash::of(&[hash])), turn: u64::from(hash), ..Ask::default() };
            assert_ne!(endpoints.pick(&ask, idle, &mut Draw::new(u64::from(hash))), Ok(1));
        }
    }
}

fn with_panic(percent: u8, places: &[&str]) -> Endpoints {
    Endpoints::new(&Pool { panic_threshold_percent: percent, ..pool(Balancer::Random) }, None, located(places))
}

#[test]
fn min_health_percent_below_it_ejected_endpoints_are_used() {
    near(&percents(&with_panic(50, &["", "!", "!"]), &Ask::default(), idle), &[33; 3]);
    near(&percents(&with_panic(50, &["", "!"]), &Ask::default(), idle), &[100, 0]);
    near(&percents(&with_panic(1, &["!", "!"]), &Ask::default(), idle), &[50, 50]);
}

#[test]
fn min_health_percent_0_never_uses_ejected_endpoints() {
    assert_eq!(with_panic(0, &["!", "!"]).pick(&Ask::default(), idle, &mut Draw::new(1)), NONE);
}

fn ring(minimum_size: u32) -> Balancer {
    Balancer::ConsistentHash { key: HashKey::SourceAddress, algorithm: HashAlgorithm::Ring { minimum_size } }
}

fn maglev(table_size: u32) -> Balancer {
    Balancer::ConsistentHash { key: HashKey::SourceAddress, algorithm: HashAlgorithm::Maglev { table_size } }
}

/// The addresses that so many keys lead to.
fn mapped(balancer: Balancer, candidates: Vec<Candidate>, keys: u32) -> Vec<SocketAddr> {
    let endpoints = endpoints(balancer, candidates);
    let pick = |key: u32| {
        let ask = Ask { hash: Some(hash::of(&key.to_be_bytes())), ..Ask::default() };
        endpoints.candidates()[endpoints.pick(&ask, idle, &mut Draw::new(u64::from(key) + 9)).unwrap()].address
    };
    (0..keys).map(pick).collect()
}

#[test]
fn consistent_hash_moves_few_keys_when_an_endpoint_leaves() {
    for (balancer, moved_limit) in [(ring(1024), 0), (maglev(65_537), 100)] {
        let before = mapped(balancer.clone(), candidates(&[1; 10]), 1000);
        let mut rest = candidates(&[1; 10]);
        let gone = rest.remove(4).address;
        let after = mapped(balancer, rest, 1000);
        let stayed = before.iter().zip(&after).filter(|(before, _)| **before != gone);
        let moved = stayed.filter(|(before, after)| before != after).count();
        assert!(moved <= moved_limit, "{moved} keys moved without need");
    }
}

#[test]
fn consistent_hash_does_not_depend_on_the_order_of_endpoints() {
    for balancer in [ring(1024), ring(1), maglev(211)] {
        let mut reversed = candidates(&[1; 6]);
        reversed.reverse();
        assert_eq!(mapped(balancer.clone(), candidates(&[1; 6]), 200), mapped(balancer, reversed, 200));
    }
}

fn shares(balancer: Balancer, weights: &[u32]) -> Vec<u32> {
    let mapped = mapped(balancer, candidates(weights), 10_000);
    let share = |one: Candidate| mapped.iter().filter(|address| **address == one.address).count() as u32 / 100;
    candidates(weights).into_iter().map(share).collect()
}

#[test]
fn consistent_hash_follows_weights() {
    for share in [shares(ring(100_000), &[3, 1]), shares(maglev(65_537), &[3, 1])] {
        near(&share, &[75, 25]);
    }
}

#[test]
fn maglev_is_even() {
    near(&shares(maglev(65_537), &[1; 5]), &[20; 5]);
}

#[test]
fn maglev_table_size_that_is_no_prime_becomes_one() {
    for size in [0, 1, 2, 4, 100, 1024] {
        assert_eq!(mapped(maglev(size), candidates(&[1, 2, 3]), 10).len(), 10, "{size}");
    }
}

#[test]
fn ring_size_is_bounded() {
    assert_eq!(mapped(ring(u32::MAX), candidates(&[1, 1]), 10).len(), 10);
    assert_eq!(mapped(ring(1024), candidates(&[1, u32::MAX]), 10).len(), 10);
}

#[test]
fn consistent_hash_without_a_key_is_random() {
    near(&percents(&endpoints(ring(64), candidates(&[1, 1])), &Ask::default(), idle), &[50, 50]);
}

#[test]
fn consistent_hash_does_not_avoid_what_was_tried() {
    let endpoints = endpoints(ring(64), candidates(&[1, 1]));
    let ask = Ask { hash: Some(5), ..Ask::default() };
    let first = endpoints.pick(&ask, idle, &mut Draw::new(1)).unwrap();
    assert_eq!(endpoints.pick(&Ask { tried: &[first], ..ask }, idle, &mut Draw::new(2)), Ok(first));
}

fn hashed(key: &HashKey, headers: &[(&'static str, &'static str)], address: Option<&str>) -> Hashed {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let caller = Caller { address: address.map(|address| address.parse().unwrap()), ..Caller::default() };
    let facts = RequestFacts {
        method: "GET",
        scheme: "http",
        authority: "a",
        path: "/",
        query: Some("user=jason&x"),
        headers: &map,
        port: 80,
        caller: &caller,
        remote_address: None,
        destination: None,
        server_name: None,
        token: None,
    };
    hash::key(key, &facts)
}

fn known(text: &str) -> Hashed {
    Hashed::Known(hash::of(text.as_bytes()))
}

#[test]
fn http_header_name_is_hashed() {
    let key = HashKey::Header("x-user".into());
    assert_eq!(hashed(&key, &[("x-user", "jason")], None), known("jason"));
    assert_eq!(hashed(&key, &[], None), Hashed::Missing);
}

#[test]
fn http_query_parameter_name_is_hashed() {
    assert_eq!(hashed(&HashKey::QueryParameter("user".into()), &[], None), known("jason"));
    assert_eq!(hashed(&HashKey::QueryParameter("none".into()), &[], None), Hashed::Missing);
}

#[test]
fn use_source_ip_hashes_the_original_caller() {
    assert_eq!(hashed(&HashKey::SourceAddress, &[], Some("fd00::1")), known("fd00::1"));
    assert_eq!(hashed(&HashKey::SourceAddress, &[], Some("::ffff:10.0.0.1")), known("10.0.0.1"));
    assert_eq!(hashed(&HashKey::SourceAddress, &[], None), Hashed::Missing);
}

#[test]
fn http_cookie_is_hashed_and_made_only_with_a_ttl() {
    let cookie = |ttl| HashKey::Cookie { name: "user".into(), path: None, ttl, attributes: Vec::new() };
    for sent in ["user=jason", "a=b; user=jason", "user=\"jason\"; a=b", "super=x;user=jason"] {
        assert_eq!(hashed(&cookie(None), &[("cookie", sent)], None), known("jason"), "{sent}");
    }
    for sent in ["superuser=x", "user=", "user", "users=x"] {
        assert_eq!(hashed(&cookie(None), &[("cookie", sent)], None), Hashed::Missing, "{sent}");
        assert_eq!(hashed(&cookie(Some(Duration::ZERO)), &[("cookie", sent)], None), Hashed::CookieToMake);
    }
    assert_eq!(hashed(&cookie(None), &[("cookie", "a=b"), ("cookie", "user=jason")], None), known("jason"));
}

fn failover(places: &[&str], regions: &[(&str, &str)], labels: &[(&str, Option<&str>)]) -> Endpoints {
    let regions = regions.iter().map(|(from, to)| (Arc::from(*from), Arc::from(*to))).collect();
    let labels = labels.iter().map(|(key, value)| (Arc::from(*key), value.map(Arc::from))).collect();
    let pool = Pool { locality: LocalityPreference::Failover { regions, labels }, ..pool(Balancer::Random) };
    Endpoints::new(&pool, Some(&workload("own", "r1/z1/s1")), located(places))
}

#[test]
fn locality_failover_prefers_the_nearest() {
    let all = ["r2/z1/s1", "r1/z2/s1", "r1/z1/s2", "r1/z1/s1"];
    for count in 1..=4 {
        let endpoints = failover(&all[..count], &[], &[]);
        let mut expected = vec![0; count];
        expected[count - 1] = 100;
        assert_eq!(percents(&endpoints, &Ask::default(), idle), expected);
    }
}

#[test]
fn locality_failover_takes_over_at_140_percent() {
    let near_healthy = |healthy: usize| -> u32 {
        let mut places = vec!["!r1/z1/s1"; 10];
        places[..healthy].fill("r1/z1/s1");
        places.push("r2/z1/s1");
        percents(&failover(&places, &[], &[]), &Ask::default(), idle)[..10].iter().sum()
    };
    for (healthy, expected) in [(10, 100), (8, 100), (7, 98), (5, 70), (1, 14), (0, 0)] {
        near(&[near_healthy(healthy)], &[expected]);
    }
}

#[test]
fn locality_failover_from_and_to_name_the_next_region() {
    let places = ["!r1/z1/s1", "r2/z1/s1", "r3/z1/s1"];
    assert_eq!(percents(&failover(&places, &[("r1", "r3")], &[]), &Ask::default(), idle), [0, 0, 100]);
    near(&percents(&failover(&places, &[], &[]), &Ask::default(), idle), &[0, 50, 50]);
    assert_eq!(percents(&failover(&places[..2], &[("r1", "r3")], &[]), &Ask::default(), idle), [0, 100]);
}

#[test]
fn failover_priority_counts_labels_to_the_first_mismatch() {
    let zone = ("topology.kubernetes.io/zone", None);
    let region = ("topology.kubernetes.io/region", None);
    let places = ["r1/z2/", "r2/z1/", "r2/z2/"];
    assert_eq!(percents(&failover(&places, &[], &[region, zone]), &Ask::default(), idle), [100, 0, 0]);
    assert_eq!(percents(&failover(&places, &[], &[zone, region]), &Ask::default(), idle), [0, 100, 0]);
}

#[test]
fn failover_priority_with_a_value_compares_with_it() {
    let mut two = located(&["", ""]);
    for (one, version) in two.iter_mut().zip(["v1", "v2"]) {
        Arc::make_mut(&mut one.workload).labels = [("version".into(), version.into())].into();
    }
    let labels = vec![(Arc::from("version"), Some(Arc::from("v2")))];
    let pool = Pool { locality: LocalityPreference::Failover { regions: vec![], labels }, ..pool(Balancer::Random) };
    let endpoints = Endpoints::new(&pool, Some(&workload("own", "")), two);
    assert_eq!(percents(&endpoints, &Ask::default(), idle), [0, 100]);
}

#[test]
fn without_an_own_place_all_are_equally_near() {
    let preference = LocalityPreference::Failover { regions: vec![], labels: vec![] };
    let endpoints = Endpoints::new(&Pool { locality: preference, ..pool(Balancer::Random) }, None, located(&["r1", "r2"]));
    near(&percents(&endpoints, &Ask::default(), idle), &[50, 50]);
}

fn place(text: &str) -> LocalityMatch {
    let part = |at: usize| text.split('/').nth(at).filter(|part| *part != "*").map(Arc::from);
    LocalityMatch { region: part(0), zone: part(1), subzone: part(2) }
}

fn distribute(rules: &[(&str, &[(&str, u32)])], places: &[&str]) -> Endpoints {
    let to = |shares: &[(&str, u32)]| shares.iter().map(|(to, share)| (place(to), *share)).collect();
    let rules = rules.iter().map(|(from, shares)| Distribution { from: place(from), to: to(shares) }).collect();
    let pool = Pool { locality: LocalityPreference::Distribute(rules), ..pool(Balancer::Random) };
    Endpoints::new(&pool, Some(&workload("own", "r1/z1/s1")), located(places))
}

#[test]
fn distribute_gives_each_locality_its_share_and_others_nothing() {
    let rules: &[(&str, &[(&str, u32)])] = &[("r9/*", &[("r1/*", 100)]), ("r1/z1/*", &[("r1/z1/*", 80), ("r2/*", 20)])];
    near(&percents(&distribute(rules, &["r1/z1/s1", "r2/z1/", "r2/z2/", "r1/z2/"]), &Ask::default(), idle), &[80, 10, 10, 0]);
}

#[test]
fn distribute_moves_the_share_of_what_is_missing_or_ejected() {
    let rules: &[(&str, &[(&str, u32)])] = &[("r1/*", &[("r1/*", 80), ("r2/*", 20)])];
    assert_eq!(percents(&distribute(rules, &["!r1/z1/s1", "r2/z1/"]), &Ask::default(), idle), [0, 100]);
    assert_eq!(percents(&distribute(rules, &["r2/z1/"]), &Ask::default(), idle), [100]);
    assert_eq!(distribute(rules, &["r3/z1/"]).pick(&Ask::default(), idle, &mut Draw::new(1)), NONE);
}

#[test]
fn distribute_without_a_rule_for_the_caller_is_even() {
    near(&percents(&distribute(&[("r9/*", &[("r1/*", 100)])], &["r1/z1/", "r2/z1/"]), &Ask::default(), idle), &[50, 50]);
}

#[test]
fn warmup_share_grows_from_minimum_percent_by_aggression() {
    let warmup = Warmup { duration: Duration::from_secs(100), minimum_percent: 10.0, aggression: 1.0 };
    let share = |warmup: &Warmup, age| (warmup_share(warmup, Duration::from_secs(age)) * 100.0).round() as u32;
    assert_eq!([0, 5, 50, 100, 1000].map(|age| share(&warmup, age)), [10, 10, 50, 100, 100]);
    let faster = Warmup { aggression: 2.0, ..warmup };
    assert_eq!([0, 25, 49].map(|age| share(&faster, age)), [10, 50, 70]);
}

#[test]
fn warmup_gives_new_endpoints_less() {
    let warmup = Some(Warmup { duration: Duration::from_secs(100), minimum_percent: 10.0, aggression: 1.0 });
    let mut two = candidates(&[1, 1]);
    two[1].since = Some(Duration::from_secs(1000));
    for (balancer, old, new) in [(Balancer::RoundRobin, 75, 25), (Balancer::LeastRequest, 75, 25), (Balancer::Random, 50, 50)] {
        let endpoints = Endpoints::new(&Pool { warmup, ..pool(balancer) }, None, two.clone());
        // At a third of the way 1 and 1/3 share 4/3.
        let at = |seconds| percents(&endpoints, &Ask { now: Duration::from_millis(seconds), ..Ask::default() }, idle);
        near(&at(1_033_333), &[old, new]);
        near(&at(1_100_000), &[50, 50]);
    }
}

#[test]
fn retry_ignore_previous_hosts_avoids_them() {
    for balancer in [Balancer::LeastRequest, Balancer::RoundRobin] {
        let endpoints = endpoints(balancer, candidates(&[1, 1, 1]));
        let found = percents(&endpoints, &Ask { tried: &[0, 2], ..Ask::default() }, |place| u32::from(place == 1));
        assert!(found[1] >= 90, "{found:?}");
    }
    let one = endpoints(Balancer::LeastRequest, candidates(&[1]));
    assert_eq!(one.pick(&Ask { tried: &[0], ..Ask::default() }, idle, &mut Draw::new(1)), Ok(0));
}

#[test]
fn retry_remote_localities_leaves_tried_priorities_every_second_try() {
    let endpoints = failover(&["r1/z1/s1", "r1/z1/s1", "r1/z2/s1", "r2/z1/s1"], &[], &[]);
    let picked = |tried: &[usize]| percents(&endpoints, &Ask { tried, other_priorities: true, ..Ask::default() }, idle);
    assert_eq!(picked(&[0])[2..], [0, 0]);
    assert_eq!(picked(&[0, 1]), [0, 0, 100, 0]);
    assert_eq!(picked(&[0, 1, 2]), [0, 0, 100, 0]);
    assert_eq!(picked(&[0, 1, 2, 2]), [0, 0, 0, 100]);
    let everywhere = picked(&[0, 2, 3, 3]);
    assert_eq!(everywhere[2..], [0, 0]);
}

proptest! {
    #[test]
    fn a_pick_is_a_usable_endpoint_whenever_there_is_one(
        members in prop::collection::vec((0u32..4, any::<bool>(), prop::sample::select(&["r1/z1/s1", "r1/z2/", "r2/z1/"][..])), 0..12),
        balancer in prop::sample::select(vec![Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random, ring(32), maglev(31)]),
        preference in prop::sample::select(vec![LocalityPreference::None, LocalityPreference::Failover { regions: vec![], labels: vec![] }]),
        hash in prop::option::of(any::<u64>()),
        turn: u64,
        seed: u64,
        tried in prop::collection::vec(0usize..12, 0..5),
        other_priorities: bool,
    ) {
        let members: Vec<Candidate> = members.into_iter().enumerate()
            .map(|(number, (weight, healthy, at))| Candidate { weight, healthy, ..candidate(number, at) }).collect();
        let usable = |one: &Candidate| one.weight > 0 && one.healthy;
        let endpoints = Endpoints::new(&Pool { locality: preference, ..pool(balancer) }, Some(&workload("own", "r1/z1/s1")), members.clone());
        let ask = Ask { hash, turn, tried: &tried, other_priorities, ..Ask::default() };
        match endpoints.pick(&ask, |place| place as u32, &mut Draw::new(seed)) {
            Ok(place) => prop_assert!(usable(&members[place])),
            Err(PickFailure::NoHealthyUpstream) => prop_assert!(!members.iter().any(usable)),
        }
    }
}
