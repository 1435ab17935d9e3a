//! The `h2` crate over tokio-rustls as the far end.

use bytes::Bytes;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::super::wire::limits;
use super::*;

async fn send(stream: &mut h2::SendStream<Bytes>, mut octets: Bytes) {
    while !octets.is_empty() {
        stream.reserve_capacity(octets.len());
        let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        stream.send_data(octets.split_to(granted.min(octets.len())), false).unwrap();
    }
}

async fn echo(mut recv: h2::RecvStream, mut stream: h2::SendStream<Bytes>) {
    while let Some(octets) = recv.data().await {
        let Ok(octets) = octets else { return };
        recv.flow_control().release_capacity(octets.len()).unwrap();
        send(&mut stream, octets).await;
    }
    stream.send_data(Bytes::new(), true).unwrap();
}

/// Serves one connection: port 1 is reset, port 2 is refused, all else echoes.
async fn h2_server(listener: TcpListener, tls: Arc<ServerConfig>) {
    let (socket, _) = listener.accept().await.unwrap();
    let tls = TlsAcceptor::from(tls).accept(socket).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let mut connection = h2::server::handshake(tls).await.unwrap();
    let mut tasks = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let status = match request.uri().port_u16() {
            Some(1) => {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                continue;
            }
            Some(2) => 401,
            _ => 200,
        };
        let answer = http::Response::builder().status(status).body(()).unwrap();
        let stream = respond.send_response(answer, status != 200).unwrap();
        if status == 200 {
            tasks.spawn_local(echo(request.into_body(), stream));
        }
    }
}

#[tokio::test]
async fn our_client_to_h2_server() {
    let run = async {
        let ca = Ca::new();
        let tls = ca.client(&id("client"));
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tracker = TaskTracker::new();
        tracker.spawn_local(h2_server(listener, ca.server(&id("server"))));
        let pool = Pool::new(tracker, peer_identity);
        let key = PoolKey {
            source_uid: "uid-a".into(),
            source: id("client"),
            destination: id("server"),
            address,
        };
        let connect = async |port: u16| {
            let authority = format!("10.0.0.1:{port}");
            let head = ConnectHead { authority, ..Default::default() };
            pool.connect(&key, &head, &tls, async || dial_to(address).await).await
        };
        let connect = &connect;
        let transfers = (0..20).map(|n| async move {
            let sent = pattern(n, 700_000 + 1_001 * n);
            let (mut read, mut write) = tokio::io::split(connect(80).await.unwrap());
            let mut got = Vec::new();
            let (read, written) = tokio::join!(read.read_to_end(&mut got), async {
                write.write_all(&sent).await?;
                write.shutdown().await
            });
            written.unwrap();
            read.unwrap();
            assert!(got == sent, "stream {n}");
        });
        futures_util::future::join_all(transfers).await;
        let error = connect(1).await.unwrap_err();
        assert!(matches!(error, TunnelError::Reset(Reason::REFUSED_STREAM)), "{error}");
        let error = connect(2).await.unwrap_err();
        assert!(matches!(error, TunnelError::Refused(401)), "{error}");
        assert_eq!(pool.counts(), (1, 0));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn h2_client_to_our_server() {
    let run = async {
        let mesh = Mesh::new(|incoming| async move {
            assert_eq!(incoming.peer, id("client"));
            let (mut read, mut write) = tokio::io::split(incoming.accept());
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        })
        .await;
        let connector = TlsConnector::from(mesh.ca.client(&id("client")).config);
        let socket = TcpStream::connect(mesh.address).await.unwrap();
        let name = ServerName::try_from(DNS_NAME).unwrap();
        let tls = connector.connect(name, socket).await.unwrap();
        let (client, connection) = h2::client::handshake(tls).await.unwrap();
        let connection = tokio::task::spawn_local(connection);
        let mut transfers = JoinSet::new();
        for n in 0..20 {
            let client = client.clone();
            transfers.spawn_local(async move {
                let mut client = client.ready().await.unwrap();
                let request = http::Request::connect("127.0.0.1:80").body(()).unwrap();
                let (answer, mut stream) = client.send_request(request, false).unwrap();
                let mut recv = answer.await.unwrap().into_body();
                let sent = pattern(n, 700_000 + 1_001 * n);
                let octets = Bytes::from(sent.clone());
                let mut got = Vec::new();
                let read = async {
                    while let Some(octets) = recv.data().await {
                        let octets = octets.unwrap();
                        recv.flow_control().release_capacity(octets.len()).unwrap();
                        got.extend_from_slice(&octets);
                    }
                };
                tokio::join!(read, async {
                    send(&mut stream, octets).await;
                    stream.send_data(Bytes::new(), true).unwrap();
                });
                assert!(got == sent, "stream {n}");
            });
        }
        transfers.join_all().await;
        drop(client);
        connection.await.unwrap().unwrap();
        eventually("the end", || matches!(mesh.served.borrow().as_slice(), [Ok(())])).await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_peer_that_asks_much_before_it_listens_is_served_in_the_end() {
    let run = async {
        let mesh = Mesh::new(|incoming| async move { incoming.refuse(418) }).await;
        let connector = TlsConnector::from(mesh.ca.client(&id("client")).config);
        let socket = TcpStream::connect(mesh.address).await.unwrap();
        let name = ServerName::try_from(DNS_NAME).unwrap();
        let mut tls = connector.connect(name, socket).await.unwrap();
        // Just below the number of PING that is a flood, but with more answers than may wait.
        let pings = (limits::MAX_CONTROL / 17 + 50) as u32;
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        tls.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        // In one write, so that our end finds all of it in one read.
        tls.write_all(&ping.repeat(pings as usize)).await.unwrap();
        tls.flush().await.unwrap();
        let mut answers = 0;
        while answers < pings {
            answers += u32::from(next_frame(&mut tls).await.0 == 6);
        }
        let mut connect = vec![0, 0, 24, 1, 4, 0, 0, 0, 1, 0x02, 7];
        connect.extend_from_slice(b"CONNECT\x01\x0d127.0.0.1:808");
        tls.write_all(&connect).await.unwrap();
        tls.flush().await.unwrap();
        let (kind, block) = next_frame(&mut tls).await;
        assert!(kind == 1 && block.ends_with(b"418"), "{kind} {block:?}");
    };
    let local = LocalSet::new();
    let run = local.run_until(run);
    tokio::time::timeout(std::time::Duration::from_secs(5), run).await.unwrap();
}

/// Kind and payload of the next frame.
async fn next_frame(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    io.read_exact(&mut payload).await.unwrap();
    (head[3], payload)
}
