//! Accepted objects on disk, for an agent that starts while the API server is away.
//!
//! A log: one line for each change, `<checksum> <JSON>`, the object as far as the mesh reads it, or
//! nothing for one that is gone. Written as changes come, so that its cost is that of the change; what
//! a crash leaves half-written is at the end, fails its checksum and is dropped. When most of it is
//! overtaken it is written anew beside and renamed. It holds no secrets: no kind that the mesh reads
//! from here has any.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::api::Kind;
use super::super::objects::Key;

/// First line; another version is not read.
const HEADER: &str = "malha objects 1";
const FILE: &str = "objects";
/// In place of a kind: every kind had been listed when this line was written.
const COMPLETE: &str = "complete";
/// Bytes of checksum that a line starts with, as hexadecimal digits.
const DIGITS: usize = 16;
/// A log below this size is never written anew.
const SMALL: u64 = 1 << 20;

/// The log.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    log: BufWriter<File>,
    /// Bytes of the newest line of each object.
    live: FxHashMap<Key, u64>,
    live_bytes: u64,
    bytes: u64,
    is_complete: bool,
}

/// One change.
#[derive(Deserialize, Serialize)]
struct Line {
    kind: String,
    #[serde(default)]
    namespace: String,
    name: String,
    object: Option<Value>,
}

impl Cache {
    /// Opens the log in a folder, which is made if need be; with the objects that it holds.
    ///
    /// # Errors
    /// The folder or the file cannot be read or written.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Vec<(Kind, Value)>)> {
        fs::create_dir_all(dir)?;
        let path = dir.join(FILE);
        let found = read(&path)?;
        let log = if found.bytes == 0 {
            let mut log = File::create(&path)?;
            writeln!(log, "{HEADER}")?;
            log
        } else {
            let log = OpenOptions::new().append(true).open(&path)?;
            log.set_len(found.bytes)?;
            log
        };
        let bytes = log.metadata()?.len();
        let mut cache = Self {
            path,
            log: BufWriter::new(log),
            live: FxHashMap::default(),
            live_bytes: 0,
            bytes,
            is_complete: found.is_complete,
        };
        let mut objects = Vec::with_capacity(found.lines.len());
        for (key, (size, object)) in found.lines {
            cache.live_bytes += size;
            objects.push((key.kind, object));
            cache.live.insert(key, size);
        }
        Ok((cache, objects))
    }

    /// Whether every kind had been listed when this was written. Until then what is here may lack what
    /// protects the rest, and must not be in force by itself.
    pub(super) const fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Writes down that every kind has been listed.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn complete(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.is_complete, true) {
            return Ok(());
        }
        self.write_complete()
    }

    /// Writes down an accepted object.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn put(&mut self, key: &Key, object: Value) -> io::Result<()> {
        let size = self.write(key, Some(object))?;
        self.live_bytes += size;
        self.live_bytes -= self.live.insert(key.clone(), size).unwrap_or_default();
        Ok(())
    }

    /// Writes down that an object is gone.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn remove(&mut self, key: &Key) -> io::Result<()> {
        let Some(size) = self.live.remove(key) else { return Ok(()) };
        self.live_bytes -= size;
        self.write(key, None).map(drop)
    }

    /// Hands over what was written since the last time, and writes the log anew if it has become long.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.log.flush()?;
        if self.bytes > SMALL.max(self.live_bytes * 2) { self.rewrite() } else { Ok(()) }
    }

    /// Removes the log.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn discard(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    fn write(&mut self, key: &Key, object: Option<Value>) -> io::Result<u64> {
        let line = Line {
            kind: key.kind.name().to_owned(),
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            object,
        };
        self.write_line(&line)
    }

    fn write_complete(&mut self) -> io::Result<()> {
        let kind = COMPLETE.to_owned();
        let line = Line { kind, namespace: String::new(), name: String::new(), object: None };
        self.write_line(&line).map(drop)
    }

    fn write_line(&mut self, line: &Line) -> io::Result<u64> {
        let text = serde_json::to_string(line)?;
        writeln!(self.log, "{} {text}", checksum(&text))?;
        let size = (DIGITS + text.len() + 2) as u64;
        self.bytes += size;
        Ok(size)
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let found = read(&self.path)?;
        let draft = self.path.with_extension("draft");
        let mut log = BufWriter::new(File::create(&draft)?);
        writeln!(log, "{HEADER}")?;
        std::mem::swap(&mut self.log, &mut log);
        self.bytes = HEADER.len() as u64 + 1;
        let written = found
            .lines
            .into_iter()
            .try_for_each(|(key, (_, object))| self.write(&key, Some(object)).map(drop))
            .and_then(|()| if found.is_complete { self.write_complete() } else { Ok(()) })
            .and_then(|()| self.log.flush())
            .and_then(|()| self.log.get_ref().sync_all())
            .and_then(|()| fs::rename(&draft, &self.path));
        if written.is_err() {
            // The old log is still in its place and whole.
            std::mem::swap(&mut self.log, &mut log);
            self.bytes = self.log.get_ref().metadata()?.len();
        }
        written
    }
}

/// What a log holds.
#[derive(Default)]
struct Found {
    /// Newest line of each object that is there, with its size.
    lines: FxHashMap<Key, (u64, Value)>,
    /// Bytes up to the first line that is not sound; 0 if the file is not a log of this version.
    bytes: u64,
    is_complete: bool,
}

