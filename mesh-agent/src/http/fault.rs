//! Which faults a request is given. Pure: the draws come in.
//!
//! Source: Istio `http[].fault` (istio-surface 1.1.1). Delay and abort are rolled for each on its
//! own. Not here: waiting, answering (`outbound`).

use std::time::Duration;

use crate::model::{Fault, FaultAbort};

/// What one request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rolled {
    /// First it waits.
    pub(super) delay: Option<Duration>,
    /// Then it is answered with this, and goes nowhere.
    pub(super) abort: Option<FaultAbort>,
}

/// Rolls with two times 64 random bits.
pub(super) fn roll(fault: &Fault, draws: (u64, u64)) -> Rolled {
    let delay = fault.delay.filter(|(_, share)| share.takes(draws.0));
    let abort = fault.abort.filter(|(_, share)| share.takes(draws.1));
    Rolled { delay: delay.map(|(delay, _)| delay), abort: abort.map(|(abort, _)| abort) }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::balance::Draws;
    use crate::model::Share;

    #[test]
    fn each_is_rolled_on_its_own() {
        let (delay, abort) = (Duration::from_secs(1), FaultAbort::Http(StatusCode::IM_A_TEAPOT));
        let share = |percent| Share::percent(percent).unwrap();
        let fault = Fault { delay: Some((delay, share(25.0))), abort: Some((abort, share(50.0))) };
        let draws = Draws::seeded(3);
        let mut counts = [0_u32; 4];
        for _ in 0..40_000 {
            let rolled = roll(&fault, (draws.next(), draws.next()));
            let kind =
                usize::from(rolled.delay.is_some()) + 2 * usize::from(rolled.abort.is_some());
            counts[kind] += 1;
        }
        // Neither, delay, abort, both; five standard deviations are below 500.
        for (count, expected) in counts.into_iter().zip([15_000, 5_000, 15_000, 5_000_u32]) {
            assert!(count.abs_diff(expected) < 500, "{counts:?}");
        }
    }
}
