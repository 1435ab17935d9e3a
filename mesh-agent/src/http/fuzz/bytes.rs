//! Octets of a fuzz target's input as choices. Pure.
//!
//! Invariant: never fails; an input that has ended reads as zeros, which choose what is simplest.

/// Longest free text.
const MAX_TEXT: usize = 12;

/// What is left of an input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn octet(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Less than `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.octet()) % limit.max(1)
    }

    pub(super) fn flag(&mut self) -> bool {
        self.octet() & 1 == 1
    }

    pub(super) fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.octet()))
    }

    pub(super) fn pick<T: Copy + Default>(&mut self, choices: &[T]) -> T {
        choices.get(self.below(choices.len())).copied().unwrap_or_default()
    }

    /// `None` more often than not.
    pub(super) fn maybe<T>(&mut self, choose: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.octet() % 3 == 1).then(|| choose(self))
    }

    /// At most `most` of something.
    pub(super) fn list<T>(&mut self, most: usize, choose: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| choose(self)).collect()
    }

    /// One of `words`, or, one time in eight, any short text.
    pub(super) fn text(&mut self, words: &[&str]) -> String {
        let choice = usize::from(self.octet());
        match choice % 8 {
            7 => String::from_utf8_lossy(self.slice(choice / 8 % MAX_TEXT)).into_owned(),
            _ => words.get(choice / 8 % words.len().max(1)).copied().unwrap_or_default().to_owned(),
        }
    }

    fn slice(&mut self, length: usize) -> &'a [u8] {
        let (slice, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        slice
    }
}
