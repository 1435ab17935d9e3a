//! `trafficPolicy.tls`: inheritance, what is refused, what has no effect.

use expect_test::{Expect, expect};

use super::{check, externals, rules};

/// Subsets `a`, `b`, ... of a rule with these `tls`, beside a service.
fn check_tls(top: &str, subsets: &[&str], expected: Expect) {
    let subsets: String = ('a'..)
        .zip(subsets)
        .map(|(name, policy)| format!("  - {{ name: {name}, trafficPolicy: {policy} }}\n"))
        .collect();
    let subsets = if subsets.is_empty() { subsets } else { format!("  subsets:\n{subsets}") };
    let objects = format!(
        "
kind: Service
metadata: {{ name: cart, namespace: shop }}
spec: {{ clusterIP: 10.1.0.1, ports: [{{ name: http, port: 80 }}] }}
---
kind: DestinationRule
metadata: {{ name: cart, namespace: shop }}
spec:
  host: cart
  trafficPolicy: {top}
{subsets}"
    );
    check(&objects, rules, expected);
}

#[test]
fn a_block_is_inherited_or_replaced_as_a_whole() {
    check_tls(
        "{ tls: { mode: SIMPLE, sni: Cart.example }, portLevelSettings: [{ port: { number: 81 } }, \
         { port: { number: 82 }, tls: { mode: SIMPLE } }] }",
        &[
            "{ loadBalancer: { simple: RANDOM } }",
            "{ tls: { mode: SIMPLE, subjectAltNames: [x, y] } }",
            "{ tls: { mode: ISTIO_MUTUAL } }",
            "{ tls: { mode: SIMPLE, insecureSkipVerify: true }, portLevelSettings: \
             [{ port: { number: 80 } }] }",
            "{ tls: { mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /ca, \
             caCrl: /crl } }",
            "{ tls: { mode: SIMPLE, credentialName: system } }",
        ],
        expect![[r#"
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 10s tls sni=cart.example
              port 81: LeastRequest 10s
              port 82: LeastRequest 10s tls
              a {}: Random 10s tls sni=cart.example
              a port 81: Random 10s
              a port 82: Random 10s tls
              b {}: LeastRequest 10s tls names=["x", "y"]
              c {}: LeastRequest 10s
              d {}: LeastRequest 10s tls unverified
              d port 80: LeastRequest 10s
              e {}: LeastRequest 10s tls roots=/ca revoked=/crl certificate=/c key=/k
              f {}: LeastRequest 10s tls
        "#]],
    );
}

#[test]
fn what_istio_refuses_is_refused() {
    for (tls, expected) in [
        (
            "{ mode: MUTUAL }",
            expect![[r#"
            error DestinationRule shop/cart spec.trafficPolicy.tls.clientCertificate: missing: `mode: MUTUAL` needs it
            error DestinationRule shop/cart spec.trafficPolicy.tls.privateKey: missing: `mode: MUTUAL` needs it
        "#]],
        ),
        (
            "{ mode: MUTUAL, credentialName: a, clientCertificate: /c, privateKey: /k, \
             caCertificates: /a, caCrl: /r }",
            expect![[r#"
                error DestinationRule shop/cart spec.trafficPolicy.tls.caCertificates: cannot be given with `credentialName`
                error DestinationRule shop/cart spec.trafficPolicy.tls.caCrl: cannot be given with `credentialName`
                error DestinationRule shop/cart spec.trafficPolicy.tls.clientCertificate: cannot be given with `credentialName`
                error DestinationRule shop/cart spec.trafficPolicy.tls.privateKey: cannot be given with `credentialName`
                warning DestinationRule shop/cart spec.trafficPolicy.tls.credentialName: not supported: an agent may read no Secrets, so that connections to this destination fail (503 UF); mount the files into the clients' pods and name their paths instead
            "#]],
        ),
        (
            "{ mode: SIMPLE, insecureSkipVerify: true, caCertificates: /a, subjectAltNames: [x] }",
            expect![[r#"
                error DestinationRule shop/cart spec.trafficPolicy.tls.caCertificates: cannot be given with `insecureSkipVerify: true`
                error DestinationRule shop/cart spec.trafficPolicy.tls.subjectAltNames: cannot be given with `insecureSkipVerify: true`
            "#]],
        ),
        (
            "{ mode: SIMPLE, insecureSkipVerify: true, credentialName: a }",
            expect![[r#"
            error DestinationRule shop/cart spec.trafficPolicy.tls.credentialName: cannot be given with `insecureSkipVerify: true`
            warning DestinationRule shop/cart spec.trafficPolicy.tls.credentialName: not supported: an agent may read no Secrets, so that connections to this destination fail (503 UF); mount the files into the clients' pods and name their paths instead
        "#]],
        ),
        (
            "{ mode: SIMPLE, sni: 'not a name' }",
            expect![[r#"
            error DestinationRule shop/cart spec.trafficPolicy.tls.sni: `not a name` is not a DNS name
        "#]],
        ),
        (
            "{ mode: SIMPEL }",
            expect![[r#"
            error DestinationRule shop/cart spec.trafficPolicy.tls.mode: `SIMPEL` is not known; did you mean `SIMPLE`?
        "#]],
        ),
    ] {
        check_tls(&format!("{{ tls: {tls} }}"), &[], expected);
    }
}

#[test]
fn what_has_no_effect_is_said() {
    check_tls(
        "{ tls: { clientCertificate: /c, sni: a } }",
        &[
            "{ tls: { mode: ISTIO_MUTUAL, privateKey: /k, subjectAltNames: [x] } }",
            "{ tls: { mode: SIMPLE, clientCertificate: /c } }",
            "{ tls: { mode: SIMPLE, credentialName: roots } }",
            "{ tls: { mode: MUTUAL, credentialName: keys } }",
            "{ tls: { mode: MUTUAL, credentialName: system } }",
        ],
        expect![[r#"
            warning DestinationRule shop/cart spec.subsets[0].trafficPolicy.tls.privateKey: no effect with `mode: ISTIO_MUTUAL`
            warning DestinationRule shop/cart spec.subsets[0].trafficPolicy.tls.subjectAltNames: no effect with `mode: ISTIO_MUTUAL`
            warning DestinationRule shop/cart spec.subsets[1].trafficPolicy.tls.clientCertificate: no effect with `mode: SIMPLE`
            warning DestinationRule shop/cart spec.subsets[2].trafficPolicy.tls.credentialName: not supported: an agent may read no Secrets, so that connections to this destination fail (503 UF); mount the files into the clients' pods and name their paths instead
            warning DestinationRule shop/cart spec.subsets[3].trafficPolicy.tls.credentialName: not supported: an agent may read no Secrets, so that connections to this destination fail (503 UF); mount the files into the clients' pods and name their paths instead
            warning DestinationRule shop/cart spec.subsets[4].trafficPolicy.tls.credentialName: not supported: an agent may read no Secrets, so that connections to this destination fail (503 UF); mount the files into the clients' pods and name their paths instead
            warning DestinationRule shop/cart spec.trafficPolicy.tls.clientCertificate: no effect with `mode: DISABLE`
            warning DestinationRule shop/cart spec.trafficPolicy.tls.mode: DISABLE is ignored: mutual TLS is used wherever both sides are in the mesh
            warning DestinationRule shop/cart spec.trafficPolicy.tls.sni: no effect with `mode: DISABLE`
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 10s
              a {}: LeastRequest 10s
              b {}: LeastRequest 10s tls
              c {}: LeastRequest 10s tls secret=roots
              d {}: LeastRequest 10s tls secret=keys
              e {}: LeastRequest 10s tls secret=system
        "#]],
    );
}

#[test]
fn an_external_name_goes_on_as_it_is() {
    check(
        "
kind: Service
metadata: { name: cart, namespace: shop }
spec: { type: ExternalName, externalName: cart.example, ports: [{ name: http, port: 80 }] }
---
kind: DestinationRule
metadata: { name: cart, namespace: shop }
spec: { host: cart, trafficPolicy: { portLevelSettings: [{ port: { number: 80 }, tls: { mode: SIMPLE } }] } }
",
        rules,
        expect![[r#"
            warning DestinationRule shop/cart spec.host: `tls` has no effect: the host is a Service of type ExternalName, whose connections go on as they are; describe it by a ServiceEntry
            warning DestinationRule shop/cart spec.host: no effect: an ExternalName, for which the rules of `cart.example` hold
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: LeastRequest 10s
              port 80: LeastRequest 10s tls
        "#]],
    );
}

#[test]
fn names_of_a_service_entry() {
    check(
        "
kind: ServiceEntry
metadata: { name: api, namespace: shop }
spec:
  hosts: [api.example]
  resolution: DNS
  ports: [{ number: 80, name: http, protocol: HTTP, targetPort: 443 }]
  subjectAltNames: [one.example, 'spiffe://td/ns/a/sa/b']
",
        externals,
        expect![[r#"
            shop/api.example ServiceEntry shop/api [] names ["one.example", "spiffe://td/ns/a/sa/b"] dns ["api.example"] pending
              80 "http" Http
        "#]],
    );
}
