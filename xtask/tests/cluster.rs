//! The lab by itself, without a mesh: what ordinary manifests need works, and nothing is left.
//!
//! Needs root; without it every test says so loudly and does nothing.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use xtask::lab::{Change, Lab, Pod, wait_for};

const MANIFESTS: &str = include_str!("cluster.yaml");

/// A lab without agents, or a loud line.
fn lab() -> Option<Lab> {
    if let Some(reason) = xtask::lab::missing_privileges() {
        xtask::test::skipped(&format!("lab: {reason}"));
        return None;
    }
    Some(Lab::builder().nodes(2).build().unwrap())
}

fn with_pods() -> Option<Lab> {
    let lab = lab()?;
    lab.apply(MANIFESTS).unwrap();
    lab.wait_all_ready().unwrap();
    Some(lab)
}

fn get(pod: &Pod, url: &str) -> String {
    pod.run(&["curl", "-sS", "-m", "5", url]).unwrap()
}

#[test]
fn pods_reach_services_by_every_address() {
    let Some(lab) = with_pods() else { return };
    let client = lab.pod("shop/client").unwrap();
    let web = lab.pods_of("shop/web");
    let nodes: BTreeSet<&str> = web.iter().map(|pod| pod.node.as_str()).collect();
    assert_eq!(nodes.len(), 2, "spread over the nodes");
    for name in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
        assert_eq!(get(&client, &format!("http://{name}:8000/")), "Full Cycle A", "{name}");
    }
    let addresses = lab.service_ips("shop/web").unwrap();
    assert_eq!(addresses.len(), 2, "dual stack");
    for address in addresses {
        let host = std::net::SocketAddr::new(address, 8000);
        assert_eq!(get(&client, &format!("http://{host}/")), "Full Cycle A");
    }
    for pod in &web {
        for ip in &pod.ips {
            let host = std::net::SocketAddr::new(*ip, 80);
            assert_eq!(get(&client, &format!("http://{host}/")), "Full Cycle A", "{}", pod.node);
        }
    }
    let other = lab.pod("shop/other").unwrap();
    assert_eq!(get(&client, "http://alias:8000/"), "Full Cycle A", "ExternalName");
    assert_eq!(get(&other, "http://web.shop:8000/"), "Full Cycle A");
    // A pod that is sent to itself through its own Service.
    for pod in &web {
        for _ in 0..8 {
            assert_eq!(get(pod, "http://web:8000/"), "Full Cycle A", "hairpin");
        }
    }
}

#[test]
fn node_ports_and_outside_clients() {
    let Some(lab) = with_pods() else { return };
    let service = lab.service("shop/outer").unwrap();
    let port = service.pointer("/spec/ports/0/nodePort").unwrap().as_u64().unwrap();
    for node in lab.nodes() {
        for ip in lab.node_addresses(&node).unwrap() {
            let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
            let url = format!("http://{host}:{port}/");
            let output = lab.outside(&["curl", "-sS", "-m", "5", &url]).unwrap().output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "Full Cycle A", "{url} {output:?}");
        }
    }
    let pod = &lab.pods_of("shop/web")[0];
    let url = format!("http://{}/", pod.ips[0]);
    let output = lab.outside(&["curl", "-sS", "-m", "5", &url]).unwrap().output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Full Cycle A");
}

#[test]
fn the_name_server_knows_headless_services_and_nothing_else() {
    let Some(lab) = with_pods() else { return };
    let client = lab.pod("shop/client").unwrap();
    let answer = client.run(&["getent", "ahostsv4", "pods"]).unwrap();
    for pod in lab.pods_of("shop/web") {
        assert!(answer.contains(&pod.v4().unwrap().to_string()), "{answer}");
    }
    let unknown = client.exec(&["getent", "hosts", "example.com"]).unwrap();
    assert!(!unknown.status.success());
    let nobody = client.exec(&["curl", "-sS", "-m", "5", "http://empty:80/"]).unwrap();
    assert_eq!(nobody.status.code(), Some(7), "refused at once, not timed out: {nobody:?}");
}

