//! Looks at the machine that it runs on: kernel features, cgroup v2, the bpf file system, other programs at
//! `connect`. Needs root, as an agent does; an agent's own pod has what it takes.

use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use super::{Finding, some};
use crate::capture;

/// Where an agent's pod has the node's folders, and where the node itself has them.
const CGROUP: [&str; 2] = ["/host/cgroup", "/sys/fs/cgroup"];
const BPF: [&str; 2] = ["/host/bpf", "/sys/fs/bpf"];

/// Judges this machine.
pub(super) fn judge(cgroup: Option<&Path>, bpf: Option<&Path>) -> Vec<Finding> {
    vec![
        features(),
        hierarchy(cgroup.unwrap_or_else(|| first(CGROUP))),
        file_system(bpf.unwrap_or_else(|| first(BPF))),
        others(),
    ]
}

fn first(places: [&'static str; 2]) -> &'static Path {
    let [of_pod, own] = places.map(Path::new);
    if of_pod.exists() { of_pod } else { own }
}

fn features() -> Finding {
    const CHECK: &str = "kernel features";
    match capture::probe() {
        Ok(()) => Finding::ok(CHECK, "all that capture needs"),
        Err(error) => Finding::failed(
            CHECK,
            error.to_string(),
            "run it as root, on Linux 5.18 or newer with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF",
        ),
    }
}

fn hierarchy(cgroup: &Path) -> Finding {
    const CHECK: &str = "cgroup v2";
    let shown = cgroup.display();
    match statfs(cgroup) {
        Ok(stat) if stat.filesystem_type() == CGROUP2_SUPER_MAGIC => {
            Finding::ok(CHECK, format!("mounted at {shown}"))
        }
        Ok(_) => Finding::failed(
            CHECK,
            format!("{shown} is not of version 2"),
            "boot with systemd.unified_cgroup_hierarchy=1, or name the folder where version 2 is \
             mounted beside version 1: install with --cgroup-path (Helm: agent.paths.cgroup)",
        ),
        Err(error) => Finding::failed(
            CHECK,
            format!("{shown}: {error}"),
            "name the folder: install with --cgroup-path (Helm: agent.paths.cgroup)",
        ),
    }
}

fn file_system(bpf: &Path) -> Finding {
    const CHECK: &str = "bpf file system";
    let shown = bpf.display();
    match statfs(bpf) {
        Ok(stat) if stat.filesystem_type() == BPF_FS_MAGIC => {
            Finding::ok(CHECK, format!("mounted at {shown}"))
        }
        _ => Finding::failed(
            CHECK,
            format!("not mounted at {shown}"),
            "`mount bpffs /sys/fs/bpf -t bpf` on the node, and in its /etc/fstab, as systemd does by \
             itself; without it every restart of an agent interrupts the pods",
        ),
    }
}

/// Programs at `connect` run one after the other; the last one that rewrites the address wins.
fn others() -> Finding {
    const CHECK: &str = "other programs at connect";
    match capture::foreign_programs() {
        Ok(names) if names.is_empty() => Finding::ok(CHECK, "none"),
        Ok(names) => Finding::warning(
            CHECK,
            some(&names),
            "programs of this kind may rewrite the destinations of pods before the mesh reads them: \
             for Cilium's (cil_sock…) set socketLB.hostNamespaceOnly=true",
        ),
        Err(error) => Finding::warning(CHECK, error.to_string(), "run it as root on the node"),
    }
}