fn read(path: &Path) -> io::Result<Found> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
        Err(error) => return Err(error),
    };
    let mut found = Found::default();
    let mut reader = BufReader::new(file);
    let mut text = Vec::new();
    while reader.read_until(b'\n', &mut text)? > 0 {
        let size = text.len() as u64;
        let is_sound = match std::str::from_utf8(&text) {
            Ok(line) if found.bytes == 0 => line.strip_suffix('\n') == Some(HEADER),
            Ok(line) => line
                .strip_suffix('\n')
                .and_then(sound)
                .map(|line| take(line, size, &mut found))
                .is_some(),
            Err(_) => false,
        };
        if !is_sound {
            tracing::warn!(path = %path.display(), offset = found.bytes, "the rest of the kept objects is unreadable, dropped");
            break;
        }
        found.bytes += size;
        text.clear();
    }
    Ok(found)
}

fn take(line: Line, size: u64, found: &mut Found) {
    found.is_complete |= line.kind == COMPLETE;
    // A kind that another version of the agent reads is none of ours.
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == line.kind) else { return };
    let key = Key { kind, namespace: line.namespace.into(), name: line.name.into() };
    match line.object {
        Some(object) => {
            found.lines.insert(key, (size, object));
        }
        None => {
            found.lines.remove(&key);
        }
    }
}

/// The change that a line tells of, if its checksum is right.
fn sound(line: &str) -> Option<Line> {
    let (sum, text) = line.split_at_checked(DIGITS)?;
    let text = text.strip_prefix(' ')?;
    if sum != checksum(text) {
        return None;
    }
    serde_json::from_str(text).ok()
}

fn checksum(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        Key { kind: Kind::Service, namespace: "shop".into(), name: name.into() }
    }

    fn names(objects: &[(Kind, Value)]) -> Vec<String> {
        let mut names: Vec<_> = objects.iter().map(|(_, object)| object["v"].to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_put_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, objects) = Cache::open(dir.path()).unwrap();
        assert!(objects.is_empty());
        cache.put(&key("a"), json!({"v": 1})).unwrap();
        cache.put(&key("b"), json!({"v": 2})).unwrap();
        cache.put(&key("a"), json!({"v": 3})).unwrap();
        cache.remove(&key("b")).unwrap();
        cache.put(&key("c"), json!({"v": "ä\n"})).unwrap();
        cache.flush().unwrap();
        drop(cache);
        let (_, objects) = Cache::open(dir.path()).unwrap();
        assert_eq!(names(&objects), ["\"ä\\n\"", "3"]);
    }

    #[test]
    fn a_torn_end_is_dropped_and_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, _) = Cache::open(dir.path()).unwrap();
        cache.put(&key("a"), json!({"v": 1})).unwrap();
        cache.put(&key("b"), json!({"v": 2})).unwrap();
        cache.flush().unwrap();
        drop(cache);
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        // Every possible length: never an error, never a wrong object.
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let (mut cache, objects) = Cache::open(dir.path()).unwrap();
            assert!(names(&objects).iter().all(|name| name == "1" || name == "2"), "{length}");
            cache.put(&key("c"), json!({"v": 1})).unwrap();
            cache.flush().unwrap();
            drop(cache);
            let (_, again) = Cache::open(dir.path()).unwrap();
            assert_eq!(again.len(), objects.len() + 1, "{length}");
        }
    }

    #[test]
    fn it_is_complete_once_that_was_said_and_stays_so_when_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, _) = Cache::open(dir.path()).unwrap();
        cache.put(&key("a"), json!({"v": 1})).unwrap();
        cache.flush().unwrap();
        let (mut cache, objects) = Cache::open(dir.path()).unwrap();
        assert!(!cache.is_complete() && objects.len() == 1);
        cache.complete().unwrap();
        cache.flush().unwrap();
        let (mut cache, _) = Cache::open(dir.path()).unwrap();
        assert!(cache.is_complete());
        cache.rewrite().unwrap();
        let (cache, objects) = Cache::open(dir.path()).unwrap();
        assert!(cache.is_complete() && objects.len() == 1);
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, _) = Cache::open(dir.path()).unwrap();
        cache.put(&key("a"), json!({"v": 1})).unwrap();
        cache.flush().unwrap();
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap().replace("\"v\":1", "\"v\":7");
        fs::write(&path, text).unwrap();
        assert!(Cache::open(dir.path()).unwrap().1.is_empty());
    }

    #[test]
    fn a_log_of_another_version_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "malha objects 99\nwhatever\n").unwrap();
        let (mut cache, objects) = Cache::open(dir.path()).unwrap();
        assert!(objects.is_empty());
        cache.put(&key("a"), json!({"v": 1})).unwrap();
        cache.flush().unwrap();
        assert_eq!(Cache::open(dir.path()).unwrap().1.len(), 1);
    }

    #[test]
    fn a_log_of_overtaken_lines_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, _) = Cache::open(dir.path()).unwrap();
        let filler = "x".repeat(10_000);
        for round in 0..500 {
            cache.put(&key("a"), json!({"v": round, "filler": filler})).unwrap();
            cache.put(&key("b"), json!({"v": round})).unwrap();
            cache.flush().unwrap();
        }
        assert!(fs::metadata(dir.path().join(FILE)).unwrap().len() <= SMALL + 20_000);
        assert_eq!(names(&Cache::open(dir.path()).unwrap().1), ["499", "499"]);
    }
}
