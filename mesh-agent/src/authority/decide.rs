//! Whom the authority signs. Pure.
//!
//! Invariant: an identity that is not the caller's own is signed only for the agents' service account,
//! and only while a pod of that identity is on the node that the caller's token is bound to. So who
//! breaks into one node gets the identities of that node's pods, which it holds anyway.

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::TokenReviewStatus;

use crate::model::SpiffeId;

/// `ServiceAccountTokenPodNodeInfo`, from Kubernetes 1.30 on.
const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";
/// User names of service accounts.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// The rules.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) trust_domain: Arc<str>,
    /// Namespace and name of the agents' service account.
    pub(super) agents: (String, String),
}

/// Who asks, as the API server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) namespace: String,
    pub(super) account: String,
    /// That the token is bound to.
    pub(super) pod: Option<String>,
    /// That the token's pod runs on.
    pub(super) node: Option<String>,
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) identity: SpiffeId,
    /// Whether it is another's than the caller's own.
    pub(super) impersonated: bool,
}

/// Why nothing is signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no bearer token")]
    NoToken,
    #[error("the token is not valid: {0}")]
    Token(String),
    #[error("the token is for the audiences {0:?}, not for this authority")]
    Audience(Vec<String>),
    #[error("{0} is not a service account")]
    NoAccount(String),
    #[error("the API server does not answer: {0}")]
    Away(String),
    #[error("{0}")]
    Request(String),
    #[error("the identity is of another trust domain")]
    TrustDomain,
    #[error("only the agents' service account may ask for another identity")]
    NotAnAgent,
    #[error("the token is not bound to a pod on a node")]
    NotBound,
    #[error("no running pod of this identity is on node {0}")]
    NoPod(String),
    #[error("it cannot be signed: {0}")]
    Signing(String),
}

impl Refusal {
    /// For the metric.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Token(_) => "invalid_token",
            Self::Audience(_) => "wrong_audience",
            Self::NoAccount(_) => "no_service_account",
            Self::Away(_) => "api_server",
            Self::Request(_) => "invalid_request",
            Self::TrustDomain => "trust_domain",
            Self::NotAnAgent => "not_an_agent",
            Self::NotBound => "not_bound_to_node",
            Self::NoPod(_) => "no_pod_on_node",
            Self::Signing(_) => "signing",
        }
    }
}

/// Reads the API server's verdict on a token.
pub(super) fn caller(review: &TokenReviewStatus, audience: &str) -> Result<Caller, Refusal> {
    if review.authenticated != Some(true) {
        let error = review.error.clone().unwrap_or_else(|| "it is not authenticated".to_owned());
        return Err(Refusal::Token(error));
    }
    // An API server that knows no audiences answers with none, and has not checked.
    let audiences = review.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|one| one == audience) {
        return Err(Refusal::Audience(audiences.to_vec()));
    }
    let user = review.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix(ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account.filter(|(namespace, account)| {
        // What would be another identity when it is written as a path.
        [namespace, account].iter().all(|part| !part.is_empty() && !part.contains(['/', ':']))
    }) else {
        return Err(Refusal::NoAccount(name));
    };
    let extra = user.extra.unwrap_or_default();
    let only = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    Ok(Caller {
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        pod: only(POD),
        node: only(NODE),
    })
}

