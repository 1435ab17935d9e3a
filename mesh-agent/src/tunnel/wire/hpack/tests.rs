//! RFC 7541 Appendix C, the table's borders, and arbitrary input.

use proptest::prelude::*;

use super::super::testing::unhex;
use super::*;

fn decoded(decoder: &mut Decoder, hex: &str) -> Result<String, HpackError> {
    let mut text = String::new();
    decoder.decode(&unhex(hex), |name, value| {
        text.push_str(&String::from_utf8_lossy(name));
        text.push_str(": ");
        text.push_str(&String::from_utf8_lossy(value));
        text.push('\n');
    })?;
    Ok(text)
}

fn table(decoder: &Decoder) -> usize {
    assert_eq!(decoder.size, decoder.entries.iter().map(Entry::size).sum::<usize>());
    decoder.size
}

const REQUESTS: [&str; 3] = [
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n",
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache\n",
    ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\n\
     custom-key: custom-value\n",
];

#[test]
fn single_fields() {
    // C.2.1 to C.2.4.
    let mut decoder = Decoder::new();
    let hex = "400a637573746f6d2d6b65790d637573746f6d2d686561646572";
    assert_eq!(decoded(&mut decoder, hex).unwrap(), "custom-key: custom-header\n");
    assert_eq!(table(&decoder), 55);
    let mut decoder = Decoder::new();
    let hex = "040c2f73616d706c652f70617468";
    assert_eq!(decoded(&mut decoder, hex).unwrap(), ":path: /sample/path\n");
    let hex = "100870617373776f726406736563726574";
    assert_eq!(decoded(&mut decoder, hex).unwrap(), "password: secret\n");
    assert_eq!(decoded(&mut decoder, "82").unwrap(), ":method: GET\n");
    assert_eq!(table(&decoder), 0);
}

#[test]
fn requests_without_and_with_huffman() {
    // C.3 and C.4.
    let plain = [
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ];
    let huffman = [
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new();
        for ((hex, text), size) in blocks.iter().zip(REQUESTS).zip([57, 110, 164]) {
            assert_eq!(decoded(&mut decoder, hex).unwrap(), text);
            assert_eq!(table(&decoder), size);
        }
    }
}

#[test]
fn responses_evict() {
    // C.6, whose table holds 256 octets: the size update stands in front of the first block.
    let blocks = [
        "3fe101488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad17\
         1863c78f0b97c8e9ae82ae43d3",
        "4883640effc1c0bf",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335\
         dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
    ];
    let texts = [
        ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
         location: https://www.example.com\n",
        ":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
         location: https://www.example.com\n",
        ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\n\
         location: https://www.example.com\ncontent-encoding: gzip\n\
         set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\n",
    ];
    let mut decoder = Decoder::new();
    for ((hex, text), size) in blocks.iter().zip(texts).zip([222, 222, 215]) {
        assert_eq!(decoded(&mut decoder, hex).unwrap(), text);
        assert_eq!(table(&decoder), size);
    }
}

#[test]
fn errors_are_named() {
    let mut decoder = Decoder::new();
    assert_eq!(decoded(&mut decoder, "80"), Err(HpackError::Index));
    assert_eq!(decoded(&mut decoder, "be"), Err(HpackError::Index));
    assert_eq!(decoded(&mut decoder, "3fe21f"), Err(HpackError::TableSize), "4097");
    assert_eq!(decoded(&mut decoder, "8220"), Err(HpackError::TableSize), "not at the start");
    assert_eq!(decoded(&mut decoder, "0005"), Err(HpackError::Truncated));
    assert_eq!(decoded(&mut decoder, "ffffffffff01"), Err(HpackError::Integer));
    assert_eq!(decoded(&mut decoder, "000181"), Err(HpackError::Truncated));
    assert_eq!(decoded(&mut decoder, "0001618100"), Err(HpackError::Huffman));
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new();
    decoded(&mut decoder, "400161 0162".replace(' ', "").as_str()).unwrap();
    assert_eq!(table(&decoder), 34);
    let mut block = vec![0x40, 1, b'x'];
    encode_string(&[b'y'; TABLE_SIZE], &mut block);
    decoder.decode(&block, |_, _| ()).unwrap();
    assert_eq!(table(&decoder), 0);
}

proptest! {
    /// What we encode, our decoder and so the RFC's reader understands.
    #[test]
    fn encoder_round_trip(name in "[a-z-]{1,200}", value in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut block = Vec::new();
        encode_no_table(&mut block);
        encode_indexed_name(1, &value, &mut block);
        encode_literal(name.as_bytes(), &value, &mut block);
        encode_indexed(8, &mut block);
        let mut fields = Vec::new();
        Decoder::new().decode(&block, |n, v| fields.push((n.to_vec(), v.to_vec()))).unwrap();
        prop_assert_eq!(fields, vec![
            (b":authority".to_vec(), value.clone()),
            (name.into_bytes(), value),
            (b":status".to_vec(), b"200".to_vec()),
        ]);
    }

    /// Arbitrary blocks neither panic nor grow the table past its limit.
    #[test]
    fn table_stays_bounded(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..40)) {
        let mut decoder = Decoder::new();
        for block in blocks {
            // Errors are expected here: most input is nonsense.
            let _ = decoder.decode(&block, |_, _| ());
            prop_assert!(table(&decoder) <= TABLE_SIZE);
        }
    }
}
