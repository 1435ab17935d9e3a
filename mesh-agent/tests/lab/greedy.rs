//! Two greedy pods on a node: each opens all the connections that it gets, to a server that is never
//! read from and to an idle one, while strangers flood their tunnel ports with handshakes and their
//! addresses with connections that end at once. A third pod's requests all succeed, and the agent's
//! memory and descriptors stay below what was promised. And without descriptors the agent pauses.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use xtask::lab::{Conversation, Lab, Pod};

use crate::support::{self, SHOP, SHOP_PODS};

/// What the agents may use for connections: 1,365 sockets, 455 streams (a sixth each, 32 and 96 KiB).
const MEMORY_MIB: u64 = 256;

/// Connections that each greedy pod tries to have, far above its share.
const TRIES: &str = "1500";

/// Resident memory above an idle agent's: all that connections may use, and as much again for the
/// allocator's and TLS's own.
const MEMORY_BOUND_KIB: u64 = 2 * MEMORY_MIB * 1024;

/// Opens connections until all tries are used: every other one asks for 64 MiB and reads nothing.
/// Tells how many are held, and keeps them until its standard input closes.
const GREEDY: &str = r#"
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held, n = [], int(sys.argv[2])
for i in range(n):
    try:
        s = socket.create_connection((sys.argv[1], 80 if i % 2 else 9000), 30)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        if i % 2:
            s.sendall(b"GET /?size=67108864 HTTP/1.1\r\nhost: far.shop\r\n\r\n")
        held.append(s)
    except OSError:
        pass
print("tried", flush=True)
sys.stdin.readline()
"#;

/// Floods a tunnel port until its standard input closes: connections that end at once, that say half
/// a ClientHello, that say nothing. Tells how many there were.
const FLOOD: &str = r#"
import select, socket, sys
hello = bytes.fromhex("1603010200010001fc0303") + bytes(40)
count, held = 0, []
print("floods", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        s = socket.create_connection((sys.argv[1], 15008), 5)
        kind = count % 3
        if kind == 1: s.sendall(hello)
        if kind == 0: s.close()
        else: held.append(s)
        if len(held) > 300: held.pop(0).close()
    except OSError:
        pass
    count += 1
print(count, flush=True)
"#;

/// Opens connections that say nothing, of which the agent holds one descriptor each, and keeps them
/// until its standard input closes. The kernel takes them whether or not the agent does.
const SILENT: &str = r#"
import socket, sys
held = [socket.create_connection((sys.argv[1], 80), 30) for _ in range(200)]
print("open", flush=True)
sys.stdin.readline()
"#;

/// Requests per second of a pod that opens a connection for each, to a server on another node.
fn rate(lab: &Lab, client: &Pod) -> f64 {
    let words = ["malha-load", "http", "-n", "1000", "--concurrency", "4", "--new-connections"];
    let report = support::json(client, &[&words[..], &["http://far.shop/"]].concat());
    let whole = (&report["statuses"]["200"], &report["failed"]) == (&1000.into(), &0.into());
    assert!(whole, "{report}\n{}", refusals(lab));
    report["per_second"].as_f64().expect("a rate")
}

/// What the agents say about limits.
fn refusals(lab: &Lab) -> String {
    let logs = lab.nodes().into_iter().map(|node| lab.agent_log(&node).expect("a log"));
    let lines: Vec<String> = logs
        .flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.contains("at its limit"))
        .collect();
    lines.join("\n")
}

fn descriptors(lab: &Lab, node: &str) -> u64 {
    let pid = lab.agent_pid(node).expect("the agent runs");
    fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count() as u64
}

fn counter(lab: &Lab, node: &str, name: &str) -> u64 {
    let status = lab.meshctl(node, &["-o", "json", "status"]).expect("meshctl answers");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["capture"]["counters"][name].as_u64().expect("a counter")
}

fn converse(pod: &Pod, program: &str, words: &[&str], first: &str) -> Conversation {
    let command = [&["python3", "-c", program], words].concat();
    let mut conversation = pod.converse(&command).expect("the program starts");
    assert_eq!(conversation.line().unwrap(), first);
    conversation
}

