//! What the cluster's name server knows, and its answers (the Kubernetes DNS specification 1.1).
//! Pure: bytes in, bytes out. Nothing is forwarded; outside the cluster only the names exist that the
//! lab was given.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::Value;

use super::manifest::{list_at, text_at};
use super::plan::port_number;
use super::service::{PodFacts, SERVICE_NAME};

/// The cluster's domain.
pub(super) const DOMAIN: &str = "cluster.local";
/// Seconds that an answer may be kept; CoreDNS's default.
const TTL: u32 = 5;
/// Length of a UDP answer to a client that asks for no more (RFC 1035 4.2.1).
const PLAIN_UDP: u16 = 512;
/// Aliases that are followed inside the cluster.
const MAX_ALIASES: usize = 8;

/// Names of the cluster, in lower case, without the final dot.
#[derive(Debug, Default)]
pub(super) struct Zone {
    addresses: BTreeMap<String, Vec<IpAddr>>,
    aliases: BTreeMap<String, String>,
    ports: BTreeMap<String, Vec<(u16, String)>>,
}

impl Zone {
    /// The names of these Services (completed), slices and pods.
    pub(super) fn new(services: &[&Value], slices: &[&Value], pods: &[PodFacts<'_>]) -> Self {
        let mut zone = Self::default();
        for service in services {
            zone.service(service, slices, pods);
        }
        for pod in pods {
            for ip in pod.ips {
                let dashed = ip.to_string().replace(['.', ':'], "-");
                zone.add(format!("{dashed}.{}.pod.{DOMAIN}", pod.namespace), *ip);
            }
        }
        zone
    }

    /// Adds names outside the cluster; in lower case, without the final dot.
    pub(super) fn with_names(mut self, names: &BTreeMap<String, Vec<IpAddr>>) -> Self {
        for (name, ips) in names {
            self.addresses.insert(name.clone(), ips.clone());
        }
        self
    }

    fn service(&mut self, service: &Value, slices: &[&Value], pods: &[PodFacts<'_>]) {
        let Some(namespace) = text_at(service, "/metadata/namespace") else { return };
        let Some(name) = text_at(service, "/metadata/name") else { return };
        let host = format!("{name}.{namespace}.svc.{DOMAIN}");
        if text_at(service, "/spec/type") == Some("ExternalName") {
            let target = text_at(service, "/spec/externalName").unwrap_or_default();
            self.aliases.insert(host, target.trim_end_matches('.').to_lowercase());
            return;
        }
        for port in list_at(service, "/spec/ports") {
            let number = port.get("port").and_then(port_number);
            if let (Some(label), Some(number)) = (text_at(port, "/name"), number) {
                let protocol = text_at(port, "/protocol").unwrap_or("TCP").to_lowercase();
                let targets = self.ports.entry(format!("_{label}._{protocol}.{host}")).or_default();
                targets.push((number, host.clone()));
            }
        }
        let own = list_at(service, "/spec/clusterIPs").iter().filter_map(Value::as_str);
        let own: Vec<IpAddr> = own.filter_map(|ip| ip.parse().ok()).collect();
        // The name is there even if no endpoint is: an empty answer, not an unknown name.
        self.addresses.entry(host.clone()).or_default().extend(&own);
        if own.is_empty() {
            self.headless(&host, namespace, name, slices, pods);
        }
    }

    fn headless(
        &mut self,
        host: &str,
        namespace: &str,
        name: &str,
        slices: &[&Value],
        pods: &[PodFacts<'_>],
    ) {
        let of_service = |slice: &&&Value| {
            text_at(slice, "/metadata/namespace") == Some(namespace)
                && slice.pointer("/metadata/labels").and_then(|labels| labels.get(SERVICE_NAME))
                    == Some(&Value::from(name))
        };
        let ends = slices.iter().filter(of_service).flat_map(|slice| list_at(slice, "/endpoints"));
        for end in ends {
            if end.pointer("/conditions/ready") == Some(&Value::Bool(false)) {
                continue;
            }
            let target = text_at(end, "/targetRef/name");
            let pod = pods.iter().find(|p| p.namespace == namespace && Some(p.name) == target);
            let named = pod.filter(|pod| text_at(pod.spec, "/subdomain") == Some(name));
            for ip in list_at(end, "/addresses").iter().filter_map(Value::as_str) {
                let Ok(ip) = ip.parse() else { continue };
                self.add(host.to_owned(), ip);
                if let Some(own) = named.and_then(|pod| text_at(pod.spec, "/hostname")) {
                    self.add(format!("{own}.{host}"), ip);
                }
            }
        }
    }

    fn add(&mut self, name: String, ip: IpAddr) {
        let ips = self.addresses.entry(name).or_default();
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }

    /// Answers a query; `None` if it cannot be read. `udp` limits the answer's length.
    pub(super) fn answer(&self, query: &[u8], udp: bool) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.authoritative = true;
        answer.metadata.recursion_available = true;
        let limit = query.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().max(PLAIN_UDP));
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(limit);
            answer.set_edns(edns);
        }
        answer.metadata.response_code = match query.queries.as_slice() {
            [question] if query.metadata.op_code == OpCode::Query => {
                answer.add_query(question.clone());
                self.look_up(question.name(), question.query_type(), &mut answer.answers)
            }
            _ => ResponseCode::NotImp,
        };
        let bytes = answer.to_vec().ok()?;
        if udp && bytes.len() > usize::from(limit) {
            return answer.truncate().to_vec().ok();
        }
        Some(bytes)
    }