#[test]
fn containers_have_their_files_environment_and_name() {
    let Some(lab) = with_pods() else { return };
    let pod = lab.pod("shop/client").unwrap();
    assert_eq!(pod.run(&["hostname"]).unwrap().trim(), "client");
    assert_eq!(pod.run(&["cat", "/etc/greeting/hello.txt"]).unwrap(), "hello\n");
    let environment = pod.run(&["sh", "-c", "echo $NODE $GREETING $ADDRESS"]).unwrap();
    assert_eq!(environment.trim(), format!("{} hello {}", pod.node, pod.ips[0]));
    let links = pod.run(&["ip", "-o", "link"]).unwrap();
    assert_eq!(links.lines().count(), 2, "lo and eth0: {links}");
    pod.run(&["sh", "-c", "echo mine > /etc/mine && touch /usr/local/bin/mine"]).unwrap();
    assert!(!Path::new("/etc/mine").exists(), "a container's files are its own");
    assert!(lab.pod("shop/other").unwrap().exec(&["cat", "/etc/mine"]).unwrap().stdout.is_empty());
    let changed = MANIFESTS.replace("hello.txt: \"hello\\n\"", "hello.txt: \"hello again\\n\"");
    assert_ne!(changed, MANIFESTS);
    lab.apply(&changed).unwrap();
    assert_eq!(pod.run(&["cat", "/etc/greeting/hello.txt"]).unwrap(), "hello again\n");
}

#[test]
fn deployments_scale_roll_and_restart() {
    let Some(lab) = with_pods() else { return };
    let client = lab.pod("shop/client").unwrap();
    lab.scale("shop/web", 1).unwrap();
    wait_for(Duration::from_secs(20), "one pod", || {
        Ok((lab.pods_of("shop/web").len() == 1).then_some(()))
    })
    .unwrap();
    let before = lab.pods_of("shop/web").remove(0);
    Command::new("kill").args(["-9", &before.pid().unwrap().to_string()]).status().unwrap();
    wait_for(Duration::from_secs(20), "a restart", || Ok((before.restarts() == 1).then_some(())))
        .unwrap();
    lab.wait_ready("shop/web").unwrap();
    let log = before.log().unwrap();
    assert_eq!(get(&client, "http://web:8000/"), "Full Cycle A", "{log}");

    let b = MANIFESTS.replace("wesleywillians/nginx-ab", "wesleywillians/nginx-ab:b");
    let changes = lab.apply(&b).unwrap();
    let configured = changes.iter().filter(|(_, change)| *change == Change::Configured);
    assert_eq!(configured.map(|(key, _)| key.kind.as_str()).collect::<Vec<_>>(), ["Deployment"]);
    wait_for(Duration::from_secs(30), "the new version alone", || {
        let pods = lab.pods_of("shop/web");
        Ok((pods.len() == 2 && pods.iter().all(|pod| pod.uid != before.uid)).then_some(()))
    })
    .unwrap();
    lab.wait_gone(&before).unwrap();
    lab.wait_ready("shop/web").unwrap();
    assert_eq!(get(&client, "http://web:8000/"), "Full Cycle B");
}

