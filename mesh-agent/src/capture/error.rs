//! What can go wrong in capture, as a caller tells it apart.

use std::io;
use std::path::PathBuf;

/// Why traffic could not be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The kernel is too old or built without a feature: the node cannot run the mesh.
    #[error(
        "the kernel lacks {feature} (in Linux since {since}); this node cannot capture traffic"
    )]
    Missing {
        /// What is missing.
        feature: &'static str,
        /// First version that has it.
        since: &'static str,
    },
    /// Programs or maps were refused: run as root, with CAP_BPF and CAP_NET_ADMIN.
    #[error("cannot load the kernel programs")]
    Load(#[from] aya::EbpfError),
    /// A program was refused or could not be attached.
    #[error("cannot load or attach a kernel program")]
    Program(#[from] aya::programs::ProgramError),
    /// A map operation failed. `E2BIG` says that it is full: raise its size.
    #[error("kernel map {map}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        source: aya::maps::MapError,
    },
    /// A pinned map was made by an incompatible version: run `mesh-agent cleanup`.
    #[error("pinned map {path} has another layout; run `mesh-agent cleanup`")]
    Layout {
        /// The pin.
        path: PathBuf,
    },
    /// Another agent's programs run in the links: what is pinned is that agent's to change.
    #[error("another agent has taken over this node")]
    TakenOver,
    /// Files of the cgroup or bpf file system.
    #[error("{action} {path}")]
    File {
        /// Verb.
        action: &'static str,
        /// Object.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pod's network namespace could not be entered or set up.
    #[error("{action} in the pod's network namespace")]
    Network {
        /// Verb and object.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A pod without an address cannot be enrolled: wait for its network.
    #[error("the pod has no address yet")]
    NoAddress,
    /// The network namespace is the agent's own: host-network pods are never captured.
    #[error("the pod uses the node's network and cannot be captured")]
    HostNetwork,
}

impl CaptureError {
    /// Whether a kernel map had no room: its size is an option of the agent.
    pub fn is_full(&self) -> bool {
        let Self::Map { source: aya::maps::MapError::SyscallError(error), .. } = self else {
            return false;
        };
        matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
    }

    pub(super) fn map(map: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { map, source }
    }

    pub(super) fn file(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    pub(super) fn network(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Network { action, source }
    }
}
