//! The cryptography of the mesh: one rustls provider, composed of two libraries.
//!
//! Cipher suites come from `ring`, because its AES-GCM uses VAES with AVX2 and is about twice as
//! fast on such machines; key exchange, signatures and verification come from `aws-lc-rs`, which
//! has ML-KEM. Invariant: TLS 1.3 only, and the first key share offered is post-quantum.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};

/// Preference order. AES-128 first: 10 % faster than AES-256 and strong enough for keys that live
/// as long as a connection.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
});

/// The provider that every TLS configuration of the agent is built with.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// A number from the provider's random source, for jitter. When the source fails the result is the
/// middle of the range: jitter is a courtesy, not worth an error.
pub(super) fn draw() -> u32 {
    let mut bytes = [0; 4];
    match PROVIDER.secure_random.fill(&mut bytes) {
        Ok(()) => u32::from_le_bytes(bytes),
        Err(_) => u32::MAX / 2,
    }
}
