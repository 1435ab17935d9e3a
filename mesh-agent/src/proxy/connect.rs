//! How the HTTP engine's connections reach their endpoints: as the worker's `Upstream` does.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::http::{Connect, ConnectError};
use crate::model::{ConnectionPool, Endpoint, TlsTarget, Workload};
use crate::tunnel::{OpenError, Security, Upstream, UpstreamIo};

impl Connect for Upstream {
    type Io = UpstreamIo;

    async fn connect(
        &self,
        source: &Arc<Workload>,
        endpoint: &Endpoint,
        pool: &ConnectionPool,
        tls: Option<&TlsTarget>,
    ) -> Result<UpstreamIo, ConnectError> {
        let Some(pod) = self.local_pod(&source.uid) else {
            return Err(ConnectError::Local(format!("{} has left this node", source.name)));
        };
        let (workload, timeout) = (endpoint.workload.as_deref(), pool.connect_timeout);
        let opened = self.open(&pod, endpoint.address, workload, timeout, tls);
        let io = opened.await.map_err(|error| {
            tracing::info!(pod = %source.name, endpoint = %endpoint.address, %error,
                "endpoint cannot be reached");
            match error {
                OpenError::Timeout(_) => ConnectError::Timeout,
                OpenError::Connect(_, error) => error.into(),
                OpenError::Tunnel(_, _, error) => ConnectError::Remote(error.to_string()),
                OpenError::Handshake(_, error) => ConnectError::Remote(format!("TLS: {error}")),
                OpenError::Limit(_) => ConnectError::Limit,
                OpenError::NoCertificate(_) | OpenError::OwnPort(_) | OpenError::NoTls(..) => {
                    ConnectError::Local(error.to_string())
                }
            }
        })?;
        if let Some(keepalive) = &pool.keepalive {
            io.keep_alive(keepalive);
        }
        Ok(io)
    }

    fn retired(&self, io: &UpstreamIo) -> Option<CancellationToken> {
        io.retired()
    }

    fn mutual_tls(&self, endpoint: &Endpoint) -> bool {
        let security = self.security(endpoint.address, endpoint.workload.as_deref());
        security != Security::Plaintext
    }
}
