//! From text to generic values, one YAML document at a time, so that a bad one does not spoil the
//! others of its file. No Kubernetes here.

use serde_json::Value;

/// Nodes of one document, aliases not counted: a `List` of ten thousand pods has about a million.
/// A larger document is refused.
const MAX_NODES: usize = 4_000_000;
/// Events that aliases may repeat in one document ("billion laughs"); more is refused.
const MAX_ALIAS_EVENTS: usize = 100_000;
/// Depth of nesting; more is refused.
const MAX_DEPTH: usize = 64;

/// A document's text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Text<'a> {
    /// Lines of the file before it.
    pub(super) offset: usize,
    /// Itself; JSON is YAML too.
    pub(super) yaml: &'a str,
}

/// One document of a file.
#[derive(Debug, PartialEq)]
pub(super) struct Document<'a> {
    /// The text.
    pub(super) text: Text<'a>,
    /// From 1.
    pub(super) number: usize,
    /// Line of its first content, from 1.
    pub(super) line: usize,
    /// What it says; `Null` if nothing.
    pub(super) value: Result<Value, Fault>,
}

/// Why a document cannot be read.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    /// Line in the file, from 1.
    pub(super) line: usize,
    /// A sentence.
    pub(super) message: String,
}

/// Reads every document of a YAML stream.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    split(text)
        .into_iter()
        .enumerate()
        .map(|(index, (offset, yaml))| {
            let blank = yaml.lines().take_while(|line| line.trim().is_empty()).count();
            let text = Text { offset, yaml };
            let line = offset + blank + 1;
            Document { text, number: index + 1, line, value: read(yaml, offset) }
        })
        .collect()
}

/// Reads a JSON text as one document.
pub(super) fn json(text: &str) -> Document<'_> {
    let value = serde_json::from_str(text)
        .map_err(|error| Fault { line: error.line(), message: format!("not valid JSON: {error}") });
    Document { text: Text { offset: 0, yaml: text }, number: 1, line: 1, value }
}

/// Splits at `---` and `...` lines: at the start of a line they always end a document, even inside
/// a scalar (YAML 1.2.2 section 9.1.2). Gives the number of lines before each part; parts without
/// content are left out.
fn split(text: &str) -> Vec<(usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut parts, mut start, mut start_line) = (Vec::new(), 0, 0);
    let (mut offset, mut line_number) = (0, 0);
    for line in text.split_inclusive('\n') {
        let content = line.trim_end_matches(['\n', '\r']);
        let end = content == "...";
        if end || content == "---" || content.starts_with("--- ") || content.starts_with("---\t") {
            parts.push((start_line, text.get(start..offset).unwrap_or_default()));
            // What follows `--- ` on the line belongs to the new document.
            start = offset + if content.len() > 3 { 3 } else { line.len() };
            start_line = line_number + usize::from(content.len() == 3);
        }
        offset += line.len();
        line_number += 1;
    }
    parts.push((start_line, text.get(start..).unwrap_or_default()));
    parts.retain(|(_, part)| {
        part.lines().any(|line| !matches!(line.trim_start().chars().next(), None | Some('#' | '%')))
    });
    parts
}

fn read(text: &str, offset: usize) -> Result<Value, Fault> {
    // A part that only holds directives belongs to the document after it; they change nothing here.
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
        if let Some(tab) = tab_indented(text) {
            let message = "indented with a tab, which YAML does not allow: use spaces".to_owned();
            return Fault { line: offset + tab, message };
        }
        Fault { line: offset + line, message: format!("not valid YAML: {}", reason(error)) }
    })
}

/// Why, without the place (it counts from the document's start) and the library's own options.
fn reason(error: &serde_saphyr::Error) -> String {
    if let serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } = error {
        return format!("the key `{key}` is there twice");
    }
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    text.split_once(" at line ").map_or(text, |(reason, _)| reason).to_owned()
}

/// Limits, and how words are taken.
pub(super) fn options() -> serde_saphyr::Options {
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    options.emit_comments = false;
    // As text: `exact: no` is meant as a word. Where a boolean is wanted, `no` is still taken.
    options.strict_booleans = true;
    options.alias_limits.max_total_replayed_events = MAX_ALIAS_EVENTS;
    if let Some(budget) = &mut options.budget {
        budget.max_nodes = MAX_NODES;
        budget.max_events = MAX_NODES.saturating_mul(2);
        budget.max_depth = MAX_DEPTH;
        budget.flow_nesting_limit = MAX_DEPTH;
    }
    options
}

/// The first line, from 1, whose indentation has a tab.
fn tab_indented(text: &str) -> Option<usize> {
    let tab = |line: &str| {
        let content = line.trim_start_matches([' ', '\t']);
        let indent = line.strip_suffix(content).unwrap_or_default();
        !content.is_empty() && indent.contains('\t')
    };
    text.lines().position(tab).map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_lines(text: &str) -> Vec<(usize, &str)> {
        split(text)
    }

    #[test]
    fn documents_are_split_at_markers() {
        assert_eq!(split_lines("a: 1\n---\nb: 2\n"), [(0, "a: 1\n"), (2, "b: 2\n")]);
        assert_eq!(split_lines("---\n# only words\n---\r\na: 1"), [(3, "a: 1")]);
        assert_eq!(split_lines("--- {a: 1}\n...\n"), [(0, " {a: 1}\n")]);
        assert_eq!(split_lines("a: '----'\n ---\n"), [(0, "a: '----'\n ---\n")]);
        assert!(split_lines("").is_empty());
    }

    #[test]
    fn faults_name_the_line_of_the_file() {
        let found = documents("a: 1\n---\nb:\n\tc: 2\n---\nd: [1\n---\ne: 3\n");
        assert_eq!(found.len(), 4);
        let fault = found[1].value.as_ref().unwrap_err();
        assert_eq!((fault.line, fault.message.contains("tab")), (4, true), "{fault:?}");
        assert!(found[2].value.as_ref().unwrap_err().line >= 6);
        assert_eq!(found[3].value, Ok(serde_json::json!({"e": 3})));
    }

    #[test]
    fn aliases_are_bounded() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let alias = format!("*a{}", level - 1);
            let list = vec![alias; 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        assert!(documents(&text)[0].value.is_err());
    }
}
