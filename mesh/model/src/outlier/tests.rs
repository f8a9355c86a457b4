//! The algorithm of `traffic-api` §2.6, step by step, and what must hold whatever happens.

use proptest::prelude::*;

use super::*;

const fn settings() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 3,
        consecutive_gateway_errors: 0,
        consecutive_local_origin_failures: 5,
        split_local_origin: false,
        error_statuses: Vec::new(),
        interval: Duration::from_secs(1),
        base_ejection_time: Duration::from_secs(5),
        max_ejection_percent: 100,
    }
}

fn detector(settings: OutlierDetection, hosts: u32) -> Detector<u32> {
    let mut detector = Detector::new(settings);
    detector.set_hosts(0..hosts);
    detector
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Which of the outcomes, from 1, ejected the host.
fn ejecting(detector: &mut Detector<u32>, outcomes: &[Outcome]) -> Option<usize> {
    outcomes.iter().position(|outcome| detector.record(&0, *outcome, at(0)).is_some()).map(|at| at + 1)
}

/// Ejects host 0 at that time.
fn eject(detector: &mut Detector<u32>, now: Duration) -> Ejected {
    (0..100).find_map(|_| detector.record(&0, Outcome::Response(500), now)).unwrap()
}

#[test]
fn consecutive_5xx_errors_ejects_at_the_threshold_at_once() {
    let mut detector = detector(settings(), 1);
    assert_eq!(ejecting(&mut detector, &[Outcome::Response(500); 5]), Some(3));
    assert!(detector.is_ejected(&0));
    assert_eq!(detector.ejected(), 1);
}

#[test]
fn an_ejected_endpoint_says_when_its_time_is_over() {
    let mut detector = detector(settings(), 2);
    eject(&mut detector, at(7));
    assert_eq!((detector.returns_at(&0), detector.returns_at(&1)), (Some(at(12)), None));
    detector.sweep(at(12));
    eject(&mut detector, at(20));
    assert_eq!(detector.returns_at(&0), Some(at(30)), "twice the time, the second time");
}

#[test]
fn consecutive_5xx_errors_must_be_in_a_row() {
    let (bad, good) = (Outcome::Response(503), Outcome::Response(404));
    assert_eq!(ejecting(&mut detector(settings(), 1), &[bad, bad, good, bad, bad, good, bad, bad]), None);
}

#[test]
fn consecutive_5xx_errors_0_never_ejects() {
    let settings = OutlierDetection { consecutive_5xx: 0, ..settings() };
    assert_eq!(ejecting(&mut detector(settings, 1), &[Outcome::Response(500); 50]), None);
}

#[test]
fn consecutive_gateway_errors_counts_502_503_504_only() {
    let settings = || OutlierDetection { consecutive_5xx: 0, consecutive_gateway_errors: 3, ..settings() };
    let codes = |codes: &[u16]| codes.iter().map(|code| Outcome::Response(*code)).collect::<Vec<_>>();
    assert_eq!(ejecting(&mut detector(settings(), 1), &codes(&[502, 503, 504])), Some(3));
    assert_eq!(ejecting(&mut detector(settings(), 1), &codes(&[502, 503, 500, 504, 502, 200, 503, 504])), None);
}

#[test]
fn both_counters_run_side_by_side() {
    let settings = OutlierDetection { consecutive_5xx: 4, consecutive_gateway_errors: 2, ..settings() };
    let mut detector = detector(settings, 1);
    let causes: Vec<_> = [500, 503, 500, 503].iter().filter_map(|code| detector.record(&0, Outcome::Response(*code), at(0))).collect();
    assert_eq!(causes.iter().map(|ejected| ejected.cause).collect::<Vec<_>>(), [Cause::Consecutive5xx]);
}

#[test]
fn local_failures_count_as_5xx_unless_split() {
    for outcome in [Outcome::ConnectFailure, Outcome::Reset, Outcome::Timeout, Outcome::Broken] {
        assert_eq!(ejecting(&mut detector(settings(), 1), &[outcome; 3]), Some(3), "{outcome:?}");
    }
    let gateway = OutlierDetection { consecutive_5xx: 0, consecutive_gateway_errors: 2, ..settings() };
    assert_eq!(ejecting(&mut detector(gateway.clone(), 1), &[Outcome::ConnectFailure, Outcome::Timeout]), Some(2));
    assert_eq!(ejecting(&mut detector(gateway, 1), &[Outcome::ConnectFailure, Outcome::Broken, Outcome::Reset]), None);
}

#[test]
fn a_connection_alone_forgives_nothing_unless_split() {
    assert_eq!(ejecting(&mut detector(settings(), 1), &[Outcome::Response(500), Outcome::Connected].repeat(3)), Some(5));
    assert_eq!(ejecting(&mut detector(settings(), 1), &[Outcome::Response(500), Outcome::Served].repeat(3)), None);
}

#[test]
fn split_external_local_origin_errors_keeps_them_apart() {
    let split = || OutlierDetection { split_local_origin: true, consecutive_local_origin_failures: 2, ..settings() };
    let (connect, bad) = (Outcome::ConnectFailure, Outcome::Response(500));
    assert_eq!(ejecting(&mut detector(split(), 1), &[bad, bad, connect]), None);
    assert_eq!(ejecting(&mut detector(split(), 1), &[bad, Outcome::Reset, Outcome::Timeout]), Some(3));
    assert_eq!(ejecting(&mut detector(split(), 1), &[Outcome::Reset, bad, Outcome::Timeout]), None, "it was reached in between");
    assert_eq!(ejecting(&mut detector(split(), 1), &[Outcome::Broken; 3]), Some(3));
}

#[test]
fn consecutive_local_origin_failures_end_with_a_connection() {
    let split = || OutlierDetection { split_local_origin: true, consecutive_local_origin_failures: 2, ..settings() };
    for success in [Outcome::Connected, Outcome::Served, Outcome::Response(200), Outcome::Response(404)] {
        assert_eq!(ejecting(&mut detector(split(), 1), &[Outcome::ConnectFailure, success].repeat(5)), None, "{success:?}");
    }
    let mut detector = detector(split(), 1);
    detector.record(&0, Outcome::ConnectFailure, at(0));
    let ejected = detector.record(&0, Outcome::ConnectFailure, at(0)).unwrap();
    assert_eq!(ejected.cause, Cause::ConsecutiveLocalOriginFailures);
}

#[test]
fn outlier_detection_http_error_codes_replace_5xx() {
    let listed = || OutlierDetection { error_statuses: vec![429, 503], ..settings() };
    assert_eq!(ejecting(&mut detector(listed(), 1), &[Outcome::Response(429), Outcome::Response(503), Outcome::Response(429)]), Some(3));
    assert_eq!(ejecting(&mut detector(listed(), 1), &[Outcome::Response(500); 9]), None);
}

#[test]
fn max_ejection_percent_counts_the_next_one() {
    for (hosts, percent, ejected) in [(10, 10, 1), (9, 10, 0), (1, 99, 0), (1, 100, 1), (4, 50, 2), (3, 50, 1), (3, 33, 1), (3, 32, 0)] {
        let mut detector = detector(OutlierDetection { max_ejection_percent: percent, ..settings() }, hosts);
        for host in 0..hosts {
            for _ in 0..3 {
                detector.record(&host, Outcome::Response(500), at(0));
            }
        }
        assert_eq!(detector.ejected(), ejected, "{percent} percent of {hosts}");
        assert_eq!(detector.overflows(), u64::from(hosts - ejected));
    }
}

#[test]
fn a_refused_ejection_starts_the_counter_again() {
    let mut detector = detector(OutlierDetection { max_ejection_percent: 10, ..settings() }, 2);
    assert_eq!(ejecting(&mut detector, &[Outcome::Response(500); 3]), None);
    detector.configure(settings());
    assert_eq!(ejecting(&mut detector, &[Outcome::Response(500); 3]), Some(3));
}

#[test]
fn interval_is_when_endpoints_return() {
    let mut detector = detector(settings(), 1);
    assert_eq!(eject(&mut detector, at(10)).duration, at(5));
    assert!(detector.sweep(at(14)).is_empty());
    assert!(detector.is_ejected(&0));
    assert_eq!(detector.sweep(at(15)), [0]);
    assert_eq!((detector.is_ejected(&0), detector.ejected()), (false, 0));
}

#[test]
fn counters_start_again_after_a_return() {
    let mut detector = detector(settings(), 1);
    eject(&mut detector, at(0));
    for _ in 0..2 {
        assert_eq!(detector.record(&0, Outcome::Response(500), at(1)), None);
    }
    detector.sweep(at(5));
    assert_eq!(ejecting(&mut detector, &[Outcome::Response(500); 3]), Some(3));
}

#[test]
fn base_ejection_time_grows_with_each_ejection_in_a_row() {
    let mut detector = detector(settings(), 1);
    let mut now = at(0);
    for n in 1..4 {
        let ejected = eject(&mut detector, now);
        assert_eq!((ejected.duration, ejected.backoff), (at(5 * u64::from(n)), n));
        now += ejected.duration;
        assert_eq!(detector.sweep(now), [0]);
    }
}

#[test]
fn backoff_decays_by_one_an_interval() {
    let mut detector = detector(settings(), 1);
    for now in [0, 100] {
        eject(&mut detector, at(now));
        detector.sweep(at(now + 50));
    }
    // The second return was at 150; the decay starts an interval later.
    detector.sweep(at(150));
    detector.sweep(at(151));
    assert_eq!(eject(&mut detector, at(151)).backoff, 2);
    detector.sweep(at(200));
    (201..210).for_each(|now| drop(detector.sweep(at(now))));
    assert_eq!(eject(&mut detector, at(210)).backoff, 1);
}

#[test]
fn an_ejection_is_never_longer_than_300_seconds_or_the_base() {
    for (base, longest) in [(100, 300), (400, 400)] {
        let mut detector = detector(OutlierDetection { base_ejection_time: at(base), ..settings() }, 1);
        let mut now = at(0);
        let mut last = at(0);
        for _ in 0..8 {
            last = eject(&mut detector, now).duration;
            now += last;
            detector.sweep(now);
        }
        assert_eq!(last, at(longest));
    }
}

#[test]
fn hosts_that_leave_take_their_ejection_with_them() {
    let mut detector = detector(settings(), 2);
    eject(&mut detector, at(0));
    detector.set_hosts([0, 1, 2]);
    assert_eq!((detector.ejected(), detector.is_ejected(&0)), (1, true));
    detector.set_hosts([1]);
    assert_eq!(detector.ejected(), 0);
    assert_eq!(detector.record(&0, Outcome::Response(500), at(0)), None);
    detector.set_hosts([0, 1]);
    assert!(!detector.is_ejected(&0));
}

#[test]
fn grpc_statuses_count_as_their_http_status() {
    for (code, status) in [(0, 200), (1, 499), (4, 504), (7, 403), (12, 501), (13, 500), (14, 503), (2, 500), (99, 500)] {
        assert_eq!(status_of_grpc(code), status, "{code}");
    }
}

proptest! {
    #[test]
    fn ejections_never_exceed_the_percentage(
        percent in 0u8..=100,
        hosts in 1u32..20,
        events in prop::collection::vec((0u32..20, prop::sample::select(&[200u16, 500, 503][..]), any::<bool>()), 0..300),
    ) {
        let mut detector = detector(OutlierDetection { max_ejection_percent: percent, ..settings() }, hosts);
        for (now, (host, status, sweep)) in (0u64..).zip(events) {
            detector.record(&host, Outcome::Response(status), at(now));
            if sweep {
                for host in detector.sweep(at(now)) {
                    prop_assert!(!detector.is_ejected(&host));
                }
            }
            let ejected = (0..hosts).filter(|host| detector.is_ejected(host)).count() as u32;
            prop_assert_eq!(ejected, detector.ejected());
            prop_assert!(ejected * 100 / hosts <= u32::from(percent));
        }
    }

    #[test]
    fn an_ejected_endpoint_returns_once_it_is_left_in_peace(base in 1u64..1000, interval in 1u64..60, again in 1u32..6) {
        let settings = OutlierDetection { base_ejection_time: at(base), interval: at(interval), ..settings() };
        let mut detector = detector(settings, 1);
        let mut now = at(0);
        for _ in 0..again {
            let ejected = eject(&mut detector, now);
            let end = now + ejected.duration;
            while detector.is_ejected(&0) {
                now += at(interval);
                let returned = !detector.sweep(now).is_empty();
                prop_assert_eq!(returned, now >= end);
            }
            prop_assert!(now < end + at(interval));
        }
    }
}
