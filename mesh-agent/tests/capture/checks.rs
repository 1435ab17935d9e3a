//! The checks, in the order in which they build on each other.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_agent::capture::{Capture, CaptureError, Charge, MapSizes, PodNet, local_pods};
use mesh_common::maps::LAYOUT_VERSION;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::lab::{
    Client, Lab, NODE, NODE_AT_B, NODE_AT_B6, NODE6, PATIENCE, POD_A, POD_A6, POD_B, POD_B6, ip,
};

pub(crate) fn run(cgroup: PathBuf, pins: PathBuf) {
    let pins = pins.join("pins");
    let lab = Lab::new(cgroup, pins.clone());
    check("an unprepared node is untouched", || nothing_captured(&lab));
    check("a full map is reported", || full_map(&lab));
    let capture = Arc::new(Capture::start(&lab.options).unwrap());
    check("pods are found by cgroup", || found_by_cgroup(&lab));
    check("outbound", || outbound(&lab, &capture));
    check("outbound exceptions", || outbound_exceptions(&lab, &capture));
    check("inbound", || inbound(&lab, &capture));
    check("dial into a pod", || dial_into_pod(&lab, &capture));
    check("dial from a pod", || dial_from_pod(&lab, &capture));
    check("other pods are untouched", || nothing_captured(&lab));
    check("withdraw", || withdraw(&lab, &capture));
    let capture = check("hand-over", || hand_over(&lab, capture));
    let capture = check("a next agent that ends", || take_back(&lab, capture, &pins));
    check("hand-over from another layout", || other_layout(&lab, capture, &pins));
    check("restart", || restart(&lab));
    check("cleanup", || cleanup(&lab, &pins));
    check("afterwards nothing is captured", || nothing_captured(&lab));
}

fn check<T>(name: &str, run: impl FnOnce() -> T) -> T {
    let result = run();
    println!("capture: {name} ... ok");
    result
}

fn count(capture: &Capture, name: &str) -> u64 {
    capture.counters().into_iter().find(|(known, _)| *known == name).unwrap().1
}

fn refused(net: &PodNet, to: &str) {
    let error = Client::connect(net, to).err().unwrap_or_else(|| panic!("{to} was reached"));
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}: {error}");
}

/// From the node to itself and to a pod, both families, addresses as they are.
fn nothing_captured(lab: &Lab) {
    let _node = lab.app(&lab.node, "[::]:8080");
    let pod = lab.app(&lab.a, "[::]:8181");
    for (net, to, from) in
        [(&lab.node, format!("{NODE}:8080"), NODE), (&lab.node, format!("[{NODE6}]:8080"), NODE6)]
    {
        let client = Client::connect(net, &to).unwrap();
        assert!(client.greeting.contains(from), "{}", client.greeting);
        assert_eq!(client.peer(), to);
    }
    drop(pod);
}

fn full_map(lab: &Lab) {
    let mut options = lab.options.clone();
    options.pin_dir = options.pin_dir.with_file_name("small");
    options.sizes = MapSizes {
        pods: 1,
        pending_connections: 1,
        admitted_connections: 2,
        ..MapSizes::default()
    };
    let capture = Arc::new(Capture::start(&options).unwrap());
    full_tuples(lab, &capture);
    let _a = capture.enroll(&lab.a, &Lab::settings_a()).unwrap();
    let error = capture.enroll(&lab.b, &Lab::settings_b()).unwrap_err();
    assert!(error.is_full(), "{error}: {error:?}");
    // The second pod is as before.
    let _app = lab.app(&lab.b, "0.0.0.0:8080");
    Client::connect(&lab.node, &format!("{POD_B}:8080")).unwrap();

    let to = SocketAddr::new(POD_B.parse().unwrap(), 8080);
    let client = POD_A.parse().unwrap();
    let open: Vec<_> = (0..2).map(|_| into_pod(lab, &capture, client, to).unwrap()).collect();
    let error = into_pod(lab, &capture, client, to).err().unwrap();
    assert!(error.to_string().contains("bpf"), "{error}");
    drop(open);
    gone(&capture);
    into_pod(lab, &capture, client, to).unwrap();
    drop(capture);
    Capture::cleanup(&options.pin_dir).unwrap();
    assert!(!options.pin_dir.exists());
}

