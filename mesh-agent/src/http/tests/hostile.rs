//! Hostile HTTP: what both sides of the engine see when one of them sends what it must not. Cases
//! are tables of bytes in `hostile_request`, `hostile_response` and `hostile_http2`; `HTTP.md` lists
//! the rules. Here: an endpoint that takes only what is plainly legal and records its bytes, and a
//! client that reads answers as strictly.

use tokio::io::AsyncRead;

use super::*;
use crate::balance::fixture::{endpoint, service, snapshot};
use crate::model::Protocol;

/// What the mesh adds to a request; not recorded.
const ADDED: [&str; 3] = ["x-request-id:", "x-forwarded-proto:", "x-envoy-"];

/// The request that follows each hostile one on its connection.
pub(super) const NEXT: &str = "GET /next HTTP/1.1\r\nhost: web\r\n\r\n";
/// How it arrives.
pub(super) const NEXT_SEEN: &str = "GET /next HTTP/1.1|host: web||";
/// How it is answered.
pub(super) const NEXT_TOLD: &str = "200 GET /next";

/// Messages as an endpoint got them: lines end with `|`.
pub(super) type Seen = Rc<RefCell<Vec<String>>>;

pub(super) fn mesh(protocol: Protocol) -> World {
    let web = service(("shop", "web"), "10.96.0.1", (80, protocol), vec![endpoint(A, "v1")]);
    World::new(snapshot(&[client()], vec![web], vec![], vec![]))
}

/// An endpoint that records each request, and answers it with its method and target.
pub(super) fn records(world: &World) -> Seen {
    let seen = Seen::default();
    let record = seen.clone();
    world.listen(
        A,
        raw(move |mut io| {
            let seen = record.clone();
            async move {
                let mut read = Reader::default();
                while let Some(message) = read.message(&mut io, false).await {
                    let first = message.split(" HTTP/1.1|").next().unwrap_or("").to_owned();
                    let legal = !message.starts_with('!');
                    seen.borrow_mut().push(message);
                    if !legal {
                        return;
                    }
                    let length = first.len();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                    let body = if first.starts_with("HEAD ") { "" } else { &first };
                    write(&mut io, &[&answer, body].concat()).await;
                }
            }
        }),
    );
    seen
}

/// Sends `bytes` and reads all answers: `status body`. Closes its half once nothing else goes on: who
/// does so earlier gets no answer.
pub(super) async fn told(world: &World, bytes: &[u8], head_request: bool) -> Vec<String> {
    let io = world.open(&world.client, VIP, HttpVersion::Http1);
    let (mut reader, mut writer) = tokio::io::split(io);
    let write = async {
        // The rest of a connection that was closed over it is not wanted.
        let _ = writer.write_all(bytes).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let _ = writer.shutdown().await;
    };
    tokio::join!(answers(&mut reader, head_request), write).0
}

/// All answers until the end of the connection.
async fn answers(io: &mut (impl AsyncRead + Unpin), mut head_request: bool) -> Vec<String> {
    let mut told = Vec::new();
    let mut read = Reader::default();
    while let Some(message) = read.message(io, head_request).await {
        head_request = false;
        let (cut, whole) = match message.strip_prefix("!cut after ") {
            Some(whole) => ("!cut ", whole),
            None => ("", message.as_str()),
        };
        let Some((head, body)) = whole.split_once("||").filter(|_| !whole.starts_with('!')) else {
            told.push(message);
            break;
        };
        let status = head.split(' ').nth(1).unwrap_or("");
        // Error texts are not what is looked at.
        let ours = body.starts_with("upstream connect error") || body.is_empty();
        let body = if ours { String::new() } else { format!(" {body}") };
        told.push(format!("{cut}{status}{body}"));
    }
    told
}

/// Reads messages strictly: what is not plainly legal ends with a text that starts with `!`.
#[derive(Default)]
pub(super) struct Reader {
    bytes: Vec<u8>,
    ended: bool,
}

impl Reader {
    async fn more(&mut self, io: &mut (impl AsyncRead + Unpin)) -> bool {
        let mut chunk = [0; 4096];
        let length = io.read(&mut chunk).await.unwrap_or(0);
        self.bytes.extend_from_slice(&chunk[..length]);
        self.ended |= length == 0;
        length > 0
    }

