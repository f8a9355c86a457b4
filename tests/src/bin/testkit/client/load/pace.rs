//! When the next request is due: at once after the last answer, or at a rate that does not wait for answers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

/// When a caller's requests are due.
pub(super) enum Pace {
    /// Whenever the one before is answered.
    Closed,
    /// One in each interval.
    Fixed(Box<Clock>),
}

/// A rate of one caller.
pub(super) struct Clock {
    /// tokio's own timers are right to a millisecond only, which at 10 000 requests a second makes bursts of ten.
    timer: AsyncFd<Timer>,
    interval: Duration,
    next: Instant,
}

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Pace {
    /// The pace of caller `number` of `callers`, which make `per_second` requests together; their requests are spread evenly.
    pub(super) fn new(per_second: Option<f64>, number: usize, callers: usize, from: Instant) -> io::Result<Self> {
        let Some(per_second) = per_second else { return Ok(Self::Closed) };
        let interval = Duration::from_secs_f64(callers as f64 / per_second.max(0.001));
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let next = from + interval.mul_f64(number as f64 / callers as f64);
        Ok(Self::Fixed(Box::new(Clock { timer: watched(Timer(timer))?, interval, next })))
    }

    /// Waits for the next request, and says from when on its time counts. One that is overdue because the answer before came late
    /// counts from when it was due, so that a stall is not hidden by the requests that it kept from being sent; one that we ourselves
    /// woke up late for counts from now.
    pub(super) async fn due(&mut self) -> io::Result<Instant> {
        let clock = match self {
            Self::Closed => return Ok(Instant::now()),
            Self::Fixed(clock) => clock,
        };
        let due = clock.next;
        clock.next += clock.interval;
        match due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            None => Ok(due),
            Some(left) => {
                clock.sleep(left).await?;
                Ok(Instant::now())
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio cannot see that the timer keeps its descriptor")]
fn watched(timer: Timer) -> io::Result<AsyncFd<Timer>> {
    // SAFETY: a TimerFd gives the same open descriptor for as long as it lives, and it lives in the AsyncFd.
    Ok(unsafe { AsyncFd::register(timer) }?)
}

impl Clock {
    async fn sleep(&self, left: Duration) -> io::Result<()> {
        self.timer.get_ref().0.set(Expiration::OneShot(TimeSpec::from(left)), TimerSetTimeFlags::empty())?;
        loop {
            let mut ready = self.timer.readable().await?;
            match ready.try_io(|timer| timer.get_ref().0.wait().map_err(io::Error::from)) {
                Ok(done) => return done,
                Err(_not_yet) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_due_at_the_rate_and_late_ones_count_from_then() {
        let from = Instant::now();
        let mut pace = Pace::new(Some(1000.0), 1, 2, from).expect("timers can be had");
        let first = pace.due().await.expect("time passes");
        assert!(first >= from + Duration::from_millis(1), "half an interval after the other caller");
        std::thread::sleep(Duration::from_millis(10));
        let late = pace.due().await.expect("time passes");
        assert_eq!(late, from + Duration::from_millis(3), "it was due meanwhile");
        assert!(Pace::new(None, 0, 1, from).expect("no timer").due().await.expect("at once") >= from);
    }
}
