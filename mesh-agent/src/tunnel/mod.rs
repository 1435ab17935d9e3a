//! HBONE: HTTP/2 CONNECT in mutual TLS 1.3 between nodes, compatible with Istio's ztunnel.
//!
//! `wire` is the protocol and pure. `connection` joins it with one socket and rustls; `stream`
//! is what its users hold; `client` and `pool` dial, `server` accepts.
//!
//! Everything here stays on one worker (`Rc`, `RefCell`), and no borrow is held over an await.

pub mod wire;