    /// Takes what there is up to the end of `end`.
    async fn until(&mut self, io: &mut (impl AsyncRead + Unpin), end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(end.len()).position(|bytes| bytes == end) {
                return Some(self.bytes.drain(..at + end.len()).collect());
            }
            if !self.more(io).await {
                return None;
            }
        }
    }

    async fn exactly(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        length: usize,
    ) -> Option<Vec<u8>> {
        while self.bytes.len() < length {
            if !self.more(io).await {
                return None;
            }
        }
        Some(self.bytes.drain(..length).collect())
    }

    /// The next message, or none at the end. `head_request`: this is the answer to `HEAD`.
    pub(super) async fn message(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        head_request: bool,
    ) -> Option<String> {
        let Some(head) = self.until(io, b"\r\n\r\n").await else {
            let rest = std::mem::take(&mut self.bytes);
            return (!rest.is_empty()).then(|| format!("!cut in its head: {}", shown(&rest)));
        };
        let head = String::from_utf8(head).unwrap_or_else(|_| "!not UTF-8".to_owned());
        let legal = check(&head);
        let kept: Vec<&str> = head
            .trim_end_matches("\r\n")
            .split("\r\n")
            .filter(|line| !ADDED.iter().any(|added| line.starts_with(added)))
            .collect();
        let shown_head = format!("{}||", kept.join("|"));
        let length = match legal {
            Err(why) => return Some(format!("!{why}: {shown_head}")),
            Ok(length) => length,
        };
        let status = head.strip_prefix("HTTP/1.1 ").or(head.strip_prefix("HTTP/1.0 "));
        let bodiless = status.is_some_and(|status| {
            head_request || ["1", "204", "304"].iter().any(|code| status.starts_with(code))
        });
        let body = match length {
            _ if bodiless => Ok(String::new()),
            Length::Exact(length) => {
                self.exactly(io, length).await.map(|body| shown(&body)).ok_or(())
            }
            Length::Chunked => self.chunks(io).await,
            Length::None if status.is_some() => {
                while self.more(io).await {}
                Ok(shown(&std::mem::take(&mut self.bytes)))
            }
            Length::None => Ok(String::new()),
        };
        Some(match body {
            Ok(body) => shown_head + &body,
            Err(()) => {
                format!("!cut after {shown_head}{}", shown(&std::mem::take(&mut self.bytes)))
            }
        })
    }

    /// A chunked body as it came.
    async fn chunks(&mut self, io: &mut (impl AsyncRead + Unpin)) -> Result<String, ()> {
        let mut all = Vec::new();
        loop {
            let line = self.until(io, b"\r\n").await.ok_or(())?;
            let digits = std::str::from_utf8(&line[..line.len() - 2]).map_err(drop)?;
            let size = usize::from_str_radix(digits, 16).map_err(drop)?;
            all.extend_from_slice(&line);
            if size == 0 {
                break;
            }
            let chunk = self.exactly(io, size + 2).await.ok_or(())?;
            all.extend_from_slice(&chunk);
            if !chunk.ends_with(b"\r\n") {
                return Err(());
            }
        }
        loop {
            let line = self.until(io, b"\r\n").await.ok_or(())?;
            all.extend_from_slice(&line);
            if line == b"\r\n" {
                return Ok(shown(&all));
            }
        }
    }
}

enum Length {
    None,
    Exact(usize),
    Chunked,
}

/// How long the body behind a head is, or why the head is not plainly legal.
fn check(head: &str) -> Result<Length, &'static str> {
    let (mut host, mut length, mut chunked) = (0, None, false);
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let first = lines.next().unwrap_or("");
    let response = first.starts_with("HTTP/1.");
    if !response && first.split(' ').count() != 3 {
        return Err("not three words");
    }
    for line in lines {
        if line.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return Err("control byte");
        }
        let (name, value) = line.split_once(": ").ok_or("no colon")?;
        if name.is_empty() || name.contains([' ', '\t']) || value.trim() != value {
            return Err("blanks");
        }
        match name.to_ascii_lowercase().as_str() {
            "host" => host += 1,
            "content-length" if length.is_some() => return Err("two lengths"),
            "content-length" if !value.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err("not a length");
            }
            "content-length" => length = Some(value.parse().map_err(|_| "not a length")?),
            "transfer-encoding" if chunked || value != "chunked" => return Err("odd coding"),
            "transfer-encoding" => chunked = true,
            _ => {}
        }
    }
    match (length, chunked) {
        _ if !response && host != 1 => Err("not one host"),
        (Some(_), true) => Err("two framings"),
        (Some(length), false) => Ok(Length::Exact(length)),
        (None, true) => Ok(Length::Chunked),
        (None, false) => Ok(Length::None),
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace("\r\n", "|").escape_debug().to_string()
}
