//! Response flags: why a request ended as it did, by Envoy's short names, so that runbooks work.
//!
//! Source: Envoy `ResponseFlagUtils` (names and the order in which several are written).

use std::fmt;

/// One reason. The order is the one that Envoy writes them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ResponseFlag {
    /// `UH`: no endpoint was ready.
    NoHealthyUpstream,
    /// `UT`: the route's time-out passed.
    UpstreamTimeout,
    /// `LR`: this side reset the request.
    LocalReset,
    /// `UR`: the endpoint reset the request.
    UpstreamReset,
    /// `UF`: no connection to the endpoint could be made.
    UpstreamConnectFailure,
    /// `UC`: the endpoint closed the connection before it answered.
    UpstreamClosed,
    /// `UO`: a limit was reached.
    UpstreamOverflow,
    /// `NR`: no route matched.
    NoRoute,
    /// `DI`: a fault held the request up.
    DelayInjected,
    /// `FI`: a fault answered the request.
    FaultInjected,
    /// `RL`: a rate limit answered the request.
    RateLimited,
    /// `DC`: the client went away.
    DownstreamClosed,
    /// `URX`: all retries were used.
    RetriesExhausted,
    /// `DPE`: the client does not speak HTTP properly.
    DownstreamProtocolError,
    /// `UPE`: the endpoint does not speak HTTP properly.
    UpstreamProtocolError,
    /// `NC`: the route names a service or subset that does not exist.
    NoCluster,
}

/// All flags in Envoy's order.
const ALL: [(ResponseFlag, &str); 16] = [
    (ResponseFlag::NoHealthyUpstream, "UH"),
    (ResponseFlag::UpstreamTimeout, "UT"),
    (ResponseFlag::LocalReset, "LR"),
    (ResponseFlag::UpstreamReset, "UR"),
    (ResponseFlag::UpstreamConnectFailure, "UF"),
    (ResponseFlag::UpstreamClosed, "UC"),
    (ResponseFlag::UpstreamOverflow, "UO"),
    (ResponseFlag::NoRoute, "NR"),
    (ResponseFlag::DelayInjected, "DI"),
    (ResponseFlag::FaultInjected, "FI"),
    (ResponseFlag::RateLimited, "RL"),
    (ResponseFlag::DownstreamClosed, "DC"),
    (ResponseFlag::RetriesExhausted, "URX"),
    (ResponseFlag::DownstreamProtocolError, "DPE"),
    (ResponseFlag::UpstreamProtocolError, "UPE"),
    (ResponseFlag::NoCluster, "NC"),
];

/// A set of flags; displays as `-` or as short names joined by commas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u16);

impl ResponseFlag {
    /// Envoy's short name.
    pub fn short_name(self) -> &'static str {
        ALL.iter().find(|(flag, _)| *flag == self).map_or("-", |(_, name)| name)
    }
}

impl ResponseFlags {
    /// Adds a flag.
    pub fn insert(&mut self, flag: ResponseFlag) {
        self.0 |= 1 << flag as u8;
    }

    /// Whether the flag is set.
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.0 & (1 << flag as u8) != 0
    }

    /// Whether none is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl From<ResponseFlag> for ResponseFlags {
    fn from(flag: ResponseFlag) -> Self {
        let mut flags = Self::default();
        flags.insert(flag);
        flags
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut separator = "";
        for (_, name) in ALL.iter().filter(|(flag, _)| self.contains(*flag)) {
            write!(f, "{separator}{name}")?;
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_envoy_does() {
        let mut flags = ResponseFlags::default();
        assert_eq!(flags.to_string(), "-");
        flags.insert(ResponseFlag::RetriesExhausted);
        flags.insert(ResponseFlag::UpstreamConnectFailure);
        assert_eq!(flags.to_string(), "UF,URX");
        assert!(!flags.contains(ResponseFlag::NoRoute));
    }

    #[test]
    fn every_flag_has_its_own_bit_and_name() {
        for (index, (flag, name)) in ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, index);
            assert_eq!(flag.short_name(), name);
        }
    }
}
