//! Nothing of a mesh is left once its lab is down: kernel objects, processes, rules and routes of
//! the host. (`xtask/tests/cluster.rs` looks at namespaces, mounts, cgroups and folders.)

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aya::maps::{MapInfo, loaded_maps};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, loaded_links, loaded_programs};

use crate::support::{self, SHOP, SHOP_PODS};

/// The kernel's numbers for what is pinned below a folder, and for what that uses.
#[derive(Debug, Default)]
struct Objects {
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
    programs: BTreeSet<u32>,
}

impl Objects {
    fn pinned_below(folder: &Path) -> Self {
        let mut objects = Self::default();
        // Some kernels put iterators of their own into each such file system.
        let is_own = |path: &PathBuf| path.extension().is_none_or(|ending| ending != "debug");
        for path in files_below(folder).into_iter().filter(is_own) {
            // The kernel tells by the place only: a pin opens as whatever one takes it for.
            if path.components().any(|part| part.as_os_str() == "links") {
                let link = FdLink::from(PinnedLink::from_pin(&path).expect("a link's pin"));
                let info = link.info().expect("what a link is");
                objects.links.insert(info.id());
                objects.programs.insert(info.program_id());
            } else {
                objects.maps.insert(MapInfo::from_pin(&path).expect("a map's pin").id());
            }
        }
        objects
    }

    /// Those of them that the kernel still has.
    fn left(&self) -> Vec<String> {
        let maps = loaded_maps().flatten().map(|map| map.id());
        let links = loaded_links().flatten().map(|link| link.id());
        let programs = loaded_programs().flatten().map(|program: ProgramInfo| program.id());
        let named = |kind: &'static str| move |id: u32| format!("{kind} {id}");
        maps.filter(|id| self.maps.contains(id))
            .map(named("map"))
            .chain(links.filter(|id| self.links.contains(id)).map(named("link")))
            .chain(programs.filter(|id| self.programs.contains(id)).map(named("program")))
            .collect()
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of pins");
    entries
        .map(|entry| entry.expect("an entry of it").path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
}

/// Processes below a cgroup.
fn processes(cgroup: &Path) -> Vec<u32> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let below = below.filter(|entry| entry.path().is_dir());
    let own = own.lines().filter_map(|line| line.parse().ok());
    own.chain(below.flat_map(|entry| processes(&entry.path()))).collect()
}

/// What a mesh could leave in the host's own network.
fn network() -> String {
    [
        &["ip", "-4", "rule"][..],
        &["ip", "-6", "rule"],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["nft", "list", "ruleset"],
    ]
    .iter()
    .map(|words| {
        let output = Command::new(words[0]).args(&words[1..]).output().expect("iproute2, nft");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
    .collect()
}

#[test]
fn nothing_of_a_mesh_is_left() {
    let before = network();
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    support::ok(&client, &["curl", "-sS", "--fail", "http://echo.shop/"]);
    let objects = Objects::pinned_below(&lab.run_dir().join("bpf"));
    // Per node: the cgroup's programs and those of its pods, and every map.
    assert!(objects.links.len() >= 2 * 7 + SHOP_PODS.len(), "{objects:?}");
    assert!(objects.maps.len() >= 2 * 12, "{objects:?}");
    assert_eq!(
        objects.left().len(),
        objects.maps.len() + objects.links.len() + objects.programs.len()
    );
    // <lab>/<node>/…/<container>
    let cgroup = client.cgroup.ancestors().find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("malha-lab-"))
    });
    let running = processes(cgroup.expect("the lab's cgroup"));
    assert!(running.len() >= 2 + SHOP_PODS.len(), "agents and applications: {running:?}");

    lab.down().unwrap();
    let alive = |pid: &&u32| Path::new(&format!("/proc/{pid}")).exists();
    support::eventually("processes end", || running.iter().find(alive).is_none().then_some(()));
    // The kernel frees links and programs in a worker.
    support::eventually("kernel objects go", || objects.left().is_empty().then_some(()));
    assert_eq!(network(), before, "rules and routes of the host");
}