/// An agent that does not accept, a queue of one, and room for one connection on its way.
fn full_tuples(lab: &Lab, capture: &Arc<Capture>) {
    let somaxconn = |value: &str| {
        lab.a.within(|| std::fs::write("/proc/sys/net/core/somaxconn", value).unwrap()).unwrap();
    };
    somaxconn("1");
    let listeners = capture.enroll(&lab.a, &Lab::settings_a()).unwrap();
    somaxconn("4096");
    let to: SockAddr = "11.2.3.4:80".parse::<SocketAddr>().unwrap().into();
    let start = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&to);
        socket
    };
    let waiting: Vec<Socket> = (0..6).map(|_| lab.a.within(start).unwrap()).collect();
    assert!(count(capture, "tuples_full") > 0, "{:?}", capture.counters());
    // The kernel repeats the SYN of those that had no place: they arrive without a destination.
    let agent = lab.agent(capture, listeners);
    let greeting = |socket: Socket| {
        socket.set_nonblocking(false).unwrap();
        // With a full queue the kernel falls back to SYN cookies, and may forget a connection
        // that says nothing.
        (&socket).write_all(b"x").unwrap();
        Client::greeted(socket.into()).unwrap().greeting
    };
    let greetings: Vec<String> = waiting.into_iter().map(greeting).collect();
    let lost = greetings.iter().filter(|line| *line == "captured nowhere").count();
    assert!(lost > 0 && lost < greetings.len(), "{greetings:?}");
    assert_eq!(count(capture, "origin_missing"), lost as u64);
    // There is room again.
    captured(lab, "11.2.3.4:80".parse().unwrap());
    drop(agent);
    capture.withdraw(lab.a.cookie(), &Lab::settings_a().ips).unwrap();
}

fn found_by_cgroup(lab: &Lab) {
    let pods = local_pods(&lab.options.cgroup).unwrap();
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].uid, "aaaa-1");
    let net = PodNet::of_pid(pods[0].pid).unwrap();
    assert_eq!(net.cookie(), lab.a.cookie());
    assert_ne!(net.cookie(), lab.b.cookie());
}

fn outbound(lab: &Lab, capture: &Arc<Capture>) {
    let own = PodNet::open("/proc/self/ns/net").unwrap();
    let refused = capture.enroll(&own, &Lab::settings_a());
    assert!(matches!(refused, Err(CaptureError::HostNetwork)));
    let listeners = capture.enroll(&lab.a, &Lab::settings_a()).unwrap();
    assert_eq!(listeners.outbound.len(), 2);
    let _agent = lab.agent(capture, listeners);
    let before = count(capture, "outbound_captured");
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            scope.spawn(move || {
                for n in 0..150_u32 {
                    let seed = (thread * 1000 + n).wrapping_mul(0x9e37_79b1);
                    captured(lab, arbitrary(seed));
                }
            });
        }
    });
    assert_eq!(count(capture, "outbound_captured") - before, 600);
    assert_eq!(count(capture, "tuples_full"), 0);
    assert_eq!(count(capture, "origin_missing"), 0);

    v4_mapped(lab);
    bound_sockets(lab);
    reconnected(lab);
    // A UDP socket is none of the mesh's business.
    let peer = lab.a.within(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("10.9.9.9:53").unwrap();
        socket.peer_addr().unwrap()
    });
    assert_eq!(peer.unwrap(), "10.9.9.9:53".parse().unwrap());
    // Who dials the listener itself has no destination.
    let probe = Client::connect(&lab.a, "127.0.0.1:15001");
    assert!(probe.is_err());
}

/// A destination somewhere in the world.
fn arbitrary(seed: u32) -> SocketAddr {
    let port = 1 + (seed >> 7) as u16 % 14_000;
    let ip: IpAddr = if seed & 1 == 0 {
        Ipv4Addr::new(11, (seed >> 8) as u8, (seed >> 16) as u8, (seed >> 24) as u8).into()
    } else {
        Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(seed) << 32 | u128::from(seed)).into()
    };
    SocketAddr::new(ip, port)
}

fn captured(lab: &Lab, to: SocketAddr) {
    let client = Client::connect(&lab.a, &to.to_string()).unwrap();
    assert_eq!(client.greeting, format!("captured {to}"));
    assert_eq!(client.peer(), to.to_string());
    let own = if to.is_ipv4() { POD_A } else { POD_A6 };
    assert_eq!(client.local_ip(), own.parse::<IpAddr>().unwrap());
}

