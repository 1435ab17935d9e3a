//! Istio's certificate service: `istio.v1.auth.IstioCertificateService`, one call.
//!
//! By hand, unlike its neighbour: it is two messages, and of `google.protobuf.Struct` only text
//! values are read, so that a request's metadata cannot nest. Other fields are skipped.
//!
//! Source: `security/v1alpha1/ca.proto` of istio/api; `google/protobuf/struct.proto`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::codegen::{Body, BoxFuture, Bytes, StdError, http};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

/// Full name of the call.
const CREATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// The metadata field that names the identity which a node's proxy wants to act for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Largest message that is taken, either way: a chain of RSA certificates has some 10 KiB.
const LARGEST_MESSAGE: usize = 256 << 10;

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// PKCS#10, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Wanted life in seconds; 0 leaves it to the authority.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// More about the request.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Metadata>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    /// By name.
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Value {
    /// Set if the value is text.
    #[prost(string, optional, tag = "3")]
    pub text: Option<String>,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateResponse {
    /// PEM: the leaf first, the roots last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// The server's side.
pub trait CertificateService: Send + Sync + 'static {
    /// Signs a request, or says why not.
    fn create_certificate(
        &self,
        request: Request<CertificateRequest>,
    ) -> impl Future<Output = Result<Response<CertificateResponse>, Status>> + Send;
}

struct Create<T>(Arc<T>);

// === CertificateRequest ===

impl CertificateRequest {
    /// The identity that the caller wants to act for.
    ///
    /// # Errors
    /// When the field is there and is not text: not to be read as absent.
    pub fn impersonated(&self) -> Result<Option<&str>, Status> {
        let metadata = self.metadata.as_ref();
        let Some(value) = metadata.and_then(|all| all.fields.get(IMPERSONATED_IDENTITY)) else {
            return Ok(None);
        };
        match &value.text {
            Some(text) => Ok(Some(text)),
            None => Err(Status::invalid_argument("ImpersonatedIdentity is not text")),
        }
    }
}

impl Metadata {
    /// Asks for another identity than the caller's own.
    pub fn impersonating(identity: String) -> Self {
        let value = Value { text: Some(identity) };
        Self { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
    }
}

// === calls ===

/// The client's side: one call over a connection that is open.
///
/// # Errors
/// The authority's refusal, or the connection's failure.
pub async fn create_certificate<T>(
    connection: T,
    origin: http::Uri,
    request: Request<CertificateRequest>,
) -> Result<CertificateResponse, Status>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    let mut client = tonic::client::Grpc::with_origin(connection, origin)
        .max_decoding_message_size(LARGEST_MESSAGE);
    client.ready().await.map_err(|error| Status::unavailable(error.into().to_string()))?;
    let path = http::uri::PathAndQuery::from_static(CREATE);
    let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
    Ok(client.unary(request, path, codec).await?.into_inner())
}

/// The server's side: answers one HTTP request.
pub async fn answer<T, B>(
    service: Arc<T>,
    request: http::Request<B>,
) -> http::Response<tonic::body::Body>
where
    T: CertificateService,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    if request.uri().path() != CREATE {
        return Status::new(Code::Unimplemented, "no such call").into_http();
    }
    let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
    tonic::server::Grpc::new(codec)
        .max_decoding_message_size(LARGEST_MESSAGE)
        .unary(Create(service), request)
        .await
}

impl<T: CertificateService> tonic::server::UnaryService<CertificateRequest> for Create<T> {
    type Response = CertificateResponse;
    type Future = BoxFuture<Response<CertificateResponse>, Status>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move { service.create_certificate(request).await })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn the_bytes_are_protobufs_own() {
        let request = CertificateRequest {
            csr: "x".to_owned(),
            validity_duration: 60,
            metadata: Some(Metadata::impersonating("spiffe://a".to_owned())),
        };
        // As protoc encodes it: csr, validity, metadata { fields { key, value { string_value } } }.
        let value = [&[0x12, 12, 0x1a, 10], b"spiffe://a".as_slice()].concat();
        let entry = [&[0x0a, 20], IMPERSONATED_IDENTITY.as_bytes(), &value].concat();
        let fields = [&[0x0a, u8::try_from(entry.len()).unwrap()], entry.as_slice()].concat();
        let metadata = [&[0x22, u8::try_from(fields.len()).unwrap()], fields.as_slice()].concat();
        let wire = [&[0x0a, 1, b'x', 0x18, 60], metadata.as_slice()].concat();
        assert_eq!(request.encode_to_vec(), wire);
        assert_eq!(CertificateRequest::decode(wire.as_slice()).unwrap(), request);
        assert_eq!(request.impersonated().unwrap(), Some("spiffe://a"));
    }

    #[test]
    fn a_value_that_is_not_text_is_not_absent() {
        let mut request = CertificateRequest::default();
        assert_eq!(request.impersonated().unwrap(), None);
        // bool_value: true
        let value = Value::decode([0x20, 1].as_slice()).unwrap();
        let fields = BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]);
        request.metadata = Some(Metadata { fields });
        assert!(request.impersonated().is_err());
    }
}
