//! A caller of low priority may send 200 requests a second, over all workers of its node; the others'
//! requests are not touched, and what is refused does not reach the service.

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::support;

/// Answers every request, and writes its path down.
const SERVER: &str = r#"
import asyncio
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.unread = transport, b""
    def data_received(self, data):
        *heads, self.unread = (self.unread + data).split(b"\r\n\r\n")
        for head in heads:
            print(head.split()[1].decode(), flush=True)
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
async def main():
    await (await asyncio.get_running_loop().create_server(Server, None, 8080)).serve_forever()
asyncio.run(main())
"#;

const PODS: &str = r#"
kind: Namespace
apiVersion: v1
metadata: { name: shop, labels: { istio.io/dataplane-mode: malha } }
---
kind: Pod
apiVersion: v1
metadata: { name: low, namespace: shop, labels: { tier: low } }
spec:
  nodeName: node1
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
---
kind: Pod
apiVersion: v1
metadata: { name: high, namespace: shop, labels: { tier: high } }
spec:
  nodeName: node1
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
---
kind: Pod
apiVersion: v1
metadata: { name: b, namespace: shop, labels: { app: b } }
spec:
  nodeName: node2
  containers:
    - name: main
      image: debian
      command: [python3, -c, CODE]
      readinessProbe: { tcpSocket: { port: 8080 } }
---
kind: Service
apiVersion: v1
metadata: { name: b, namespace: shop }
spec:
  selector: { app: b }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
"#;

const RATE: u64 = 200;
const BURST: u64 = 50;
const SECONDS: u64 = 4;

fn limit(requests: u64) -> String {
    format!(
        "apiVersion: malha.dev/v1alpha1
kind: RateLimit
metadata: {{ name: b, namespace: shop }}
spec:
  host: b
  limits:
  - {{ name: low, from: {{ labels: {{ tier: low }} }}, requests: {requests}, per: 1s, burst: {BURST} }}
"
    )
}

fn world() -> Option<Lab> {
    let lab = support::lab(2)?;
    let pods = PODS.replace("CODE", &serde_json::to_string(SERVER).unwrap());
    support::apply(&lab, &pods, &["shop/low", "shop/high", "shop/b"]);
    Some(lab)
}

fn load(pod: &Pod, path: &str, rate: u64) -> std::process::Child {
    let (rate, length, url) = (rate.to_string(), SECONDS.to_string(), format!("http://b{path}"));
    let words = ["--rate", &rate, "--duration", &length, "--concurrency", "16", &url];
    pod.spawn(&[&["malha-load", "http"], &words[..]].concat()).expect("the load starts")
}

fn report(load: std::process::Child) -> Value {
    let output = load.wait_with_output().expect("the load ends");
    serde_json::from_slice(&output.stdout).expect("the load's report")
}

fn answered(report: &Value, status: &str) -> u64 {
    report["statuses"][status].as_u64().unwrap_or(0)
}

/// Requests for `path` that the service has seen.
fn seen(lab: &Lab, path: &str) -> u64 {
    let log = lab.pod("shop/b").unwrap().log().unwrap();
    log.lines().filter(|line| *line == path).count() as u64
}

/// Status and body of one request.
fn ask(pod: &Pod) -> String {
    support::ok(pod, &["curl", "-sS", "-w", " %{http_code}", "http://b/ask"])
}

#[test]
fn low_gets_its_rate_and_high_all() {
    let Some(lab) = world() else { return };
    let (low, high) = (lab.pod("shop/low").unwrap(), lab.pod("shop/high").unwrap());
    // None at all: so one request shows that the limit is in force.
    lab.apply(&limit(0)).unwrap();
    let is_refused = || (ask(&low) == "local_rate_limited 429").then_some(());
    support::eventually("the limit is in force", is_refused);
    assert_eq!(ask(&high), "ok 200");
    lab.apply(&limit(RATE)).unwrap();
    support::eventually("the other one is", || (ask(&low) == "ok 200").then_some(()));

    let (low, high) = (load(&low, "/low", 3 * RATE), load(&high, "/high", RATE));
    let (low, high) = (report(low), report(high));
    assert_eq!(answered(&high, "200"), high["requests"].as_u64().unwrap(), "{high}");
    assert_eq!(answered(&high, "200"), seen(&lab, "/high"), "{high}");

    let (good, refused) = (answered(&low, "200"), answered(&low, "429"));
    assert_eq!(good + refused, low["requests"].as_u64().unwrap(), "{low}");
    assert_eq!(good, seen(&lab, "/low"), "what was refused was not sent: {low}");
    let seconds = low["seconds"].as_f64().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let most = seconds * RATE as f64 + BURST as f64;
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let is_within = good as f64 <= most;
    assert!(is_within, "{good} of {most}: {low}");
    // A machine that is busy may hold the load up, and what it does not send is lost to it.
    assert!(good >= SECONDS * RATE * 2 / 3, "{good}: {low}");
}

#[test]
fn a_second_limit_of_a_host_and_a_bad_one_are_said() {
    let Some(lab) = world() else { return };
    let low = lab.pod("shop/low").unwrap();
    lab.apply(&limit(0)).unwrap();
    let is_refused = || ask(&low).ends_with("429").then_some(());
    support::eventually("the limit is in force", is_refused);
    let second = limit(RATE).replace("name: b,", "name: second,");
    lab.apply(&second).unwrap();
    lab.apply(&limit(2_000_000)).unwrap();
    for words in [
        "RateLimit shop/second",
        "shadowed: RateLimit shop/b",
        "spec.limits[0].requests",
        "its last good version stays in force",
    ] {
        support::eventually(words, || {
            let said = lab.meshctl("node1", &["config", "diagnostics"]).unwrap();
            said.contains(words).then_some(())
        });
    }
    assert!(ask(&low).ends_with("429"));
    // The younger one takes its place.
    lab.delete("RateLimit", "shop", "b").unwrap();
    support::eventually("the other one counts", || ask(&low).ends_with("200").then_some(()));
}
