//! Each rule is shown a file that breaks it and one that does not.

use super::{Report, check_files};

const LIB: &str = "//! Agent.\npub mod model;\npub mod http;\n";

/// Findings on one file in a repository that is otherwise in order.
fn findings(path: &str, text: &str) -> Vec<String> {
    let files =
        [("ARCHITECTURE.md", "`model` and `http`"), ("mesh-agent/src/lib.rs", LIB), (path, text)];
    let report = report(&files);
    report.failures.iter().map(ToString::to_string).collect()
}

fn report(files: &[(&str, &str)]) -> Report {
    let files: Vec<_> =
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    check_files(&files)
}

#[track_caller]
fn refused(path: &str, text: &str, expected: &str) {
    let found = findings(path, text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with(expected), "{found:?}");
}

#[track_caller]
fn accepted(path: &str, text: &str) {
    assert_eq!(findings(path, text), Vec::<String>::new());
}

#[test]
fn imports_point_down() {
    accepted("mesh-agent/src/http/mod.rs", "//! x\nuse crate::{model::Snapshot, tunnel};\n");
    refused(
        "mesh-agent/src/model/mod.rs",
        "//! x\nuse crate::http::Engine;\n",
        "mesh-agent/src/model/mod.rs:2: `model` imports `http`, which is above it",
    );
    refused(
        "mesh-agent/src/balance/pick.rs",
        "//! x\n\nfn f() -> crate::telemetry::Record {}\n",
        "mesh-agent/src/balance/pick.rs:3: `balance` imports `telemetry`, which is of the same",
    );
}

#[test]
fn imports_are_found_in_groups() {
    refused(
        "mesh-agent/src/tunnel/pool.rs",
        "//! x\nuse crate::{\n    model::{proxy, agent},\n    identity,\n    proxy::Thing,\n};\n",
        "mesh-agent/src/tunnel/pool.rs:5: `tunnel` imports `proxy`",
    );
}

#[test]
fn words_in_strings_and_comments_are_no_imports() {
    accepted(
        "mesh-agent/src/model/mod.rs",
        "//! See crate::agent.\n/* crate::proxy */\nconst A: &str = \"crate::http\";\n\
         const B: &str = r#\"crate::http \"unsafe\" \"#;\nconst C: char = '\"'; // crate::cli\n",
    );
}

#[test]
fn the_root_is_not_reached_by_super() {
    accepted(
        "mesh-agent/src/http/router/tree.rs",
        "//! x\nuse super::super::Head;\nuse super::X;\n",
    );
    refused(
        "mesh-agent/src/http/router.rs",
        "//! x\nuse super::super::tunnel::Pool;\n",
        "mesh-agent/src/http/router.rs:2: this `super::` reaches the crate's root",
    );
    accepted(
        "mesh-agent/src/http/mod.rs",
        "//! x\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\n",
    );
}

#[test]
fn every_module_has_a_rank_and_a_place_on_the_map() {
    let lib = "//! x\npub mod model;\npub mod misc;\n";
    let found = report(&[("ARCHITECTURE.md", "`model`"), ("mesh-agent/src/lib.rs", lib)]);
    let found: Vec<_> = found.failures.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "ARCHITECTURE.md: does not name the module `misc`",
            "mesh-agent/src/lib.rs:3: `misc` has no rank: add it to the table of tidy's layers"
        ]
    );
}

#[test]
fn files_begin_with_a_header() {
    refused("xtask/src/a.rs", "use std::fs;\n", "xtask/src/a.rs:1: does not begin with `//!`");
}

#[test]
fn unsafe_stands_in_listed_files_only() {
    let text = "//! x\n\nfn f() { unsafe { g() } }\n";
    refused("mesh-agent/src/http/mod.rs", text, "mesh-agent/src/http/mod.rs:3: `unsafe` outside");
    accepted("mesh-common/src/maps.rs", text);
    accepted("mesh-agent/src/http/mod.rs", "//! x\n#![deny(unsafe_code)]\n// not unsafe\n");
}

#[test]
fn kubernetes_types_stay_out_of_the_data_path() {
    let text = "//! x\nuse kube::Api;\n";
    refused("mesh-agent/src/http/mod.rs", text, "mesh-agent/src/http/mod.rs:2: only config");
    accepted("mesh-agent/src/config/source.rs", text);
    accepted("mesh-agent/src/http/mod.rs", "//! x\nuse crate::http::kube_name;\n");
}

#[test]
fn pure_code_has_no_clock() {
    let text = "//! x\nfn f() { Instant::now() }\n";
    refused("mesh-agent/src/model/a.rs", text, "mesh-agent/src/model/a.rs:2: `Instant::now`");
    accepted("mesh-agent/src/http/mod.rs", text);
    let marked = "//! x\n//!\n//! Pure. Source: RFC.\nasync fn f() { g().await }\n";
    refused("mesh-agent/src/http/fault.rs", marked, "mesh-agent/src/http/fault.rs:4: `await`");
    let in_tests = "//! x\n#[cfg(test)]\nmod tests {\n    fn f() { Instant::now() }\n}\n";
    accepted("mesh-agent/src/model/a.rs", in_tests);
    refused("mesh-agent/src/balance/a.rs", text, "mesh-agent/src/balance/a.rs:2: `Instant::now`");
    accepted("mesh-agent/src/balance/clock.rs", text);
}

#[test]
fn a_todo_names_its_issue() {
    let todo = concat!("//! x\n// TO", "DO: later\n");
    refused("bench/src/a.rs", todo, "bench/src/a.rs:2: a TODO needs the number of an issue");
    accepted("bench/src/a.rs", concat!("//! x\n// TO", "DO(#12): later\n"));
}

#[test]
fn machine_paths_are_refused_in_any_text() {
    let text = concat!("see /wo", "rk/shared\n");
    refused("docs/a.md", text, "docs/a.md:1: `/wo");
    accepted("docs/a.md", concat!("see a/wo", "rk/shared and net", "work/\n"));
}

#[test]
fn maps_say_who_writes_and_who_reads() {
    let good = "//! x\n/// Pods. Written by the agent;\n/// read by connect.\n#[map]\nstatic PODS: A = A;\n";
    accepted("mesh-ebpf/src/maps.rs", good);
    let text = "//! x\n/// Pods. Written by the agent.\n#[map]\nstatic PODS: A = A;\n";
    refused(
        "mesh-ebpf/src/maps.rs",
        text,
        "mesh-ebpf/src/maps.rs:3: `PODS`: the doc comment does not say who reads it",
    );
    refused("mesh-ebpf/src/connect.rs", good, "mesh-ebpf/src/connect.rs:4: a map outside");
}

#[test]
fn lengths_are_notes() {
    let long = format!("//! x\n// {}\n{}", "y".repeat(120), "\n".repeat(700));
    let files = [("ARCHITECTURE.md", ""), ("bench/src/a.rs", long.as_str())];
    let found = report(&files);
    assert_eq!(found.failures, []);
    let notes: Vec<_> = found.notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "bench/src/a.rs: 702 lines before the tests: a reason to look again",
            "bench/src/a.rs:2: 123 columns"
        ]
    );
}
