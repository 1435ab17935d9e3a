//! What the tests of routes that fail, shape and spread traffic have in common: servers in `shop`,
//! rules that are in force when `apply` returns, and what fortio, curl and malha-load saw.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
pub(crate) use xtask::lab::Line;
use xtask::lab::{Lab, Load, Pod};

use crate::support;

/// A namespace in the mesh, and the account of its clients.
const GROUND: &str = r#"
kind: Namespace
apiVersion: v1
metadata: { name: shop, labels: { istio.io/dataplane-mode: malha } }
---
kind: ServiceAccount
apiVersion: v1
metadata: { name: client, namespace: shop }
"#;

/// Signs of a response's head that were captured, in lower case.
pub(crate) type Headers = BTreeMap<String, Vec<String>>;

/// A mesh with `shop/client` on the first node and these manifests; all pods are in the mesh.
pub(crate) fn shop(workers: usize, manifests: &[String]) -> Option<Lab> {
    Some(filled(support::lab(workers)?, manifests))
}

/// The same, with access logs.
pub(crate) fn shop_logged(manifests: &[String]) -> Option<Lab> {
    Some(filled(support::lab_logged("info,access=debug")?, manifests))
}

fn filled(lab: Lab, manifests: &[String]) -> Lab {
    let client = support::client("client", "node1");
    let all: Vec<&str> = [GROUND, &client].into_iter().chain(texts(manifests)).collect();
    lab.apply(&all.join("\n---\n")).expect("manifests are applied");
    enrolled(&lab);
    lab
}

fn texts(manifests: &[String]) -> impl Iterator<Item = &str> {
    manifests.iter().map(String::as_str)
}

/// Waits until every pod runs and is in the mesh.
pub(crate) fn enrolled(lab: &Lab) {
    lab.wait_all_ready().expect("the pods run");
    lab.pods().iter().for_each(|pod| lab.wait_enrolled(pod).expect("the pod is enrolled"));
}

/// An echo server with labels `app` and `version`, that logs its requests.
pub(crate) fn server(name: &str, node: &str, labels: (&str, &str), arguments: &[&str]) -> String {
    let (app, version) = labels;
    let fixed = ["--http", "8080", "--tcp", "9000", "--log", "--app-version", version];
    let arguments = json!([&fixed, arguments].concat());
    format!(
        r#"
kind: Pod
apiVersion: v1
metadata: {{ name: {name}, namespace: shop, labels: {{ app: {app}, version: {version} }} }}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: malha/echo
      args: {arguments}
      readinessProbe: {{ tcpSocket: {{ port: 8080 }} }}
"#
    )
}

/// A Service of the servers with this `app`: HTTP on port 80, TCP on 9000.
pub(crate) fn service(app: &str) -> String {
    format!(
        r#"
kind: Service
apiVersion: v1
metadata: {{ name: {app}, namespace: shop }}
spec:
  selector: {{ app: {app} }}
  ports: [{{ name: http, port: 80, targetPort: 8080 }}, {{ name: tcp, port: 9000 }}]
"#
    )
}

/// A `DestinationRule` for a Service of `shop`; `policy` is its `trafficPolicy` in one line.
pub(crate) fn policy(host: &str, policy: &str) -> String {
    format!(
        r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: {host}, namespace: shop }}
spec: {{ host: {host}, trafficPolicy: {policy} }}
"#
    )
}

/// A `VirtualService` for a Service of `shop` with one rule, given in lines of its own.
pub(crate) fn route(host: &str, rule: &str) -> String {
    let rule = rule.trim().replace('\n', "\n    ");
    format!(
        r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: {host}, namespace: shop }}
spec:
  hosts: [{host}]
  http:
  - {rule}
"#
    )
}

/// Applies rules, and waits until every agent has a newer configuration in force.
pub(crate) fn apply(lab: &Lab, rules: &str) {
    newer(lab, || drop(lab.apply(rules).expect("the rules are applied")));
}

/// Deletes what these manifests name, and waits likewise.
pub(crate) fn delete(lab: &Lab, rules: &str) {
    newer(lab, || drop(lab.delete_manifests(rules).expect("the rules are deleted")));
}

fn newer(lab: &Lab, change: impl FnOnce()) {
    let generations = || lab.nodes().iter().map(|node| generation(lab, node)).collect::<Vec<_>>();
    let before = generations();
    change();
    support::eventually("the rules are in force at every node", || {
        before.iter().zip(generations()).all(|(before, now)| now > *before).then_some(())
    });
}

fn generation(lab: &Lab, node: &str) -> u64 {
    let status = lab.meshctl(node, &["-o", "json", "status"]).expect("meshctl answers");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["generation"].as_u64().expect("a number")
}

