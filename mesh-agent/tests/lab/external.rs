//! Service entries: what is outside the cluster is routed as what is in it, by the name that clients
//! use, wherever that name leads at the moment.

use std::net::IpAddr;
use std::process::Stdio;

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::l4_routes::{certificate, serve, tls};
use crate::support::{self, SHOP, SHOP_PODS, STRICT, of_family};

/// Two servers that are not in the mesh.
const OUTSIDE: &str = r#"
kind: Pod
apiVersion: v1
metadata: { name: api-1, namespace: outside }
spec:
  nodeName: node2
  containers:
    - name: main
      image: malha/echo
      args: ["--http", "8080"]
      readinessProbe: { tcpSocket: { port: 8080 } }
---
kind: Pod
apiVersion: v1
metadata: { name: api-2, namespace: outside }
spec:
  nodeName: node2
  containers:
    - name: main
      image: malha/echo
      args: ["--http", "8080"]
      readinessProbe: { tcpSocket: { port: 8080 } }
"#;

/// The API is known by its name alone, and gets a second.
const API: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: api, namespace: shop }
spec:
  hosts: [api.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: api, namespace: shop }
spec:
  hosts: [api.example.com]
  http:
  - timeout: 1s
    route: [{ destination: { host: api.example.com } }]
"#;

/// `curl` of a URL: status, body, seconds. The body of a 200 is the echo's.
fn curl(pod: &Pod, words: &[&str]) -> (String, Value, f64) {
    let fixed = ["curl", "-s", "-m", "30", "-w", "\n%{http_code} %{time_total}"];
    let text = String::from_utf8(pod.exec(&[&fixed, words].concat()).unwrap().stdout).unwrap();
    let (body, end) = text.rsplit_once('\n').expect("a status");
    let (status, seconds) = end.split_once(' ').expect("a time");
    let body = serde_json::from_str(body).unwrap_or_else(|_| Value::from(body));
    (status.to_owned(), body, seconds.parse().unwrap())
}

/// Which pod answers, or the status.
fn answers(pod: &Pod, url: &str) -> String {
    match curl(pod, &[url]) {
        (status, body, _) if status == "200" => body["pod"].as_str().unwrap_or_default().to_owned(),
        (status, ..) => status,
    }
}

/// A lab with the two servers outside.
fn world() -> Option<(Lab, [Pod; 2])> {
    let lab = support::lab(2)?;
    support::apply(&lab, &[SHOP, STRICT, OUTSIDE].join("\n---\n"), SHOP_PODS);
    lab.wait_all_ready().unwrap();
    let servers = ["outside/api-1", "outside/api-2"].map(|name| lab.pod(name).unwrap());
    Some((lab, servers))
}

#[test]
fn an_api_outside_answers_within_its_second_wherever_its_name_leads() {
    let Some((lab, servers)) = world() else { return };
    let ips: [IpAddr; 2] = [0, 1].map(|index: usize| of_family(&servers[index], true));
    lab.set_name("api.example.com", &ips[..1]).unwrap();
    let client = lab.pod("shop/client").unwrap();
    // The server's port is not the one that is dialled: without the entry nobody is there, and the
    // kernel may have said so.
    for _ in 0..2 {
        assert_ne!(answers(&client, "http://api.example.com/"), "api-1");
    }
    lab.apply(API).unwrap();
    support::eventually("the entry is in force", || {
        (answers(&client, "http://api.example.com/") == "api-1").then_some(())
    });
    let slow = ["-H", "x-echo-delay-ms: 10000", "http://api.example.com/"];
    let (status, body, seconds) = curl(&client, &slow);
    assert_eq!((status.as_str(), &body), ("504", &Value::from("upstream request timeout")));
    assert!((0.9..5.0).contains(&seconds), "{seconds} s");

    // The name moves, and clients that go on dialling the old address are taken along: the name
    // server's own time to live is 5 s.
    lab.set_name("api.example.com", &ips[1..]).unwrap();
    let old = format!("api.example.com:80:{}", ips[0]);
    support::eventually("the new address is used", || {
        let (_, body, _) = curl(&client, &["--resolve", &old, "http://api.example.com/"]);
        (body["pod"] == "api-2").then_some(())
    });
    // A name that is gone takes nothing away.
    lab.set_name("api.example.com", &[]).unwrap();
    support::eventually("the agent has noticed", || {
        let log = lab.agent_log("node1").unwrap();
        log.contains("name cannot be resolved").then_some(())
    });
    let (_, body, _) = curl(&client, &["--resolve", &old, "http://api.example.com/"]);
    assert_eq!(body["pod"], "api-2");
}

