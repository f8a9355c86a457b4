//! One direction of a relay: from a source to a sink, until the source's FIN has been passed on or one of them breaks.

use std::{
    io,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{RelayStream, Transfer};

/// The state of one direction. It holds at most one chunk, and only while the sink takes nothing.
pub(super) struct Direction {
    stage: Stage,
    chunk: Bytes,
    is_compact: bool,
    moved: u64,
    sink_error: Option<io::Error>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Bytes move.
    Moving,
    /// The source has finished; the sink is being told.
    Finishing,
    /// The sink knows.
    Finished,
    /// The sink takes no more.
    Broken,
}

/// Which end broke.
pub(super) enum Broken {
    /// Reading failed: that side is gone.
    Source(io::Error),
    /// Writing failed; the error stays with the direction, as the other one may still have something to deliver.
    Sink,
}

/// Bytes that one turn may move before other tasks of the thread get theirs: about 100 microseconds of work.
const TURN_BYTES: usize = 1024 * 1024;
/// Up to this size a chunk that must wait is copied out of the thread's block, rather than keeping all of the block from reuse.
const COMPACT_BYTES: usize = 16 * 1024;

impl Direction {
    pub(super) fn new() -> Self {
        Self { stage: Stage::Moving, chunk: Bytes::new(), is_compact: false, moved: 0, sink_error: None }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Finished | Stage::Broken)
    }

    /// Whether the sink has said that it takes no more.
    pub(super) fn has_broken_sink(&self) -> bool {
        self.stage == Stage::Broken
    }

    pub(super) fn take_sink_error(&mut self) -> Option<io::Error> {
        self.sink_error.take()
    }

    pub(super) fn transfer(&self) -> Transfer {
        Transfer { bytes: self.moved, finished: self.stage == Stage::Finished }
    }

    /// Moves what can be moved now. Ready when the direction is over, or its source broke. A source that `is_reset` (it takes no more
    /// from the other direction) may still have something to say, but its end is then no FIN to pass on.
    pub(super) fn poll<S: RelayStream, K: RelayStream>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut K,
        is_reset: bool,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Broken>> {
        let mut turn = 0;
        loop {
            match self.stage {
                Stage::Moving => {}
                Stage::Finishing => return self.poll_finishing(cx, sink),
                Stage::Finished => return Poll::Ready(Ok(())),
                Stage::Broken => return Poll::Ready(Err(Broken::Sink)),
            }
            if !self.chunk.is_empty() {
                let before = self.chunk.len();
                let written = sink.poll_write_chunk(cx, &mut self.chunk);
                let taken = before - self.chunk.len();
                if taken > 0 {
                    self.moved += taken as u64;
                    count(self.moved);
                }
                match written {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return self.break_off(error),
                    Poll::Pending => {
                        self.make_compact();
                        return Self::poll_stalled(cx, source);
                    }
                }
                turn += taken;
                if turn >= TURN_BYTES {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            let room = match sink.poll_room(cx, appetite(self.moved)) {
                Poll::Ready(Ok(room)) => room,
                Poll::Ready(Err(error)) => return self.break_off(error),
                Poll::Pending => return Self::poll_stalled(cx, source),
            };
            match source.poll_read_chunk(cx, room.min(appetite(self.moved))) {
                Poll::Ready(Ok(chunk)) if chunk.is_empty() => {
                    sink.return_room();
                    self.stage = if is_reset { Stage::Broken } else { Stage::Finishing };
                }
                Poll::Ready(Ok(chunk)) => {
                    self.chunk = chunk;
                    self.is_compact = false;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Source(error))),
                Poll::Pending => {
                    sink.return_room();
                    return match sink.poll_flush_chunks(cx) {
                        Poll::Ready(Err(error)) => self.break_off(error),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }

    fn poll_finishing<K: RelayStream>(&mut self, cx: &mut Context<'_>, sink: &mut K) -> Poll<Result<(), Broken>> {
        match sink.poll_finish(cx) {
            Poll::Ready(Ok(())) => {
                self.stage = Stage::Finished;
                Poll::Ready(Ok(()))
            }
            // The sink was closed completely in the meantime; the other direction finds out how.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::NotConnected => {
                self.stage = Stage::Finished;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => self.break_off(error),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_stalled<S: RelayStream>(cx: &mut Context<'_>, source: &mut S) -> Poll<Result<(), Broken>> {
        source.poll_broken(cx).map(|error| Err(Broken::Source(error)))
    }

    fn break_off(&mut self, error: io::Error) -> Poll<Result<(), Broken>> {
        self.stage = Stage::Broken;
        self.chunk = Bytes::new();
        self.sink_error = Some(error);
        Poll::Ready(Err(Broken::Sink))
    }

    fn make_compact(&mut self) {
        if !self.is_compact && self.chunk.len() <= COMPACT_BYTES {
            self.chunk = Bytes::copy_from_slice(&self.chunk);
        }
        self.is_compact = true;
    }
}

/// How much to ask for at once. Small while a connection has moved little: the credit of a tunnel is shared, and most connections
/// never need more.
fn appetite(moved: u64) -> usize {
    match moved {
        0..0x2_0000 => 16 * 1024,
        0x2_0000..0x40_0000 => 64 * 1024,
        _ => 256 * 1024,
    }
}
