//! From a file's text to objects: YAML, then typed, then translated. Reports what it cannot read,
//! object by object; never fails as a whole and never panics.

mod document;
mod locate;
mod suggest;
mod typed;
mod yaml;

use std::sync::Arc;

use serde_json::{Map, Value};

pub(super) use document::{NOT_ENFORCED, UNKNOWN_FIELD, UNSUPPORTED_FIELD, key_of};
pub(super) use suggest::nearest;

use super::diagnostic::{Diagnostic, Place, Report};
use super::objects::{Key, Object};
use crate::model::{MeshSettings, ObjectRef};

/// Bytes of one file; a larger one is refused whole, and its last good objects stay.
pub const MAX_FILE_BYTES: usize = 64 << 20;

/// What a file says.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Objects that can be taken, in the file's order.
    pub accepted: Vec<Object>,
    /// Objects that cannot, but can be named: their last good version stays in force.
    pub rejected: Vec<Key>,
    /// A document could not even be named: any object of the file's last version may be meant.
    pub unreadable: bool,
    /// Findings that belong to no accepted object.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads a file's text; `file` is the name to report, if it came from one.
pub fn parse(text: &str, file: Option<&Arc<str>>, mesh: &MeshSettings) -> Parsed {
    let mut parsed = Parsed::default();
    let place = |document, line| file.map(|file| Place { file: Arc::clone(file), document, line });
    if text.len() > MAX_FILE_BYTES {
        let mut report = Report::new(None, place(0, 0));
        report.error("", format!("larger than {MAX_FILE_BYTES} bytes"));
        parsed.refuse(None, report);
        return parsed;
    }
    let documents = match file {
        Some(name) if name.ends_with(".json") => vec![yaml::json(text)],
        _ => yaml::documents(text),
    };
    for found in documents {
        match found.value {
            Ok(value) => {
                let (accepted, said) = (parsed.accepted.len(), parsed.diagnostics.len());
                document::admit(value, place(found.number, found.line), mesh, &mut parsed);
                let objects = parsed.accepted.iter_mut().skip(accepted);
                let new = parsed.diagnostics.iter_mut().skip(said);
                locate(found.text, new.chain(objects.flat_map(|object| &mut object.notes)));
            }
            Err(fault) => {
                let mut report = Report::new(None, place(found.number, fault.line));
                report.error("", fault.message);
                parsed.refuse(None, report);
            }
        }
    }
    parsed
}

/// Reads one object that did not come from a file.
pub(super) fn object(value: Value, mesh: &MeshSettings) -> Parsed {
    let mut parsed = Parsed::default();
    document::admit(value, None, mesh, &mut parsed);
    parsed
}

/// What is wrong with an object of one of Istio's kinds that the mesh does not read; `None` if the
/// kind is none of those.
pub(super) fn unread(kind: &str, map: Map<String, Value>, object: ObjectRef) -> Option<Report> {
    let mut report = Report::new(Some(object), None);
    document::decode_unread(kind, map, &mut report).then_some(report)
}

/// Fills in the lines of findings about one document; its own line is there already.
fn locate<'a>(text: yaml::Text<'_>, findings: impl Iterator<Item = &'a mut Diagnostic>) {
    let mut lines = None;
    for found in findings.filter(|found| !found.field.is_empty()) {
        let Some(place) = &mut found.place else { return };
        let lines = lines.get_or_insert_with(|| locate::Lines::read(text.yaml));
        if let Some(lines) = lines {
            place.line = text.offset + lines.of(&found.field);
        }
    }
}

impl Parsed {
    /// A file that could not be read at all: its last good objects stay.
    pub(super) fn unreadable(file: &Arc<str>, message: String) -> Self {
        let place = Place { file: Arc::clone(file), document: 0, line: 0 };
        let mut report = Report::new(None, Some(place));
        report.error("", message);
        Self { unreadable: true, diagnostics: report.into_diagnostics(), ..Self::default() }
    }

    /// Notes that an object (or a document that names none) cannot be taken.
    fn refuse(&mut self, key: Option<Key>, report: Report) {
        match key {
            Some(key) => self.rejected.push(key),
            None => self.unreadable = true,
        }
        self.diagnostics.extend(report.into_diagnostics());
    }
}