    fn look_up(&self, name: &Name, kind: RecordType, answers: &mut Vec<Record>) -> ResponseCode {
        let mut owner = name.clone();
        for _ in 0..MAX_ALIASES {
            let key = owner.to_lowercase().to_ascii();
            let key = key.trim_end_matches('.');
            if let Some(target) = self.aliases.get(key) {
                let Ok(target) = Name::from_ascii(format!("{target}.")) else { break };
                let record = RData::CNAME(CNAME(target.clone()));
                answers.push(Record::from_rdata(owner, TTL, record));
                owner = target;
                continue;
            }
            if let Some(ips) = self.addresses.get(key) {
                let of_kind = |ip: &&IpAddr| match kind {
                    RecordType::A => ip.is_ipv4(),
                    RecordType::AAAA => ip.is_ipv6(),
                    _ => false,
                };
                let record = |ip: &IpAddr| Record::from_rdata(owner.clone(), TTL, address(*ip));
                answers.extend(ips.iter().filter(of_kind).map(record));
                return ResponseCode::NoError;
            }
            if let Some(ports) = self.ports.get(key) {
                if kind == RecordType::SRV {
                    answers.extend(ports.iter().filter_map(|(port, host)| {
                        let target = Name::from_ascii(format!("{host}.")).ok()?;
                        let record = RData::SRV(SRV::new(0, 100, *port, target));
                        Some(Record::from_rdata(owner.clone(), TTL, record))
                    }));
                }
                return ResponseCode::NoError;
            }
            // Where an alias leads out of the cluster, the alias is the answer.
            return if answers.is_empty() { ResponseCode::NXDomain } else { ResponseCode::NoError };
        }
        ResponseCode::ServFail
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use serde_json::json;

    fn zone() -> Zone {
        let web = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
            "type": "ClusterIP", "clusterIPs": ["10.101.128.20", "fd00::14"],
            "ports": [{"name": "http", "port": 80}]}});
        let pods = json!({"metadata": {"name": "pods", "namespace": "shop"}, "spec": {
            "type": "ClusterIP", "clusterIPs": ["None"]}});
        let out = json!({"metadata": {"name": "out", "namespace": "shop"}, "spec": {
            "type": "ExternalName", "externalName": "web.shop.svc.cluster.local"}});
        let ends: Vec<_> = (1..=60)
            .map(|n| json!({"addresses": [format!("10.101.1.{n}")], "conditions": {"ready": n != 1}}))
            .collect();
        let slice = json!({"metadata": {"namespace": "shop", "labels": {SERVICE_NAME: "pods"}},
            "endpoints": ends});
        Zone::new(&[&web, &pods, &out], &[&slice], &[])
    }

    fn ask(name: &str, kind: RecordType, udp: bool) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let answer = zone().answer(&query.to_vec().unwrap(), udp).unwrap();
        Message::from_vec(&answer).unwrap()
    }

    fn data(message: &Message) -> Vec<String> {
        message.answers.iter().map(|record| record.data.to_string()).collect()
    }

    #[test]
    fn a_service_has_its_families_and_srv_records() {
        let name = "Web.shop.svc.cluster.local.";
        assert_eq!(data(&ask(name, RecordType::A, true)), ["10.101.128.20"]);
        assert_eq!(data(&ask(name, RecordType::AAAA, true)), ["fd00::14"]);
        let other = ask(name, RecordType::MX, true);
        assert_eq!((other.answers.len(), other.metadata.response_code), (0, ResponseCode::NoError));
        let srv = ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV, true);
        assert_eq!(data(&srv), ["0 100 80 web.shop.svc.cluster.local."]);
    }

    #[test]
    fn an_alias_is_followed_inside_the_cluster() {
        let answer = ask("out.shop.svc.cluster.local.", RecordType::A, true);
        assert_eq!(data(&answer), ["web.shop.svc.cluster.local.", "10.101.128.20"]);
    }

    #[test]
    fn unknown_names_do_not_exist() {
        let answer = ask("example.com.", RecordType::A, true);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn a_long_answer_is_cut_for_udp_only_and_leaves_out_the_unready() {
        let name = "pods.shop.svc.cluster.local.";
        let short = ask(name, RecordType::A, true);
        assert!(short.metadata.truncation && short.answers.is_empty());
        let whole = ask(name, RecordType::A, false);
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 59);
    }
}