/// What the servers of a pod have logged: one value for each request that reached it.
pub(crate) fn logged(pod: &Pod) -> Vec<Value> {
    let log = pod.log().expect("the pod has a log");
    log.lines()
        .filter(|line| line.starts_with('{'))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// The access log's lines of a node's agent that have all of these words.
pub(crate) fn access(lab: &Lab, node: &str, words: &[&str]) -> Vec<String> {
    let log = lab.agent_log(node).expect("the agent has a log");
    let has = |line: &&str| {
        line.contains("request complete") && words.iter().all(|word| line.contains(word))
    };
    log.lines().filter(has).map(str::to_owned).collect()
}

// === curl ===

/// One answer as curl saw it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

/// `curl WORDS` in a pod, which must get an answer.
pub(crate) fn curl(pod: &Pod, words: &[&str]) -> Answer {
    let fixed = ["curl", "-sS", "--max-time", "60", "-D", "/dev/stderr"];
    let timed = ["-w", "\n%{http_code} %{time_total}"];
    let output = pod.exec(&[&fixed[..], &timed, words].concat()).expect("curl starts");
    let (text, head) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{words:?}: {head}");
    let (body, end) = text.rsplit_once('\n').expect("what was asked for with -w");
    let (status, seconds) = end.split_once(' ').expect("two numbers");
    Answer {
        status: status.parse().expect("a status"),
        headers: headers(&head),
        body: body.to_owned(),
        took: Duration::from_secs_f64(seconds.parse().expect("seconds")),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Of the last response: 100 (Continue) comes first.
fn headers(heads: &str) -> Headers {
    let mut headers = Headers::new();
    for line in heads.lines() {
        if line.starts_with("HTTP/") {
            headers.clear();
        } else if let Some((name, value)) = line.split_once(':') {
            let values = headers.entry(name.to_ascii_lowercase()).or_default();
            values.push(value.trim().to_owned());
        }
    }
    headers
}

impl Answer {
    /// A header's only value; empty without it.
    pub(crate) fn header(&self, name: &str) -> &str {
        match self.headers.get(name).map(Vec::as_slice) {
            None => "",
            Some([value]) => value,
            Some(values) => panic!("{name}: {values:?}"),
        }
    }

    /// The echo server's answer.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

// === malha-load ===

/// Starts `malha-load http WORDS` in a pod, until it is stopped.
pub(crate) fn watched(pod: &Pod, words: &[&str]) -> Load {
    started(pod, &[&["--until-eof"], words].concat())
}

fn started(pod: &Pod, words: &[&str]) -> Load {
    let fixed = ["malha-load", "http", "--lines", "--timeout-ms", "60000"];
    let mut command = pod.command(&[&fixed, words].concat()).expect("the pod runs");
    Load::start(&mut command).expect("the load starts")
}

/// `malha-load http WORDS` in a pod to its end: all its requests, by number.
pub(crate) fn lines(pod: &Pod, words: &[&str]) -> Vec<Line> {
    started(pod, words).finish().expect("the load ends")
}

/// How many had each status; 0: not answered.
pub(crate) fn statuses(lines: &[Line]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    lines.iter().for_each(|line| *counts.entry(line.status).or_default() += 1);
    counts
}

/// How many had each value of the header that was asked for.
pub(crate) fn by_header(lines: &[Line]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    lines.iter().for_each(|line| *counts.entry(line.header.as_str()).or_default() += 1);
    counts
}

// === fortio ===

/// What fortio reported.
#[derive(Debug)]
pub(crate) struct Fortio {
    /// Answers by status; -1: its own time-out, or no answer.
    pub(crate) codes: BTreeMap<i64, u64>,
    text: String,
}

/// A row of fortio's report: `count 20 avg 0.01 +/- 0.003 min 0.001 max 0.02 sum 0.2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) average: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Fortio {
    /// `fortio load WORDS` in a pod.
    pub(crate) fn load(pod: &Pod, words: &[&str]) -> Self {
        let fixed = ["/usr/bin/fortio", "load", "-loglevel", "Warning"];
        let output = pod.exec(&[&fixed, words].concat()).expect("fortio starts");
        // It reports on standard error.
        let text = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{words:?}: {text}");
        let code = |line: &str| {
            let (code, rest) = line.strip_prefix("Code ")?.split_once(':')?;
            let count = rest.split_whitespace().next()?.parse().ok()?;
            Some((code.trim().parse().ok()?, count))
        };
        Self { codes: text.lines().filter_map(code).collect(), text }
    }

    /// Answers with this status.
    pub(crate) fn count(&self, code: i64) -> u64 {
        self.codes.get(&code).copied().unwrap_or(0)
    }

    /// A row of its report, by its name.
    pub(crate) fn row(&self, name: &str) -> Row {
        let line = self.text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name}: {}", self.text));
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| {
            let at = words.iter().rposition(|found| *found == word).expect(word);
            words[at + 1].parse().expect("a number")
        };
        Row { average: after("avg"), min: after("min"), max: after("max") }
    }
}

/// Five standard deviations around the share of so many draws: missed once in 1.7 million runs.
pub(crate) fn assert_share(count: usize, total: usize, share: f64) {
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let (count, total) = (count as f64, total as f64);
    let bound = 5.0 * (total * share * (1.0 - share)).sqrt();
    assert!((count - total * share).abs() <= bound, "{count} of {total}, expected {share}");
}
