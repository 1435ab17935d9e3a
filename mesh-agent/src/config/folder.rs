//! A folder of manifests as the source: watched, read when it has been quiet for a moment.
//!
//! Events only say when to look; what is there is found by walking. A file that cannot be read
//! keeps its last good objects. The walk and the compilation run on the blocking pool.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::objects::Settings;
use super::parse::{MAX_FILE_BYTES, Parsed, parse};
use super::store::{Store, now};
use super::writer::{ENROLLED, STATUS_DIR, read_list};
use super::{Answers, ConfigError, Publish, answered};

/// A folder is read once nothing happened in it for this long.
const QUIET: Duration = Duration::from_millis(50);
/// A folder that never is quiet is read after this long all the same.
const PATIENCE: Duration = Duration::from_millis(500);
/// Without any event the folder is walked this often, for file systems that do not tell.
const WALK_INTERVAL: Duration = Duration::from_secs(5);
/// Depth of subfolders; what lies deeper is not read.
const MAX_DEPTH: usize = 16;
/// Paths named by events between two walks; beyond that every file is read again.
const MAX_EVENTS: usize = 4096;

/// Follows `dir` until dropped.
pub(super) async fn run(
    dir: &Path,
    settings: Settings,
    mut answers: watch::Receiver<Arc<Answers>>,
    publish: Publish,
) -> Result<(), ConfigError> {
    let dir = dir.to_owned();
    fs::read_dir(&dir).map_err(|source| ConfigError::Unreadable { path: dir.clone(), source })?;
    let (events, mut changes) = mpsc::channel(MAX_EVENTS);
    let _watcher = watch_folder(&dir, events);
    let mut reader = Reader { dir, seen: BTreeMap::new(), store: Store::new(settings, &publish) };
    let mut touched = Touched::Everything;
    loop {
        let walk = std::mem::replace(&mut touched, Touched::Paths(HashSet::new()));
        let resolved = answers.borrow_and_update().clone();
        let work = move || {
            reader.refresh(&walk, &resolved);
            reader
        };
        reader = tokio::task::spawn_blocking(work).await.map_err(ConfigError::Stopped)?;
        reader.store.publish(&publish);
        publish.missing.send_replace(Arc::default());
        touched = next_batch(&mut changes, &mut answers).await;
    }
}

/// Waits for a change and then for a quiet moment, both bounded. Answers are one of their own.
async fn next_batch(
    changes: &mut mpsc::Receiver<Touched>,
    answers: &mut watch::Receiver<Arc<Answers>>,
) -> Touched {
    let nothing = || Touched::Paths(HashSet::new());
    let first = tokio::select! {
        first = timeout(WALK_INTERVAL, changes.recv()) => first,
        () = answered(answers) => return nothing(),
    };
    let mut touched = match first {
        Ok(Some(first)) => first,
        Ok(None) => {
            // There is no watcher: only the interval is left.
            let _ = timeout(WALK_INTERVAL, answered(answers)).await;
            return nothing();
        }
        Err(_) => return nothing(),
    };
    let deadline = Instant::now() + PATIENCE;
    while let Ok(Some(more)) =
        timeout_at(deadline.min(Instant::now() + QUIET), changes.recv()).await
    {
        touched = touched.and(more);
        if Instant::now() >= deadline {
            break;
        }
    }
    touched
}

/// What events say was touched.
enum Touched {
    /// These paths; a walk finds the rest by size and time.
    Paths(HashSet<PathBuf>),
    /// Events were lost: read every file.
    Everything,
}

impl Touched {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Paths(mut paths), Self::Paths(more)) if paths.len() < MAX_EVENTS => {
                paths.extend(more);
                Self::Paths(paths)
            }
            _ => Self::Everything,
        }
    }

    fn includes(&self, path: &Path) -> bool {
        match self {
            Self::Paths(paths) => paths.contains(path),
            Self::Everything => true,
        }
    }
}

