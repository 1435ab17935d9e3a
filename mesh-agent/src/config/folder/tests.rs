//! The folder as people and agents use it. Events come from the kernel, so time is real here: each
//! wait ends with the event it waits for, or fails at a deadline.

use std::collections::BTreeSet;
use std::fs;

use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::config::Source;
use crate::config::diagnostic::Diagnostic;
use crate::config::writer::announce;
use crate::model::Snapshot;

const DEADLINE: Duration = Duration::from_secs(20);

struct Folder {
    dir: TempDir,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    diagnostics: watch::Receiver<Arc<Vec<Diagnostic>>>,
}

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Waits until a snapshot satisfies `holds`.
    async fn until(&mut self, holds: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
        let wait = timeout(DEADLINE, self.snapshot.wait_for(holds)).await;
        wait.expect("no such snapshot in time").unwrap().clone()
    }

    /// Waits until some finding contains `text`.
    async fn until_said(&mut self, text: &str) {
        let said = |found: &Arc<Vec<Diagnostic>>| {
            found.iter().any(|found| found.to_string().contains(text))
        };
        let wait = timeout(DEADLINE, self.diagnostics.wait_for(said)).await;
        wait.expect("no such finding in time").unwrap();
    }
}

/// Nobody resolves names.
fn no_answers() -> watch::Receiver<Arc<Answers>> {
    watch::channel(Arc::default()).1
}

/// Runs `test` beside the source; the source ends with it.
async fn with_folder(test: impl AsyncFnOnce(Folder)) {
    let dir = tempfile::tempdir().unwrap();
    let (snapshot, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let (diagnostics, findings) = watch::channel(Arc::new(Vec::new()));
    let source = Source::Folder(dir.path().to_owned());
    let publish = Publish { snapshot, diagnostics, missing: watch::channel(Arc::default()).0 };
    let folder = Folder { dir, snapshot: snapshots, diagnostics: findings };
    tokio::select! {
        ended = crate::config::run(source, Settings::default(), no_answers(), publish) => {
            panic!("the source ended: {ended:?}");
        }
        () = test(folder) => {}
    }
}

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, uid: {name} }}\n")
}

fn uids(snapshot: &Snapshot) -> Vec<&str> {
    let mut uids: Vec<&str> = snapshot.workloads_by_uid.keys().map(|uid| &**uid).collect();
    uids.sort_unstable();
    uids
}

#[tokio::test]
async fn an_empty_folder_is_a_first_generation() {
    with_folder(async |mut folder| {
        let snapshot = folder.until(|snapshot| snapshot.generation == 1).await;
        assert!(uids(&snapshot).is_empty());
    })
    .await;
}

#[tokio::test]
async fn files_come_change_and_go() {
    with_folder(async |mut folder| {
        folder.until(|snapshot| snapshot.generation == 1).await;
        folder.write("a.yaml", &pod("a"));
        folder.write("ignored.txt", &pod("x"));
        folder.write(".hidden.yaml", &pod("y"));
        folder.until(|snapshot| uids(snapshot) == ["a"]).await;
        fs::create_dir_all(folder.path("below/deep")).unwrap();
        folder.write("below/deep/b.yml", &format!("{}---\n{}", pod("b"), pod("c")));
        folder.write(
            "d.json",
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"d","uid":"d"}}"#,
        );
        folder.until(|snapshot| uids(snapshot) == ["a", "b", "c", "d"]).await;
        folder.write("below/deep/b.yml", &pod("b"));
        folder.until(|snapshot| uids(snapshot) == ["a", "b", "d"]).await;
        fs::rename(folder.path("a.yaml"), folder.path("renamed.yaml")).unwrap();
        fs::remove_dir_all(folder.path("below")).unwrap();
        folder.until(|snapshot| uids(snapshot) == ["a", "d"]).await;
        fs::remove_file(folder.path("renamed.yaml")).unwrap();
        folder.until(|snapshot| uids(snapshot) == ["d"]).await;
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_keeps_the_last_good_objects() {
    with_folder(async |mut folder| {
        folder.write("a.yaml", &format!("{}---\n{}", pod("a"), pod("b")));
        folder.until(|snapshot| uids(snapshot) == ["a", "b"]).await;
        // Half-written: the second document is cut off inside its flow mapping.
        folder.write(
            "a.yaml",
            &format!("{}---\napiVersion: v1\nkind: Pod\nmetadata: {{ na", pod("a")),
        );
        folder.until_said("(file a.yaml, document 2").await;
        folder.write("a.yaml", "");
        folder.until_said("delete it").await;
        fs::write(folder.path("a.yaml"), [0xff, 0xfe, 0]).unwrap();
        folder.until_said("not UTF-8").await;
        assert_eq!(uids(&folder.snapshot.borrow()), ["a", "b"]);
        folder.write("a.yaml", &pod("b"));
        folder.until(|snapshot| uids(snapshot) == ["b"]).await;
        let quiet = timeout(DEADLINE, folder.diagnostics.wait_for(|found| found.is_empty())).await;
        quiet.expect("findings stay").unwrap();
    })
    .await;
}

#[tokio::test]
async fn agents_hear_of_each_others_pods() {
    with_folder(async |mut folder| {
        folder.write("a.yaml", &format!("{}---\n{}", pod("a"), pod("b")));
        let enrolled = |snapshot: &Snapshot| {
            let mut uids = uids(snapshot);
            uids.retain(|uid| snapshot.workloads_by_uid[*uid].enrolled);
            uids.join(" ")
        };
        folder
            .until(|snapshot| uids(snapshot) == ["a", "b"] && enrolled(snapshot).is_empty())
            .await;
        let dir = folder.dir.path().to_owned();
        let list = |uids: &[&str]| -> BTreeSet<Arc<str>> {
            uids.iter().map(|uid| Arc::from(*uid)).collect()
        };
        announce(&dir, "node-1", &list(&["a"])).unwrap();
        folder.until(|snapshot| enrolled(snapshot) == "a").await;
        announce(&dir, "node-2", &list(&["b"])).unwrap();
        folder.until(|snapshot| enrolled(snapshot) == "a b").await;
        announce(&dir, "node-1", &list(&[])).unwrap();
        folder.until(|snapshot| enrolled(snapshot) == "b").await;
        fs::remove_file(dir.join(".malha/enrolled-node-2")).unwrap();
        folder.until(|snapshot| enrolled(snapshot).is_empty()).await;
        assert!(announce(&dir, "../x", &list(&[])).is_err());
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_an_error() {
    let (snapshot, _) = watch::channel(Arc::new(Snapshot::default()));
    let (diagnostics, _) = watch::channel(Arc::new(Vec::new()));
    let source = Source::Folder("/nonexistent".into());
    let ended = crate::config::run(
        source,
        Settings::default(),
        no_answers(),
        Publish { snapshot, diagnostics, missing: watch::channel(Arc::default()).0 },
    );
    assert!(matches!(ended.await, Err(ConfigError::Unreadable { .. })));
}
