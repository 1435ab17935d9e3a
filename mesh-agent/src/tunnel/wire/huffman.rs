//! HPACK's Huffman code: decoding only. What we send is short and goes out as it is.
//!
//! The code of RFC 7541 Appendix B is canonical (codes of one length count upwards in the order
//! of their symbols), so the lengths alone define it; the tables are computed at compile time.
//!
//! Invariant: output is at most 8/5 of the input, as no code is shorter than 5 bits.

/// Code length per symbol; the last one is EOS (RFC 7541 Appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const LONGEST: usize = 30;

/// Per code length: the first code, where its symbols start, and how many there are.
struct Row {
    first: u32,
    start: u16,
    count: u16,
}

struct Tables {
    rows: [Row; LONGEST + 1],
    symbols: [u16; 257],
}

static TABLES: Tables = build();

const fn build() -> Tables {
    let mut rows = [const { Row { first: 0, start: 0, count: 0 } }; LONGEST + 1];
    let mut symbols = [0; 257];
    let (mut code, mut next, mut length) = (0_u32, 0_u16, 1);
    while length <= LONGEST {
        code <<= 1;
        rows[length].first = code;
        rows[length].start = next;
        let mut symbol = 0_u16;
        while symbol < 257 {
            if LENGTHS[symbol as usize] as usize == length {
                symbols[next as usize] = symbol;
                next += 1;
                code += 1;
            }
            symbol += 1;
        }
        rows[length].count = next - rows[length].start;
        length += 1;
    }
    Tables { rows, symbols }
}

/// Appends the decoded form of `input` to `output`. `None` if `input` is not a valid encoding:
/// EOS inside, padding longer than 7 bits or not all ones (RFC 7541 section 5.2).
pub(super) fn decode(input: &[u8], output: &mut Vec<u8>) -> Option<()> {
    let (mut code, mut length) = (0_u32, 0_usize);
    for byte in input {
        for shift in (0..8).rev() {
            code = (code << 1) | u32::from((byte >> shift) & 1);
            length += 1;
            let row = TABLES.rows.get(length)?;
            let Some(nth) = code.checked_sub(row.first).filter(|n| *n < u32::from(row.count))
            else {
                continue;
            };
            let symbol = TABLES.symbols.get(usize::from(row.start) + nth as usize)?;
            output.push(u8::try_from(*symbol).ok()?);
            (code, length) = (0, 0);
        }
    }
    (length < 8 && code == (1 << length) - 1).then_some(())
}

#[cfg(test)]
mod tests {
    use super::decode;

    fn decoded(hex: &str) -> Option<String> {
        let mut output = Vec::new();
        decode(&super::super::testing::unhex(hex), &mut output)?;
        Some(String::from_utf8(output).unwrap())
    }

    #[test]
    fn vectors_of_the_rfc() {
        // RFC 7541 Appendix C.4 and C.6.
        for (hex, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
            (
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5\
                 b1063d5007",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
        ] {
            assert_eq!(decoded(hex).as_deref(), Some(text));
        }
    }

    #[test]
    fn bad_padding_and_eos_are_refused() {
        // "0" is 00000 in 5 bits: padding of zeros, then padding of a whole byte, then EOS.
        assert_eq!(decoded("00"), None);
        assert_eq!(decoded("07").as_deref(), Some("0"));
        assert_eq!(decoded("07ff"), None);
        assert_eq!(decoded("ffffffff"), None);
    }
}
