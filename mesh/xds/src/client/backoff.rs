//! How long to wait before the next stream.

use std::time::Duration;

/// The wait after a routine ending, and what doubling starts from.
const SHORTEST: Duration = Duration::from_millis(10);
/// The wait is doubled up to this (Istio's proxy has the same limit).
const LONGEST: Duration = Duration::from_secs(15);

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// As servers do from time to time.
    Routine,
    /// Something is wrong.
    Failed,
}

/// Doubles from attempt to attempt, until a stream was good for something.
#[derive(Debug)]
pub(super) struct Backoff {
    last: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { last: SHORTEST }
    }
}

impl Backoff {
    /// The wait after a stream that ended this way; `productive` if it brought at least one response; `jitter` is a factor around 1.
    ///
    /// A server that opens streams and ends them at once, however politely, is waited for longer and longer too: Istio's proxy tries
    /// again without pause there.
    pub(super) fn after(&mut self, ending: Ending, productive: bool, jitter: f64) -> Duration {
        if productive {
            self.last = SHORTEST;
        }
        if !(productive && ending == Ending::Routine) {
            self.last = (self.last * 2).min(LONGEST);
        }
        self.last.mul_f64(jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_double_the_wait_up_to_the_limit() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..12).map(|_| backoff.after(Ending::Failed, false, 1.0).as_millis() as u64).collect();
        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 15_000, 15_000]);
        assert_eq!(backoff.after(Ending::Failed, true, 1.0), Duration::from_millis(20), "a productive stream resets it");
    }

    #[test]
    fn a_routine_ending_is_short_only_after_a_productive_stream() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.after(Ending::Routine, true, 1.0), SHORTEST);
        assert_eq!(backoff.after(Ending::Routine, true, 1.0), SHORTEST);
        let waits: Vec<u64> = (0..3).map(|_| backoff.after(Ending::Routine, false, 1.0).as_millis() as u64).collect();
        assert_eq!(waits, [20, 40, 80], "no hot loop against a server that hangs up at once");
        assert_eq!(backoff.after(Ending::Failed, false, 0.8), Duration::from_millis(128));
    }
}
