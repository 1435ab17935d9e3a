//! `AuthorizationPolicy` of security.istio.io, whole (istio-surface 1.7). Not enforced yet:
//! whom it is for is read, to say so, and the rest checked.

use schemars::JsonSchema;
use serde::Deserialize;

use super::meta::{LabelSelector, TargetRef};
use super::schema::{one_attachment, required, rules};

/// `AuthorizationPolicy.spec`. Empty, it denies everything.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(
    transform = one_attachment,
    // Istio's own validation says these two, its CRD does not.
    transform = rules([
        (
            "DENY and CUSTOM need at least one rule",
            "!has(self.action) || !(self.action in [\"DENY\", \"CUSTOM\"]) \
             || (has(self.rules) && self.rules.size() > 0)",
        ),
        (
            "provider is for CUSTOM only",
            "!has(self.provider) || (has(self.action) && self.action == \"CUSTOM\")",
        ),
    ]),
)]
pub(in crate::config) struct AuthorizationPolicy {
    /// Pods that the policy is for; without it all of the namespace, or of the mesh.
    pub(in crate::config) selector: Option<LabelSelector>,
    /// Deprecated: `targetRefs`.
    pub(in crate::config) target_ref: Option<TargetRef>,
    /// Gateways and services that the policy is for.
    #[schemars(length(max = 16))]
    pub(in crate::config) target_refs: Vec<TargetRef>,
    /// Requests that match any of these.
    #[schemars(length(max = 512))]
    rules: Vec<Rule>,
    /// What becomes of them; `ALLOW`, if unset: those that match no rule are denied.
    action: Option<Action>,
    /// Who decides, for `CUSTOM`.
    provider: Option<Provider>,
}

/// `action`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Action {
    Allow,
    Deny,
    Audit,
    Custom,
}

/// `provider`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Provider {
    name: String,
}

/// `rules[]`: `from` and `to` and `when`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Rule {
    /// Sources; any, if empty.
    #[schemars(length(max = 512))]
    from: Vec<From>,
    /// Operations; any, if empty.
    to: Vec<To>,
    /// Further conditions, all of which must hold.
    when: Vec<Condition>,
}

/// `rules[].from[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct From {
    source: Option<Source>,
}

/// `rules[].from[].source`: all that is set must match.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = rules([(
    "Cannot set serviceAccounts with namespaces or principals",
    "(has(self.serviceAccounts) || has(self.notServiceAccounts)) ? (!has(self.principals) \
     && !has(self.notPrincipals) && !has(self.namespaces) && !has(self.notNamespaces)) : true",
)]))]
struct Source {
    /// Identities, as `trust-domain/ns/namespace/sa/account`.
    principals: Vec<String>,
    not_principals: Vec<String>,
    /// `issuer/subject` of the request's token.
    request_principals: Vec<String>,
    not_request_principals: Vec<String>,
    namespaces: Vec<String>,
    not_namespaces: Vec<String>,
    /// `namespace/account`, or `account` in the policy's namespace.
    #[schemars(length(max = 16), inner(length(max = 320)))]
    service_accounts: Vec<String>,
    #[schemars(length(max = 16), inner(length(max = 320)))]
    not_service_accounts: Vec<String>,
    /// Addresses and ranges of the connection's other end.
    ip_blocks: Vec<String>,
    not_ip_blocks: Vec<String>,
    /// Addresses and ranges of the client, as proxies in front say it.
    remote_ip_blocks: Vec<String>,
    not_remote_ip_blocks: Vec<String>,
    trust_domains: Vec<String>,
    not_trust_domains: Vec<String>,
}

/// `rules[].to[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct To {
    operation: Option<Operation>,
}

/// `rules[].to[].operation`: all that is set must match.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Operation {
    hosts: Vec<String>,
    not_hosts: Vec<String>,
    ports: Vec<String>,
    not_ports: Vec<String>,
    methods: Vec<String>,
    not_methods: Vec<String>,
    /// Exact, `prefix*`, `*suffix`, or with `{*}` and `{**}` for segments.
    paths: Vec<String>,
    not_paths: Vec<String>,
}

/// `rules[].when[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["key"]))]
struct Condition {
    /// Such as `request.headers[x-user]` or `source.namespace`.
    key: String,
    /// One of these must match.
    values: Vec<String>,
    /// None of these may match.
    not_values: Vec<String>,
}
