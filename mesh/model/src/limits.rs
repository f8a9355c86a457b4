//! Whether a pool takes one more (circuit breaking by DestinationRule `connectionPool`). What is under way is counted by the caller, per
//! pool and process; here is only decided. All requests count, whatever version of HTTP they speak.

use thiserror::Error;

use crate::pool::Limits;

/// What is under way in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnderWay {
    /// Connections, open or being opened.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending_requests: u32,
    /// Requests that have one.
    pub requests: u32,
    /// Retries, from their decision to their end.
    pub retries: u32,
}

/// The pool is full. 503 `UO` for a request; a retry is dropped without a flag; a connection of HTTP waits, one of TCP is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Overflow {
    /// `tcp.maxConnections`.
    #[error("all connections that the pool may have are in use")]
    Connections,
    /// `http.http1MaxPendingRequests`.
    #[error("as many requests as may wait for a connection are waiting")]
    PendingRequests,
    /// `http.http2MaxRequests`.
    #[error("as many requests as may be under way are")]
    Requests,
    /// `http.maxRetries`.
    #[error("as many retries as may be under way are")]
    Retries,
    /// `retryBudget`.
    #[error("the retries under way use up their share")]
    RetryBudget,
}

/// Whether a connection may be opened.
pub fn connection(limits: &Limits, under_way: &UnderWay) -> Result<(), Overflow> {
    below(under_way.connections, limits.max_connections, Overflow::Connections)
}

/// Whether a request may wait for a connection.
pub fn pending_request(limits: &Limits, under_way: &UnderWay) -> Result<(), Overflow> {
    below(under_way.pending_requests, limits.max_pending_requests, Overflow::PendingRequests)
}

/// Whether a request may be sent.
pub fn request(limits: &Limits, under_way: &UnderWay) -> Result<(), Overflow> {
    below(under_way.requests, limits.max_requests, Overflow::Requests)
}

/// Whether a request may be tried again. A budget replaces the plain limit: a share of what waits and what is under way, never fewer than
/// its minimum.
pub fn retry(limits: &Limits, under_way: &UnderWay) -> Result<(), Overflow> {
    let Some(budget) = &limits.retry_budget else {
        return below(under_way.retries, limits.max_retries, Overflow::Retries);
    };
    let busy = u64::from(under_way.requests) + u64::from(under_way.pending_requests);
    let share = (busy as f64 * budget.percent / 100.0) as u32;
    below(under_way.retries, Some(share.max(budget.minimum_concurrency)), Overflow::RetryBudget)
}

/// Whether a connection that has carried `requests` may carry another (`http.maxRequestsPerConnection`).
pub fn reuse(limits: &Limits, requests: u32) -> bool {
    limits.max_requests_per_connection.is_none_or(|limit| requests < limit)
}

fn below(count: u32, limit: Option<u32>, overflow: Overflow) -> Result<(), Overflow> {
    match limit {
        Some(limit) if count >= limit => Err(overflow),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::RetryBudget;

    const BUSY: UnderWay = UnderWay { connections: 3, pending_requests: 3, requests: 3, retries: 3 };

    #[test]
    fn without_limits_everything_is_taken() {
        let (limits, busy) =
            (Limits::default(), UnderWay { connections: u32::MAX, pending_requests: u32::MAX, requests: u32::MAX, retries: u32::MAX });
        for decide in [connection, pending_request, request, retry] {
            assert_eq!(decide(&limits, &busy), Ok(()));
        }
    }

    #[test]
    fn max_connections_counts_connections() {
        let limits = |limit| Limits { max_connections: Some(limit), ..Limits::default() };
        assert_eq!(connection(&limits(4), &BUSY), Ok(()));
        assert_eq!(connection(&limits(3), &BUSY), Err(Overflow::Connections));
    }

    #[test]
    fn http1_max_pending_requests_counts_those_that_wait() {
        let limits = |limit| Limits { max_pending_requests: Some(limit), ..Limits::default() };
        assert_eq!(pending_request(&limits(4), &BUSY), Ok(()));
        assert_eq!(pending_request(&limits(3), &BUSY), Err(Overflow::PendingRequests));
    }

    #[test]
    fn http2_max_requests_counts_those_under_way() {
        let limits = |limit| Limits { max_requests: Some(limit), ..Limits::default() };
        assert_eq!(request(&limits(4), &BUSY), Ok(()));
        assert_eq!(request(&limits(3), &BUSY), Err(Overflow::Requests));
    }

    #[test]
    fn max_retries_counts_retries() {
        let limits = |limit| Limits { max_retries: Some(limit), ..Limits::default() };
        assert_eq!(retry(&limits(4), &BUSY), Ok(()));
        assert_eq!(retry(&limits(3), &BUSY), Err(Overflow::Retries));
        assert_eq!(retry(&limits(0), &UnderWay::default()), Err(Overflow::Retries));
    }

    #[test]
    fn max_requests_per_connection_ends_keep_alive() {
        let limits = Limits { max_requests_per_connection: Some(2), ..Limits::default() };
        assert_eq!([0, 1, 2].map(|requests| reuse(&limits, requests)), [true, true, false]);
        assert!(reuse(&Limits::default(), u32::MAX));
    }

    fn budget(percent: f64, minimum_concurrency: u32) -> Limits {
        Limits { retry_budget: Some(RetryBudget { percent, minimum_concurrency }), max_retries: Some(0), ..Limits::default() }
    }

    #[test]
    fn retry_budget_is_a_share_of_active_and_pending() {
        let busy = |retries| UnderWay { requests: 15, pending_requests: 5, retries, ..UnderWay::default() };
        assert_eq!(retry(&budget(20.0, 0), &busy(3)), Ok(()));
        assert_eq!(retry(&budget(20.0, 0), &busy(4)), Err(Overflow::RetryBudget));
    }

    #[test]
    fn retry_budget_min_retry_concurrency_is_always_allowed() {
        let busy = |retries| UnderWay { requests: 1, retries, ..UnderWay::default() };
        assert_eq!(retry(&budget(20.0, 3), &busy(2)), Ok(()));
        assert_eq!(retry(&budget(20.0, 3), &busy(3)), Err(Overflow::RetryBudget));
    }
}
