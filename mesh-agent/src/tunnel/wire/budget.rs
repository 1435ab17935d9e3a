//! A count of tolerated frames that refills with time, which is passed in.

use std::time::Duration;

/// A token bucket: `capacity` at once, `per_second` afterwards.
pub(super) struct Budget {
    capacity: u32,
    per_second: u32,
    left: u32,
    filled: Duration,
}

impl Budget {
    pub(super) fn new(capacity: u32, per_second: u32) -> Self {
        Self { capacity, per_second, left: capacity, filled: Duration::ZERO }
    }

    /// Takes one; false if there is none left at `now`.
    pub(super) fn spend(&mut self, now: Duration) -> bool {
        let seconds = now.saturating_sub(self.filled).as_secs();
        if seconds > 0 {
            let refill = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(self.per_second);
            self.left = self.left.saturating_add(refill).min(self.capacity);
            self.filled = now;
        }
        let spent = self.left.checked_sub(1);
        self.left = spent.unwrap_or(0);
        spent.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refills_with_time_up_to_its_capacity() {
        let mut budget = Budget::new(3, 2);
        let spend = |budget: &mut Budget, at| {
            (0..10).take_while(|_| budget.spend(Duration::from_millis(at))).count()
        };
        assert_eq!(spend(&mut budget, 0), 3);
        assert_eq!(spend(&mut budget, 999), 0);
        assert_eq!(spend(&mut budget, 1_000), 2);
        assert_eq!(spend(&mut budget, 60_000), 3);
    }
}
