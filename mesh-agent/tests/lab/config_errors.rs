//! Issue 8, line 9: mistakes in the configuration get a clear message and leave the last good
//! version in force.

use xtask::lab::Lab;

use crate::support::{self, SHOP, SHOP_PODS};

fn diagnostics(lab: &Lab) -> String {
    lab.meshctl("node1", &["config", "diagnostics"]).unwrap()
}

fn route(host: &str, subset: &str) -> String {
    format!(
        r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: echo, namespace: shop }}
spec:
  hosts: [echo]
  http:
  - route:
    - destination: {{ host: {host}, subset: {subset} }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: echo, namespace: shop }}
spec:
  host: echo
  subsets:
  - {{ name: far, labels: {{ version: far }} }}
"#
    )
}

fn only_far(lab: &Lab) {
    let client = lab.pod("shop/client").unwrap();
    for _ in 0..20 {
        let answer =
            support::json(&client, &["curl", "-sS", "--max-time", "20", "http://echo.shop/"]);
        assert_eq!(answer["pod"], "far", "the last good rule holds");
    }
}

#[test]
fn mistakes_are_named_and_the_last_good_version_stays() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    lab.apply(&route("echo", "far")).unwrap();
    let client = lab.pod("shop/client").unwrap();
    support::eventually("all requests go to one subset", || {
        (0..10)
            .all(|_| {
                support::json(&client, &["curl", "-sS", "--max-time", "20", "http://echo.shop/"])
                    ["pod"]
                    == "far"
            })
            .then_some(())
    });

    lab.apply(&route("echo", "fra")).unwrap();
    support::eventually("the missing subset is named", || {
        let text = diagnostics(&lab);
        (text.contains("VirtualService shop/echo")
            && text.contains("spec.http[0].route[0].destination.subset")
            && text.contains("fra"))
        .then_some(())
    });
    only_far(&lab);

    let file = lab.config_dir().join("broken.yaml");
    std::fs::write(&file, "kind: VirtualService\n\tmetadata: { name: x }\n").unwrap();
    support::eventually("the tab is named", || {
        let text = diagnostics(&lab);
        (text.contains("broken.yaml") && text.contains("tab")).then_some(())
    });
    only_far(&lab);
    std::fs::remove_file(&file).unwrap();

    lab.apply(&route("nowhere", "far")).unwrap();
    support::eventually("the missing host is named", || {
        let text = diagnostics(&lab);
        text.contains("nowhere").then_some(())
    });
    lab.apply(&route("echo", "far")).unwrap();
    support::eventually("nothing is left to complain about", || {
        let text = diagnostics(&lab);
        (!text.contains("shop/echo") && !text.contains("broken.yaml")).then_some(())
    });
    only_far(&lab);
}
