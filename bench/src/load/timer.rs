//! A timer as exact as the kernel's: tokio's own ticks once a millisecond, which is more than many
//! of the latencies that are measured.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// timerfd_create(2): set through one descriptor, waited for by tokio through another of the same.
#[derive(Debug)]
pub(super) struct Timer {
    timer: TimerFd,
    expired: Receiver,
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        // Read like a pipe: eight bytes when it has expired.
        let expired = timer.as_fd().try_clone_to_owned()?;
        Ok(Self { timer, expired: Receiver::from_owned_fd_unchecked(expired)? })
    }

    /// Waits this long; not at all if it is zero.
    ///
    /// # Errors
    /// The kernel takes no timers.
    pub(super) async fn wait(&mut self, duration: Duration) -> io::Result<()> {
        if duration.is_zero() {
            return Ok(());
        }
        let expiration = Expiration::OneShot(TimeSpec::from_duration(duration));
        self.timer.set(expiration, TimerSetTimeFlags::empty())?;
        self.expired.read_exact(&mut [0; 8]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_at_least_as_long_as_asked_again_and_again() {
        let mut timer = Timer::new().unwrap();
        for micros in [0, 50, 3_000] {
            let (duration, start) = (Duration::from_micros(micros), std::time::Instant::now());
            timer.wait(duration).await.unwrap();
            assert!(start.elapsed() >= duration);
        }
    }
}
