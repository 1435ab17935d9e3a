//! Configuration: where it comes from, what it says, and the snapshot that it compiles to.
//!
//! source -> [`parse`] (YAML, then typed: `api`, then translated: `translate`) -> [`Objects`] (last
//! good versions, and what [`resolve`] says of names) -> [`compile`] -> published. Only this module reads Kubernetes objects. Nothing
//! here acts on the data path; it publishes values, and findings for people.

mod api;
mod check;
mod cluster;
mod compile;
pub mod crd;
mod diagnostic;
mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod names;
mod objects;
mod parse;
mod store;
mod translate;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

pub use api::{Kind, Labels};
pub use check::{Checked, Standing, check};
pub use cluster::{
    Cluster, Observed, Seen, annotate, client_of, kubernetes_client, read_kubeconfig, resource,
};
pub use compile::{Compiled, compile};
pub use diagnostic::{Diagnostic, Place, Severity};
pub use names::{NameServers, resolve};
pub use objects::{Answers, Key, Object, Objects, Settings};
pub use parse::{MAX_FILE_BYTES, Parsed, parse};
pub use translate::{ENROLLED, StartingPod, starting};
pub use writer::{Announcement, Announcer};

use crate::model::Snapshot;

/// Where the objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder of manifests, watched.
    Folder(PathBuf),
    /// The API server of a cluster.
    Cluster(Box<Cluster>),
}

/// Who is told.
#[derive(Debug)]
pub struct Publish {
    /// The snapshot, sent when it changed; its generation is at least 1 after the first reading.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// Everything that is wrong, sent when the list changed.
    pub diagnostics: watch::Sender<Arc<Vec<Diagnostic>>>,
    /// What keeps the first snapshot from being there, for people.
    pub missing: watch::Sender<Arc<[String]>>,
}

/// Why there is no configuration any more.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not there, or not readable: check `--config-dir`.
    #[error("cannot read the configuration folder {path}")]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Reading was stopped by a fault of the agent's own.
    #[error("the configuration is no longer read")]
    Stopped(#[source] tokio::task::JoinError),
}

/// Follows the source, and what names resolve to, until the future is dropped.
///
/// # Errors
///
/// If the source cannot be read at all; a bad object is no error, nor is an API server that does not
/// answer.
pub async fn run(
    source: Source,
    settings: Settings,
    answers: watch::Receiver<Arc<Answers>>,
    publish: Publish,
) -> Result<(), ConfigError> {
    match source {
        Source::Folder(dir) => folder::run(&dir, settings, answers, publish).await,
        Source::Cluster(cluster) => cluster::run(*cluster, settings, answers, publish).await,
    }
}

/// Waits for other answers; for ever, once nobody resolves names.
async fn answered(answers: &mut watch::Receiver<Arc<Answers>>) {
    if answers.changed().await.is_err() {
        std::future::pending().await
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
