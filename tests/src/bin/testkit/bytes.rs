//! Payloads: bytes that both sides can compute from a seed, and digests. The same seed gives the same bytes everywhere, however
//! they are cut into writes.

use sha2::{Digest, Sha256};

/// Bytes moved by one read or write of the streaming commands.
pub(crate) const BLOCK_BYTES: usize = 256 * 1024;

/// An endless stream of bytes that look random: SplitMix64 over the position, so that it needs no state but where it is.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    seed: u64,
    position: u64,
}

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    /// Fills all of `out` with the next bytes.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        let mut rest = out;
        while !rest.is_empty() {
            let word = self.word(self.position / 8).to_le_bytes();
            let skipped = (self.position % 8) as usize;
            let taken = rest.len().min(8 - skipped);
            let (now, later) = rest.split_at_mut(taken);
            now.copy_from_slice(&word[skipped..skipped + taken]);
            self.position += taken as u64;
            rest = later;
        }
    }

    /// The first `length` bytes of a seed.
    pub(crate) fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Self::new(seed).fill(&mut bytes);
        bytes
    }

    fn word(&self, index: u64) -> u64 {
        let mut mixed = self.seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Counts and digests what passes.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    bytes: u64,
    hash: Sha256,
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut tally = Self::default();
        tally.add(bytes);
        tally
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest in lower-case hexadecimal.
    pub(crate) fn digest(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_does_not_depend_on_how_it_is_cut() {
        let whole = Pattern::bytes(7, 1000);
        let mut cut = Pattern::new(7);
        let mut pieces = Vec::new();
        for length in [1, 2, 3, 5, 8, 13, 21, 947] {
            let mut piece = vec![0; length];
            cut.fill(&mut piece);
            pieces.extend(piece);
        }
        assert_eq!(whole, pieces);
        assert_ne!(whole, Pattern::bytes(8, 1000), "seeds differ");
    }

    #[test]
    fn digest_is_sha256() {
        let tally = Tally::of(b"abc");
        assert_eq!(tally.bytes(), 3);
        assert_eq!(tally.digest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
