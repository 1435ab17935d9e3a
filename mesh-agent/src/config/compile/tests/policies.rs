//! Traffic policies: balancing, connection pools, outlier detection, retry budgets.

use expect_test::{Expect, expect};

use super::{check, nothing, rules};

const SERVICE: &str = "
kind: Service
metadata: { name: cart, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---
";

/// One `DestinationRule` shop/cart with what follows `spec: { host: cart }`, beside the service.
fn check_spec(spec: &str, expected: Expect) {
    let head = "kind: DestinationRule\nmetadata: { name: cart, namespace: shop }\nspec:\n";
    check(&format!("{SERVICE}{head}  host: cart\n{spec}"), rules, expected);
}

/// Subsets `a`, `b`, ... with these `loadBalancer`s.
fn check_balancers(balancers: &[&str], expected: Expect) {
    let subsets: String = ('a'..)
        .zip(balancers)
        .map(|(name, of)| {
            format!("  - {{ name: {name}, trafficPolicy: {{ loadBalancer: {of} }} }}\n")
        })
        .collect();
    check_spec(&format!("  subsets:\n{subsets}"), expected);
}

#[test]
fn every_key_of_consistent_hashing() {
    check_balancers(
        &[
            "{ consistentHash: { httpHeaderName: X-User } }",
            "{ consistentHash: { useSourceIp: true, maglev: {} } }",
            "{ consistentHash: { httpQueryParameterName: user, maglev: { tableSize: 101 } } }",
            "{ consistentHash: { httpHeaderName: x, ringHash: { minimumRingSize: '2048' } } }",
            "{ consistentHash: { httpHeaderName: x, minimumRingSize: 7 } }",
            "{ consistentHash: { useSourceIp: false } }",
        ],
        expect![[r#"
            warning DestinationRule shop/cart spec.subsets[4].trafficPolicy.loadBalancer.consistentHash.minimumRingSize: deprecated: write `ringHash.minimumRingSize`
            warning DestinationRule shop/cart spec.subsets[5].trafficPolicy.loadBalancer.consistentHash: names no key, such as `httpHeaderName`: any endpoint is chosen
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 10s
              a {}: RingHash { minimum: 1024 } 10s by Header("x-user")
              b {}: Maglev { size: 65537 } 10s by SourceIp
              c {}: Maglev { size: 101 } 10s by Query("user")
              d {}: RingHash { minimum: 2048 } 10s by Header("x")
              e {}: RingHash { minimum: 7 } 10s by Header("x")
              f {}: Random 10s
        "#]],
    );
}

/// Tables are each client's own.
#[test]
fn tables_have_a_largest_size() {
    check_balancers(
        &[
            "{ consistentHash: { useSourceIp: true, ringHash: { minimumRingSize: 65536 } } }",
            "{ consistentHash: { useSourceIp: true, ringHash: { minimumRingSize: 8388608 } } }",
            "{ consistentHash: { useSourceIp: true, maglev: { tableSize: 262139 } } }",
            "{ consistentHash: { useSourceIp: true, maglev: { tableSize: 4999999 } } }",
        ],
        expect![[r#"
            warning DestinationRule shop/cart spec.subsets[1].trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize: 8388608 is more than 65536, which is used
            warning DestinationRule shop/cart spec.subsets[3].trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 4999999 is more than 262139, which is used
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 10s
              a {}: RingHash { minimum: 65536 } 10s by SourceIp
              b {}: RingHash { minimum: 65536 } 10s by SourceIp
              c {}: Maglev { size: 262139 } 10s by SourceIp
              d {}: Maglev { size: 262139 } 10s by SourceIp
        "#]],
    );
}

#[test]
fn a_cookie_is_made_where_a_ttl_is_written() {
    check_balancers(
        &[
            "{ consistentHash: { httpCookie: { name: user } } }",
            "{ consistentHash: { httpCookie: { name: user, ttl: 0s } } }",
            "{ consistentHash: { httpCookie: { name: user, ttl: 1h0.5s, path: /shop, attributes: [{ name: SameSite, value: Strict }, { name: Secure }] } } }",
            "{ consistentHash: { httpCookie: { name: user, ttl: 10ms, path: / } } }",
        ],
        expect![[r#"
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 10s
              a {}: RingHash { minimum: 1024 } 10s by Cookie(HashCookie { name: "user", made: None })
              b {}: RingHash { minimum: 1024 } 10s by Cookie(HashCookie { name: "user", made: Some("; HttpOnly") })
              c {}: RingHash { minimum: 1024 } 10s by Cookie(HashCookie { name: "user", made: Some("; Max-Age=3600; Path=/shop; SameSite=Strict; Secure; HttpOnly") })
              d {}: RingHash { minimum: 1024 } 10s by Cookie(HashCookie { name: "user", made: Some("; Path=/; HttpOnly") })
        "#]],
    );
}

#[test]
fn endpoints_warm_up() {
    check_balancers(
        &[
            "{ warmup: { duration: 30s } }",
            "{ simple: ROUND_ROBIN, warmup: { duration: 1m, minimumPercent: 0, aggression: 1.5 } }",
            "{ warmupDurationSecs: 10s }",
            "{ warmup: { duration: 30s }, warmupDurationSecs: 10s }",
            "{ simple: RANDOM, warmup: { duration: 30s } }",
        ],
        expect![[r#"
            warning DestinationRule shop/cart spec.subsets[3].trafficPolicy.loadBalancer.warmupDurationSecs: no effect: `warmup` counts
            warning DestinationRule shop/cart spec.subsets[4].trafficPolicy.loadBalancer.warmup: no effect: only ROUND_ROBIN and LEAST_REQUEST warm endpoints up
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 10s
              a {}: LeastRequest 10s Warmup { duration: 30s, minimum_percent: 10.0, aggression: 1.0 }
              b {}: RoundRobin 10s Warmup { duration: 60s, minimum_percent: 0.0, aggression: 1.5 }
              c {}: LeastRequest 10s Warmup { duration: 10s, minimum_percent: 10.0, aggression: 1.0 }
              d {}: LeastRequest 10s Warmup { duration: 30s, minimum_percent: 10.0, aggression: 1.0 }
              e {}: Random 10s
        "#]],
    );
}

#[test]
fn mistakes_in_balancing_are_named() {
    check_balancers(
        &[
            "{ simple: RANDOM, consistentHash: { useSourceIp: true } }",
            "{ consistentHash: { useSourceIp: true, httpHeaderName: x, ringHash: {}, maglev: {} } }",
            "{ consistentHash: { httpHeaderName: 'a b', maglev: { tableSize: 100 } } }",
            "{ consistentHash: { useSourceIp: true, maglev: { tableSize: 5000011 } } }",
            "{ consistentHash: { useSourceIp: true, ringHash: { minimumRingSize: 8388609 } } }",
            "{ consistentHash: { useSourceIp: true, ringHash: {}, minimumRingSize: 1 } }",
            "{ consistentHash: { httpCookie: { ttl: 0s } } }",
            "{ consistentHash: { httpCookie: { name: 'a;b', ttl: 0s } } }",
            "{ consistentHash: { httpCookie: { name: a, ttl: 0s, path: '/;b', attributes: [{ name: 'x y', value: z }, { name: x, value: \"\\n\" }] } } }",
            "{ warmup: { minimumPercent: 101 } }",
            "{ warmup: { minimumPercent: 100, aggression: 0.9, duration: 1us } }",
        ],
        expect![[r#"
            error DestinationRule shop/cart spec.subsets[0].trafficPolicy.loadBalancer: only one of `simple` and `consistentHash` can be given
            error DestinationRule shop/cart spec.subsets[10].trafficPolicy.loadBalancer.warmup.aggression: 0.9 is less than 1
            error DestinationRule shop/cart spec.subsets[10].trafficPolicy.loadBalancer.warmup.duration: shorter than 1ms
            error DestinationRule shop/cart spec.subsets[1].trafficPolicy.loadBalancer.consistentHash: only one of `httpHeaderName` and `useSourceIp` can be given
            error DestinationRule shop/cart spec.subsets[1].trafficPolicy.loadBalancer.consistentHash: only one of `ringHash` and `maglev` can be given
            error DestinationRule shop/cart spec.subsets[2].trafficPolicy.loadBalancer.consistentHash.httpHeaderName: `a b` is not a header name
            error DestinationRule shop/cart spec.subsets[2].trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 100 is not a prime number below 5000011
            error DestinationRule shop/cart spec.subsets[3].trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 5000011 is not a prime number below 5000011
            error DestinationRule shop/cart spec.subsets[4].trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize: 8388609 is more than 8388608
            error DestinationRule shop/cart spec.subsets[5].trafficPolicy.loadBalancer.consistentHash.minimumRingSize: cannot be given beside `ringHash` or `maglev`
            error DestinationRule shop/cart spec.subsets[6].trafficPolicy.loadBalancer.consistentHash.httpCookie.name: missing: every cookie needs a name
            error DestinationRule shop/cart spec.subsets[7].trafficPolicy.loadBalancer.consistentHash.httpCookie.name: `a;b` is not a cookie's name
            error DestinationRule shop/cart spec.subsets[8].trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[0].name: `x y` is not an attribute's name
            error DestinationRule shop/cart spec.subsets[8].trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[1].value: `
            ` cannot stand in a cookie
            error DestinationRule shop/cart spec.subsets[8].trafficPolicy.loadBalancer.consistentHash.httpCookie.path: `/;b` cannot stand in a cookie
            error DestinationRule shop/cart spec.subsets[9].trafficPolicy.loadBalancer.warmup.duration: missing
            error DestinationRule shop/cart spec.subsets[9].trafficPolicy.loadBalancer.warmup.minimumPercent: 101 is not within 0 and 100
        "#]],
    );
}

#[test]
fn numbers_are_checked_as_such() {
    check_balancers(
        &["{ consistentHash: { maglev: { tableSize: -7 } } }"],
        expect![[r#"
        error DestinationRule shop/cart spec.subsets[0].trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: must be a whole number from 0 to 9223372036854775807, not the number -7
    "#]],
    );
    check_balancers(
        &["{ warmup: { aggression: much } }"],
        expect![[r#"
        error DestinationRule shop/cart spec.subsets[0].trafficPolicy.loadBalancer.warmup.aggression: must be a number, not the text "much"
    "#]],
    );
    check_balancers(
        &["{ warmup: { duration: -1s } }"],
        expect![[r#"
        error DestinationRule shop/cart spec.subsets[0].trafficPolicy.loadBalancer.warmup.duration: `-1s` is not a duration such as `1.5s`, `100ms` or `1m`
    "#]],
    );
}

#[test]
fn every_limit_of_connections() {
    check_spec(
        "
  trafficPolicy:
    connectionPool:
      tcp:
        maxConnections: 1
        connectTimeout: 30ms
        maxConnectionDuration: 1h
        idleTimeout: 5m
        tcpKeepalive: { time: 2h, interval: 75s, probes: 9 }
      http:
        http1MaxPendingRequests: 2
        http2MaxRequests: 3
        maxRequestsPerConnection: 4
        maxRetries: 5
        idleTimeout: 90s
        h2UpgradePolicy: UPGRADE
        maxConcurrentStreams: 6
        http2KeepAlive: { interval: 30s }
  subsets:
  - name: zero-is-unset
    trafficPolicy:
      connectionPool:
        tcp: { maxConnections: 0, idleTimeout: 0s, tcpKeepalive: { time: 1ms } }
        http: { http1MaxPendingRequests: 0, http2MaxRequests: 0, maxRequestsPerConnection: 0, maxRetries: 0, maxConcurrentStreams: 0, h2UpgradePolicy: DO_NOT_UPGRADE }
  - name: tcp-idle-holds-for-http
    trafficPolicy: { connectionPool: { tcp: { idleTimeout: 1m }, http: { useClientProtocol: true, h2UpgradePolicy: UPGRADE } } }
",
        expect![[r#"
            warning DestinationRule shop/cart spec.subsets[1].trafficPolicy.connectionPool.http.h2UpgradePolicy: no effect: `useClientProtocol` counts
            warning DestinationRule shop/cart spec.trafficPolicy.connectionPool.http.http2KeepAlive: not supported yet, ignored
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 30ms pool max_connections: 1, keepalive: Some(Keepalive { probes: Some(9), time: Some(7200s), interval: Some(75s) }), max_connection_duration: Some(3600s), tcp_idle_timeout: Some(300s), max_pending: 2, max_requests: 3, max_requests_per_connection: 4, max_retries: 5, http_idle_timeout: Some(90s), upgrade_to_http2: true, max_concurrent_streams: 6
              zero-is-unset {}: LeastRequest 10s pool keepalive: Some(Keepalive { probes: None, time: Some(1s), interval: None })
              tcp-idle-holds-for-http {}: LeastRequest 10s pool tcp_idle_timeout: Some(60s), http_idle_timeout: Some(60s), use_client_protocol: true
        "#]],
    );
}

#[test]
fn mistakes_in_limits_are_named() {
    check_spec(
        "
  trafficPolicy:
    connectionPool: {}
    portLevelSettings:
    - port: { number: 80 }
      connectionPool:
        tcp: { maxConnections: -1, connectTimeout: 0s, maxConnectionDuration: 1us, idleTimeout: 1us, tcpKeepalive: { time: 0s, interval: 0s } }
        http: { http1MaxPendingRequests: -1, http2MaxRequests: -2, maxRequestsPerConnection: -3, maxRetries: -4, maxConcurrentStreams: -5, idleTimeout: 0s }
    retryBudget: { percent: 100.5 }
    outlierDetection: { interval: 0s, baseEjectionTime: 10us, maxEjectionPercent: 101, minHealthPercent: -1, consecutiveLocalOriginFailures: 5, outlierDetectionHttpErrorCodes: [99, 5xx, 500, {}] }
",
        expect![[r#"
            error DestinationRule shop/cart spec.trafficPolicy.connectionPool: must have `tcp` or `http`
            error DestinationRule shop/cart spec.trafficPolicy.outlierDetection.baseEjectionTime: shorter than 1ms
            error DestinationRule shop/cart spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures: has no meaning without `splitExternalLocalOriginErrors: true`
            error DestinationRule shop/cart spec.trafficPolicy.outlierDetection.interval: shorter than 1ms
            error DestinationRule shop/cart spec.trafficPolicy.outlierDetection.maxEjectionPercent: 101 is not within 0 and 100
            error DestinationRule shop/cart spec.trafficPolicy.outlierDetection.minHealthPercent: -1 is not within 0 and 100
            error DestinationRule shop/cart spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes[0]: 99 is not a status from 100 to 599
            error DestinationRule shop/cart spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes[1]: "5xx" is not a status from 100 to 599
            error DestinationRule shop/cart spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes[3]: {} is not a status from 100 to 599
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.http.http1MaxPendingRequests: -1 is negative
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.http.http2MaxRequests: -2 is negative
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.http.idleTimeout: shorter than 1ms
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.http.maxConcurrentStreams: -5 is negative
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.http.maxRequestsPerConnection: -3 is negative
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.http.maxRetries: -4 is negative
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.tcp.connectTimeout: shorter than 1ms
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.tcp.idleTimeout: shorter than 1ms
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.tcp.maxConnectionDuration: shorter than 1ms
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.tcp.maxConnections: -1 is negative
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.tcp.tcpKeepalive.interval: shorter than 1ms
            error DestinationRule shop/cart spec.trafficPolicy.portLevelSettings[0].connectionPool.tcp.tcpKeepalive.time: shorter than 1ms
            error DestinationRule shop/cart spec.trafficPolicy.retryBudget.percent: 100.5 is not within 0 and 100
        "#]],
    );
}

#[test]
fn outlier_detection_with_its_defaults() {
    check_spec(
        "
  trafficPolicy: { outlierDetection: {} }
  subsets:
  - name: zeros
    trafficPolicy: { outlierDetection: { consecutive5xxErrors: 0, consecutiveGatewayErrors: 0, maxEjectionPercent: 0, minHealthPercent: 0, consecutiveLocalOriginFailures: 0 } }
  - name: all
    trafficPolicy:
      outlierDetection:
        consecutive5xxErrors: 1
        consecutiveGatewayErrors: 2
        consecutiveLocalOriginFailures: 3
        splitExternalLocalOriginErrors: true
        interval: 4s
        baseEjectionTime: 3m
        maxEjectionPercent: 100
        minHealthPercent: 50
        outlierDetectionHttpErrorCodes: [500, '429', 500]
        consecutiveErrors: 6
",
        expect![[r#"
            warning DestinationRule shop/cart spec.subsets[1].trafficPolicy.outlierDetection.consecutiveErrors: deprecated, no effect: write `consecutive5xxErrors` or `consecutiveGatewayErrors`
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 10s OutlierDetection { consecutive_5xx: 5, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 10s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] }
              zeros {}: LeastRequest 10s OutlierDetection { consecutive_5xx: 0, consecutive_gateway: 0, consecutive_local: 0, split: false, interval: 10s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] }
              all {}: LeastRequest 10s OutlierDetection { consecutive_5xx: 1, consecutive_gateway: 2, consecutive_local: 3, split: true, interval: 4s, base_ejection: 180s, max_ejection_percent: 100, min_health_percent: 50, error_codes: [429, 500] }
        "#]],
    );
}

#[test]
fn retry_budgets() {
    check_spec(
        "
  trafficPolicy: { retryBudget: {} }
  subsets:
  - name: all
    trafficPolicy: { retryBudget: { percent: 0.5, minRetryConcurrency: 7, budgetInterval: 10s } }
",
        expect![[r#"
            warning DestinationRule shop/cart spec.subsets[0].trafficPolicy.retryBudget.budgetInterval: not supported yet, ignored
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 10s RetryBudget { percent: 20.0, min_concurrency: 3 }
              all {}: LeastRequest 10s RetryBudget { percent: 0.5, min_concurrency: 7 }
        "#]],
    );
}

/// istio-surface 1.2.1: whole blocks, and what a port's entry takes away.
#[test]
fn blocks_replace_each_other_whole() {
    check_spec(
        "
  trafficPolicy:
    loadBalancer: { consistentHash: { useSourceIp: true } }
    connectionPool: { tcp: { maxConnections: 1 }, http: { maxRetries: 1 } }
    outlierDetection: { interval: 1s }
    retryBudget: { percent: 1 }
    portLevelSettings:
    - { port: { number: 90 }, connectionPool: { http: { maxRetries: 9 } } }
  subsets:
  - name: inherits
  - name: own-pool-only
    trafficPolicy: { connectionPool: { http: { maxRetries: 2 } } }
  - name: own-balancer-only
    trafficPolicy: { loadBalancer: { warmup: { duration: 2s } } }
  - name: own-port
    trafficPolicy:
      outlierDetection: { interval: 3s }
      retryBudget: { percent: 3 }
      portLevelSettings:
      - { port: { number: 80 }, loadBalancer: { simple: RANDOM } }
      - { port: { number: 80 }, loadBalancer: { simple: ROUND_ROBIN } }
",
        expect![[r#"
            warning DestinationRule shop/cart spec.subsets[3].trafficPolicy.portLevelSettings[1].port.number: 80 is there twice: the first counts
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: RingHash { minimum: 1024 } 10s by SourceIp pool max_connections: 1, max_retries: 1 OutlierDetection { consecutive_5xx: 5, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 1s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] } RetryBudget { percent: 1.0, min_concurrency: 3 }
              port 90: LeastRequest 10s pool max_retries: 9
              inherits {}: RingHash { minimum: 1024 } 10s by SourceIp pool max_connections: 1, max_retries: 1 OutlierDetection { consecutive_5xx: 5, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 1s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] } RetryBudget { percent: 1.0, min_concurrency: 3 }
              inherits port 90: LeastRequest 10s pool max_retries: 9
              own-pool-only {}: RingHash { minimum: 1024 } 10s by SourceIp pool max_retries: 2 OutlierDetection { consecutive_5xx: 5, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 1s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] } RetryBudget { percent: 1.0, min_concurrency: 3 }
              own-pool-only port 90: LeastRequest 10s pool max_retries: 2
              own-balancer-only {}: LeastRequest 10s Warmup { duration: 2s, minimum_percent: 10.0, aggression: 1.0 } pool max_connections: 1, max_retries: 1 OutlierDetection { consecutive_5xx: 5, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 1s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] } RetryBudget { percent: 1.0, min_concurrency: 3 }
              own-balancer-only port 90: LeastRequest 10s Warmup { duration: 2s, minimum_percent: 10.0, aggression: 1.0 } pool max_retries: 9
              own-port {}: RingHash { minimum: 1024 } 10s by SourceIp pool max_connections: 1, max_retries: 1 OutlierDetection { consecutive_5xx: 5, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 3s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] } RetryBudget { percent: 3.0, min_concurrency: 3 }
              own-port port 80: Random 10s RetryBudget { percent: 1.0, min_concurrency: 3 }
              own-port port 90: LeastRequest 10s pool max_retries: 9 OutlierDetection { consecutive_5xx: 5, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 3s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] } RetryBudget { percent: 3.0, min_concurrency: 3 }
        "#]],
    );
}

#[test]
fn what_is_not_honoured_in_a_policy_is_said() {
    check(
        "
kind: DestinationRule
metadata: { name: a, namespace: shop }
spec:
  host: cart
  trafficPolicy:
    tunnel: { targetHost: x, targetPort: 1 }
    proxyProtocol: { version: V1 }
    retryBudget: { budgetInterval: 1s }
    loadBalancer: { zoneAwareLbSetting: { enabled: true } }
    connectionPool: { http: { http2KeepAlive: { interval: 1s } } }
",
        nothing,
        expect![[r#"
            warning DestinationRule shop/a spec.host: no service `cart.shop.svc.cluster.local`
            warning DestinationRule shop/a spec.trafficPolicy.connectionPool.http.http2KeepAlive: not supported yet, ignored
            warning DestinationRule shop/a spec.trafficPolicy.loadBalancer.zoneAwareLbSetting: not supported yet, ignored
            warning DestinationRule shop/a spec.trafficPolicy.proxyProtocol: not supported yet, ignored
            warning DestinationRule shop/a spec.trafficPolicy.retryBudget.budgetInterval: not supported yet, ignored
            warning DestinationRule shop/a spec.trafficPolicy.tunnel: not supported yet, ignored
        "#]],
    );
}

/// The field that has no effect on its host is named.
#[test]
fn what_a_host_gives_no_room_for_is_said() {
    let rule = |name: &str, host: &str, policy: &str| {
        format!(
            "
---
kind: DestinationRule
metadata: {{ name: {name}, namespace: shop }}
spec: {{ host: {host}, trafficPolicy: {{ {policy} }} }}"
        )
    };
    let detection = "outlierDetection: { consecutive5xxErrors: 1 }";
    let yaml = format!(
        "
kind: Service
metadata: {{ name: cart, namespace: shop }}
spec: {{ clusterIP: 10.1.0.1, ports: [{{ name: http, port: 80 }}] }}
---
kind: Service
metadata: {{ name: pods, namespace: shop }}
spec: {{ clusterIP: None, ports: [{{ name: http, port: 80 }}, {{ name: tcp, port: 81 }}] }}
---
kind: Service
metadata: {{ name: alias, namespace: shop }}
spec: {{ type: ExternalName, externalName: api.example.com }}
---
kind: ServiceEntry
metadata: {{ name: outside, namespace: shop }}
spec:
  hosts: [none.example.com]
  ports: [{{ number: 80, name: http, protocol: HTTP }}]
---
kind: ServiceEntry
metadata: {{ name: static, namespace: shop }}
spec:
  hosts: [static.example.com]
  ports: [{{ number: 80, name: http, protocol: HTTP }}]
  resolution: STATIC
  endpoints: [{{ address: 192.0.2.1 }}]{}{}{}{}{}
",
        rule("a", "cart", &format!("loadBalancer: {{ simple: PASSTHROUGH }}, {detection}")),
        rule("b", "pods", &format!("loadBalancer: {{ simple: PASSTHROUGH }}, {detection}")),
        rule("c", "alias", detection),
        rule(
            "d",
            "none.example.com",
            &format!(
                "loadBalancer: {{ simple: RANDOM }}, connectionPool: {{ tcp: {{ maxConnections: 1 }} }}, \
                 portLevelSettings: [{{ port: {{ number: 80 }}, {detection} }}]"
            )
        ),
        rule(
            "e",
            "static.example.com",
            &format!("loadBalancer: {{ simple: PASSTHROUGH }}, {detection}")
        ),
    );
    check(
        &yaml,
        nothing,
        expect![[r#"
            warning DestinationRule shop/a spec.trafficPolicy.loadBalancer.simple: PASSTHROUGH has no effect: a virtual address is no endpoint, so one is chosen at random
            warning DestinationRule shop/b spec.trafficPolicy.outlierDetection: no effect on port 81: clients choose the pod of a connection that is not HTTP
            warning DestinationRule shop/c spec.host: no effect: an ExternalName, for which the rules of `api.example.com` hold
            warning DestinationRule shop/d spec.trafficPolicy.loadBalancer: no effect: the endpoint is the address that a client dials
            warning DestinationRule shop/d spec.trafficPolicy.portLevelSettings.outlierDetection: no effect: the endpoint is the address that a client dials, and stays it
            warning DestinationRule shop/e spec.trafficPolicy.outlierDetection: no effect: the endpoint is the address that a client dials, and stays it
        "#]],
    );
}
