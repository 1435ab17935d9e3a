//! Configuration: where it comes from, what it says, and the snapshot that it compiles to.
//!
//! source -> [`parse`] (YAML, then typed: `api`, then translated: `translate`) -> [`Objects`] (last
//! good versions) -> [`compile`] -> published. Only this module reads Kubernetes objects. Nothing
//! here acts on the data path; it publishes values, and findings for people.

mod api;
mod compile;
mod diagnostic;
mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod objects;
mod parse;
mod translate;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

pub use api::Kind;
pub use compile::{Compiled, compile};
pub use diagnostic::{Diagnostic, Place, Severity};
pub use folder::FolderError;
pub use objects::{Key, Object, Objects, Settings};
pub use parse::{MAX_FILE_BYTES, Parsed, parse};
pub use writer::announce;

use crate::model::Snapshot;

/// Where the objects come from. The API server will be another.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder of manifests, watched.
    Folder(PathBuf),
}

/// Who is told.
#[derive(Debug)]
pub struct Publish {
    /// The snapshot, sent when it changed; its generation is at least 1 after the first reading.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// Everything that is wrong, sent when the list changed.
    pub diagnostics: watch::Sender<Arc<Vec<Diagnostic>>>,
}

/// Follows the source until the future is dropped.
///
/// # Errors
///
/// If the source cannot be read at all; a bad object is no error.
pub async fn run(source: Source, settings: Settings, publish: Publish) -> Result<(), FolderError> {
    match source {
        Source::Folder(dir) => folder::run(&dir, settings, publish).await,
    }
}

/// Compiles a YAML text from scratch, whatever is in it: for tests and the fuzz target.
pub fn yaml_compile(text: &[u8]) -> Compiled {
    let settings = Settings::default();
    let parsed = parse(&String::from_utf8_lossy(text), None, &settings.mesh);
    let mut objects = Objects::new(settings);
    objects.apply("", parsed, 0);
    compile(&objects, &Snapshot::default())
}
