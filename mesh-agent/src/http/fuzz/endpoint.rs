//! The endpoint in memory behind the fuzz target `http1`.
//!
//! It reads strictly, remembers every octet, and answers well, or says what the input wants it to.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::task::TaskTracker;

use super::message::{End, Message, Rules, requests};
use crate::http::{Connect, ConnectError};
use crate::model::{ConnectionPool, Endpoint, TlsTarget, Workload};

/// What an in-memory stream buffers.
pub(super) const PIPE: usize = 16 * 1024;
/// The address of the service, to which requests of no route go.
pub(super) const VIP: ([u8; 4], u16) = ([10, 96, 0, 1], 80);

/// How the endpoint behaves.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// Answers when it has the head, not the whole request.
    pub(super) early: bool,
    /// Agrees to leave HTTP, to `Upgrade` and `CONNECT`.
    pub(super) switches: bool,
    /// Says `100 Continue` to who waits for it, and hints to everybody.
    pub(super) informs: bool,
    /// Says this in place of answers, and closes.
    pub(super) says: Option<Vec<u8>>,
}

/// What one connection of the endpoint's has got.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) octets: Vec<u8>,
    /// Length of it that is HTTP, once the connection has been switched.
    pub(super) http: Option<usize>,
}

pub(super) type Connections = Rc<RefCell<Vec<Rc<RefCell<Heard>>>>>;

#[derive(Clone)]
pub(super) struct Net {
    pub(super) script: Script,
    pub(super) seen: Connections,
    pub(super) tasks: TaskTracker,
}

impl Connect for Net {
    type Io = DuplexStream;

    async fn connect(
        &self,
        _source: &Arc<Workload>,
        endpoint: &Endpoint,
        _pool: &ConnectionPool,
        _tls: Option<&TlsTarget>,
    ) -> Result<DuplexStream, ConnectError> {
        let expected = [([10, 0, 0, 1], 8080), VIP].map(SocketAddr::from);
        assert!(expected.contains(&endpoint.address), "who is {}?", endpoint.address);
        let (near, far) = tokio::io::duplex(PIPE);
        let heard = Rc::<RefCell<Heard>>::default();
        self.seen.borrow_mut().push(Rc::clone(&heard));
        let script = self.script.clone();
        self.tasks.spawn_local(async move {
            // The engine may hang up at any time.
            let _ = listen(far, &script, &heard).await;
        });
        Ok(near)
    }
}

/// Reads requests and answers each, until the engine closes.
async fn listen(
    mut io: DuplexStream,
    script: &Script,
    heard: &RefCell<Heard>,
) -> std::io::Result<()> {
    let (mut answered, mut informed) = (0, 0);
    let mut buffer = [0; 4096];
    loop {
        let length = io.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        heard.borrow_mut().octets.extend_from_slice(&buffer[..length]);
        if heard.borrow().http.is_some() {
            io.write_all(&buffer[..length]).await?;
            continue;
        }
        let (requests, _) = requests(&heard.borrow().octets, Rules::Strict);
        let mut end = 0;
        for (number, request) in requests.iter().enumerate() {
            end += request.length;
            if number >= informed && script.informs && script.says.is_none() {
                informed = number + 1;
                io.write_all(&informational(request)).await?;
            }
            if number < answered || !(script.early || request.end == End::Complete) {
                continue;
            }
            answered = number + 1;
            if let Some(says) = &script.says {
                io.write_all(says).await?;
                return io.shutdown().await;
            }
            let (answer, switched) = answer(request, script);
            if switched {
                heard.borrow_mut().http = Some(end);
            }
            io.write_all(&answer).await?;
        }
    }
}

fn informational(request: &Message) -> Vec<u8> {
    let waits = request.all("expect").any(|value| value.eq_ignore_ascii_case(b"100-continue"));
    let mut text = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n".to_vec();
    if waits {
        text.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    text
}

/// What a good endpoint answers, and whether HTTP ends here.
fn answer(request: &Message, script: &Script) -> (Vec<u8>, bool) {
    let [method, ..] = &request.start;
    let text: &[u8] = match method.as_str() {
        "CONNECT" if script.switches => b"HTTP/1.1 200 OK\r\n\r\n",
        "CONNECT" => b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n",
        _ if script.switches && request.has("upgrade") => {
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
        }
        "HEAD" => b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
        "PUT" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "DELETE" => b"HTTP/1.1 204 No Content\r\n\r\n",
        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    };
    let switched = script.switches && (method == "CONNECT" || request.has("upgrade"));
    (text.to_vec(), switched)
}
