//! Against a name server on this machine; time is real, and each wait ends with its event.

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{RData, Record};
use tokio::net::UdpSocket;

use super::*;
use crate::config::yaml_compile;

const DEADLINE: Duration = Duration::from_secs(60);

/// Two names of an entry.
const ENTRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: api, namespace: shop }
spec:
  hosts: [both.example, nothing.example]
  resolution: DNS
  ports: [{ number: 80, name: http, protocol: HTTP }]
";

/// Answers for `both.example`, and knows no other name.
async fn serve(socket: UdpSocket) {
    let mut bytes = [0; 4096];
    loop {
        let (length, client) = socket.recv_from(&mut bytes).await.unwrap();
        let query = Message::from_vec(&bytes[..length]).unwrap();
        let question = query.queries[0].clone();
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.recursion_available = true;
        let name = question.name().clone();
        match (name.to_ascii().as_str(), question.query_type()) {
            ("both.example.", RecordType::A) => {
                let data = RData::A(A([192, 0, 2, 1].into()));
                answer.answers.push(Record::from_rdata(name, 30, data));
            }
            ("both.example.", RecordType::AAAA) => {
                let data = RData::AAAA(AAAA("fd00::1".parse().unwrap()));
                answer.answers.push(Record::from_rdata(name, 30, data));
            }
            _ => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        answer.add_query(question);
        socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
    }
}

#[tokio::test]
async fn names_of_the_snapshot_are_asked_for_and_forgotten_with_it() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = NameServers(vec![socket.local_addr().unwrap()]);
    let (snapshots, wanted) = watch::channel(Arc::new(Snapshot::default()));
    let (told, mut answers) = watch::channel(Arc::new(Answers::new()));
    let test = async {
        assert_eq!(**answers.borrow(), Answers::new());
        snapshots.send_replace(Arc::new(yaml_compile(ENTRY.as_bytes()).snapshot));
        let both = |found: &Arc<Answers>| found.len() == 2;
        let wait = tokio::time::timeout(DEADLINE, answers.wait_for(both)).await;
        let found = wait.expect("answers in time").unwrap().clone();
        let text = format!("{found:?}");
        assert_eq!(text, r#"{"both.example": [192.0.2.1, fd00::1], "nothing.example": []}"#);
        snapshots.send_replace(Arc::default());
        let none = |found: &Arc<Answers>| found.is_empty();
        let wait = tokio::time::timeout(DEADLINE, answers.wait_for(none)).await;
        wait.expect("forgotten in time").unwrap();
    };
    tokio::select! {
        () = serve(socket) => panic!("the server ended"),
        () = resolve(servers, wanted, told) => panic!("the resolver ended"),
        () = test => {}
    }
}
