//! `VirtualService.spec.tls` and `.tcp` (istio-surface 1.1): routes of connections that are passed
//! on unread.

use schemars::JsonSchema;
use serde::Deserialize;

use super::meta::Labels;
use super::schema::required;
use super::virtual_service::Destination;

/// `tls[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["match"]))]
pub(in crate::config) struct TlsRoute {
    /// One of these must match.
    pub(in crate::config) r#match: Vec<TlsMatch>,
    /// Destinations, by weight.
    pub(in crate::config) route: Vec<WeightedDestination>,
}

/// `tls[].match[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["sniHosts"]))]
pub(in crate::config) struct TlsMatch {
    /// Server names that clients ask for, all among the object's `hosts`.
    pub(in crate::config) sni_hosts: Vec<String>,
    /// Addresses and ranges of the destination.
    pub(in crate::config) destination_subnets: Vec<String>,
    /// Port that the client addressed.
    pub(in crate::config) port: u32,
    /// Labels that the client's pod must have.
    pub(in crate::config) source_labels: Labels,
    pub(in crate::config) source_namespace: String,
    /// In place of the object's `gateways`.
    pub(in crate::config) gateways: Vec<String>,
}

/// `tcp[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct TcpRoute {
    /// One of these must match; none matches everything.
    pub(in crate::config) r#match: Vec<TcpMatch>,
    /// Destinations, by weight.
    pub(in crate::config) route: Vec<WeightedDestination>,
}

/// `tcp[].match[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct TcpMatch {
    /// Addresses and ranges of the destination.
    pub(in crate::config) destination_subnets: Vec<String>,
    /// Port that the client addressed.
    pub(in crate::config) port: u32,
    /// Range of the client.
    pub(in crate::config) source_subnet: String,
    /// Labels that the client's pod must have.
    pub(in crate::config) source_labels: Labels,
    pub(in crate::config) source_namespace: String,
    /// In place of the object's `gateways`.
    pub(in crate::config) gateways: Vec<String>,
}

/// `tls[].route[]` and `tcp[].route[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["destination"]))]
pub(in crate::config) struct WeightedDestination {
    pub(in crate::config) destination: Option<Destination>,
    /// Share of connections, of the sum of all weights.
    #[schemars(range(min = 0))]
    pub(in crate::config) weight: i32,
}
