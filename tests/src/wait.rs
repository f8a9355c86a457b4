//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// The condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("waited {waited:?} for {what}")]
pub struct TimedOut {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub waited: Duration,
}

/// Looks until `condition` gives a value.
pub async fn until<T>(deadline: Duration, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> Result<T, TimedOut> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if started.elapsed() >= deadline {
            return Err(TimedOut { what: what.to_owned(), waited: started.elapsed() });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The same for code that may block its thread.
pub fn until_blocking<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T, TimedOut> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if started.elapsed() >= deadline {
            return Err(TimedOut { what: what.to_owned(), waited: started.elapsed() });
        }
        std::thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_the_value_or_says_what_it_waited_for() {
        let mut looks = 0;
        let found = until(Duration::from_secs(5), "three looks", async || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found.await.expect("in time"), 3);
        let error = until::<()>(Duration::from_millis(1), "nothing", async || None).await.expect_err("never");
        assert!(error.to_string().contains("for nothing"));
    }
}
