//! Log lines that strangers can cause: a few at once, then few a minute, with the number of those left out.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many lines are written before the rest is left out.
const BURST: u32 = 10;
/// For how long the rest is left out.
const PERIOD: Duration = Duration::from_secs(10);

/// Decides which of many equal lines are written.
#[derive(Debug, Default)]
pub(crate) struct Sparing(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    begun: Option<Instant>,
    said: u32,
    unsaid: u64,
}

impl Sparing {
    /// Whether to write one more line now; `Some` with the number of lines that were left out before it.
    pub(crate) fn say(&self) -> Option<u64> {
        self.say_at(Instant::now())
    }

    fn say_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.begun.is_none_or(|begun| now.duration_since(begun) >= PERIOD) {
            state.begun = Some(now);
            state.said = 0;
        }
        if state.said >= BURST {
            state.unsaid += 1;
            return None;
        }
        state.said += 1;
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_number() {
        let (sparing, start) = (Sparing::default(), Instant::now());
        let said = (0..1000).filter(|_| sparing.say_at(start).is_some()).count();
        assert_eq!(said, 10);
        assert_eq!(sparing.say_at(start + PERIOD / 2), None);
        assert_eq!(sparing.say_at(start + PERIOD), Some(991));
        assert_eq!(sparing.say_at(start + PERIOD), Some(0));
    }
}
