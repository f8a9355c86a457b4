//! A request's body: read once from the caller, sent once for each try.
//!
//! While a route may try again, what was read is kept up to a limit, and while the worker's [`Budget`] for all bodies lasts; beyond either
//! the body can be sent only once.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    BodyError,
    budget::{Budget, Share},
};

/// What a kept frame counts as, at least: its place in the list, and what the allocator takes for it.
const KEPT_FRAME_BYTES: usize = 256;
/// Smaller frames are copied when they are kept, rather than holding the buffer that they were read into.
const COPY_BYTES: usize = 4096;

/// The body of a request that was received. It makes a [`RequestBody`] for each try.
#[derive(Debug)]
pub struct Upload {
    /// `None` when there is no body at all.
    source: Option<Rc<RefCell<Source>>>,
}

#[derive(Debug)]
struct Source {
    incoming: Incoming,
    length: SizeHint,
    kept: Vec<Kept>,
    /// The next of the kept frames that the reader sends.
    next: usize,
    /// How much may still be kept of this body.
    room: usize,
    /// What is kept of the worker's budget.
    share: Share,
    /// Not everything that was read is kept.
    is_cut: bool,
    /// Something was read.
    is_begun: bool,
    bytes: u64,
    is_ended: bool,
    is_broken: bool,
    /// The caller was asked for more and has not sent it.
    waits_for_caller: bool,
    /// When something came last.
    progressed: Option<Instant>,
    /// Who wants to know when something comes.
    watcher: Option<Waker>,
    /// The number of the body that may read: that of the last try.
    reader: u32,
}

#[derive(Debug, Clone)]
enum Kept {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

impl Kept {
    fn frame(&self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data.clone()),
            Self::Trailers(trailers) => Frame::trailers((**trailers).clone()),
        }
    }
}

impl Upload {
    /// Wraps what arrives, keeping at most `limit` bytes of it for tries after the first, and no more than `budget` leaves.
    pub fn new(incoming: Incoming, limit: usize, budget: &Rc<Budget>) -> Self {
        if incoming.is_end_stream() {
            return Self { source: None };
        }
        let source = Source {
            length: incoming.size_hint(),
            incoming,
            kept: Vec::new(),
            next: 0,
            room: limit,
            share: budget.share(),
            is_cut: limit == 0,
            is_begun: false,
            bytes: 0,
            is_ended: false,
            is_broken: false,
            waits_for_caller: false,
            progressed: None,
            watcher: None,
            reader: 0,
        };
        Self { source: Some(Rc::new(RefCell::new(source))) }
    }

    /// The body for a try: from the start. One that was made before reads nothing from now on, and fails if it is asked to.
    pub fn body(&self) -> RequestBody {
        let Some(source) = &self.source else { return RequestBody::empty() };
        let mut borrowed = source.borrow_mut();
        borrowed.reader += 1;
        borrowed.next = 0;
        RequestBody::reading(Reading::Live { source: source.clone(), number: borrowed.reader })
    }

    /// Whether all of it can be sent again: because it is kept, or because nothing was read.
    pub fn is_replayable(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let source = source.borrow();
            !source.is_broken && (!source.is_cut || !source.is_begun)
        })
    }

    /// There will be no further try, and no copy: nothing of it is kept from now on, but for what the last try has still to send.
    pub fn keep_nothing(&self) {
        if let Some(source) = &self.source {
            let mut source = source.borrow_mut();
            source.is_cut = true;
            source.forget_sent();
        }
    }

    /// How many bytes were read.
    pub fn bytes(&self) -> u64 {
        self.source.as_ref().map_or(0, |source| source.borrow().bytes)
    }

    /// Whether the caller broke off while sending it.
    pub fn is_broken(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.borrow().is_broken)
    }

    /// Since when others than the caller are to blame for the time that passes: `None` if always. Pending while the caller is waited for.
    pub fn poll_waiting_for_others(&self, cx: &mut Context<'_>) -> Poll<Option<Instant>> {
        let Some(source) = &self.source else { return Poll::Ready(None) };
        let mut source = source.borrow_mut();
        if source.waits_for_caller && !source.is_complete() {
            source.watcher = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(source.progressed)
    }

    /// A copy for a mirror, when the whole of it was read and kept, and the budget lasts for it.
    pub fn copy(&self) -> Option<RequestBody> {
        let Some(source) = &self.source else { return Some(RequestBody::empty()) };
        let source = source.borrow();
        let is_whole = (source.is_ended || source.incoming.is_end_stream()) && !source.is_cut && !source.is_broken;
        let share = source.share.again().filter(|_| is_whole)?;
        Some(RequestBody::reading(Reading::Copy { kept: source.kept.clone().into_iter(), _share: share }))
    }

    /// A handle on the same body, for counting.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { source: self.source.clone() }
    }
}