#[test]
fn versions_outside_are_split_by_the_labels_of_their_endpoints() {
    let Some((lab, servers)) = world() else { return };
    let ips: Vec<String> = servers.iter().map(|pod| of_family(pod, true).to_string()).collect();
    let objects = format!(
        r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ name: api, namespace: shop }}
spec:
  hosts: [api.example.com]
  addresses: [198.51.100.7]
  resolution: STATIC
  ports: [{{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }}]
  endpoints:
  - {{ address: {}, labels: {{ version: v1 }} }}
  - {{ address: {}, labels: {{ version: v2 }} }}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: api, namespace: shop }}
spec:
  hosts: [api.example.com]
  http:
  - match: [{{ uri: {{ prefix: /two }} }}]
    route: [{{ destination: {{ host: api.example.com, subset: v2 }} }}]
  - route: [{{ destination: {{ host: api.example.com, subset: v1 }} }}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: api, namespace: shop }}
spec:
  host: api.example.com
  subsets:
  - {{ name: v1, labels: {{ version: v1 }} }}
  - {{ name: v2, labels: {{ version: v2 }} }}
"#,
        ips[0], ips[1]
    );
    lab.apply(&objects).unwrap();
    // Nobody has this address but the entry.
    lab.set_name("api.example.com", &["198.51.100.7".parse().unwrap()]).unwrap();
    let client = lab.pod("shop/client").unwrap();
    support::eventually("the entry is in force", || {
        (answers(&client, "http://api.example.com/") == "api-1").then_some(())
    });
    for _ in 0..10 {
        assert_eq!(answers(&client, "http://api.example.com/one"), "api-1");
        assert_eq!(answers(&client, "http://api.example.com/two"), "api-2");
        assert_eq!(answers(&client, "http://198.51.100.7/two"), "api-2");
    }
}

/// Any name below one, wherever it leads, and one more by its port.
const REGISTERED: &str = r#"
kind: ConfigMap
apiVersion: v1
metadata: { name: istio, namespace: istio-system }
data: { mesh: "outboundTrafficPolicy: { mode: REGISTRY_ONLY }" }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: any, namespace: shop }
spec:
  hosts: ['*.example.com']
  resolution: NONE
  ports:
  - { number: 8080, name: http, protocol: HTTP }
  - { number: 8443, name: tls, protocol: TLS }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: talk, namespace: shop }
spec:
  hosts: [talk.example.org]
  resolution: NONE
  ports: [{ number: 9100, name: tcp, protocol: TCP }]
"#;

#[test]
fn only_what_is_registered_can_be_reached() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let ips = support::outside_addresses(&lab);
    let ip = ips.into_iter().find(IpAddr::is_ipv4).expect("an IPv4 address");
    let files = certificate(&lab, "outside");
    let start = |port, files| serve(|words| lab.outside(words), ("there", port), files);
    let servers = [start(8443, Some(&files)), start(9100, None), start(9101, None)];
    let web = ["python3", "-m", "http.server", "8080", "--bind", "0.0.0.0"];
    let mut web = lab.outside(&web).unwrap();
    web.current_dir(lab.shared_dir()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut web = web.spawn().unwrap();
    for name in ["a.example.com", "a.example.org"] {
        lab.set_name(name, &[ip]).unwrap();
    }
    let client = lab.pod("shop/client").unwrap();
    let status = |host: &str| curl(&client, &[&format!("http://{host}:8080/")]).0;
    support::eventually("the server is there", || (status("a.example.org") == "200").then_some(()));
    support::apply(&lab, REGISTERED, &[]);
    support::eventually("the policy is in force", || {
        (status("a.example.org") == "502").then_some(())
    });
    assert_eq!(status("a.example.com"), "200");

    let address = ip.to_string();
    assert_eq!(tls(&client, &address, 8443, "b.example.com"), "there b.example.com");
    let to = format!("::{address}:8443");
    let words = ["curl", "-sk", "-m", "20", "--connect-to", &to, "https://b.example.org/"];
    assert!(!client.exec(&words).unwrap().status.success(), "a name that nobody registered");
    let says = |port: u16| {
        let script = "import socket, sys; \
            print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 20).recv(99).decode())";
        let words = ["python3", "-c", script, &address, &port.to_string()];
        String::from_utf8(client.exec(&words).unwrap().stdout).unwrap().trim().to_owned()
    };
    assert_eq!(says(9100), "there");
    assert_eq!(says(9101), "", "a port that nobody registered");
    web.kill().unwrap();
    web.wait().unwrap();
    drop(servers);
}
