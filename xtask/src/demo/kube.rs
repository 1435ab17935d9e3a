//! `cargo xtask demo --kube`: Istio's well-known tutorial on a real cluster, by the commands that its
//! readers type. Whatever is claimed is counted from the API server's answers and the servers' logs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::screen::{Screen, bar};
use super::{Claim, DemoArgs, Phase, verdicts};
use crate::kube::{KubeLab, KubeOptions, Need, imported, obstacle, tutorial_images};
use crate::lab::wait_for;
use crate::tool::{say, workspace};

/// Where the mesh is installed.
const SYSTEM: &str = "malha-system";
/// Requests of one load.
const REQUESTS: usize = 1000;
/// How long a running pod may take into the mesh.
const JOIN: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(120);

const RULED: Phase = Phase { title: "VirtualService 90/10", share: 0.9, tilt: 0.0 };

struct Demo {
    lab: KubeLab,
    screen: Screen,
    claims: Vec<Claim>,
}

/// Runs it.
///
/// # Errors
/// What is missing on this machine, what did not come up, or what was not as it should be.
pub(super) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    crate::setup::run_setup(&crate::setup::SetupArgs::default())?;
    if let Some(obstacle) = obstacle(Need::Nodes) {
        anyhow::bail!("no cluster can be made here: {obstacle}");
    }
    let built = crate::build::all()?;
    let image = workspace().join("target/image/mesh-agent-demo.tar");
    crate::image::of_built(&built, &crate::image::default_name(), &image)?;
    let mut images = tutorial_images()?;
    images.push(image);
    let mut screen = Screen::new(args.record.as_deref())?;
    screen.heading("Malha on Kubernetes: two nodes on this machine")?;
    let start = Instant::now();
    let lab = KubeLab::up(&KubeOptions { images, ..KubeOptions::new(&args.name, 2) })?;
    screen.line(&format!("  The cluster is up after {:.1} s.", start.elapsed().as_secs_f64()))?;
    let mut demo = Demo { lab, screen, claims: Vec::new() };
    demo.install()?;
    demo.join()?;
    demo.route()?;
    demo.finish(args)
}

impl Demo {
    /// A command as a user types it, and what it says.
    fn typed(&mut self, words: &[&str]) -> anyhow::Result<String> {
        self.screen.line(&format!("  $ {}", words.join(" ")))?;
        let output = self.lab.command(words).current_dir(workspace()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{}: {}", output.status, said.trim());
        // fortio reports on standard error.
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &said)
    }

    fn install(&mut self) -> anyhow::Result<()> {
        self.screen.heading("1. Install")?;
        let start = Instant::now();
        self.typed(&[
            "helm",
            "install",
            "malha",
            "deploy/chart",
            "-n",
            SYSTEM,
            "--create-namespace",
        ])?;
        for what in ["deployment/malha-authority", "daemonset/malha-agent"] {
            self.typed(&["kubectl", "-n", SYSTEM, "rollout", "status", what, "--timeout=90s"])?;
        }
        let seconds = start.elapsed().as_secs_f64();
        self.screen.line(&format!("  Agents and authority are ready after {seconds:.1} s."))
    }

    /// Running pods come into the mesh.
    fn join(&mut self) -> anyhow::Result<()> {
        self.screen.heading("2. An application that runs already")?;
        for manifest in ["deployment.yaml", "fortio-deploy.yaml"] {
            self.apply(manifest)?;
        }
        for deployment in ["nginx", "nginx-b", "fortio-deploy"] {
            self.lab.kubectl(&["rollout", "status", "deployment", deployment, "--timeout=90s"])?;
        }
        let before = self.uids()?;
        self.screen.heading("3. One label")?;
        let start = Instant::now();
        self.typed(&["kubectl", "label", "namespace", "default", "istio-injection=enabled"])?;
        let path = "jsonpath={.items[*].metadata.annotations.malha\\.dev/enrolled}";
        wait_for(PATIENCE, "all pods in the mesh", || {
            let found = self.lab.kubectl(&["get", "pods", "-o", path])?;
            Ok((found.split_whitespace().count() == 3).then_some(()))
        })?;
        let took = start.elapsed();
        let after = self.uids()?;
        let proof = wait_for(PATIENCE, "an Event on each pod", || {
            let about = ["get", "events", "--field-selector", "reason=Enrolled"];
            let events = self.lab.kubectl(&about)?;
            let lines = events.lines().filter_map(|line| line.split_once("pod/"));
            let lines: Vec<String> = lines.map(|(_, rest)| format!("  pod/{rest}")).collect();
            Ok((lines.len() >= 3).then_some(lines))
        })?;
        proof.iter().try_for_each(|line| self.screen.line(line))?;
        self.claims.push((
            took <= JOIN,
            format!(
                "three running pods are in the mesh {:.2} s after the label",
                took.as_secs_f64()
            ),
        ));
        self.claims.push((before == after, "no pod was restarted or made anew".to_owned()));
        Ok(())
    }

