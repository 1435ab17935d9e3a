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
use crate::model::{DirectResponse, FaultAbort};
use crate::telemetry::{RequestRecord, ResponseFlag};

/// Tells a client that a limit was reached, and not the service.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

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
    let body = error.body(retried);
    let mut response = match to.grpc {
        true => grpc_reply(grpc_code(error.status()), &body, to.ops, record),
        false => plain(error.status(), body.into(), changed(HeaderMap::new(), to.ops), record),
    };
    if error.flag() == ResponseFlag::UpstreamOverflow {
        response.headers_mut().insert(OVERLOADED, HeaderValue::from_static("true"));
    }
    response
}

/// `http[].fault.abort`, in Envoy's words.
pub(super) fn fault(
    abort: FaultAbort,
    to: To<'_>,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    const BODY: &str = "fault filter abort";
    record.flag(ResponseFlag::FaultInjected);
    record.details("fault_filter_abort");
    match abort {
        FaultAbort::Grpc(code) => grpc_reply(code, BODY, to.ops, record),
        FaultAbort::Http(status) if to.grpc => {
            grpc_reply(grpc_code(status), BODY, to.ops, record)
        }
        FaultAbort::Http(status) => {
            plain(status, BODY.into(), changed(HeaderMap::new(), to.ops), record)
        }
    }
}

/// A preflight that is answered here. Envoy's CORS filter does not have it pass the route.
pub(super) fn preflight(headers: HeaderMap, mut record: RequestRecord) -> Response<ResponseBody> {
    record.details("cors_preflight");
    plain(StatusCode::OK, Bytes::new(), headers, record)
}

/// `http[].directResponse`.
pub(super) fn direct(
    direct: &DirectResponse,
    to: To<'_>,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.details("direct_response");
    plain(direct.status, direct.body.clone(), changed(HeaderMap::new(), to.ops), record)
}

/// `http[].redirect`.
pub(super) fn redirect(
    location: &str,
    code: StatusCode,
    to: To<'_>,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    record.details("direct_response");
    let mut headers = HeaderMap::new();
    if let Ok(location) = HeaderValue::from_str(location) {
        headers.insert(LOCATION, location);
    }
    plain(code, Bytes::new(), changed(headers, to.ops), record)
}

/// Headers as the route wants them. The length is not the route's to name.
fn changed(mut headers: HeaderMap, ops: Ops<'_>) -> HeaderMap {
    for ops in ops.into_iter().flatten() {
        headers::apply(ops, &mut headers);
    }
    headers.remove(CONTENT_LENGTH);
    headers
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
    headers::name_server(&mut headers);
    let mut response = Response::new(ResponseBody::here(body, record));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Trailers only: HTTP 200, the status in the head.
fn grpc_reply(
    code: u16,
    message: &str,
    ops: Ops<'_>,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    let mut headers = changed(HeaderMap::new(), ops);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    // As in Envoy, the route may have named another status.
    let status = headers.entry("grpc-status").or_insert_with(|| HeaderValue::from(code));
    record.status(StatusCode::OK);
    record.grpc_status(status);
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(message)) {
        headers.entry("grpc-message").or_insert(message);
    }
    headers::name_server(&mut headers);
    let mut response = Response::new(ResponseBody::here(Bytes::new(), record));
    *response.headers_mut() = headers;
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
