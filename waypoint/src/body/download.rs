//! A response's body. It carries the request's report: when it has been sent, or is dropped, the request is over.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::BodyError;
use crate::{
    reply::grpc_status_in,
    stages::{forward::deadline::Deadline, report::Report},
    upstream::{connections::Lease, counts::Held, pools::Active},
};

/// Where a response's body comes from.
#[derive(Debug)]
pub enum Payload {
    /// From here.
    Local(Option<Bytes>),
    /// From an endpoint.
    Upstream(Box<Relayed>),
}

/// A body that an endpoint sends.
#[derive(Debug)]
pub struct Relayed {
    /// The body.
    pub body: Incoming,
    /// The connection that it comes on: free for others when the body has ended.
    pub lease: Option<Lease>,
    /// Its places in the pool.
    pub held: Option<(Held, Active)>,
    /// When it must have ended.
    pub deadline: Option<Deadline>,
}

impl Payload {
    /// A body of our own.
    pub fn local(body: Bytes) -> Self {
        Self::Local((!body.is_empty()).then_some(body))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(body) => body.is_none(),
            Self::Upstream(relayed) => relayed.body.is_end_stream(),
        }
    }
}

impl Relayed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)));
        }
        match &mut self.deadline {
            Some(deadline) => deadline.poll(cx).map(|()| Some(Err(BodyError::Timeout))),
            None => Poll::Pending,
        }
    }

    /// The connection may carry another request.
    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        self.held = None;
    }
}

/// The body of an answer, with the report of its request.
#[derive(Debug)]
pub struct ResponseBody {
    payload: Payload,
    /// `None` where another goes on with it: an upgrade.
    report: Option<Box<Report>>,
    is_ended: bool,
}

impl ResponseBody {
    /// The answer's body. From here on the report is this body's.
    pub fn new(payload: Payload, report: Box<Report>) -> Self {
        Self { payload, report: Some(report), is_ended: false }
    }

    /// No body, and the request is not over.
    pub fn unreported() -> Self {
        Self { payload: Payload::Local(None), report: None, is_ended: false }
    }

    fn end(&mut self) {
        if !self.is_ended {
            self.is_ended = true;
            if let Some(report) = &mut self.report {
                report.completed();
            }
            if let Payload::Upstream(relayed) = &mut self.payload {
                relayed.give_back();
            }
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.payload {
            Payload::Local(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Payload::Upstream(relayed) => relayed.poll_frame(cx),
        };
        match (&frame, &mut this.report) {
            (Poll::Ready(Some(Ok(frame))), Some(report)) => {
                if let Some(data) = frame.data_ref() {
                    report.sent(data.len());
                } else if let Some(status) = frame.trailers_ref().and_then(grpc_status_in) {
                    report.grpc_status(status);
                }
            }
            (Poll::Ready(Some(Err(error))), Some(report)) => {
                this.is_ended = true;
                report.broke_off(error);
            }
            (Poll::Ready(None), _) => this.end(),
            (Poll::Ready(Some(_)) | Poll::Pending, _) => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.payload {
            Payload::Local(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Payload::Upstream(relayed) => relayed.body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // HTTP stops asking for a body whose length it knows when it has all of it, and never begins where there is none.
        if self.payload.is_end_stream() {
            self.end();
        }
    }
}