fn v4_mapped(lab: &Lab) {
    let to: SocketAddr = "[::ffff:11.2.3.4]:80".parse().unwrap();
    let connect = || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.connect(&SockAddr::from(to))?;
        Ok(TcpStream::from(socket))
    };
    let client = Client::with(&lab.a, connect).unwrap();
    assert_eq!(client.greeting, "captured 11.2.3.4:80");
    assert_eq!(client.stream.peer_addr().unwrap(), to);
    assert_eq!(client.local_ip(), IpAddr::V6(POD_A.parse::<Ipv4Addr>().unwrap().to_ipv6_mapped()));
}

fn bound_sockets(lab: &Lab) {
    for (own, to) in [(POD_A, "11.2.3.4:80"), (POD_A6, "[2001:db8::4]:80")] {
        for (port, device) in [(0, None), (25_000, None), (0, Some("eth0"))] {
            let own = SocketAddr::new(own.parse().unwrap(), port);
            let to: SocketAddr = to.parse().unwrap();
            let client = Client::with(&lab.a, || {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                match device {
                    Some(device) => socket.bind_device(Some(str::as_bytes(device)))?,
                    None => socket.bind(&SockAddr::from(own))?,
                }
                socket.connect_timeout(&SockAddr::from(to), PATIENCE)?;
                Ok(TcpStream::from(socket))
            })
            .unwrap();
            assert_eq!(client.greeting, format!("captured {to}"));
            assert_eq!(client.local_ip(), own.ip());
            if port != 0 {
                assert_eq!(client.stream.local_addr().unwrap().port(), port);
            }
        }
    }
}

/// One socket, captured, disconnected and connected again to what is not captured.
fn reconnected(lab: &Lab) {
    let _app = lab.app(&lab.a, "127.0.0.1:8080");
    let client = Client::connect(&lab.a, "11.2.3.4:80").unwrap();
    assert_eq!(client.peer(), "11.2.3.4:80");
    disconnect(&client.stream);
    let again = SockAddr::from("127.0.0.1:8080".parse::<SocketAddr>().unwrap());
    let socket = Socket::from(client.stream);
    socket.connect(&again).unwrap();
    let client = Client::greeted(socket.into()).unwrap();
    assert!(client.greeting.starts_with("app "), "{}", client.greeting);
    assert_eq!(client.peer(), "127.0.0.1:8080");
}

