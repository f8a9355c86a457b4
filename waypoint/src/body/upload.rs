//! A request's body: read once from the caller, sent once for each try.
//!
//! While a route may try again, what was read is kept up to a limit; beyond it the body can be sent only once.

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

use super::BodyError;

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
    /// How much may still be kept.
    room: usize,
    /// Not everything that was read is kept.
    is_cut: bool,
    bytes: u64,
    is_ended: bool,
    is_broken: bool,
    waits_for_end: Option<Waker>,
}

#[derive(Debug, Clone)]
enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Upload {
    /// Wraps what arrives, keeping at most `limit` bytes of it for tries after the first.
    pub fn new(incoming: Incoming, limit: usize) -> Self {
        if incoming.is_end_stream() {
            return Self { source: None };
        }
        let source = Source {
            length: incoming.size_hint(),
            incoming,
            kept: Vec::new(),
            room: limit,
            is_cut: limit == 0,
            bytes: 0,
            is_ended: false,
            is_broken: false,
            waits_for_end: None,
        };
        Self { source: Some(Rc::new(RefCell::new(source))) }
    }

    /// The body for a try: from the start. Give it to one connection at a time.
    pub fn body(&self) -> RequestBody {
        RequestBody { source: self.source.clone(), next: 0 }
    }

    /// Whether all of it can be sent again: because it is kept, or because nothing was read.
    pub fn is_replayable(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let source = source.borrow();
            !source.is_broken && (!source.is_cut || source.bytes == 0)
        })
    }

    /// There will be one try, and no copy: nothing of it is kept.
    pub fn keep_nothing(&self) {
        if let Some(source) = &self.source {
            source.borrow_mut().is_cut = true;
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

    /// Ready when all of it was read.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(source) = &self.source else { return Poll::Ready(()) };
        let mut source = source.borrow_mut();
        if source.is_ended || source.incoming.is_end_stream() {
            return Poll::Ready(());
        }
        source.waits_for_end = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A copy for a mirror, when the whole of it was read and kept.
    pub fn copy(&self) -> Option<RequestBody> {
        let whole = self.source.as_ref().is_none_or(|source| {
            let source = source.borrow();
            (source.is_ended || source.incoming.is_end_stream()) && !source.is_cut && !source.is_broken
        });
        whole.then(|| self.body())
    }

    /// A handle on the same body, for counting.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { source: self.source.clone() }
    }
}

impl Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        if self.is_broken {
            return Poll::Ready(Some(Err(BodyError::Gone)));
        }
        match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(frame)) => {
                self.take(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.is_broken = true;
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
        }
    }

    /// Counts a frame, and keeps it while there is room.
    fn take(&mut self, frame: &Frame<Bytes>) {
        let length = frame.data_ref().map_or(0, Bytes::len);
        self.bytes += length as u64;
        if self.incoming.is_end_stream() {
            self.end();
        }
        if self.is_cut {
            return;
        }
        if length > self.room {
            self.is_cut = true;
            self.kept = Vec::new();
            return;
        }
        self.room -= length;
        if let Some(data) = frame.data_ref() {
            self.kept.push(Kept::Data(data.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            self.kept.push(Kept::Trailers(trailers.clone()));
        }
    }

    fn end(&mut self) {
        self.is_ended = true;
        if let Some(waker) = self.waits_for_end.take() {
            waker.wake();
        }
    }
}

/// The body of one try.
#[derive(Debug)]
pub struct RequestBody {
    source: Option<Rc<RefCell<Source>>>,
    /// The next of the kept frames to send.
    next: usize,
}

impl RequestBody {
    /// No body.
    pub const fn empty() -> Self {
        Self { source: None, next: 0 }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(source) = &this.source else { return Poll::Ready(None) };
        let mut source = source.borrow_mut();
        if let Some(kept) = source.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(match kept {
                Kept::Data(data) => Frame::data(data.clone()),
                Kept::Trailers(trailers) => Frame::trailers(trailers.clone()),
            })));
        }
        let frame = ready!(source.poll_next(cx));
        this.next = source.kept.len();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let source = source.borrow();
            self.next >= source.kept.len() && (source.is_ended || source.incoming.is_end_stream())
        })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            None => SizeHint::with_exact(0),
            // From the start it is as long as the caller said; what is left of it nobody asks for.
            Some(source) if self.next == 0 => source.borrow().length,
            Some(_) => SizeHint::default(),
        }
    }
}
