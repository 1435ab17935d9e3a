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

/// Fills `chunk` with bytes that depend only on their position in the stream, so that a lost,
/// repeated or swapped piece shows in the hash.
pub(crate) fn pattern(offset: u64, chunk: &mut [u8]) {
    for (position, byte) in (offset..).zip(chunk.iter_mut()) {
        // 251 is prime: the pattern does not line up with any buffer size.
        *byte = (position % 251) as u8 ^ (position >> 16) as u8;
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
