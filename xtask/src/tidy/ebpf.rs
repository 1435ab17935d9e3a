//! Maps of the kernel programs: each says who writes it and who reads it.
//!
//! A map is shared by programs and the agent, which no compiler checks; its doc comment is the
//! contract.

use super::Report;

const MAPS: &str = "mesh-ebpf/src/maps.rs";

/// Checks that maps are in one file, and that each there is documented.
pub(super) fn check(files: &[(String, String)], report: &mut Report) {
    for (path, text) in files.iter().filter(|(path, _)| path.starts_with("mesh-ebpf/src/")) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (index, line) in lines.iter().enumerate() {
            if !is_map_attribute(line) {
                continue;
            }
            if path != MAPS {
                report.fail(path, index + 1, format!("a map outside {MAPS}: all maps stand there"));
            }
            let name = lines.iter().skip(index + 1).find_map(|line| static_name(line));
            let name = name.unwrap_or("this map");
            let doc = doc_above(&lines, index);
            for (role, words) in [
                ("writes", &["ritten by", "ritten and", "ade by"][..]),
                ("reads", &["ead by", "mptied by", "aken by"][..]),
            ] {
                if !words.iter().any(|word| doc.contains(word)) {
                    let message = format!("`{name}`: the doc comment does not say who {role} it");
                    report.fail(path, index + 1, message);
                }
            }
        }
    }
}

fn is_map_attribute(line: &str) -> bool {
    ["map", "btf_map"].into_iter().any(|name| {
        let rest = line.strip_prefix("#[").and_then(|line| line.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with([']', '(']))
    })
}

fn static_name(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("pub(crate) ").unwrap_or(line).strip_prefix("static ")?;
    let line = line.strip_prefix("mut ").unwrap_or(line);
    line.split(':').next()
}

/// The doc comment right above line `index`, as one line of text.
fn doc_above(lines: &[&str], index: usize) -> String {
    let above = lines.iter().take(index).rev();
    let mut doc: Vec<&str> = above.map_while(|line| line.strip_prefix("///")).collect();
    doc.reverse();
    doc.join(" ")
}
