//! Responses that are made here: failures, redirects, direct responses.
//!
//! Invariant: a gRPC client gets a gRPC status, never an HTTP error page (istio-surface 2.1).

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, LOCATION};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::ResponseBody;
use super::error::HttpError;
use super::headers::name_server;
use crate::model::{DirectResponse, FaultAbort, HeaderOps};
use crate::telemetry::{RequestRecord, ResponseFlag};

/// Tells a client that a limit was reached, and not the service.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// The answer to a request that failed here; `retried`: more than one attempt was made.
pub(super) fn failure(
    error: &HttpError,
    retried: bool,
    grpc: bool,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.flag(error.flag());
    record.details(&error.details());
    let body = error.body(retried);
    let mut response = match grpc {
        true => grpc_reply(grpc_code(error.status()), &body, record),
        false => plain(error.status(), body.into(), HeaderMap::new(), record),
    };
    if error.flag() == ResponseFlag::UpstreamOverflow {
        response.headers_mut().insert(OVERLOADED, HeaderValue::from_static("true"));
    }
    response
}

/// `http[].fault.abort`, in Envoy's words.
pub(super) fn fault(
    abort: FaultAbort,
    grpc: bool,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    const BODY: &str = "fault filter abort";
    record.flag(ResponseFlag::FaultInjected);
    record.details("fault_filter_abort");
    match abort {
        FaultAbort::Grpc(code) => grpc_reply(code, BODY, record),
        FaultAbort::Http(status) if grpc => grpc_reply(grpc_code(status), BODY, record),
        FaultAbort::Http(status) => plain(status, BODY.into(), HeaderMap::new(), record),
    }
}

/// A preflight that is answered here.
pub(super) fn preflight(headers: HeaderMap, mut record: RequestRecord) -> Response<ResponseBody> {
    record.details("cors_preflight");
    plain(StatusCode::OK, Bytes::new(), headers, record)
}

/// `http[].directResponse`.
pub(super) fn direct(
    direct: &DirectResponse,
    ops: &HeaderOps,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.details("direct_response");
    let mut headers = HeaderMap::new();
    if !direct.body.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    super::headers::apply(ops, &mut headers);
    plain(direct.status, direct.body.clone(), headers, record)
}

/// `http[].redirect`.
pub(super) fn redirect(
    location: &str,
    code: StatusCode,
    ops: &HeaderOps,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.details("direct_response");
    let mut headers = HeaderMap::new();
    if let Ok(location) = HeaderValue::from_str(location) {
        headers.insert(LOCATION, location);
    }
    super::headers::apply(ops, &mut headers);
    plain(code, Bytes::new(), headers, record)
}

fn plain(
    status: StatusCode,
    body: Bytes,
    mut headers: HeaderMap,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.status(status);
    if !body.is_empty() {
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
    }
    name_server(&mut headers);
    let mut response = Response::new(ResponseBody::here(body, record));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Trailers only: HTTP 200, the status in the head.
fn grpc_reply(code: u16, message: &str, mut record: RequestRecord) -> Response<ResponseBody> {
    let status = HeaderValue::from(code);
    record.status(StatusCode::OK);
    record.grpc_status(&status);
    let mut response = Response::new(ResponseBody::here(Bytes::new(), record));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", status);
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(message)) {
        headers.insert("grpc-message", message);
    }
    name_server(headers);
    response
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
fn percent_encoded(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
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
        assert_eq!(percent_encoded("100 % é\n"), "100 %25 %C3%A9%0A");
    }
}