fn watch_folder(dir: &Path, events: mpsc::Sender<Touched>) -> Option<RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        let touched = match event {
            Ok(event) if event.need_rescan() => Touched::Everything,
            Ok(event) if event.kind.is_access() => return,
            Ok(event) => Touched::Paths(event.paths.into_iter().collect()),
            Err(_) => Touched::Everything,
        };
        // A full channel has changes waiting already, and the walk compares every file.
        if events.try_send(touched).is_err() {
            debug!("configuration event dropped");
        }
    };
    let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
        watcher.watch(dir, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| {
            warn!(%error, interval = ?WALK_INTERVAL, "configuration folder only polled");
        })
        .ok()
}

/// Tells whether a file is as it was: inode, size, time of change.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// What was read, and what it compiled to.
struct Reader {
    dir: PathBuf,
    seen: BTreeMap<PathBuf, Stamp>,
    store: Store,
}

impl Reader {
    /// Reads what changed, and compiles if anything did.
    fn refresh(&mut self, touched: &Touched, answers: &Arc<Answers>) {
        let resolved = self.store.resolve(answers);
        let found = self.walk();
        let gone: Vec<PathBuf> =
            self.seen.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        let changed: Vec<PathBuf> = found
            .iter()
            .filter(|(path, stamp)| self.seen.get(*path) != Some(*stamp) || touched.includes(path))
            .map(|(path, _)| path.clone())
            .collect();
        let first = self.store.is_new();
        if gone.is_empty() && changed.is_empty() && !resolved && !first {
            return;
        }
        for path in changed {
            self.read(&path);
        }
        for path in gone {
            self.forget(&path);
        }
        self.seen = found;
        self.store.objects.settle();
        self.store.compile();
    }

    /// Every file of interest with its stamp.
    fn walk(&self) -> BTreeMap<PathBuf, Stamp> {
        let mut found = BTreeMap::new();
        let mut folders = vec![(self.dir.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                let Ok(kind) = entry.file_type() else { continue };
                let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                let status = depth == 0 && entry.file_name() == STATUS_DIR;
                // Not through links to folders, which may lead in circles.
                if kind.is_dir() && (!hidden || status) && depth < MAX_DEPTH {
                    folders.push((path, depth + 1));
                    continue;
                }
                // Through links to files, as a mounted ConfigMap has them.
                let Ok(metadata) = fs::metadata(&path) else { continue };
                if metadata.is_file() && !hidden && self.is_wanted(&path) {
                    let stamp = Stamp {
                        inode: metadata.ino(),
                        size: metadata.size(),
                        seconds: metadata.mtime(),
                        nanoseconds: metadata.mtime_nsec(),
                    };
                    found.insert(path, stamp);
                }
            }
        }
        found
    }

    fn is_wanted(&self, path: &Path) -> bool {
        self.is_list(path)
            || path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
    }

    /// A node's list of enrolled pods.
    fn is_list(&self, path: &Path) -> bool {
        path.parent() == Some(&self.dir.join(STATUS_DIR))
            && path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(ENROLLED.as_bytes()))
    }

    fn name_of(&self, path: &Path) -> Arc<str> {
        path.strip_prefix(&self.dir).unwrap_or(path).to_string_lossy().into()
    }

    fn forget(&mut self, path: &Path) {
        let name = self.name_of(path);
        if self.is_list(path) {
            self.store.objects.announce(&name, None);
        } else {
            self.store.objects.remove(&name);
        }
    }

    fn read(&mut self, path: &Path) {
        let name = self.name_of(path);
        let text = read_text(path);
        if self.is_list(path) {
            if let Ok(text) = text {
                self.store.objects.announce(&name, Some(read_list(&text)));
            }
            return;
        }
        let parsed = match text {
            // Most likely truncated, to be written again.
            Ok(text) if text.is_empty() && self.store.objects.has_any_of(&name) => {
                Parsed::unreadable(&name, "empty: to take its objects away, delete it".to_owned())
            }
            Ok(text) => parse(&text, Some(&name), &self.store.objects.settings().mesh),
            Err(message) => Parsed::unreadable(&name, message),
        };
        self.store.objects.apply(&name, parsed, now());
    }
}

/// Text of a file, or why not.
fn read_text(path: &Path) -> Result<String, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX) {
        return Err(format!("larger than {MAX_FILE_BYTES} bytes"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|_| "not UTF-8 text".to_owned())
}

#[cfg(test)]
mod tests;
