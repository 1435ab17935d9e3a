//! What a `Host` or `:authority` may be. Pure.
//!
//! Sources: RFC 9110 §4.2.4 and §7.2, RFC 3986 §3.2.2.

/// `uri-host [ ":" port ]`: neither a user nor anything behind (RFC 9110 §7.2, RFC 3986 §3.2.2).
pub fn is_authority(text: impl AsRef<[u8]>) -> bool {
    let text = text.as_ref();
    let (host, port) = match text.strip_prefix(b"[") {
        Some(literal) => {
            let Some(end) = literal.iter().position(|byte| *byte == b']') else { return false };
            let (address, rest) = literal.split_at(end);
            let address = !address.is_empty() && address.iter().all(|byte| is_of_name(*byte, b":"));
            (address, rest.get(1..).unwrap_or_default())
        }
        None => {
            let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
            let (name, rest) = text.split_at(end);
            (is_name(name), rest)
        }
    };
    host && match port.strip_prefix(b":") {
        None => port.is_empty(),
        Some(port) => {
            port.is_empty()
                || std::str::from_utf8(port).is_ok_and(|port| {
                    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
                })
        }
    }
}

fn is_name(name: &[u8]) -> bool {
    let mut escaped = name.split(|byte| *byte == b'%');
    let first = escaped.next().unwrap_or_default();
    let legal = |part: &[u8]| part.iter().all(|byte| is_of_name(*byte, b""));
    let hexadecimal =
        |part: &[u8]| part.get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    !name.is_empty() && legal(first) && escaped.all(|part| hexadecimal(part) && legal(part))
}

/// `unreserved` and `sub-delims`, and what else is given.
fn is_of_name(byte: u8, more: &[u8]) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte) || more.contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for (text, legal) in [
            ("web", true),
            ("web.shop:80", true),
            ("web.shop.", true),
            ("web:", true),
            ("10.0.0.1:8080", true),
            ("[fd00::1]", true),
            ("[fd00::1]:80", true),
            ("w_b-1~", true),
            ("w%C3%A9b", true),
            ("", false),
            (":80", false),
            ("w%C3%Gb", false),
            ("web%", false),
            ("user@web", false),
            ("web/", false),
            ("web?x", false),
            ("web#x", false),
            ("web\\x", false),
            ("web x", false),
            ("web\"", false),
            ("w\u{e9}b", false),
            ("web:80:80", false),
            ("web:http", false),
            ("web:+80", false),
            ("web:65536", false),
            ("[]", false),
            ("[fd00::1", false),
            ("[fd00::1]80", false),
            ("[fd00::1]]", false),
            ("fd00::1", false),
        ] {
            assert_eq!(is_authority(text), legal, "{text}");
        }
    }
}
