//! SHA-256 of a stream, as hexadecimal text. Not for secrets.

use std::fmt::Write;

use ring::digest::{Context, SHA256};

/// Counts and hashes what goes by.
pub(crate) struct Hasher {
    context: Context,
    length: u64,
}

impl Hasher {
    pub(crate) fn new() -> Self {
        Self { context: Context::new(&SHA256), length: 0 }
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        self.context.update(data);
        self.length += data.len() as u64;
    }

    /// Number of bytes, and the hash of them in lower-case hexadecimal.
    pub(crate) fn finish(self) -> (u64, String) {
        let mut text = String::with_capacity(64);
        for byte in self.context.finish().as_ref() {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        (self.length, text)
    }
}

/// Length of the pattern's inner cycle; a prime, so that it does not line up with any buffer size.
const CYCLE: u64 = 251;
/// Where the pattern's outer part moves on.
const BLOCK: u64 = 1 << 16;
/// Two things at once: positions of one block need no division, and a copy is made many bytes at a
/// time. A bulk answer must cost its maker little, or it is the maker who is measured.
const TABLE: usize = 16 * 1024;

static CYCLES: [u8; TABLE + CYCLE as usize] = cycles();

const fn cycles() -> [u8; TABLE + CYCLE as usize] {
    let mut table = [0; TABLE + CYCLE as usize];
    let mut index = 0;
    while index < table.len() {
        table[index] = (index % CYCLE as usize) as u8;
        index += 1;
    }
    table
}

/// Fills `chunk` with bytes that depend only on their position in the stream, so that a lost,
/// repeated or swapped piece shows in the hash.
pub(crate) fn pattern(mut offset: u64, mut chunk: &mut [u8]) {
    while !chunk.is_empty() {
        let left_of_block = BLOCK - offset % BLOCK;
        // At most TABLE, so it fits any usize.
        let length = (chunk.len() as u64).min(left_of_block).min(TABLE as u64) as usize;
        let (piece, rest) = chunk.split_at_mut(length);
        let outer = (offset / BLOCK) as u8;
        let from = (offset % CYCLE) as usize;
        for (byte, inner) in piece.iter_mut().zip(&CYCLES[from..]) {
            *byte = inner ^ outer;
        }
        offset += length as u64;
        chunk = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_fips_180_says() {
        let mut hasher = Hasher::new();
        hasher.update(b"a");
        hasher.update(b"bc");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hasher.finish(), (3, expected.to_owned()));
    }

    #[test]
    fn pattern_is_made_of_its_two_parts() {
        let mut bytes = [0; 300];
        pattern(65_400, &mut bytes);
        for (position, byte) in (65_400_u64..).zip(bytes) {
            assert_eq!(byte, (position % 251) as u8 ^ (position >> 16) as u8, "{position}");
        }
    }

    #[test]
    fn pattern_does_not_depend_on_the_cut() {
        let mut whole = [0; 1000];
        pattern(0, &mut whole);
        let mut parts = [0; 1000];
        let (left, right) = parts.split_at_mut(333);
        pattern(0, left);
        pattern(333, right);
        assert_eq!(whole, parts);
    }
}
