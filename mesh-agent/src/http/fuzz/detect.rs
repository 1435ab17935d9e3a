//! The body of the fuzz target `detect`.
//!
//! The verdict must not depend on how the first bytes arrive: it is asked for every prefix, as a
//! slow client would have it, and compared with the verdict on the whole.

use crate::http::{Detected, PREFIX_LIMIT, detect};

/// Looks at `data` octet by octet.
///
/// # Panics
/// If a verdict changes, comes too late or too early, or is not what its bytes begin with.
pub fn run(data: &[u8]) {
    let whole = detect(data);
    // Twice the limit: what is undecided behind it would be seen.
    let lengths = 0..=data.len().min(2 * PREFIX_LIMIT);
    for prefix in lengths.filter_map(|length| data.get(..length)) {
        match detect(prefix) {
            Detected::NeedMore => open(prefix),
            verdict => assert_eq!(verdict, whole, "it changed after {prefix:?}"),
        }
    }
    let start = data.get(..PREFIX_LIMIT).unwrap_or(data);
    assert_eq!(detect(start), whole, "the limit is not enough");
    match whole {
        Detected::Http1 => {
            let word = data.split(|octet| *octet == b' ').next().unwrap_or_default();
            assert!(http::Method::from_bytes(word).is_ok(), "{word:?} is no method");
        }
        Detected::Http2 => assert!(data.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        Detected::Tls => assert!(data.starts_with(&[22, 3])),
        Detected::Opaque | Detected::NeedMore => {}
    }
}

/// More is asked for only where both are possible: a protocol that is known, and another. An octet
/// more can tell, or, within a request line, an octet and the line's end.
fn open(prefix: &[u8]) {
    assert!(prefix.len() < PREFIX_LIMIT, "still undecided after {prefix:?}");
    let (mut known, mut opaque) = (false, false);
    for octet in 0..=u8::MAX {
        let longer = [prefix, &[octet, b'\n']].concat();
        for verdict in [detect(&longer[..=prefix.len()]), detect(&longer)] {
            known |= verdict != Detected::Opaque;
            opaque |= verdict == Detected::Opaque;
        }
    }
    assert!(known, "{prefix:?} can become nothing that is known");
    // What fills the limit without a line's end is taken for a long request.
    let room = prefix.len() + 2 <= PREFIX_LIMIT;
    assert!(opaque || !room, "{prefix:?} can become nothing else");
}
