//! What the kernel's counts of a TCP connection say about its payload. Pure.

/// States of a TCP socket (include/net/tcp_states.h).
const FIN_WAIT2: u32 = 5;
const TIME_WAIT: u32 = 6;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

/// Payload that a connecting socket has sent and received, by the state that it was closed in.
///
/// The kernel's `bytes_acked` counts our SYN and an acknowledged FIN as one byte each, and
/// `bytes_received` the peer's FIN (tcp(7) has neither; net/ipv4/tcp_input.c).
#[inline(always)]
pub fn payload(state: u32, acked: u64, received: u64) -> (u64, u64) {
    let fin_acked = matches!(state, FIN_WAIT2 | TIME_WAIT | LAST_ACK | CLOSING);
    let fin_received = fin_acked || state == CLOSE_WAIT;
    (
        acked.saturating_sub(1 + u64::from(fin_acked)),
        received.saturating_sub(u64::from(fin_received)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_what_the_application_wrote_and_read() {
        // Both have ended in order, whoever was first.
        assert_eq!(payload(FIN_WAIT2, 6, 8), (4, 7));
        assert_eq!(payload(LAST_ACK, 6, 8), (4, 7));
        // Reset: by nobody's FIN, or after the peer's.
        const ESTABLISHED: u32 = 1;
        assert_eq!(payload(ESTABLISHED, 5, 7), (4, 7));
        assert_eq!(payload(CLOSE_WAIT, 5, 8), (4, 7));
        assert_eq!(payload(ESTABLISHED, 0, 0), (0, 0));
    }
}
