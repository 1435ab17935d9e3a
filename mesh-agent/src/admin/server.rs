//! Answers the calls of `admin.proto` from an [`AdminState`]. Who may call is decided twice: by the
//! socket's mode, and by the caller's user, as the kernel reports it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use super::views::unix;
use super::{AdminSocket, AdminState, routes, views};
use crate::api::admin_server::{Admin, AdminServer};
use crate::api::{
    CertificatesReply, CertificatesRequest, ConnectionsReply, ConnectionsRequest, DiagnosticsReply,
    DiagnosticsRequest, Ejection, EjectionsReply, EjectionsRequest, RoutesReply, RoutesRequest,
    ServicesReply, ServicesRequest, StatusReply, StatusRequest, WorkloadsReply, WorkloadsRequest,
};

/// Time for one answer; beyond it the caller gets an error.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at a time on one connection; further ones wait.
const CALLS_AT_ONCE: u32 = 8;

/// Serves until `stop` is done, then until the open connections are closed: drop the future not to
/// wait for them.
///
/// # Errors
/// When the socket fails.
pub async fn serve(
    socket: AdminSocket,
    state: Arc<AdminState>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let own = nix::unistd::geteuid().as_raw();
    let service =
        AdminServer::with_interceptor(Calls { state }, move |request| admit(request, own));
    let incoming = futures_util::stream::poll_fn(move |context| {
        socket.listener.poll_accept(context).map(|found| Some(found.map(|(stream, _)| stream)))
    });
    Server::builder()
        .timeout(ANSWER_TIMEOUT)
        .max_concurrent_streams(CALLS_AT_ONCE)
        .serve_with_incoming_shutdown(service, incoming, stop)
        .await
}

/// Lets root and the agent's own user pass.
fn admit(request: Request<()>, own: u32) -> Result<Request<()>, Status> {
    let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match caller.map(|caller| caller.uid()) {
        Some(user) if user == 0 || user == own => Ok(request),
        Some(user) => Err(Status::permission_denied(format!("user {user} is not root"))),
        None => Err(Status::permission_denied("the caller's user is not known")),
    }
}

struct Calls {
    state: Arc<AdminState>,
}

#[tonic::async_trait]
impl Admin for Calls {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(views::status(&self.state, SystemTime::now())))
    }

    async fn workloads(
        &self,
        _: Request<WorkloadsRequest>,
    ) -> Result<Response<WorkloadsReply>, Status> {
        let capture = (self.state.capture)();
        let workloads = views::workloads(&(self.state.snapshot)(), &self.state.node, &capture);
        Ok(Response::new(WorkloadsReply { workloads }))
    }

    async fn services(
        &self,
        _: Request<ServicesRequest>,
    ) -> Result<Response<ServicesReply>, Status> {
        let services = views::services(&(self.state.snapshot)());
        Ok(Response::new(ServicesReply { services }))
    }

    async fn routes(
        &self,
        request: Request<RoutesRequest>,
    ) -> Result<Response<RoutesReply>, Status> {
        let request = request.into_inner();
        match routes::routes(&(self.state.snapshot)(), &request) {
            Some(reply) => Ok(Response::new(reply)),
            None => Err(Status::not_found(format!(
                "no Service and no VirtualService of the mesh is called `{}`",
                request.host
            ))),
        }
    }

    async fn connections(
        &self,
        _: Request<ConnectionsRequest>,
    ) -> Result<Response<ConnectionsReply>, Status> {
        let mut connections = (self.state.connections)();
        connections.sort_by_key(|connection| connection.opened);
        Ok(Response::new(ConnectionsReply { connections, now: unix(SystemTime::now()) }))
    }

    async fn certificates(
        &self,
        _: Request<CertificatesRequest>,
    ) -> Result<Response<CertificatesReply>, Status> {
        let now = SystemTime::now();
        let certificates = views::certificates(&self.state.identities, now);
        Ok(Response::new(CertificatesReply { certificates, now: unix(now) }))
    }

    async fn ejections(
        &self,
        _: Request<EjectionsRequest>,
    ) -> Result<Response<EjectionsReply>, Status> {
        let mut ejections = (self.state.ejections)();
        let key = |one: &Ejection| {
            (one.client.clone(), one.service.clone(), one.port, one.address.clone())
        };
        ejections.sort_by_cached_key(key);
        Ok(Response::new(EjectionsReply { ejections }))
    }

    async fn diagnostics(
        &self,
        _: Request<DiagnosticsRequest>,
    ) -> Result<Response<DiagnosticsReply>, Status> {
        let mut diagnostics = (self.state.diagnostics)();
        diagnostics.sort_by_key(|finding| finding.severity != views::SEVERITY_ERROR);
        Ok(Response::new(DiagnosticsReply { diagnostics }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_root_and_the_agents_user_are_admitted() {
        let (a, _b) = tokio::net::UnixStream::pair().unwrap();
        let mut request = Request::new(());
        assert!(admit(Request::new(()), 0).is_err(), "unknown caller");
        let user = a.peer_cred().unwrap().uid();
        let info = tonic::transport::server::Connected::connect_info(&a);
        request.extensions_mut().insert(info);
        assert!(admit(request, user).is_ok());
    }
}
