//! Which name is asked for when, and what it resolves to until then. Pure: time is a parameter.
//!
//! Invariant: an answer stays until a newer one comes. A name server that fails, or that suddenly knows
//! nothing of a name, takes no address away: what cannot be reached is found out by connecting.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Answers;

/// An answer is kept for its time to live, but no less than this: records that say 0 would be asked
/// for all the time.
const SHORTEST: Duration = Duration::from_secs(5);
/// And no longer than this: a name that moves is followed within the hour, whatever it said.
const LONGEST: Duration = Duration::from_secs(3600);
/// First wait after a failure; each next is twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// How asking for a name ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its addresses, of either family, and how long they hold.
    Found(Vec<IpAddr>, Duration),
    /// Why there are none.
    Failed(String),
}

/// What to say about an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// As before.
    Nothing,
    /// Other addresses than before.
    Changed,
    /// The first failure after an answer, or of a new name.
    Failing(String),
    /// The first answer after a failure.
    Recovered,
}

/// The names that are wanted.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    names: BTreeMap<Arc<str>, State>,
}

#[derive(Debug)]
struct State {
    /// When to ask next; `None` while being asked.
    due: Option<Instant>,
    /// The last good answer; `None` before the first outcome.
    answer: Option<Vec<IpAddr>>,
    failures: u32,
}

impl Schedule {
    /// Takes the names that are wanted now: new ones are due at once, others are forgotten. Whether
    /// answers were.
    pub(super) fn want(&mut self, names: &BTreeSet<Arc<str>>, now: Instant) -> bool {
        let before = self.names.len();
        self.names.retain(|name, _| names.contains(name));
        let forgotten = self.names.len() != before;
        for name in names {
            let new = || State { due: Some(now), answer: None, failures: 0 };
            self.names.entry(Arc::clone(name)).or_insert_with(new);
        }
        forgotten
    }

    /// Names to ask for now, `room` at most; they count as being asked from here on.
    pub(super) fn take_due(&mut self, now: Instant, room: usize) -> Vec<Arc<str>> {
        let due = self.names.iter_mut().filter(|(_, state)| state.due.is_some_and(|at| at <= now));
        let taken = due.take(room).map(|(name, state)| {
            state.due = None;
            Arc::clone(name)
        });
        taken.collect()
    }

    /// When the next name is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.names.values().filter_map(|state| state.due).min()
    }

    /// Takes an outcome; of a name that is not wanted any more it means nothing.
    pub(super) fn ended(&mut self, name: &str, outcome: Outcome, now: Instant) -> News {
        let Some(state) = self.names.get_mut(name) else { return News::Nothing };
        match outcome {
            Outcome::Found(ips, holds) => {
                state.due = Some(now + holds.clamp(SHORTEST, LONGEST));
                let failed = std::mem::take(&mut state.failures) > 0;
                let is_same = state.answer.as_ref() == Some(&ips);
                state.answer = Some(ips);
                match (failed, is_same) {
                    (true, _) => News::Recovered,
                    (false, true) => News::Nothing,
                    (false, false) => News::Changed,
                }
            }
            Outcome::Failed(reason) => {
                let wait = FIRST_RETRY.saturating_mul(1 << state.failures.min(16));
                state.due = Some(now + wait.min(LAST_RETRY));
                state.failures = state.failures.saturating_add(1);
                state.answer.get_or_insert_default();
                if state.failures == 1 { News::Failing(reason) } else { News::Nothing }
            }
        }
    }

    /// What names resolve to; those that have not been asked for yet are not in it.
    pub(super) fn answers(&self) -> Answers {
        let known = self.names.iter();
        known.filter_map(|(name, state)| Some((name.clone(), state.answer.clone()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> BTreeSet<Arc<str>> {
        all.iter().map(|name| (*name).into()).collect()
    }

    fn found(ip: &str, seconds: u64) -> Outcome {
        Outcome::Found(vec![ip.parse().unwrap()], Duration::from_secs(seconds))
    }

    fn failed() -> Outcome {
        Outcome::Failed("no".to_owned())
    }

    fn text(schedule: &Schedule) -> String {
        format!("{:?}", schedule.answers())
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_their_time_within_bounds() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        assert!(!schedule.want(&names(&["a", "b", "c"]), start));
        assert_eq!(schedule.answers(), Answers::new(), "nothing has been asked for");
        assert_eq!(schedule.take_due(start, 2).len(), 2);
        assert_eq!(schedule.take_due(start, 9), [Arc::from("c")], "those two are being asked");
        assert_eq!(schedule.next_due(), None);
        for (name, holds, expected) in [("a", 0, 5), ("b", 30, 30), ("c", 90_000, 3_600)] {
            assert_eq!(schedule.ended(name, found("192.0.2.1", holds), start), News::Changed);
            let due = start + Duration::from_secs(expected);
            assert_eq!(schedule.names[name].due, Some(due), "{name}");
        }
        let five = Duration::from_secs(5);
        assert_eq!(schedule.next_due(), Some(start + five));
        assert_eq!(schedule.take_due(start + five, 9), [Arc::from("a")]);
        let again = schedule.ended("a", found("192.0.2.1", 5), start + five);
        assert_eq!(again, News::Nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_takes_no_address_away() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.want(&names(&["a", "b"]), now);
        schedule.ended("a", found("192.0.2.1", 5), now);
        assert_eq!(schedule.ended("a", failed(), now), News::Failing("no".to_owned()));
        assert_eq!(schedule.ended("b", failed(), now), News::Failing("no".to_owned()));
        assert_eq!(text(&schedule), r#"{"a": [192.0.2.1], "b": []}"#);
        let waits = (0..8).map(|_| {
            assert_eq!(schedule.ended("a", failed(), now), News::Nothing);
            schedule.names["a"].due.unwrap().duration_since(now).as_secs()
        });
        assert_eq!(waits.collect::<Vec<_>>(), [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(schedule.ended("a", found("192.0.2.2", 5), now), News::Recovered);
        assert_eq!(text(&schedule), r#"{"a": [192.0.2.2], "b": []}"#);
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_nobody_wants_are_forgotten() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.want(&names(&["a", "b"]), now);
        schedule.ended("a", found("192.0.2.1", 5), now);
        schedule.take_due(now, 9);
        assert!(schedule.want(&names(&["a"]), now));
        assert_eq!(schedule.ended("b", found("192.0.2.9", 5), now), News::Nothing);
        assert_eq!(text(&schedule), r#"{"a": [192.0.2.1]}"#);
    }
}
