//! Issue 8, line 4: STRICT refuses plaintext from outside the mesh, PERMISSIVE takes it, per port
//! where asked.

use xtask::lab::Pod;

use crate::support::{self, SHOP, SHOP_PODS};

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: \
         {{ name: default, namespace: shop }}\nspec: {spec}\n"
    )
}

/// Whether plaintext reaches a port of the pod.
fn taken(from: &Pod, to: &Pod, port: u16) -> bool {
    let url = format!("http://{}/", std::net::SocketAddr::new(to.ips[0], port));
    from.exec(&["curl", "-sS", "--max-time", "20", "-o", "/dev/null", &url])
        .expect("curl starts")
        .status
        .success()
}

#[test]
fn modes_hold_for_mesh_namespace_workload_and_port() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    lab.wait_ready("outside/stranger").unwrap();
    let (client, stranger) =
        (lab.pod("shop/client").unwrap(), lab.pod("outside/stranger").unwrap());
    let (near, far) = (lab.pod("shop/near").unwrap(), lab.pod("shop/far").unwrap());
    assert!(taken(&stranger, &near, 8080) && taken(&stranger, &far, 8080), "permissive by default");

    lab.apply(&policy("{ mtls: { mode: STRICT } }")).unwrap();
    for server in [&near, &far] {
        support::eventually("strict refuses", || (!taken(&stranger, server, 8080)).then_some(()));
        assert!(taken(&client, server, 8080), "a client in the mesh still gets through");
    }

    let by_port = "{ selector: { matchLabels: { version: far } }, mtls: { mode: STRICT }, \
                   portLevelMtls: { 8080: { mode: PERMISSIVE } } }";
    lab.apply(&policy(by_port)).unwrap();
    support::eventually("the port is open", || taken(&stranger, &far, 8080).then_some(()));
    support::eventually("only the selected pod is strict", || {
        taken(&stranger, &near, 8080).then_some(())
    });
    let script = format!(
        r#"
import socket
try:
    s = socket.create_connection(("{}", 9000), 20)
    s.settimeout(20); s.sendall(b"x"); print("echo" if s.recv(1) else "eof")
except ConnectionError: print("reset")
"#,
        far.ips[0]
    );
    let other = support::ok(&stranger, &["python3", "-c", &script]);
    assert_eq!(other.trim(), "reset", "the other port is strict");

    let mesh_wide = policy("{ mtls: { mode: STRICT } }").replace("shop", "istio-system");
    lab.delete("PeerAuthentication", "shop", "default").unwrap();
    lab.apply(&mesh_wide).unwrap();
    support::eventually("strict in the whole mesh", || {
        (!taken(&stranger, &near, 8080)).then_some(())
    });
}
