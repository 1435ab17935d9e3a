//! Counts requests that are alike, so that the echo server can treat the first, second, ..
//! differently.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Different requests that are counted; further ones are refused.
const MOST: usize = 10_000;

/// How many of each there were.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, usize>>);

impl Turns {
    /// How many of this kind there were before.
    ///
    /// # Errors
    /// A sentence, when there are too many kinds.
    pub(super) fn next(&self, kind: &str) -> Result<usize, String> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(kind) {
            *count += 1;
            return Ok(*count);
        }
        if counts.len() >= MOST {
            return Err(format!("turns: over {MOST} different requests"));
        }
        counts.insert(kind.to_owned(), 0);
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_by_itself() {
        let turns = Turns::default();
        let seen = ["a", "b", "a", "a", "b"].map(|kind| turns.next(kind));
        assert_eq!(seen, [Ok(0), Ok(0), Ok(1), Ok(2), Ok(1)]);
    }

    #[test]
    fn the_table_is_bounded() {
        let turns = Turns::default();
        for number in 0..MOST {
            turns.next(&number.to_string()).unwrap();
        }
        assert!(turns.next("one more").is_err());
        assert_eq!(turns.next("0"), Ok(1));
    }
}
