//! Reaches the agent, and says in words why not.

use std::io;
use std::path::Path;

use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::CliError;
use crate::api::admin_client::AdminClient;

/// Largest answer that is taken: some hundred thousand pods.
const LARGEST_ANSWER: usize = 256 << 20;

/// Connects to an agent's socket.
///
/// # Errors
/// When nobody answers there, or the caller may not.
pub(super) async fn connect(path: &Path) -> Result<AdminClient<Channel>, CliError> {
    // Once by hand, because tonic buries the reason of a failure.
    if let Err(source) = UnixStream::connect(path).await {
        let path = path.to_owned();
        return Err(match source.kind() {
            io::ErrorKind::NotFound => CliError::NoSocket(path),
            io::ErrorKind::ConnectionRefused => CliError::NobodyListens(path),
            io::ErrorKind::PermissionDenied => CliError::Denied(path),
            _ => CliError::Socket { path, source },
        });
    }
    let protocol = |source| CliError::Protocol { path: path.to_owned(), source };
    let address = format!("unix:{}", path.display());
    let channel =
        Endpoint::from_shared(address).map_err(protocol)?.connect().await.map_err(protocol)?;
    Ok(AdminClient::new(channel).max_decoding_message_size(LARGEST_ANSWER))
}