    fn route(&mut self) -> anyhow::Result<()> {
        self.screen.heading("4. Load, without a rule")?;
        let (a, b, failed) = self.load()?;
        self.claims.push((
            failed == 0 && a.min(b) > REQUESTS / 10,
            format!("without a rule: {a} requests to A, {b} to B, {failed} failed"),
        ));
        self.screen.heading("5. Nine of ten to version A")?;
        for manifest in ["dr.yaml", "vs.yaml"] {
            self.apply(manifest)?;
        }
        let agents = ["-n", SYSTEM, "get", "pods", "-l", "app=malha-agent", "-o", "name"];
        let agents = self.lab.kubectl(&agents)?;
        wait_for(PATIENCE, "the route in force", || {
            let in_force = agents.lines().all(|agent| {
                let exec = ["-n", SYSTEM, "exec", agent, "--", "/usr/local/bin/meshctl"];
                let routes = self.lab.kubectl(&[&exec[..], &["routes", "nginx-service"]].concat());
                routes.is_ok_and(|routes| routes.contains("nginx-vs") && routes.contains("v2"))
            });
            Ok(in_force.then_some(()))
        })?;
        let (a, b, failed) = self.load()?;
        let share = a as f64 / (a + b).max(1) as f64;
        let allowed = RULED.allowed((a + b) as u64);
        self.claims.push((
            failed == 0 && (share - RULED.share).abs() <= allowed,
            format!("{}: {a} requests to A, {b} to B, {failed} failed", RULED.title),
        ));
        self.screen.heading("6. What an agent sees")?;
        let seen = self.typed(&[
            "kubectl",
            "-n",
            SYSTEM,
            "exec",
            "ds/malha-agent",
            "--",
            "/usr/local/bin/meshctl",
            "workloads",
        ])?;
        seen.lines().try_for_each(|line| self.screen.line(&format!("  {line}")))
    }

    /// The tutorial's load: requests that went to A, to B, and those that failed.
    fn load(&mut self) -> anyhow::Result<(usize, usize, usize)> {
        let before = (self.answered("A")?, self.answered("B")?);
        let count = REQUESTS.to_string();
        let report = self.typed(&[
            "kubectl",
            "exec",
            "deploy/fortio-deploy",
            "-c",
            "fortio",
            "--",
            "fortio",
            "load",
            "-c",
            "2",
            "-qps",
            "0",
            "-n",
            &count,
            "-loglevel",
            "Warning",
            "http://nginx-service:8000",
        ])?;
        let good = report.lines().find_map(|line| line.strip_prefix("Code 200 : "));
        let good = good.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let good: usize = good.with_context(|| format!("fortio counted no answer: {report}"))?;
        let (a, b) = wait_for(PATIENCE, "the servers' logs", || {
            let (a, b) = (self.answered("A")? - before.0, self.answered("B")? - before.1);
            Ok((a + b >= good).then_some((a, b)))
        })?;
        self.screen.line(&format!("    A {}", bar(a as u64, (a + b) as u64)))?;
        self.screen.line(&format!("    B {}", bar(b as u64, (a + b) as u64)))?;
        Ok((a, b, REQUESTS.saturating_sub(good)))
    }

    /// Requests that a version has answered, by its log.
    fn answered(&self, version: &str) -> anyhow::Result<usize> {
        let selector = format!("app=nginx,version={version}");
        let log = self.lab.kubectl(&["logs", "-l", &selector, "--tail=-1"])?;
        Ok(log.lines().filter(|line| line.contains("GET / HTTP")).count())
    }

    fn apply(&mut self, name: &str) -> anyhow::Result<()> {
        let file = format!("deploy/samples/tutorial/{name}");
        self.screen.line(&format!("  $ kubectl apply -f {file}"))?;
        let text = std::fs::read_to_string(workspace().join(&file));
        let text = text.with_context(|| format!("read {file}"))?;
        self.lab.kubectl_stdin(&["apply", "-f", "-"], &imported(&text)).map(drop)
    }

    fn uids(&self) -> anyhow::Result<String> {
        let columns = "custom-columns=U:.metadata.uid,R:.status.containerStatuses[*].restartCount";
        self.lab.kubectl(&["get", "pods", "--no-headers", "-o", columns])
    }

    fn finish(mut self, args: &DemoArgs) -> anyhow::Result<()> {
        let seen = verdicts(&mut self.screen, &self.claims);
        if args.keep {
            self.lab.keep()?;
            say(&format!(
                "The cluster stays up: `cargo xtask lab kube exec {0} -- kubectl get pods`, and \
                 `cargo xtask lab kube down {0}` removes it.",
                args.name
            ));
        } else {
            drop(self.lab);
            self.screen.line("  Everything is removed again.")?;
        }
        seen
    }
}
