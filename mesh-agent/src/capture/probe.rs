//! What the kernel must have, asked before anything is loaded.
//!
//! A probe proves that a program may be loaded, not that it may be attached; `loader` reports
//! the latter. Versions are those in which the mainline kernel got the feature.

use aya::maps::MapType;
use aya::programs::{ProgramType, loaded_programs};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::CaptureError;

/// Name of a feature and the first kernel version that has it.
type Feature = (&'static str, &'static str);

const PROGRAMS: [(ProgramType, Feature); 3] = [
    (ProgramType::CgroupSockAddr, ("cgroup/connect programs", "4.17")),
    (ProgramType::SockOps, ("sock_ops programs", "4.13")),
    (ProgramType::SkLookup, ("sk_lookup programs", "5.9")),
];

/// Socket storage is not among them: its helpers are asked for below, and to make such a map and throw
/// it away took 23 ms (Linux 6.18), as long as the rest of an agent's start.
const MAPS: [(MapType, Feature); 3] = [
    (MapType::Hash, ("hash maps", "3.19")),
    (MapType::LpmTrie, ("LPM trie maps", "4.11")),
    (MapType::SockHash, ("socket hash maps", "4.18")),
];

const HELPERS: [(ProgramType, BpfHelper, Feature); 9] = [
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_bind, ("bpf_bind in cgroup/connect", "4.17")),
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_skc_lookup_tcp,
        ("bpf_skc_lookup_tcp in cgroup/connect", "5.2"),
    ),
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_netns_cookie,
        ("bpf_get_netns_cookie in cgroup/connect", "5.7"),
    ),
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_sk_storage_get,
        ("bpf_sk_storage_get in cgroup/connect", "5.8"),
    ),
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_setsockopt,
        ("bpf_setsockopt in cgroup/connect", "5.8"),
    ),
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_set_retval,
        ("bpf_set_retval in cgroup/connect", "5.18"),
    ),
    (
        ProgramType::SockOps,
        BpfHelper::BPF_FUNC_sk_storage_get,
        ("bpf_sk_storage_get in sock_ops", "5.4"),
    ),
    (
        ProgramType::SockOps,
        BpfHelper::BPF_FUNC_get_netns_cookie,
        ("bpf_get_netns_cookie in sock_ops", "5.15"),
    ),
    (ProgramType::SkLookup, BpfHelper::BPF_FUNC_sk_assign, ("bpf_sk_assign in sk_lookup", "5.9")),
];

/// Programs of this kind in `mesh-ebpf`.
const OWN_PROGRAMS: [&str; 6] =
    ["connect4", "connect6", "getpeername4", "getpeername6", "getsockname4", "getsockname6"];

/// Checks that this kernel has what capture needs.
///
/// # Errors
/// [`CaptureError::Missing`] names the first missing feature; [`CaptureError::Program`] says
/// that the question itself was refused, as without root.
pub fn probe() -> Result<(), CaptureError> {
    for (program, feature) in PROGRAMS {
        require(is_program_supported(program)?, feature)?;
    }
    for (map, feature) in MAPS {
        let supported = is_map_supported(map).map_err(|error| {
            CaptureError::map(feature.0)(aya::maps::MapError::SyscallError(error))
        })?;
        require(supported, feature)?;
    }
    for (program, helper, feature) in HELPERS {
        require(is_helper_supported(program, helper)?, feature)?;
    }
    for (name, feature) in [
        ("tcp_fwmark_accept", ("net.ipv4.tcp_fwmark_accept", "3.16")),
        ("tcp_migrate_req", ("net.ipv4.tcp_migrate_req", "5.14")),
    ] {
        require(std::path::Path::new("/proc/sys/net/ipv4").join(name).exists(), feature)?;
    }
    Ok(())
}

/// Names of programs of other owners that may be attached where a socket is bound or connected.
///
/// # Errors
/// The kernel's, as without root.
pub fn foreign_programs() -> Result<Vec<String>, CaptureError> {
    let mut names = Vec::new();
    for program in loaded_programs() {
        let program = program?;
        // The type itself is not public in aya.
        let kind = format!("{:?}", program.program_type());
        let name = program.name_as_str().unwrap_or_default();
        let is_own = OWN_PROGRAMS.contains(&name) || name.is_empty();
        if kind.ends_with("CGROUP_SOCK_ADDR") && !is_own {
            names.push(name.to_owned());
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn require(supported: bool, (feature, since): Feature) -> Result<(), CaptureError> {
    if supported { Ok(()) } else { Err(CaptureError::Missing { feature, since }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_feature_and_version() {
        require(true, ("x", "1.0")).unwrap();
        let error = require(false, ("sk_lookup programs", "5.9")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel lacks sk_lookup programs (in Linux since 5.9); \
             this node cannot capture traffic"
        );
    }
}