/// Decides. `asked` is the identity that the caller names, if it does; `runs` tells whether a pod of
/// an identity (that is not finished) is on a node.
pub(super) fn decide(
    policy: &Policy,
    caller: &Caller,
    asked: Option<&str>,
    runs: impl Fn(&str, &SpiffeId) -> bool,
) -> Result<Grant, Refusal> {
    let own = SpiffeId {
        trust_domain: policy.trust_domain.clone(),
        namespace: caller.namespace.as_str().into(),
        service_account: caller.account.as_str().into(),
    };
    let identity = match asked {
        None | Some("") => own.clone(),
        Some(asked) => {
            asked.parse::<SpiffeId>().map_err(|error| Refusal::Request(error.to_string()))?
        }
    };
    if identity == own {
        return Ok(Grant { identity, impersonated: false });
    }
    if identity.trust_domain != policy.trust_domain {
        return Err(Refusal::TrustDomain);
    }
    if (&caller.namespace, &caller.account) != (&policy.agents.0, &policy.agents.1) {
        return Err(Refusal::NotAnAgent);
    }
    let (Some(node), Some(_)) = (&caller.node, &caller.pod) else { return Err(Refusal::NotBound) };
    if !runs(node, &identity) {
        return Err(Refusal::NoPod(node.clone()));
    }
    Ok(Grant { identity, impersonated: true })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    fn policy() -> Policy {
        Policy {
            trust_domain: "cluster.local".into(),
            agents: ("malha-system".to_owned(), "malha-agent".to_owned()),
        }
    }

    fn review(name: &str, extra: &[(&str, &str)]) -> TokenReviewStatus {
        let extra: BTreeMap<String, Vec<String>> = extra
            .iter()
            .map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()]))
            .collect();
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["malha-ca".to_owned()]),
            error: None,
            user: Some(UserInfo {
                username: Some(name.to_owned()),
                extra: Some(extra),
                ..UserInfo::default()
            }),
        }
    }

    fn agent() -> Caller {
        let extra = [(POD, "malha-agent-x"), (NODE, "node-a")];
        caller(&review("system:serviceaccount:malha-system:malha-agent", &extra), "malha-ca")
            .unwrap()
    }

    fn on_node_a(node: &str, identity: &SpiffeId) -> bool {
        node == "node-a" && identity.to_string() == CART
    }

    #[test]
    fn the_api_servers_verdict_is_read_narrowly() {
        let name = "system:serviceaccount:shop:cart";
        let read = |change: fn(&mut TokenReviewStatus)| {
            let mut review = review(name, &[]);
            change(&mut review);
            caller(&review, "malha-ca").map_err(|refusal| refusal.reason())
        };
        assert_eq!(read(|_| ()).unwrap().account, "cart");
        assert_eq!(read(|review| review.authenticated = None), Err("invalid_token"));
        assert_eq!(read(|review| review.authenticated = Some(false)), Err("invalid_token"));
        assert_eq!(read(|review| review.audiences = None), Err("wrong_audience"));
        assert_eq!(
            read(|review| review.audiences = Some(vec!["https://kubernetes".to_owned()])),
            Err("wrong_audience")
        );
        assert_eq!(read(|review| review.user = None), Err("no_service_account"));
        for name in
            ["admin", "system:node:a", "system:serviceaccount:shop", "system:serviceaccount::a"]
        {
            let refusal = caller(&review(name, &[]), "malha-ca").unwrap_err();
            assert_eq!(refusal.reason(), "no_service_account", "{name}");
        }
        let odd = caller(&review("system:serviceaccount:a/sa/b:c", &[]), "malha-ca");
        assert_eq!(odd.unwrap_err().reason(), "no_service_account");
    }

    #[test]
    fn everybody_gets_the_own_identity() {
        let cart = caller(&review("system:serviceaccount:shop:cart", &[]), "malha-ca").unwrap();
        for asked in [None, Some(""), Some(CART)] {
            let grant = decide(&policy(), &cart, asked, |_, _| false).unwrap();
            assert_eq!(grant.identity.to_string(), CART);
            assert!(!grant.impersonated);
        }
    }

    #[test]
    fn an_agent_gets_the_identities_of_its_nodes_pods() {
        let grant = decide(&policy(), &agent(), Some(CART), on_node_a).unwrap();
        assert_eq!(grant, Grant { identity: CART.parse().unwrap(), impersonated: true });
        let other = "spiffe://cluster.local/ns/shop/sa/front";
        let refusal = decide(&policy(), &agent(), Some(other), on_node_a).unwrap_err();
        assert_eq!(refusal, Refusal::NoPod("node-a".to_owned()));
        let elsewhere = Caller { node: Some("node-b".to_owned()), ..agent() };
        let refusal = decide(&policy(), &elsewhere, Some(CART), on_node_a).unwrap_err();
        assert_eq!(refusal, Refusal::NoPod("node-b".to_owned()));
    }

    #[test]
    fn nobody_else_gets_anothers_identity() {
        let decide = |caller: &Caller, asked| {
            decide(&policy(), caller, Some(asked), |_, _| true).unwrap_err().reason()
        };
        let same_name = Caller { namespace: "shop".to_owned(), ..agent() };
        assert_eq!(decide(&same_name, CART), "not_an_agent");
        let neighbour = Caller { account: "other".to_owned(), ..agent() };
        assert_eq!(decide(&neighbour, CART), "not_an_agent");
        assert_eq!(decide(&Caller { node: None, ..agent() }, CART), "not_bound_to_node");
        assert_eq!(decide(&Caller { pod: None, ..agent() }, CART), "not_bound_to_node");
        assert_eq!(decide(&agent(), "spiffe://else/ns/shop/sa/cart"), "trust_domain");
        assert_eq!(decide(&agent(), "cart"), "invalid_request");
        assert_eq!(decide(&agent(), "spiffe://cluster.local/ns/shop/sa/cart/x"), "invalid_request");
    }
}
