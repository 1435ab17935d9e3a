//! TCP modes of the echo server: send back every byte; or speak first, then send back.
//!
//! Half-close: when the client ends its half, everything it sent is sent back before ours ends.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Ends, Server};

/// Sends back every byte until the client ends its half, then ends ours.
pub(super) async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// Says who it is and whom it sees, in one line, before the client has sent anything.
pub(super) async fn banner(
    mut stream: TcpStream,
    ends: Ends,
    server: &Server,
) -> std::io::Result<()> {
    let Server { pod, version, .. } = server;
    let Ends { remote, local } = ends;
    let line =
        format!("220 malha-echo pod={pod} version={version} remote={remote} local={local}\r\n");
    stream.write_all(line.as_bytes()).await?;
    echo(stream).await
}
