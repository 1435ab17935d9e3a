//! What is to be written next, as pieces for a vectored write.
//!
//! Frame heads, control frames and small payloads are copied together; large payloads are kept
//! as they are, so that TLS reads them where the writer put them.

use std::ops::Range;

use bytes::Bytes;

/// Payloads up to here are copied: cheaper than one more piece.
const INLINE: usize = 1024;

/// The pieces. Reused from write to write; belongs to a worker, not to a connection.
#[derive(Default)]
pub struct Batch {
    inline: Vec<u8>,
    pieces: Vec<Piece>,
    len: usize,
}

enum Piece {
    Inline(Range<usize>),
    Payload(Bytes),
}

impl Batch {
    /// Octets in all pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|piece| match piece {
            Piece::Inline(range) => self.inline.get(range.clone()).unwrap_or_default(),
            Piece::Payload(octets) => octets,
        })
    }

    /// Forgets the pieces, keeps the memory.
    pub fn clear(&mut self) {
        self.inline.clear();
        self.pieces.clear();
        self.len = 0;
    }

    pub(super) fn copy(&mut self, octets: &[u8]) {
        let start = self.inline.len();
        self.inline.extend_from_slice(octets);
        self.len += octets.len();
        match self.pieces.last_mut() {
            Some(Piece::Inline(range)) => range.end = self.inline.len(),
            _ => self.pieces.push(Piece::Inline(start..self.inline.len())),
        }
    }

    pub(super) fn push(&mut self, octets: Bytes) {
        if octets.len() <= INLINE {
            self.copy(&octets);
        } else {
            self.len += octets.len();
            self.pieces.push(Piece::Payload(octets));
        }
    }
}
