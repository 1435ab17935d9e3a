//! `http[].retries`.

use expect_test::{Expect, expect};

use super::{CART, check, routes};
use crate::model::RetryOn;

/// Routes `/0`, `/1`, ... with these `retries`.
fn check_retries(retries: &[&str], expected: Expect) {
    let routes: String = (0..)
        .zip(retries)
        .map(|(index, of): (usize, _)| {
            format!(
                "  - match: [{{ uri: {{ exact: /{index} }} }}]\n    retries: {of}\n    route: [{{ \
                 destination: {{ host: cart }} }}]\n"
            )
        })
        .collect();
    let head = "kind: VirtualService\nmetadata: { name: cart, namespace: shop }\n";
    let spec = format!("spec:\n  hosts: [cart]\n  http:\n{routes}");
    check(&format!("{CART}{head}{spec}"), self::routes, expected);
}

#[test]
fn attempts_and_times() {
    check_retries(
        &[
            "{ attempts: 3, perTryTimeout: 2s }",
            "{ attempts: 1, backoff: 1s, retryRemoteLocalities: true, retryIgnorePreviousHosts: false }",
            "{ attempts: 2 }",
            "{}",
            "{ attempts: 0, backoff: 1s }",
        ],
        expect![[r#"
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [uri =/0] /1 cart.shop.svc.cluster.local/* 1 retries 3 per try 2s
              default [uri =/1] /1 cart.shop.svc.cluster.local/* 1 retries 1 back-off 1s remote any-host
              default [uri =/2] /1 cart.shop.svc.cluster.local/* 1
              default [uri =/3] /1 cart.shop.svc.cluster.local/* 1 retries 0
              default [uri =/4] /1 cart.shop.svc.cluster.local/* 1 retries 0
        "#]],
    );
}

#[test]
fn conditions_and_statuses() {
    check_retries(
        &[
            "{ attempts: 3, retryOn: 'gateway-error,connect-failure,refused-stream' }",
            "{ attempts: 3, retryOn: '503,reset,retriable-status-codes,429,503,425' }",
            "{ attempts: 3, retryOn: 'retriable-status-codes,5xx' }",
            "{ attempts: 3, retryOn: 'retriable-headers,http3-post-connect-failure' }",
        ],
        expect![[r#"
            warning VirtualService shop/cart spec.http[2].retries.retryOn: `retriable-status-codes` has no effect: no status is in the list
            warning VirtualService shop/cart spec.http[3].retries.retryOn: `http3-post-connect-failure` has no effect
            warning VirtualService shop/cart spec.http[3].retries.retryOn: `retriable-headers` has no effect
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [uri =/0] /1 cart.shop.svc.cluster.local/* 1 retries 3 on RetryOn(146) []
              default [uri =/1] /1 cart.shop.svc.cluster.local/* 1 retries 3 on RetryOn(4) [425, 429, 503]
              default [uri =/2] /1 cart.shop.svc.cluster.local/* 1 retries 3 on RetryOn(1) []
              default [uri =/3] /1 cart.shop.svc.cluster.local/* 1 retries 3 on RetryOn(0) []
        "#]],
    );
}

#[test]
fn mistakes_are_named() {
    check_retries(
        &[
            "{ attempts: -1 }",
            "{ attempts: 1, perTryTimeout: 0s, backoff: 1us }",
            "{ attempts: 1, retryOn: '503, reset' }",
            "{ attempts: 1, retryOn: 'resett,599,306,,whatever' }",
            "{ perTryTimeout: 2s }",
            "{ attempts: 0, retryOn: 5xx }",
            "{ retryRemoteLocalities: false }",
        ],
        expect![[r#"
            error VirtualService shop/cart spec.http[0].retries.attempts: -1 is negative
            error VirtualService shop/cart spec.http[1].retries.backoff: shorter than 1ms
            error VirtualService shop/cart spec.http[1].retries.perTryTimeout: shorter than 1ms
            error VirtualService shop/cart spec.http[2].retries.retryOn: ` reset` is not a condition; did you mean `reset`?
            error VirtualService shop/cart spec.http[3].retries.retryOn: 306 is not a status that HTTP defines
            error VirtualService shop/cart spec.http[3].retries.retryOn: 599 is not a status that HTTP defines
            error VirtualService shop/cart spec.http[3].retries.retryOn: `resett` is not a condition; did you mean `reset`?
            error VirtualService shop/cart spec.http[3].retries.retryOn: `whatever` is not a condition, such as `5xx` or `connect-failure`
            error VirtualService shop/cart spec.http[3].retries.retryOn: a condition is missing between two commas, or at an end
            error VirtualService shop/cart spec.http[4].retries.attempts: 0, or unset, switches retries off: `perTryTimeout` has no meaning then
            error VirtualService shop/cart spec.http[5].retries.attempts: 0, or unset, switches retries off: `retryOn` has no meaning then
            error VirtualService shop/cart spec.http[6].retries.attempts: 0, or unset, switches retries off: `retryRemoteLocalities` has no meaning then
        "#]],
    );
}

/// Each word of Istio's list is one of ours, and they differ.
#[test]
fn every_condition_is_known() {
    let words = [
        ("5xx", RetryOn::SERVER_ERROR),
        ("gateway-error", RetryOn::GATEWAY_ERROR),
        ("reset", RetryOn::RESET),
        ("reset-before-request", RetryOn::RESET_BEFORE_REQUEST),
        ("connect-failure", RetryOn::CONNECT_FAILURE),
        ("envoy-ratelimited", RetryOn::RATE_LIMITED),
        ("retriable-4xx", RetryOn::RETRIABLE_4XX),
        ("refused-stream", RetryOn::REFUSED_STREAM),
        ("cancelled", RetryOn::CANCELLED),
        ("deadline-exceeded", RetryOn::DEADLINE_EXCEEDED),
        ("internal", RetryOn::INTERNAL),
        ("resource-exhausted", RetryOn::RESOURCE_EXHAUSTED),
        ("unavailable", RetryOn::UNAVAILABLE),
    ];
    for (word, condition) in words {
        let yaml = format!(
            "{CART}kind: VirtualService\nmetadata: {{ name: cart, namespace: shop }}\nspec: {{ hosts: \
             [cart], http: [{{ retries: {{ attempts: 1, retryOn: {word} }}, route: [{{ destination: {{ \
             host: cart }} }}] }}] }}\n"
        );
        let mut bench = super::Bench::new();
        assert_eq!(bench.apply("", &yaml, 0), "", "{word}");
        let rule = &bench.snapshot.virtual_services[0].http[0];
        let super::Action::Forward(forward) = &rule.action else { panic!("{rule:?}") };
        assert_eq!(forward.retries.on, condition, "{word}");
    }
}
