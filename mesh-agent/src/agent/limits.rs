//! The agent's share of the machine: open files.

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that connections leave for everything else: listeners, maps, tunnels, other pods.
const RESERVE: u64 = 1024;

/// Raises the limit of open files as far as it goes, and returns it: the soft limit is what old
/// programs with select(2) can bear.
pub(super) fn raise_descriptors() -> anyhow::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise RLIMIT_NOFILE")?;
    Ok(hard)
}

/// What one pod may hold: a connection takes two descriptors at most.
pub(super) fn connections_per_pod(descriptors: u64) -> usize {
    let half = descriptors.saturating_sub(RESERVE) / 2;
    usize::try_from(half).unwrap_or(usize::MAX).max(64)
}

#[cfg(test)]
mod tests {
    use super::connections_per_pod;

    #[test]
    fn one_pod_leaves_descriptors_for_the_others() {
        assert_eq!(connections_per_pod(20_000), 9_488);
        assert_eq!(connections_per_pod(0), 64);
    }
}
