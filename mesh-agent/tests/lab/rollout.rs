//! An application is replaced, and servers close connections as servers do, while clients ask:
//! nothing fails.

use xtask::lab::{Lab, Pod};

use crate::support::{self, Load, SHOP};

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
"#;

fn wait_rolled(lab: &Lab, old: &[Pod]) {
    old.iter().for_each(|pod| lab.wait_gone(pod).expect("the old pods go"));
    lab.wait_ready("shop/web").expect("the new pods are ready");
}

#[test]
fn a_deployment_is_replaced_under_load_without_a_failed_request() {
    let Some(lab) = support::lab(2) else { return };
    let manifests = [SHOP, WEB, &support::client("client2", "node2")].join("\n---\n");
    support::apply(&lab, &manifests, &["shop/client", "shop/client2"]);
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
    let start = |client: &Pod, (name, words): (&str, &[&str])| {
        Load::start(format!("{name} of {}", client.name), client, words)
    };
    let loads: Vec<Load> =
        clients.iter().flat_map(|client| kinds.map(|kind| start(client, kind))).collect();
    for version in ["two", "three"] {
        let old = lab.pods_of("shop/web");
        lab.apply(&WEB.replace("value: \"one\"", &format!("value: \"{version}\""))).unwrap();
        wait_rolled(&lab, &old);
    }
    let failed: String = loads.into_iter().filter_map(|load| load.finish(100).err()).collect();
    assert_eq!(failed, "");
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
    let idle = ["--rate", "16", "--concurrency", "16", "http://hasty/"];
    let idle = Load::start("idle connections", &client, &idle);
    // And in between those that are used up to the last request.
    let busy = ["--rate", "200", "--concurrency", "4", "http://hasty/"];
    let busy = Load::start("used-up connections", &client, &busy);
    #[expect(clippy::disallowed_methods, reason = "lets traffic flow for several idle times")]
    std::thread::sleep(std::time::Duration::from_secs(8));
    assert_eq!(idle.finish(80), Ok(()));
    assert_eq!(busy.finish(0), Ok(()));
}
