//! The cryptography of tunnels, composed: cipher suites from `ring` (its AES-GCM is about twice as
//! fast on CPUs with VAES), key exchange from `aws-lc-rs` (it has ML-KEM).

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};

/// TLS 1.3 only; X25519MLKEM768 before X25519.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}
