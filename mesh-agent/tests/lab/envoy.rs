//! Issue 8, line 6: Envoy as HBONE client towards a Malha pod, and as HBONE server towards which a
//! Malha pod connects; both identities are checked.
