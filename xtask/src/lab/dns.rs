//! Cluster DNS: one resolver per node, on the address that its pods have as gateway. Knows the
//! cluster's names and nothing else: the lab never talks to the world.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Context as _;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sched::{CloneFlags, setns};

use super::cluster::Cluster;
use super::node::Node;

/// Short, as endpoints of headless services come and go.
const TTL: u32 = 2;

/// Largest answer over UDP without EDNS (RFC 1035 section 2.3.4) is 512; the lab's resolvers take more.
const MAX_MESSAGE: usize = 4096;

const SUFFIX: &str = ".svc.cluster.local";

/// Serves a node's pods until the lab is gone.
pub(super) fn serve(node: &Arc<Node>, cluster: Arc<Mutex<Cluster>>) -> anyhow::Result<()> {
    let cluster = Arc::downgrade(&cluster);
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", node.holder.pid()))?;
    let (ready, started) = std::sync::mpsc::channel();
    // A thread of its own: entering a network namespace changes the thread for good.
    std::thread::Builder::new().name(format!("dns-{}", node.name)).spawn(move || {
        let socket = setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(std::io::Error::from)
            .and_then(|()| UdpSocket::bind("0.0.0.0:53"));
        drop(namespace);
        match socket {
            Ok(socket) => {
                let _ = ready.send(Ok(()));
                answer_all(&socket, &cluster);
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    })?;
    started.recv()?.context("serve DNS")
}

fn answer_all(socket: &UdpSocket, cluster: &Weak<Mutex<Cluster>>) {
    // The look for the lab's end; queries come in between.
    let _ = socket.set_read_timeout(Some(std::time::Duration::from_millis(500)));
    let mut buffer = [0; MAX_MESSAGE];
    loop {
        let received = socket.recv_from(&mut buffer);
        let Some(cluster) = cluster.upgrade() else { return };
        let Ok((length, peer)) = received else { continue };
        let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
        let answer = answer(&query, &cluster.lock().unwrap_or_else(PoisonError::into_inner));
        if let Ok(bytes) = answer.to_vec() {
            let _ = socket.send_to(&bytes, peer);
        }
    }
}

fn answer(query: &Message, cluster: &Cluster) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.message_type = MessageType::Response;
    message.metadata.authoritative = true;
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    let Some(question) = query.queries.first() else { return message };
    message.add_query(question.clone());
    let name = question.name().to_ascii().to_ascii_lowercase();
    match find(cluster, name.trim_end_matches('.')) {
        None => message.metadata.response_code = ResponseCode::NXDomain,
        Some(Found::Alias(target)) => {
            if let Ok(target) = Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) {
                let alias = RData::CNAME(CNAME(target.clone()));
                message.add_answer(Record::from_rdata(question.name().clone(), TTL, alias));
                // Stub resolvers want the whole chain in one answer.
                let text = target.to_ascii().to_ascii_lowercase();
                if let Some(Found::Addresses(found)) = find(cluster, text.trim_end_matches('.')) {
                    add_addresses(&mut message, &target, question.query_type(), found);
                }
            }
        }
        Some(Found::Addresses(addresses)) => {
            add_addresses(&mut message, question.name(), question.query_type(), addresses);
        }
    }
    message
}

fn add_addresses(message: &mut Message, name: &Name, wanted: RecordType, found: Vec<IpAddr>) {
    for address in found {
        let data = match (address, wanted) {
            (IpAddr::V4(ip), RecordType::A) => RData::A(A(ip)),
            (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(ip)),
            _ => continue,
        };
        message.add_answer(Record::from_rdata(name.clone(), TTL, data));
    }
}

enum Found {
    Addresses(Vec<IpAddr>),
    Alias(String),
}

/// `service.namespace.svc.cluster.local`, or `pod.service.…` of a headless service.
fn find(cluster: &Cluster, name: &str) -> Option<Found> {
    let rest = name.strip_suffix(SUFFIX)?;
    let labels: Vec<&str> = rest.split('.').collect();
    let (pod, service, namespace) = match labels.as_slice() {
        [service, namespace] => (None, *service, *namespace),
        [pod, service, namespace] => (Some(*pod), *service, *namespace),
        _ => return None,
    };
    let service = cluster.services().get(&format!("{namespace}/{service}"))?;
    if let Some(target) = &service.external_name {
        return Some(Found::Alias(target.clone()));
    }
    let ready = service.backends.iter().filter(|backend| backend.ready);
    match pod {
        Some(pod) => {
            let wanted = format!("{namespace}/{pod}");
            let found = ready.filter(|backend| backend.name == wanted);
            Some(Found::Addresses(found.flat_map(|backend| backend.ips.clone()).collect()))
        }
        None if service.addresses.is_empty() => {
            Some(Found::Addresses(ready.flat_map(|backend| backend.ips.clone()).collect()))
        }
        None => Some(Found::Addresses(service.addresses.clone())),
    }
}
