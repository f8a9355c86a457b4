//! A limit on time that begins when the caller has sent all of its request: a slow upload is not the endpoint's fault.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;

use super::ForwardError;
use crate::body::Upload;

/// A limit that may be running.
#[derive(Debug)]
pub struct Deadline {
    limit: Duration,
    upload: Upload,
    running: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// A limit that begins with the end of `upload`.
    pub fn new(limit: Duration, upload: Upload) -> Self {
        Self { limit, upload, running: None }
    }

    /// How long it is.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Ready when it is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.running.is_none() {
            if self.upload.poll_ended(cx).is_pending() {
                return Poll::Pending;
            }
            self.running = Some(Box::pin(tokio::time::sleep(self.limit)));
        }
        match &mut self.running {
            Some(running) => running.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Waits until the route's time is over, for ever without a limit.
pub async fn expired(deadline: Option<&mut Deadline>) -> ForwardError {
    match deadline {
        Some(deadline) => {
            poll_fn(|cx| deadline.poll(cx)).await;
            ForwardError::Timeout { after: deadline.limit }
        }
        None => std::future::pending().await,
    }
}
