//! `RequestAuthentication` of security.istio.io, whole (istio-surface 1.6). Not enforced yet:
//! whom it is for is read, to say so, and the rest checked.

use schemars::{JsonSchema, Schema};
use serde::Deserialize;

use super::meta::{LabelSelector, TargetRef};
use super::scalar::Span;
use super::schema::{alias, one_attachment, required, rules};

/// `RequestAuthentication.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = one_attachment)]
pub(in crate::config) struct RequestAuthentication {
    /// Pods that the policy is for; without it all of the namespace, or of the mesh.
    pub(in crate::config) selector: Option<LabelSelector>,
    /// Deprecated: `targetRefs`.
    pub(in crate::config) target_ref: Option<TargetRef>,
    /// Gateways and services that the policy is for.
    #[schemars(length(max = 16))]
    pub(in crate::config) target_refs: Vec<TargetRef>,
    /// Issuers whose tokens are taken; a request without a token passes.
    #[schemars(length(max = 4096))]
    jwt_rules: Vec<JwtRule>,
}

/// `jwtRules[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(
    transform = alias("jwksUri", "jwks_uri"),
    transform = rules([(
        "only one of jwks or jwksUri can be set",
        "(has(self.jwksUri) ? 1 : 0) + (has(self.jwks_uri) ? 1 : 0) \
         + (has(self.jwks) ? 1 : 0) <= 1",
    )]),
)]
struct JwtRule {
    /// Exactly the token's `iss`.
    #[schemars(length(min = 1))]
    issuer: String,
    /// One of these must be in the token's `aud`; any, if empty.
    #[schemars(inner(length(min = 1)))]
    audiences: Vec<String>,
    /// Where the issuer's keys are; found by OpenID Connect Discovery, if unset.
    #[schemars(length(min = 1, max = 2048), transform = url)]
    jwks_uri: String,
    /// The issuer's keys.
    jwks: String,
    /// Where the token is, in place of `Authorization` and `access_token`.
    from_headers: Vec<JwtHeader>,
    #[schemars(inner(length(min = 1)))]
    from_params: Vec<String>,
    #[schemars(inner(length(min = 1)))]
    from_cookies: Vec<String>,
    /// Header for the application, with the token's payload in base64url.
    output_payload_to_header: String,
    /// The application gets the token too.
    forward_original_token: bool,
    /// Headers for the application, with single claims.
    output_claim_to_headers: Vec<ClaimToHeader>,
    /// Of a request for keys; 5s, if unset.
    timeout: Option<Span>,
    #[schemars(length(max = 64), inner(length(min = 1)))]
    space_delimited_claims: Vec<String>,
}

/// `jwtRules[].fromHeaders[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["name"]))]
struct JwtHeader {
    #[schemars(length(min = 1))]
    name: String,
    /// In front of the token, such as `Bearer `.
    prefix: String,
}

/// `jwtRules[].outputClaimToHeaders[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["header", "claim"]))]
struct ClaimToHeader {
    #[schemars(length(min = 1), regex(pattern = "^[-_A-Za-z0-9]+$"))]
    header: String,
    /// Parts of nested claims are separated by dots.
    #[schemars(length(min = 1))]
    claim: String,
}

fn url(schema: &mut Schema) {
    rules([(
        "url must have scheme http:// or https://",
        "url(self).getScheme() in [\"http\", \"https\"]",
    )])(schema);
}
