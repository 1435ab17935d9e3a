//! Responses that are made here: failures, redirects, direct responses.
//!
//! Invariants: a gRPC client gets a gRPC status, never an HTTP error page (istio-surface 2.1); what the
//! route does to the headers of answers is done to these, too. Source: Envoy's `sendLocalReply`.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LOCATION};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::ResponseBody;
use super::error::HttpError;
use super::headers;
use super::plan::Ops;
use super::retry::status_of_grpc;
use crate::model::{DirectResponse, FaultAbort};
use crate::telemetry::{RequestRecord, ResponseFlag};

/// Tells a client that a limit was reached, and not the service.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
/// Bytes of a body that become `grpc-message`, each up to three there: clients take heads of 8 KiB.
const MESSAGE: usize = 2048;

/// Whom an answer is for, and what its route does to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct To<'a> {
    pub(super) grpc: bool,
    pub(super) ops: Ops<'a>,
}

/// The answer to a request that failed here; `retried`: more than one attempt was made.
pub(super) fn failure(
    error: &HttpError,
    retried: bool,
    to: To<'_>,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.flag(error.flag());
    record.details(&error.details());
    let reply = Reply::new(error.status(), error.body(retried));
    let mut response = reply.to(to, record);
    if error.flag() == ResponseFlag::UpstreamOverflow {
        response.headers_mut().insert(OVERLOADED, HeaderValue::from_static("true"));
    }
    response
}

/// `http[].fault.abort`, in Envoy's words. Who does not speak gRPC gets the HTTP status that is meant
/// by a `grpcStatus`.
pub(super) fn fault(
    abort: FaultAbort,
    to: To<'_>,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.flag(ResponseFlag::FaultInjected);
    record.details("fault_filter_abort");
    let (status, grpc) = match abort {
        FaultAbort::Http(status) => (status, None),
        FaultAbort::Grpc(code) => {
            let status = StatusCode::from_u16(status_of_grpc(code));
            (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Some(code))
        }
    };
    Reply { grpc, ..Reply::new(status, "fault filter abort") }.to(to, record)
}

/// A preflight that is answered here. Envoy's CORS filter does not have it pass the route.
pub(super) fn preflight(headers: HeaderMap, mut record: RequestRecord) -> Response<ResponseBody> {
    record.details("cors_preflight");
    Reply { headers, ..Reply::new(StatusCode::OK, Bytes::new()) }.plain(record)
}

/// `http[].directResponse`.
pub(super) fn direct(
    direct: &DirectResponse,
    to: To<'_>,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.details("direct_response");
    Reply::new(direct.status, direct.body.clone()).to(to, record)
}

/// `http[].redirect`.
pub(super) fn redirect(
    location: &str,
    code: StatusCode,
    to: To<'_>,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.details("direct_response");
    let mut reply = Reply::new(code, Bytes::new());
    if let Ok(location) = HeaderValue::from_str(location) {
        reply.headers.insert(LOCATION, location);
    }
    reply.to(to, record)
}

/// What is to be said.
struct Reply {
    status: StatusCode,
    /// To who speaks gRPC; `None`: what the status means there.
    grpc: Option<u16>,
    body: Bytes,
    headers: HeaderMap,
}

impl Reply {
    fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, grpc: None, body: body.into(), headers: HeaderMap::new() }
    }

    fn to(mut self, to: To<'_>, record: RequestRecord) -> Response<ResponseBody> {
        for ops in to.ops.into_iter().flatten() {
            headers::apply(ops, &mut self.headers);
        }
        // Not the route's to name.
        self.headers.remove(CONTENT_LENGTH);
        if to.grpc { self.trailers_only(record) } else { self.plain(record) }
    }

    fn plain(mut self, mut record: RequestRecord) -> Response<ResponseBody> {
        record.status(self.status);
        if !self.body.is_empty() {
            self.headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
        }
        self.sent(record)
    }

    /// HTTP 200, gRPC's status in the head, and the body as its message.
    fn trailers_only(mut self, mut record: RequestRecord) -> Response<ResponseBody> {
        let code = self.grpc.unwrap_or_else(|| grpc_code(self.status));
        self.status = StatusCode::OK;
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        // As in Envoy, the route may have named another one.
        let status = self.headers.entry("grpc-status").or_insert_with(|| code.into());
        record.status(self.status);
        record.grpc_status(status);
        let body = std::mem::take(&mut self.body);
        let message = percent_encoded(body.get(..MESSAGE).unwrap_or(&body));
        if !body.is_empty()
            && let Ok(message) = HeaderValue::from_str(&message)
        {
            self.headers.entry("grpc-message").or_insert(message);
        }
        self.sent(record)
    }

    fn sent(mut self, record: RequestRecord) -> Response<ResponseBody> {
        headers::name_server(&mut self.headers);
        let mut response = Response::new(ResponseBody::here(self.body, record));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// Envoy's `httpToGrpcStatus`.
fn grpc_code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// As gRPC wants `grpc-message`: printable ASCII but `%` stays (gRPC over HTTP/2, "Responses").
fn percent_encoded(message: &[u8]) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message {
        match *byte {
            byte @ (b' '..=b'$' | b'&'..=b'~') => encoded.push(char::from(byte)),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_codes_become_grpcs() {
        for (http, grpc) in [(404, 12), (503, 14), (504, 14), (500, 2), (403, 7)] {
            assert_eq!(grpc_code(StatusCode::from_u16(http).unwrap()), grpc);
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encoded("100 % é\n".as_bytes()), "100 %25 %C3%A9%0A");
    }
}
