//! What is wrong with a configuration, said to the person who wrote it.
//!
//! A diagnostic names the object, the field and, with a folder as source, the file. It is a value:
//! the list of a compilation is the whole truth about the objects of that moment.

use std::fmt;
use std::sync::Arc;

use crate::model::ObjectRef;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The object (or this version of it) is not in force.
    Error,
    /// In force, but not in every respect as written.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Where in a folder an object was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Path below the folder.
    pub file: Arc<str>,
    /// Which YAML document of the file, from 1; 0 for the file as a whole.
    pub document: usize,
    /// Line, from 1: of the fault if known, else of the document's start; 0 if unknown.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}", self.file)?;
        if self.document > 0 {
            write!(f, ", document {}", self.document)?;
        }
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        Ok(())
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The object, if the document says enough to name it.
    pub object: Option<ObjectRef>,
    /// The file, if it came from one.
    pub place: Option<Place>,
    /// Path of the field, e.g. `spec.http[0].route[0].weight`; empty for the whole object.
    pub field: String,
    /// A sentence.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.severity)?;
        if let Some(object) = &self.object {
            write!(f, " {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.place {
            Some(place) => write!(f, " ({place})"),
            None => Ok(()),
        }
    }
}

/// Collects findings about one object (or one file).
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The object that the findings are about.
    pub(super) object: Option<ObjectRef>,
    /// Where it was read.
    pub(super) place: Option<Place>,
    found: Vec<Diagnostic>,
}

impl Report {
    /// An empty report.
    pub(super) fn new(object: Option<ObjectRef>, place: Option<Place>) -> Self {
        Self { object, place, found: Vec::new() }
    }

    /// The object cannot be taken.
    pub(super) fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Error, field.into(), message.into());
    }

    /// The object is taken, but not wholly as written.
    pub(super) fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Warning, field.into(), message.into());
    }

    /// Whether the object must be refused.
    pub(super) fn has_errors(&self) -> bool {
        self.found.iter().any(|found| found.severity == Severity::Error)
    }

    /// The findings.
    pub(super) fn into_diagnostics(self) -> Vec<Diagnostic> {
        self.found
    }

    fn add(&mut self, severity: Severity, field: String, message: String) {
        let (object, place) = (self.object.clone(), self.place.clone());
        self.found.push(Diagnostic { severity, object, place, field, message });
    }
}
