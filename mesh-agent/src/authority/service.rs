//! One request for a certificate, from the token to the chain.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::Authority;
use super::decide::{Caller, Grant, Refusal, decide};
use crate::api::istio_ca::{CertificateRequest, CertificateResponse, CertificateService};
use crate::identity::{SigningRequest, certificate_pem};

/// What is known of a request when it is refused.
#[derive(Default)]
struct Trace {
    caller: Option<Caller>,
    asked: Option<String>,
}

impl CertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<CertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        let peer = request.extensions().get::<SocketAddr>().copied();
        let mut trace = Trace::default();
        match self.certify(request, &mut trace).await {
            Ok((grant, response)) => {
                self.metrics.signed(&grant);
                let node = trace.caller.and_then(|caller| caller.node).unwrap_or_default();
                tracing::info!(
                    identity = %grant.identity,
                    impersonated = grant.impersonated,
                    node,
                    "certificate signed"
                );
                Ok(Response::new(response))
            }
            Err(refusal) => {
                self.metrics.refused(&refusal);
                log(&refusal, trace, peer);
                Err(status(&refusal))
            }
        }
    }
}

impl Authority {
    async fn certify(
        &self,
        request: Request<CertificateRequest>,
        trace: &mut Trace,
    ) -> Result<(Grant, CertificateResponse), Refusal> {
        let token = bearer(request.metadata()).ok_or(Refusal::NoToken)?;
        let caller = self.reviews.caller(token).await?;
        trace.caller = Some(caller.clone());
        let request = request.get_ref();
        let asked = request.impersonated().map_err(|error| invalid(error.message()))?;
        trace.asked = asked.map(ToOwned::to_owned);
        let grant = self.grant(&caller, asked).await?;
        let csr = SigningRequest::read(&request.csr).map_err(invalid)?;
        let Some(root) = self.root.current() else {
            return Err(Refusal::Signing("there is no root yet".to_owned()));
        };
        let ttl = life(request.validity_duration, self.longest);
        let chain = root
            .ca
            .sign(&csr, &grant.identity, ttl, SystemTime::now())
            .map_err(|error| Refusal::Signing(error.to_string()))?;
        let mut cert_chain: Vec<String> = chain.iter().map(certificate_pem).collect();
        // Istio's clients take their roots from the end.
        cert_chain.push(root.bundle.clone());
        Ok((grant, CertificateResponse { cert_chain }))
    }

    async fn grant(&self, caller: &Caller, asked: Option<&str>) -> Result<Grant, Refusal> {
        let known = |node: &str, identity: &_| self.pods.runs(node, identity);
        let decided = decide(&self.policy, caller, asked, known);
        let (Err(Refusal::NoPod(node)), Some(asked)) = (&decided, asked) else { return decided };
        // The pod may be younger than what the watch has told.
        let Ok(identity) = asked.parse() else { return decided };
        let runs = self.pods.runs_now(node, &identity).await?;
        decide(&self.policy, caller, Some(asked), |_, _| runs)
    }
}

/// The life that is given: what was asked for, up to the longest. Nothing asked for is the longest,
/// as Istio's authority takes it.
fn life(asked: i64, longest: Duration) -> Duration {
    match u64::try_from(asked) {
        Ok(asked) if asked > 0 => Duration::from_secs(asked).min(longest),
        _ => longest,
    }
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let header = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn invalid(error: impl std::fmt::Display) -> Refusal {
    Refusal::Request(error.to_string())
}

/// Who asked for what, and why not.
fn log(refusal: &Refusal, trace: Trace, peer: Option<SocketAddr>) {
    let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
    let asked = trace.asked.unwrap_or_default();
    let caller = trace.caller;
    let account = caller.as_ref().map(|one| format!("{}/{}", one.namespace, one.account));
    let account = account.unwrap_or_default();
    let (node, pod) = caller.map_or((None, None), |one| (one.node, one.pod));
    let (node, pod) = (node.unwrap_or_default(), pod.unwrap_or_default());
    let reason = refusal.reason();
    tracing::warn!(account, node, pod, asked, peer, reason, error = %refusal, "request refused");
}

fn status(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::NoToken | Refusal::Token(_) | Refusal::Audience(_) | Refusal::NoAccount(_) => {
            Code::Unauthenticated
        }
        Refusal::TrustDomain | Refusal::NotAnAgent | Refusal::NotBound | Refusal::NoPod(_) => {
            Code::PermissionDenied
        }
        Refusal::Request(_) => Code::InvalidArgument,
        Refusal::Away(_) | Refusal::Signing(_) => Code::Unavailable,
    };
    Status::new(code, refusal.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_bounded() {
        let day = Duration::from_secs(86_400);
        assert_eq!(life(60, day), Duration::from_secs(60));
        for asked in [0, -1, i64::MIN, i64::MAX, 86_401] {
            assert_eq!(life(asked, day), day, "{asked}");
        }
    }

    #[test]
    fn a_token_is_read_from_its_header() {
        let bearer = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", text.parse().unwrap());
            bearer(&metadata).map(ToOwned::to_owned)
        };
        assert_eq!(bearer("Bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(bearer("bearer a").as_deref(), Some("a"));
        for text in ["", "Bearer", "Bearer ", "Basic a", "a.b.c"] {
            assert_eq!(bearer(text), None, "{text}");
        }
        assert_eq!(super::bearer(&MetadataMap::new()), None);
    }
}