impl Source {
    /// Whether the caller has sent all of it. Trailers may still come.
    fn is_complete(&self) -> bool {
        self.is_ended || self.incoming.is_end_stream() || self.length.exact() == Some(self.bytes)
    }

    /// Lets go of what is kept once all of it was sent and nobody will ask for it again.
    fn forget_sent(&mut self) {
        if self.is_cut && self.next >= self.kept.len() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.kept = Vec::new();
        self.next = 0;
        self.share.clear();
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        if self.is_broken {
            return Poll::Ready(Some(Err(BodyError::Gone)));
        }
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        self.waits_for_caller = polled.is_pending();
        let frame = ready!(polled);
        self.progressed = Some(Instant::now());
        if let Some(waker) = self.watcher.take() {
            waker.wake();
        }
        match frame {
            Some(Ok(frame)) => {
                self.take(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.is_broken = true;
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            None => {
                self.is_ended = true;
                Poll::Ready(None)
            }
        }
    }

    /// Counts a frame, and keeps it while there is room.
    fn take(&mut self, frame: &Frame<Bytes>) {
        self.is_begun = true;
        self.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        if self.incoming.is_end_stream() {
            self.is_ended = true;
        }
        if self.is_cut {
            return;
        }
        let cost = cost(frame);
        if cost > self.room || !self.share.grow(cost) {
            self.is_cut = true;
            self.forget();
            return;
        }
        self.room -= cost;
        if let Some(data) = frame.data_ref() {
            let is_small = data.len() < COPY_BYTES;
            self.kept.push(Kept::Data(if is_small { Bytes::copy_from_slice(data) } else { data.clone() }));
        } else if let Some(trailers) = frame.trailers_ref() {
            self.kept.push(Kept::Trailers(Box::new(trailers.clone())));
        }
    }
}

/// What a frame counts as when it is kept.
fn cost(frame: &Frame<Bytes>) -> usize {
    let of_trailers = |trailers: &HeaderMap| trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let length = frame.data_ref().map(Bytes::len).or_else(|| frame.trailers_ref().map(of_trailers));
    length.unwrap_or(0).max(KEPT_FRAME_BYTES)
}

/// The body of one try; `None` is no body. Boxed: hyper has room for 64 requests in each connection to an endpoint, 20 KiB of memory, and
/// 16 with a body that is a pointer.
#[derive(Debug)]
pub struct RequestBody(Option<Box<Reading>>);

#[derive(Debug)]
enum Reading {
    /// What is kept, then what comes.
    Live { source: Rc<RefCell<Source>>, number: u32 },
    /// What was kept when all had come.
    Copy { kept: std::vec::IntoIter<Kept>, _share: Share },
}

impl RequestBody {
    /// No body.
    pub const fn empty() -> Self {
        Self(None)
    }

    fn reading(reading: Reading) -> Self {
        Self(Some(Box::new(reading)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (source, number) = match self.get_mut().0.as_deref_mut() {
            None => return Poll::Ready(None),
            Some(Reading::Copy { kept, .. }) => return Poll::Ready(kept.next().map(|kept| Ok(kept.frame()))),
            Some(Reading::Live { source, number }) => (source, number),
        };
        let mut source = source.borrow_mut();
        if source.reader != *number {
            // Another try reads: two would take the caller's words out of each other's mouth.
            return Poll::Ready(Some(Err(BodyError::Gone)));
        }
        if let Some(frame) = source.kept.get(source.next).map(Kept::frame) {
            source.next += 1;
            source.forget_sent();
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = ready!(source.poll_next(cx));
        source.next = source.kept.len();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self.0.as_deref() {
            None => true,
            Some(Reading::Copy { kept, .. }) => kept.len() == 0,
            Some(Reading::Live { source, .. }) => {
                let source = source.borrow();
                source.next >= source.kept.len() && (source.is_ended || source.incoming.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.0.as_deref() {
            None => SizeHint::with_exact(0),
            Some(Reading::Copy { kept, .. }) => {
                let length = |kept: &Kept| if let Kept::Data(data) = kept { data.len() as u64 } else { 0 };
                SizeHint::with_exact(kept.as_slice().iter().map(length).sum())
            }
            // From the start it is as long as the caller said; what is left of it nobody asks for.
            Some(Reading::Live { source, .. }) => {
                let source = source.borrow();
                if source.next == 0 { source.length } else { SizeHint::default() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_on_its_way_to_a_connection_is_a_pointer() {
        assert_eq!(size_of::<RequestBody>(), size_of::<usize>());
    }
}
