//! An application is replaced, and servers close connections as servers do, while clients ask:
//! nothing fails.

use std::process::Child;

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::support::{self, SHOP};

/// Servers that keep on serving for two seconds after they are told to end, as a `preStop` hook or
/// the application itself has it where people care; clients on both nodes.
const WEB: &str = r#"
kind: Deployment
apiVersion: apps/v1
metadata: { name: web, namespace: shop }
spec:
  replicas: 3
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 10
      containers:
        - name: main
          image: malha/echo
          env: [{ name: VERSION, value: "one" }]
          command: [sh, -c]
          args:
            - |
              trap 'sleep 2; kill $!' TERM
              malha-echo --http 8080 --tcp 9000 & wait $!; wait $!
          ports: [{ containerPort: 8080 }]
---
kind: Service
apiVersion: v1
metadata: { name: web, namespace: shop }
spec:
  selector: { app: web }
  ports:
    - { name: http, port: 80, targetPort: 8080 }
    - { name: http2, port: 81, targetPort: 8080 }
    - { name: tcp-http, port: 82, targetPort: 8080 }
---
kind: Pod
apiVersion: v1
metadata: { name: client2, namespace: shop }
spec:
  nodeName: node2
  serviceAccountName: client
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
"#;

/// Requests until the returned process's standard input ends.
fn load(client: &Pod, words: &[&str]) -> Child {
    let words = [&["malha-load", "http", "--until-eof", "--timeout-ms", "60000"], words].concat();
    let mut command = client.command(&words).expect("the pod runs");
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    command.spawn().expect("the load starts")
}

/// Ends a load; its report, in which nothing has failed.
fn assert_whole(what: &str, child: Child) -> Value {
    // `wait_with_output` closes its standard input first.
    let output = child.wait_with_output().expect("the load ends");
    let report: Value = serde_json::from_slice(&output.stdout).expect("the load's report");
    let statuses = report["statuses"].as_object().expect("statuses");
    assert_eq!(statuses.keys().collect::<Vec<_>>(), ["200"], "{what}: {report}");
    assert_eq!(report["failed"], 0, "{what}: {report}");
    report
}

fn wait_rolled(lab: &Lab, old: &[Pod]) {
    old.iter().for_each(|pod| lab.wait_gone(pod).expect("the old pods go"));
    lab.wait_ready("shop/web").expect("the new pods are ready");
}

#[test]
fn a_deployment_is_replaced_under_load_without_a_failed_request() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, &[SHOP, "---", WEB].join("\n"), &["shop/client", "shop/client2"]);
    lab.wait_ready("shop/web").expect("the pods run");
    lab.pods_of("shop/web").iter().for_each(|pod| lab.wait_enrolled(pod).unwrap());
    let clients = ["shop/client", "shop/client2"].map(|name| lab.pod(name).unwrap());
    let kinds: [(&str, &[&str]); 4] = [
        ("kept connections", &["--rate", "50", "--concurrency", "8", "http://web/?size=1000"]),
        (
            "new connections",
            &["--rate", "50", "--concurrency", "8", "--new-connections", "http://web/?size=1000"],
        ),
        ("HTTP/2", &["--rate", "25", "--concurrency", "8", "--http2", "http://web:81/?size=1000"]),
        ("TCP", &["--rate", "25", "--concurrency", "8", "--new-connections", "http://web:82/"]),
    ];
    let loads: Vec<(String, Child)> = clients
        .iter()
        .flat_map(|client| {
            kinds
                .iter()
                .map(|(name, words)| (format!("{name} of {}", client.name), load(client, words)))
        })
        .collect();
    for version in ["two", "three"] {
        let old = lab.pods_of("shop/web");
        lab.apply(&WEB.replace("value: \"one\"", &format!("value: \"{version}\""))).unwrap();
        wait_rolled(&lab, &old);
    }
    for (name, child) in loads {
        let report = assert_whole(&name, child);
        assert!(report["succeeded"].as_u64().unwrap() > 100, "{name}: {report}");
    }
}

/// A server that closes a connection when it has idled for a second, and after each seven requests.
const HASTY: &str = r#"
kind: ConfigMap
apiVersion: v1
metadata: { name: hasty, namespace: shop }
data:
  default.conf: |
    server {
      listen 80;
      keepalive_timeout 1s;
      keepalive_requests 7;
      location / { return 200 "hello"; }
    }
---
kind: Pod
apiVersion: v1
metadata: { name: hasty, namespace: shop, labels: { app: hasty } }
spec:
  nodeName: node2
  containers:
    - name: main
      image: nginx
      ports: [{ containerPort: 80 }]
      volumeMounts: [{ name: conf, mountPath: /etc/nginx/conf.d }]
  volumes: [{ name: conf, configMap: { name: hasty } }]
---
kind: Service
apiVersion: v1
metadata: { name: hasty, namespace: shop }
spec:
  selector: { app: hasty }
  ports: [{ name: http, port: 80 }]
"#;

#[test]
fn a_server_that_closes_idle_connections_fails_no_request() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, &[SHOP, "---", HASTY].join("\n"), &["shop/client", "shop/hasty"]);
    let client = lab.pod("shop/client").unwrap();
    // Each connection's turn comes again just as the server closes it.
    let child = load(&client, &["--rate", "16", "--concurrency", "16", "http://hasty/"]);
    // And in between those that are used up to the last request.
    let busy = load(&client, &["--rate", "200", "--concurrency", "4", "http://hasty/"]);
    #[expect(clippy::disallowed_methods, reason = "lets traffic flow for several idle times")]
    std::thread::sleep(std::time::Duration::from_secs(8));
    let report = assert_whole("idle connections", child);
    assert!(report["succeeded"].as_u64().unwrap() > 80, "{report}");
    assert_whole("used-up connections", busy);
}