/// `connect` with `AF_UNSPEC` takes a TCP socket back to unconnected.
fn disconnect(stream: &TcpStream) {
    let unspec = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    #[allow(unsafe_code, reason = "no wrapper knows this address")]
    // SAFETY: the address is live and as long as said.
    let result = unsafe {
        libc::connect(stream.as_raw_fd(), &raw const unspec, size_of_val(&unspec) as u32)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn outbound_exceptions(lab: &Lab, capture: &Arc<Capture>) {
    let listeners = capture.enroll(&lab.a, &Lab::settings_a()).unwrap();
    let agent = lab.agent(capture, listeners);
    let _by_port = lab.app(&lab.node, "[::]:9999");
    let _by_range = lab.app(&lab.node, "[::]:8080");
    let _local = lab.app(&lab.a, "[::]:8080");
    for (to, from) in [
        (format!("{NODE}:9999"), POD_A),
        (format!("[{NODE6}]:9999"), POD_A6),
        (format!("{NODE_AT_B}:8080"), POD_A),
        (format!("[{NODE_AT_B6}]:8080"), POD_A6),
        ("127.0.0.1:8080".into(), "127.0.0.1"),
        ("[::1]:8080".into(), "::1"),
        (format!("{POD_A}:8080"), POD_A),
        (format!("[{POD_A6}]:8080"), POD_A6),
    ] {
        let client = Client::connect(&lab.a, &to).unwrap();
        assert!(client.greeting.starts_with("app "), "{to}: {}", client.greeting);
        assert!(client.greeting.contains(from), "{to}: {}", client.greeting);
        assert_eq!(client.peer(), to);
    }
    // The neighbour of an excluded range is captured.
    captured(lab, format!("{NODE}:8080").parse().unwrap());
    for port in [15001, 15006, 15008] {
        for host in [NODE.to_owned(), "127.0.0.1".into(), format!("[{NODE6}]")] {
            refused(&lab.a, &format!("{host}:{port}"));
        }
    }
    // Closed, not open.
    drop(agent);
    refused(&lab.a, "11.2.3.4:80");
    refused(&lab.a, "[2001:db8::4]:80");
    without_v6(lab, capture);
}

/// Happy eyeballs depends on the immediate error, so the family that a pod lacks is left alone.
fn without_v6(lab: &Lab, capture: &Arc<Capture>) {
    let mut settings = Lab::settings_a();
    settings.ips.truncate(1);
    capture.withdraw(lab.a.cookie(), &Lab::settings_a().ips).unwrap();
    let listeners = capture.enroll(&lab.a, &settings).unwrap();
    assert_eq!(listeners.outbound.len(), 1);
    let _agent = lab.agent(capture, listeners);
    let direct = Client::connect(&lab.a, &format!("[{NODE6}]:8080")).unwrap();
    assert!(direct.greeting.starts_with("app "));
    captured(lab, "11.2.3.4:80".parse().unwrap());
}

fn inbound(lab: &Lab, capture: &Arc<Capture>) {
    let _app = lab.app(&lab.b, "[::]:8080");
    let _excluded = lab.app(&lab.b, "[::]:7777");
    let mut before = Client::connect(&lab.node, &format!("{POD_B}:8080")).unwrap();
    let listeners = capture.enroll(&lab.b, &Lab::settings_b()).unwrap();
    let agent = lab.agent(capture, listeners);
    assert!(before.is_alive(), "a connection from before the enrolment");
    for (host, from) in [(POD_B.to_owned(), NODE_AT_B), (format!("[{POD_B6}]"), NODE_AT_B6)] {
        // 4444: nobody listens there, and still the agent decides.
        for port in [8080, 4444] {
            let client = Client::connect(&lab.node, &format!("{host}:{port}")).unwrap();
            assert_eq!(client.greeting, format!("plaintext {host}:{port} {from}"));
            assert_eq!(client.peer(), format!("{host}:{port}"));
        }
        let tunnel = Client::connect(&lab.node, &format!("{host}:15008")).unwrap();
        assert_eq!(tunnel.greeting, format!("tunnel {host}:15008 {from}"));
        let excluded = Client::connect(&lab.node, &format!("{host}:7777")).unwrap();
        assert!(excluded.greeting.starts_with("app "));
        refused(&lab.node, &format!("{host}:15001"));
        refused(&lab.node, &format!("{host}:15006"));
        // From inside the pod to itself: not the agent's.
        let own = Client::connect(&lab.b, &format!("{host}:8080")).unwrap();
        assert!(own.greeting.starts_with("app "), "{}", own.greeting);
    }
    // An address that the mesh does not know leads nowhere.
    ip(&lab.b, "addr add 10.77.2.99/24 dev eth0");
    refused(&lab.node, "10.77.2.99:8080");
    ip(&lab.b, "addr del 10.77.2.99/24 dev eth0");
    // Without an agent: closed.
    drop(agent);
    refused(&lab.node, &format!("{POD_B}:8080"));
    assert!(before.is_alive(), "and it still lives");
}

fn dial_into_pod(lab: &Lab, capture: &Arc<Capture>) {
    let _app = lab.app(&lab.b, "[::]:8080");
    let _local_only = lab.app(&lab.b, "127.0.0.1:6060");
    let listeners = capture.enroll(&lab.b, &Lab::settings_b()).unwrap();
    let _agent = lab.agent(capture, listeners);
    // Also an address that is nowhere near, and the pod's own.
    for (to, client) in [
        (POD_B, POD_A),
        (POD_B6, POD_A6),
        (POD_B, "203.0.113.7"),
        (POD_B6, "2001:db8:7::7"),
        (POD_B, POD_B),
    ] {
        let to = SocketAddr::new(to.parse().unwrap(), 8080);
        let client: IpAddr = client.parse().unwrap();
        let mut open = Vec::new();
        for _ in 0..60 {
            let mut seen = into_pod(lab, capture, client, to).unwrap();
            let from: SocketAddr = seen.greeting.strip_prefix("app ").unwrap().parse().unwrap();
            assert_eq!(from.ip().to_canonical(), client);
            assert_eq!(from.port(), seen.stream.local_addr().unwrap().port());
            assert!(seen.is_alive());
            open.push(seen);
        }
        assert_eq!(capture.admitted(), 60);
        drop(open);
        gone(capture);
    }
    // Nobody there, and somebody who listens on loopback only: refused at once.
    for (to, client, port) in [(POD_B, POD_A, 4444), (POD_B6, POD_A6, 4444), (POD_B, POD_A, 6060)] {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let error = into_pod(lab, capture, client.parse().unwrap(), to).err().unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    gone(capture);
    own_port_of_the_client(lab, capture);
    port_of_an_ended_connection(lab, capture);
}

/// The client holds a connection from the very port that the agent would draw next.
fn own_port_of_the_client(lab: &Lab, capture: &Arc<Capture>) {
    let (client, to, next) = next_port(lab, capture);
    let mut direct = from_port(lab, SocketAddr::new(client, next), to);
    assert!(direct.greeting.starts_with("plaintext "));
    let before = count(capture, "admit_port_in_use");
    let mut dialled = into_pod(lab, capture, client, to).unwrap();
    assert_ne!(dialled.stream.local_addr().unwrap().port(), next);
    assert_eq!(count(capture, "admit_port_in_use"), before + 1);
    assert!(dialled.is_alive() && direct.is_alive());
}

/// The port that the agent would draw next had a connection which is over: a busy client needs it
/// again long before the minute of TIME_WAIT is.
fn port_of_an_ended_connection(lab: &Lab, capture: &Arc<Capture>) {
    let (client, to, next) = next_port(lab, capture);
    from_port(lab, SocketAddr::new(client, next), to).quit();
    let mut dialled = into_pod(lab, capture, client, to).unwrap();
    assert_eq!(dialled.stream.local_addr().unwrap().port(), next);
    assert!(dialled.greeting.starts_with("app ") && dialled.is_alive());
}

/// A client on the node, a server in the pod, and the port that the agent would draw next.
fn next_port(lab: &Lab, capture: &Arc<Capture>) -> (IpAddr, SocketAddr, u16) {
    let client: IpAddr = NODE_AT_B.parse().unwrap();
    let to = SocketAddr::new(POD_B.parse().unwrap(), 8080);
    let last = into_pod(lab, capture, client, to).unwrap().stream.local_addr().unwrap().port();
    let next = if last == 32_767 { 61_000 } else { last.checked_add(1).unwrap_or(1024) };
    (client, to, next)
}

fn from_port(lab: &Lab, source: SocketAddr, to: SocketAddr) -> Client {
    let connected = Client::with(&lab.node, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(source))?;
        socket.connect(&SockAddr::from(to))?;
        Ok(TcpStream::from(socket))
    });
    connected.unwrap()
}

fn into_pod(
    lab: &Lab,
    capture: &Arc<Capture>,
    client: IpAddr,
    to: SocketAddr,
) -> std::io::Result<Client> {
    let dial = capture.dial_into_pod(&lab.b, client, to, PATIENCE);
    Client::greeted(lab.runtime.block_on(dial)?.into_std()?)
}

/// The kernel takes announcements out at the close, which the other end must answer first.
fn gone(capture: &Capture) {
    for _ in 0..200 {
        if capture.admitted() == 0 {
            return;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
    panic!("{} announcements are left", capture.admitted());
}

fn dial_from_pod(lab: &Lab, capture: &Arc<Capture>) {
    let listeners = capture.enroll(&lab.a, &Lab::settings_a()).unwrap();
    let _agent = lab.agent(capture, listeners);
    let _app = lab.app(&lab.node, "[::]:8080");
    for (to, from) in [(NODE, POD_A), (NODE6, POD_A6)] {
        let to = SocketAddr::new(to.parse().unwrap(), 8080);
        captured(lab, to);
        let dial = capture.dial_from_pod(&lab.a, to, PATIENCE);
        let stream = lab.runtime.block_on(dial).unwrap().into_std().unwrap();
        let client = Client::greeted(stream).unwrap();
        assert!(client.greeting.starts_with("app "), "{}", client.greeting);
        assert!(client.greeting.contains(from));
    }
    let nobody = SocketAddr::new(NODE.parse().unwrap(), 4444);
    let dial = capture.dial_from_pod(&lab.a, nobody, PATIENCE);
    let error = lab.runtime.block_on(dial).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

fn withdraw(lab: &Lab, capture: &Arc<Capture>) {
    let a = lab.agent(capture, capture.enroll(&lab.a, &Lab::settings_a()).unwrap());
    let b = lab.agent(capture, capture.enroll(&lab.b, &Lab::settings_b()).unwrap());
    let _node = lab.app(&lab.node, "[::]:8080");
    let _app = lab.app(&lab.b, "[::]:8080");
    let mut open = vec![
        Client::connect(&lab.a, &format!("{NODE}:8080")).unwrap(),
        Client::connect(&lab.a, &format!("[{NODE6}]:8080")).unwrap(),
        Client::connect(&lab.node, &format!("{POD_B}:8080")).unwrap(),
        Client::connect(&lab.node, &format!("[{POD_B6}]:8080")).unwrap(),
    ];
    for (client, ip) in [(POD_A, POD_B), (POD_A6, POD_B6)] {
        let to = SocketAddr::new(ip.parse().unwrap(), 8080);
        open.push(into_pod(lab, capture, client.parse().unwrap(), to).unwrap());
    }
    assert!(open[0].greeting.starts_with("captured "));

    capture.withdraw(lab.a.cookie(), &Lab::settings_a().ips).unwrap();
    capture.withdraw(lab.b.cookie(), &Lab::settings_b().ips).unwrap();
    drop(a);
    drop(b);
    for client in &mut open {
        assert!(client.is_alive(), "{}", client.greeting);
    }
    assert_eq!(open[0].peer(), format!("{NODE}:8080"), "still what it dialled");
    for (net, to) in [
        (&lab.a, format!("{NODE}:8080")),
        (&lab.a, format!("[{NODE6}]:8080")),
        (&lab.node, format!("{POD_B}:8080")),
        (&lab.node, format!("[{POD_B6}]:8080")),
    ] {
        let client = Client::connect(net, &to).unwrap();
        assert!(client.greeting.starts_with("app "), "{to}: {}", client.greeting);
    }
    drop(open);
    for net in [&lab.a, &lab.b] {
        capture.restore(net).unwrap();
        assert_unprepared(net);
    }
    // Twice is no error.
    capture.withdraw(lab.a.cookie(), &Lab::settings_a().ips).unwrap();
    capture.restore(&lab.a).unwrap();
}

fn assert_unprepared(net: &PodNet) {
    for family in ["-4", "-6"] {
        let rules = ip(net, &format!("{family} rule show"));
        assert!(!rules.contains("0x111"), "{rules}");
        let routes = ip(net, &format!("{family} route show table all"));
        assert!(!routes.contains("table 100"), "{routes}");
        assert!(!routes.contains("fd4d:"), "{routes}");
    }
}

/// The next agent starts while this one runs, as in a rolling update.
fn hand_over(lab: &Lab, capture: Arc<Capture>) -> Arc<Capture> {
    let listeners = capture.enroll(&lab.a, &Lab::settings_a()).unwrap();
    let listeners_b = capture.enroll(&lab.b, &Lab::settings_b()).unwrap();
    let (old_a, old_b) = (lab.agent(&capture, listeners), lab.agent(&capture, listeners_b));
    let mut open = Client::connect(&lab.a, "11.2.3.4:80").unwrap();
    let counted = count(&capture, "outbound_captured");
    assert_eq!(capture.charge(), Charge::This);

    let next = Arc::new(Capture::start(&lab.options).unwrap());
    let a = next.enroll(&lab.a, &Lab::settings_a()).unwrap();
    let b = next.enroll(&lab.b, &Lab::settings_b()).unwrap();
    let (a, b) = (lab.agent(&next, a), lab.agent(&next, b));
    taken_over(lab, &capture);
    drop(old_a);
    drop(old_b);
    drop(capture);
    assert!(open.is_alive());
    assert_eq!(open.peer(), "11.2.3.4:80");
    for n in 0..100 {
        served(lab, n);
    }
    assert!(count(&next, "outbound_captured") >= counted + 100, "counters go on");
    drop(a);
    drop(b);
    next
}

/// The next agent ends before the old one: the old one goes on. Also if the next one's maps are of
/// another layout.
fn take_back(lab: &Lab, capture: Arc<Capture>, pins: &Path) -> Arc<Capture> {
    let enroll = |capture: &Arc<Capture>| {
        let a = capture.enroll(&lab.a, &Lab::settings_a()).unwrap();
        let b = capture.enroll(&lab.b, &Lab::settings_b()).unwrap();
        (lab.agent(capture, a), lab.agent(capture, b))
    };
    let mut own = enroll(&capture);
    for other_layout in [false, true] {
        if other_layout {
            std::fs::rename(pins.join(LAYOUT_VERSION), pins.join("v0")).unwrap();
        }
        let next = Arc::new(Capture::start(&lab.options).unwrap());
        let others = enroll(&next);
        next.settle().unwrap();
        assert!(matches!(capture.take_back(), Err(CaptureError::TakenOver)), "it lives");
        drop(others);
        drop(next);
        assert_eq!(capture.charge(), Charge::Nobody);
        refused(&lab.node, &format!("{POD_B}:8080"));
        capture.take_back().unwrap();
        assert_eq!(capture.charge(), Charge::This);
        let again = enroll(&capture);
        drop(std::mem::replace(&mut own, again));
        for n in 0..10 {
            served(lab, n);
        }
    }
    capture
}

/// The old agent leaves alone what is the next one's: a pod that it enrolled late would lose its
/// listeners with it.
fn taken_over(lab: &Lab, old: &Capture) {
    assert_eq!(old.charge(), Charge::Another);
    let enrolled = old.enroll(&lab.b, &Lab::settings_b());
    assert!(matches!(enrolled, Err(CaptureError::TakenOver)), "{enrolled:?}");
    let withdrawn = old.withdraw(lab.b.cookie(), &Lab::settings_b().ips);
    assert!(matches!(withdrawn, Err(CaptureError::TakenOver)), "{withdrawn:?}");
    assert!(matches!(old.settle(), Ok(()) | Err(CaptureError::TakenOver)));
}

/// The old agent's maps are of a version that the next one does not know.
fn other_layout(lab: &Lab, old: Arc<Capture>, pins: &Path) {
    let old_a = lab.agent(&old, old.enroll(&lab.a, &Lab::settings_a()).unwrap());
    let old_b = lab.agent(&old, old.enroll(&lab.b, &Lab::settings_b()).unwrap());
    std::fs::rename(pins.join(LAYOUT_VERSION), pins.join("v0")).unwrap();
    let next = Arc::new(Capture::start(&lab.options).unwrap());
    // Nobody is without listeners while the next one brings its own.
    served(lab, 1);
    taken_over(lab, &old);
    let a = lab.agent(&next, next.enroll(&lab.a, &Lab::settings_a()).unwrap());
    served(lab, 2);
    let b = lab.agent(&next, next.enroll(&lab.b, &Lab::settings_b()).unwrap());
    served(lab, 3);
    next.settle().unwrap();
    assert!(!pins.join("v0").exists());
    drop(old_a);
    drop(old_b);
    drop(old);
    for n in 4..10 {
        served(lab, n);
    }
    drop(a);
    drop(b);
}

/// Both pods are captured, one by its outbound side, one by its inbound side.
fn served(lab: &Lab, seed: u32) {
    captured(lab, arbitrary(seed));
    let client = Client::connect(&lab.node, &format!("{POD_B}:8080")).unwrap();
    assert_eq!(client.greeting, format!("plaintext {POD_B}:8080 {NODE_AT_B}"));
}

/// Stopped without a successor: what was enrolled is refused, not let through.
fn restart(lab: &Lab) {
    let _app = lab.app(&lab.b, "[::]:8080");
    refused(&lab.a, &format!("{NODE}:8080"));
    refused(&lab.node, &format!("{POD_B}:8080"));
    nothing_captured(lab);

    let last = Arc::new(Capture::start(&lab.options).unwrap());
    let _a = lab.agent(&last, last.enroll(&lab.a, &Lab::settings_a()).unwrap());
    captured(lab, arbitrary(4242));
}

fn cleanup(lab: &Lab, pins: &Path) {
    let _app = lab.app(&lab.b, "[::]:8080");
    refused(&lab.node, &format!("{POD_B}:8080"));
    Capture::cleanup(pins).unwrap();
    assert!(!pins.exists());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(pins.to_str().unwrap()), "{mounts}");
    let client = Client::connect(&lab.node, &format!("{POD_B}:8080")).unwrap();
    assert!(client.greeting.starts_with("app "));
    // Pod A has a process, by which its namespace is found.
    assert_unprepared(&lab.a);
    // Nothing is there: no error.
    Capture::cleanup(pins).unwrap();
}
