//! What a workload asks of those who call it (Istio `PeerAuthentication`), resolved to one value.

use std::collections::BTreeMap;

/// `PeerAuthentication.mtls.mode`, after inheritance. `DISABLE` is honoured as `PERMISSIVE`, as in
/// Istio's ambient mode, and reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MtlsMode {
    /// Plaintext and mutual TLS are both accepted.
    #[default]
    Permissive,
    /// Plaintext is refused.
    Strict,
}

/// Effective policy of one workload: workload over namespace over mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Mode of every port that is not named below.
    pub mode: MtlsMode,
    /// Exceptions by *container* port (`portLevelMtls`).
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl PeerPolicy {
    /// The mode that holds for a container port.
    pub fn mode_of(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}