#[test]
fn the_agents_folder_has_what_a_cluster_would_have() {
    let Some(lab) = with_pods() else { return };
    let read = |name: &str| std::fs::read_to_string(lab.config_dir().join(name)).unwrap();
    let pod = lab.pod("shop/client").unwrap();
    let text = read("pod_shop_client.yaml");
    for part in [&pod.uid, &pod.ips[1].to_string(), "phase: Running", "serviceAccountName: buyer"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    for family in ["ipv4", "ipv6"] {
        let slice = read(&format!("endpointslice_shop_web-{family}-0.discovery.k8s.io.yaml"));
        assert_eq!(slice.matches("ready: true").count(), 2, "{slice}");
    }
    let rule = read("virtualservice_shop_web.networking.istio.io.yaml");
    assert!(rule.contains("hosts: [web] # as written"), "{rule}");
    lab.label("pod", "shop/client", "istio.io/dataplane-mode", Some("none")).unwrap();
    assert!(read("pod_shop_client.yaml").contains("dataplane-mode: none"));
    assert_eq!(lab.pod("shop/client").unwrap().uid, pod.uid, "the pod went on");
}

#[test]
fn a_mistake_is_named_and_changes_nothing() {
    let Some(lab) = lab() else { return };
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  \
        containers: [{name: c, image: nobody/nothing}]\n";
    let error = format!("{:#}", lab.apply(text).unwrap_err());
    assert!(
        error.starts_with("Pod default/p: spec.containers[0].image: nobody/nothing"),
        "{error}"
    );
    assert!(lab.pods().is_empty());
}

#[test]
fn fortio_runs_as_in_its_image() {
    let Some(lab) = lab() else { return };
    lab.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: f}, spec: {containers: [{name: fortio, \
         image: fortio/fortio, ports: [{containerPort: 8080}, {containerPort: 8079}]}]}}",
    )
    .unwrap();
    let pod = lab.wait_ready("f").unwrap();
    let load = ["fortio", "load", "-qps", "0", "-n", "20", "-c", "2", "http://127.0.0.1:8080/echo"];
    let report = pod.exec(&load).unwrap();
    assert!(String::from_utf8_lossy(&report.stderr).contains("Code 200 : 20"), "{report:?}");
    let same = pod.run(&["/usr/bin/fortio", "curl", "-quiet", "http://127.0.0.1:8080/debug"]);
    assert!(same.unwrap().contains("Φορτίο"), "by its path too");
}

/// What a lab with this number would have on the machine.
fn traces(number: &str) -> Vec<String> {
    let prefix = format!("malha-{number}-");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        found.extend(name.starts_with(&prefix).then_some(name));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    found.extend(
        mounts.lines().filter(|l| l.contains(&format!("/run/malha-lab/{number}"))).map(Into::into),
    );
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let path = format!("{root}/malha-lab-{number}");
        found.extend(Path::new(&path).exists().then_some(path));
    }
    for path in [format!("/run/malha-lab/{number}"), format!("/run/malha-lab/{number}.lock")] {
        found.extend(Path::new(&path).exists().then_some(path));
    }
    found
}

#[test]
fn nothing_is_left_and_two_labs_run_at_once() {
    let Some(first) = with_pods() else { return };
    let Some(second) = with_pods() else { return };
    let numbers = [first.id().to_string(), second.id().to_string()];
    assert_ne!(numbers[0], numbers[1]);
    let (a, b) = (first.pod("shop/client").unwrap(), second.pod("shop/client").unwrap());
    assert_ne!(a.ips, b.ips);
    assert!(traces(&numbers[0]).len() > 5);
    drop(first);
    assert_eq!(traces(&numbers[0]), [""; 0]);
    assert_eq!(get(&b, "http://web:8000/"), "Full Cycle A", "the other lab went on");
    drop(second);
    assert_eq!(traces(&numbers[1]), [""; 0]);
}

/// Runs only when the test below starts it: an owner that is killed.
#[test]
fn owner_that_is_killed() {
    if std::env::var_os("MALHA_LAB_TEST_OWNER").is_none() {
        return;
    }
    let lab = with_pods().unwrap();
    println!("lab {}", lab.id());
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_is_left_of_a_lab_whose_owner_is_killed() {
    use std::io::{BufRead, BufReader};
    if let Some(reason) = xtask::lab::missing_privileges() {
        xtask::test::skipped(&format!("lab: {reason}"));
        return;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_that_is_killed", "--nocapture"])
        .env("MALHA_LAB_TEST_OWNER", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("lab ")).unwrap();
    let number = line.trim_start_matches("lab ").to_owned();
    assert!(traces(&number).len() > 5);
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for(Duration::from_secs(20), "the guardian", || {
        Ok(traces(&number).is_empty().then_some(()))
    })
    .unwrap();
}
