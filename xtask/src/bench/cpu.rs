//! What processes cost: processor time and memory, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A process and all its descendants (nginx serves from a child).
#[must_use]
pub(super) fn family(pid: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = parent(child) {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(member) = family.get(next) {
        family.extend(children.remove(member).unwrap_or_default());
        next += 1;
    }
    family
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Seconds that the threads of these processes have run. Threads that have ended are not in it.
///
/// In nanoseconds from `schedstat` (Documentation/scheduler/sched-stats.rst): `stat` counts ticks.
#[must_use]
pub(super) fn seconds(pids: &[u32]) -> f64 {
    pids.iter().copied().map(of_process).sum()
}

fn of_process(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| of_thread(&task.path())).sum()
}

fn of_thread(task: &Path) -> Option<f64> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    let nanoseconds: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds as f64 / 1e9)
}

/// Seconds that each worker of an agent has run, by its thread's name.
#[must_use]
pub(super) fn workers(agent: u32) -> BTreeMap<String, f64> {
    let tasks = fs::read_dir(format!("/proc/{agent}/task")).into_iter().flatten().flatten();
    let workers = tasks.filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned();
        let seconds = of_thread(&task.path())?;
        name.starts_with("worker-").then_some((name, seconds))
    });
    workers.collect()
}

/// Resident memory of these processes in KiB.
#[must_use]
pub(super) fn memory(pids: &[u32]) -> u64 {
    let of_one = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    pids.iter().filter_map(of_one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_a_cost() {
        let own = family(std::process::id());
        assert_eq!(own.first(), Some(&std::process::id()));
        assert!(seconds(&own) > 0.0);
        assert!(memory(&own) > 0);
    }

    #[test]
    fn only_workers_are_workers() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let work = move || {
            let _ = wait.recv();
        };
        let thread = std::thread::Builder::new().name("worker-7".into()).spawn(work).unwrap();
        // A thread names itself once it runs.
        let named = crate::lab::wait_for(std::time::Duration::from_secs(10), "a thread", || {
            Ok(workers(std::process::id()).remove("worker-7"))
        });
        let names: Vec<String> = workers(std::process::id()).into_keys().collect();
        drop(done);
        thread.join().unwrap();
        assert!(named.is_ok_and(|seconds| seconds >= 0.0));
        assert_eq!(names, ["worker-7"]);
    }

    #[test]
    fn nobody_costs_nothing() {
        assert_eq!(memory(&[]), 0);
        assert!(seconds(&[]) < f64::EPSILON);
    }
}
