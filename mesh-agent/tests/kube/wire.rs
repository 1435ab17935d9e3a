//! The wire to the API server, cut in every way that a wire can be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_agent::model::Snapshot;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;
use xtask::kube::KubeLab;

use crate::support::{Follower, api_server, run};

/// How often connections are cut, and for how long.
const CUT_EVERY: Duration = Duration::from_secs(1);
const CUTS: usize = 60;

/// A way to a lab's API server that can be closed, and whose connections can be cut.
struct Wire {
    kubeconfig: PathBuf,
    state: watch::Sender<State>,
    _dir: tempfile::TempDir,
    _task: JoinSet<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    open: bool,
    /// Connections of an older one are cut.
    generation: usize,
}

impl Wire {
    async fn to(lab: &KubeLab) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = format!("https://{}", listener.local_addr().unwrap());
        let text = std::fs::read_to_string(lab.kubeconfig()).unwrap();
        assert!(text.contains(lab.server_url()), "{text}");
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, text.replace(lab.server_url(), &own)).unwrap();
        let server = lab.server_url().trim_start_matches("https://").to_owned();
        let (state, seen) = watch::channel(State { open: true, generation: 0 });
        let mut task = JoinSet::new();
        task.spawn(carry(listener, server, seen));
        Self { kubeconfig, state, _dir: dir, _task: task }
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Cuts every connection; new ones are taken.
    fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Cuts every connection, and takes new ones or not.
    fn set_open(&self, open: bool) {
        self.state.send_modify(|state| {
            state.open = open;
            state.generation += 1;
        });
    }
}

async fn carry(listener: TcpListener, server: String, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        while connections.try_join_next().is_some() {}
        let now = *state.borrow();
        if !now.open {
            continue;
        }
        let (server, mut state) = (server.clone(), state.clone());
        connections.spawn(async move {
            let carried = async {
                let mut far = TcpStream::connect(server).await?;
                copy_bidirectional(&mut near, &mut far).await
            };
            tokio::select! {
                _ = carried => {}
                _ = state.wait_for(|state| state.generation != now.generation) => {}
            }
        });
    }
}

fn account(round: usize) -> String {
    format!("{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: account-{round}}}}}")
}

fn service(name: &str, port: usize) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: x}}, \
         ports: [{{name: http, port: {port}}}]}}}}"
    )
}

fn apply(lab: &KubeLab, manifest: &str) {
    lab.kubectl_stdin(&["apply", "-f", "-"], manifest).unwrap();
}

/// Names of the services and the port of each.
fn services(snapshot: &Snapshot) -> Vec<(String, u16)> {
    let of = |service: &mesh_agent::model::Service| {
        let port = service.ports.first().map_or(0, |port| port.port);
        (service.key.name.to_string(), port)
    };
    let all = snapshot.services.values().filter(|found| &*found.key.namespace == "default");
    let mut found: Vec<_> =
        all.map(|found| of(found)).filter(|(name, _)| name != "kubernetes").collect();
    found.sort();
    found
}

fn expected(list: &[(&str, u16)]) -> Vec<(String, u16)> {
    list.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect()
}

/// Whether a watch since a version is answered `410 Gone`: as the answer, or in its first event.
fn is_gone(lab: &KubeLab, version: &str) -> bool {
    let path = format!("/api/v1/services?watch=true&timeoutSeconds=2&resourceVersion={version}");
    match lab.raw(&path) {
        Ok(events) => {
            let first = events.lines().next().unwrap_or_default();
            let first: serde_json::Value = first.parse().unwrap_or_default();
            first["type"] == "ERROR" && first["object"]["code"] == 410
        }
        Err(error) => error.to_string().contains("error: 410"),
    }
}

#[test]
fn what_happened_in_a_forgotten_past_is_listed_anew() {
    let Some(lab) = api_server("wire-gone") else { return };
    run(async {
        let wire = Wire::to(&lab).await;
        for name in ["kept", "changed", "deleted"] {
            apply(&lab, &service(name, 80));
        }
        let mut follower = Follower::by(wire.kubeconfig(), None).await;
        let all = expected(&[("changed", 80), ("deleted", 80), ("kept", 80)]);
        follower.until("all of it", |found| services(found) == all).await;
        let old = lab.raw("/api/v1/services?limit=1").unwrap();
        let old: serde_json::Value = old.parse().unwrap();
        let old = old["metadata"]["resourceVersion"].as_str().unwrap();
        wire.set_open(false);
        apply(&lab, &service("changed", 81));
        apply(&lab, &service("new", 82));
        lab.kubectl(&["delete", "service", "deleted"]).unwrap();
        // Nobody remembers what has been since: neither etcd nor the server's own cache.
        lab.compact_etcd().unwrap();
        lab.stop_api_server().unwrap();
        lab.start_api_server().unwrap();
        assert!(is_gone(&lab, old), "the server remembers");
        assert_eq!(services(&follower.snapshot.borrow()), all);
        wire.set_open(true);
        let all = expected(&[("changed", 81), ("kept", 80), ("new", 82)]);
        follower.until("converged", |found| services(found) == all).await;
        // And goes on to watch.
        apply(&lab, &service("kept", 83));
        let all = expected(&[("changed", 81), ("kept", 83), ("new", 82)]);
        follower.until("the next change", |found| services(found) == all).await;
    });
}

#[test]
fn a_watch_that_is_cut_every_second_loses_nothing() {
    let Some(lab) = api_server("wire-cut") else { return };
    run(async {
        let wire = Wire::to(&lab).await;
        apply(&lab, &service("kept", 80));
        apply(&lab, &service("moving", 1));
        let mut follower = Follower::by(wire.kubeconfig(), None).await;
        let all = expected(&[("kept", 80), ("moving", 1)]);
        follower.until("all of it", |found| services(found) == all).await;
        // What must never be missing is in each snapshot, the ports never go back.
        let mut seen = follower.snapshot.clone();
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            let mut last = 0;
            while seen.changed().await.is_ok() {
                let now = services(&seen.borrow_and_update());
                let port =
                    |name: &str| now.iter().find(|(found, _)| found == name).map(|found| found.1);
                assert_eq!(port("kept"), Some(80), "{now:?}");
                let moving = port("moving").expect("it is always there");
                assert!(moving >= last, "{moving} after {last}");
                last = moving;
            }
        });
        let mut tick = interval(CUT_EVERY);
        for round in 1..=CUTS {
            tick.tick().await;
            wire.cut();
            apply(&lab, &service("moving", round));
            apply(&lab, &account(round));
        }
        let all = expected(&[("kept", 80), ("moving", CUTS as u16)]);
        follower.until("converged", |found| services(found) == all).await;
        assert!(
            watching.try_join_next().is_none(),
            "an object was missing, or an older one came back"
        );
    });
}
