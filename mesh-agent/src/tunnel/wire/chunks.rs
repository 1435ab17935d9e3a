//! A queue of octets, kept as few large pieces: in at one end, out at the other.
//!
//! Invariant: small pieces are put together, so the number of pieces is proportional to the
//! octets held and a peer that sends one octet per frame costs no more than one that does not.
//! Nothing is allocated while the queue is empty.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// From here on a piece is kept by itself; smaller ones are appended to the one before.
const LARGE: usize = 4 * 1024;

/// A piece that small ones are appended to is closed at this size.
const FULL: usize = 16 * 1024;

/// The queue.
#[derive(Default)]
pub(super) struct Chunks {
    closed: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Chunks {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, octets: &[u8]) {
        if octets.len() >= LARGE {
            self.push_bytes(Bytes::copy_from_slice(octets));
            return;
        }
        self.len += octets.len();
        if self.tail.len() + octets.len() > FULL {
            self.close_tail();
        }
        self.tail.extend_from_slice(octets);
    }

    /// As `push`, without a copy if the piece is large.
    pub(super) fn push_bytes(&mut self, octets: Bytes) {
        if octets.len() < LARGE {
            self.push(&octets);
            return;
        }
        self.len += octets.len();
        self.close_tail();
        self.closed.push_back(octets);
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.closed.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// Takes up to `max` octets in one piece.
    pub(super) fn pop(&mut self, max: usize) -> Option<Bytes> {
        if self.closed.is_empty() {
            self.close_tail();
        }
        let front = self.closed.front_mut()?;
        let piece = if front.len() <= max { self.closed.pop_front()? } else { front.split_to(max) };
        self.len -= piece.len();
        if self.closed.is_empty() && self.len == 0 {
            self.closed = VecDeque::new();
        }
        Some(piece)
    }

    /// Fills `buffer` as far as there are octets.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let Some(piece) = self.pop(rest.len()) else { break };
            if let Some(target) = rest.get_mut(..piece.len()) {
                target.copy_from_slice(&piece);
            }
            filled += piece.len();
        }
        filled
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_pieces_are_put_together() {
        let mut chunks = Chunks::default();
        for n in 0..100_000_u32 {
            chunks.push(&[n as u8]);
        }
        assert!(chunks.closed.len() <= 100_000 / FULL);
    }

    proptest! {
        /// What goes in comes out, in order, however it is cut.
        #[test]
        fn order_is_kept(
            pieces in prop::collection::vec((0..6000_usize, any::<bool>()), 0..20),
            reads in prop::collection::vec(1..9000_usize, 0..40),
        ) {
            let (mut chunks, mut sent, mut got) = (Chunks::default(), Vec::new(), Vec::new());
            for (length, owned) in pieces {
                let piece: Vec<u8> = (0..length).map(|n| (n + sent.len()) as u8).collect();
                sent.extend_from_slice(&piece);
                if owned { chunks.push_bytes(piece.into()) } else { chunks.push(&piece) }
            }
            for (n, max) in reads.into_iter().chain(std::iter::repeat_n(5000, 30)).enumerate() {
                if n % 2 == 0 {
                    got.extend_from_slice(&chunks.pop(max).unwrap_or_default());
                } else {
                    let mut buffer = vec![0; max];
                    let filled = chunks.read(&mut buffer);
                    got.extend_from_slice(&buffer[..filled]);
                }
                prop_assert_eq!(chunks.len() + got.len(), sent.len());
            }
            prop_assert!(sent == got);
        }
    }
}
