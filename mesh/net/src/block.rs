//! The read buffer of a thread: sockets read into one big block, and what was read leaves it as [`Bytes`] without a copy.
//!
//! So an idle connection owns no buffer, a busy one reads as much as the kernel has in one call, and blocks are used again once
//! nobody holds a piece of them. A block whose pieces are still held rests until they are dropped.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    task::{Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;

/// The size of a block: two of the largest reads.
const BLOCK_BYTES: usize = 512 * 1024;
/// A block with less room than this is put to rest.
const ROOM_BYTES: usize = 16 * 1024;
/// Blocks that a thread keeps for later; what is beyond is freed when its pieces are.
const RESTING_BLOCKS: usize = 8;

thread_local! {
    static BLOCKS: RefCell<Blocks> =
        RefCell::new(Blocks { current: BytesMut::with_capacity(BLOCK_BYTES), resting: VecDeque::with_capacity(RESTING_BLOCKS + 1) });
}

/// Reads at most `limit` bytes with `read`, which must not read on this thread through this function itself. An empty result means
/// that `read` filled nothing: the end of the stream.
pub(crate) fn read_with(limit: usize, read: impl FnOnce(&mut ReadBuf<'_>) -> Poll<io::Result<()>>) -> Poll<io::Result<Bytes>> {
    BLOCKS.with(|blocks| {
        let mut blocks = blocks.borrow_mut();
        let block = blocks.with_room();
        debug_assert!(block.is_empty(), "everything read is split off at once");
        let spare = block.spare_capacity_mut();
        let length = spare.len().min(limit);
        let mut buffer = ReadBuf::uninit(&mut spare[..length]);
        ready!(read(&mut buffer))?;
        let filled = buffer.filled().len();
        // SAFETY: the block is empty, `filled` bytes at the start of its spare room have been initialised by the reader (ReadBuf keeps
        // count of that), and they are within its capacity as `length` was.
        unsafe { block.set_len(filled) };
        Poll::Ready(Ok(block.split().freeze()))
    })
}

struct Blocks {
    current: BytesMut,
    resting: VecDeque<BytesMut>,
}

impl Blocks {
    fn with_room(&mut self) -> &mut BytesMut {
        if self.current.capacity() < ROOM_BYTES && !self.current.try_reclaim(BLOCK_BYTES) {
            self.exchange();
        }
        &mut self.current
    }

    /// Puts the current block to rest and takes one that nobody holds a piece of, or a new one.
    fn exchange(&mut self) {
        let free = self.resting.iter_mut().position(|block| block.try_reclaim(BLOCK_BYTES));
        let next = free.and_then(|index| self.resting.remove(index)).unwrap_or_else(|| BytesMut::with_capacity(BLOCK_BYTES));
        let full = std::mem::replace(&mut self.current, next);
        self.resting.push_back(full);
        if self.resting.len() > RESTING_BLOCKS {
            self.resting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(limit: usize, byte: u8) -> Bytes {
        let read = read_with(limit, |buffer| {
            let room = buffer.remaining();
            buffer.initialize_unfilled().fill(byte);
            buffer.advance(room);
            Poll::Ready(Ok(()))
        });
        match read {
            Poll::Ready(Ok(bytes)) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pieces_keep_their_content_while_blocks_are_used_again() {
        let mut held = Vec::new();
        for byte in 0..64u8 {
            drop(fill(200_000, 255));
            held.push((byte, fill(100_000, byte)));
            if held.len() > 9 {
                held.remove(0);
            }
            for (byte, piece) in &held {
                assert!(piece.iter().all(|found| found == byte));
            }
        }
    }

    #[test]
    fn nothing_is_read_past_the_limit_and_an_unready_reader_takes_nothing() {
        assert_eq!(fill(10, 1).len(), 10);
        assert!(read_with(10, |_| Poll::Pending).is_pending());
        assert_eq!(fill(20, 2), vec![2u8; 20]);
    }

    #[test]
    fn a_block_nobody_holds_is_used_again_without_a_new_allocation() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..100 {
            seen.insert(fill(256 * 1024, 3).as_ptr());
        }
        assert!(seen.len() <= 3, "{}", seen.len());
    }
}
