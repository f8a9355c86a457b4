//! When to ask for a certificate again. Pure: time and chance are arguments.

use std::time::{Duration, SystemTime};

/// The first pause after a failure, and the least time between two requests.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between failures.
const RETRY_LAST: Duration = Duration::from_secs(150);
/// How much of a pause is chance, each way.
const RETRY_JITTER: f64 = 0.2;
/// How much of the lifetime is chance around its half, each way: certificates issued together are not renewed together.
const REFRESH_JITTER: f64 = 0.05;

/// When to renew: at half of the certificate's life, a little sooner or later by `chance` (from 0 to 1). Never sooner than a second
/// from now, so a clock that is wrong cannot make us storm the authority.
pub(super) fn refresh_at(not_before: SystemTime, not_after: SystemTime, now: SystemTime, chance: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let share = 0.5 + (chance - 0.5) * 2.0 * REFRESH_JITTER;
    let half = not_before + life.mul_f64(share);
    half.max(now + RETRY_FIRST)
}

/// How long to wait after the `failures`th failure in a row: 1 s, doubling to 150 s, ±20 % by `chance` (from 0 to 1), and not beyond
/// the life that is left in the certificate in use.
pub(super) fn retry_after(failures: u32, left: Option<Duration>, chance: f64) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)));
    let pause = doubled.min(RETRY_LAST).mul_f64(1.0 + (chance - 0.5) * 2.0 * RETRY_JITTER);
    match left {
        Some(left) if !left.is_zero() => pause.min(left.max(RETRY_FIRST)),
        _ => pause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn renewal_is_around_half_of_life() {
        for (now, chance, expected) in [
            (1000, 0.5, 1500),
            (1000, 0.0, 1450),
            (1000, 1.0, 1550),
            (1700, 0.5, 1701), // already past half: soon
            (900, 0.5, 1500),  // our clock is behind: as if it were right
            (5000, 0.5, 5001), // expired on arrival
        ] {
            assert_eq!(refresh_at(at(1000), at(2000), at(now), chance), at(expected), "{now} {chance}");
        }
        assert_eq!(refresh_at(at(2000), at(1000), at(1500), 0.5), at(2000), "a life that ends before it begins");
    }

    #[test]
    fn pauses_double_to_a_limit_and_end_with_the_certificate() {
        let seconds = Duration::from_secs;
        for (failures, left, expected) in [
            (1, None, 1),
            (2, None, 2),
            (3, None, 4),
            (8, None, 128),
            (9, None, 150),
            (u32::MAX, None, 150),
            (9, Some(seconds(40)), 40),
            (9, Some(seconds(0)), 150),
            (9, Some(Duration::from_millis(10)), 1),
        ] {
            assert_eq!(retry_after(failures, left, 0.5), seconds(expected), "{failures} {left:?}");
        }
        assert_eq!(retry_after(1, None, 0.0), Duration::from_millis(800));
        assert_eq!(retry_after(1, None, 1.0), Duration::from_millis(1200));
    }
}