#[test]
fn greedy_pods_leave_a_share_to_their_neighbour() {
    let memory = MEMORY_MIB.to_string();
    let Some(lab) = support::lab_with(2, &["--max-memory-mib", &memory]) else { return };
    let all = [SHOP_PODS, &["shop/greedy1", "shop/greedy2"]].concat();
    let greedy = ["greedy1", "greedy2"].map(|name| support::client(name, "node1"));
    support::apply(&lab, &[SHOP, "---", &greedy[0], "---", &greedy[1]].join("\n"), &all);
    let neighbour = lab.pod("shop/client").unwrap();
    let before = rate(&lab, &neighbour);
    let idle: Vec<_> = lab
        .nodes()
        .iter()
        .map(|node| (node.clone(), lab.agent_memory_kib(node), descriptors(&lab, node)))
        .collect();
    let held = ["shop/greedy1", "shop/greedy2"]
        .map(|name| converse(&lab.pod(name).unwrap(), GREEDY, &["far.shop", TRIES], "tried"));
    let stranger = lab.pod("outside/stranger").unwrap();
    let floods = ["shop/near", "shop/client"].map(|name| {
        let address = lab.pod(name).unwrap().ip().to_string();
        converse(&stranger, FLOOD, &[&address], "floods")
    });
    support::eventually("both are at their limit", || {
        (counter(&lab, "node1", "refused_by_quota") > 1000).then_some(())
    });
    let beside = rate(&lab, &neighbour);
    for (node, memory, open) in idle {
        let (now, open_now) = (lab.agent_memory_kib(&node), descriptors(&lab, &node));
        let most = counter(&lab, &node, "sockets_limit");
        println!(
            "{node}: {memory} KiB idle, {now} KiB now; {open} descriptors idle, {open_now} now"
        );
        for name in ["sockets", "streams", "requests", "buffer_memory_set_aside"] {
            let limit = format!("{}_limit", name.trim_end_matches("_set_aside"));
            assert!(counter(&lab, &node, name) <= counter(&lab, &node, &limit), "{node}: {name}");
        }
        assert!(open_now <= open + most, "{node}: {open} descriptors idle, {open_now} now");
        assert!(now < memory + MEMORY_BOUND_KIB, "{node}: {memory} KiB idle, {now} KiB now");
    }
    println!("requests per second of the neighbour: {before:.0} alone, {beside:.0} beside");
    // Two cores serve the agents, the servers and four attackers: a fair share is a fraction.
    assert!(beside > before / 50.0, "{before} alone, {beside} beside");
    for mut flood in floods {
        let count: u64 = flood.ask("").unwrap().parse().unwrap();
        assert!(count > 1000, "a flood of {count}");
    }
    drop(held);
    support::eventually("all is given back", || {
        (counter(&lab, "node1", "sockets") < 100 && counter(&lab, "node1", "requests") == 0)
            .then_some(())
    });
}

/// Sets the soft limit of open files of a running agent.
fn set_descriptors(lab: &Lab, node: &str, most: u64) {
    let pid = lab.agent_pid(node).expect("the agent runs").to_string();
    let limit = format!("--nofile={most}:");
    let set = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(set.expect("prlimit runs").success());
}

#[test]
fn without_descriptors_the_agent_pauses_and_goes_on() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    support::ok(&client, &["curl", "-sS", "-m", "20", "http://near/"]);
    set_descriptors(&lab, "node1", descriptors(&lab, "node1") + 3);
    let silent = converse(&client, SILENT, &["near"], "open");
    let failures =
        || lab.agent_log("node1").expect("a log").matches("accept failed, pausing").count();
    support::eventually("accept fails", || (failures() > 0).then_some(()));
    let (start, ticks) = (failures(), processor_time(&lab, "node1"));
    #[expect(clippy::disallowed_methods, reason = "sees what happens without descriptors")]
    std::thread::sleep(Duration::from_secs(3));
    // One listener's pauses are 10 ms, doubled up to a second; without them there were a million.
    let failed = failures() - start;
    assert!(failed <= 20, "accept was tried {failed} times in three seconds");
    let used = processor_time(&lab, "node1") - ticks;
    assert!(used < 200, "{used} hundredths of a second of processor time in three seconds");
    set_descriptors(&lab, "node1", 4096);
    support::ok(&client, &["curl", "-sS", "-m", "30", "http://near/"]);
    drop(silent);
    support::ok(&client, &["curl", "-sS", "-m", "30", "http://far/"]);
}

/// Hundredths of a second that the agent has run, in user and kernel mode (proc(5), `stat`).
fn processor_time(lab: &Lab, node: &str) -> u64 {
    let pid = lab.agent_pid(node).expect("the agent runs");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its times");
    let fields = stat.rsplit(") ").next().expect("fields").split(' ').skip(11).take(2);
    fields.map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}
