//! The corpus of the fuzz target `tunnel_wire`, and arbitrary input, as plain tests.

use proptest::prelude::*;

use super::super::fuzz::run;

/// One file per seed, as libfuzzer keeps them.
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/tunnel_wire");

#[test]
fn corpus() {
    let mut seeds = 0;
    for entry in std::fs::read_dir(CORPUS).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        run(&seed);
        // Both roles, and several ways to cut the same input.
        for choice in [0, 1, 30, 31, 254, 255] {
            run(&[&[choice], seed.get(1..).unwrap_or_default()].concat());
        }
        seeds += 1;
    }
    assert!(seeds >= 8, "the corpus is there");
}

/// Input that begins well, so that the interesting parts are reached.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let frame = (0..10_u8, any::<u8>(), 0..8_u8, prop::collection::vec(any::<u8>(), 0..40));
    (any::<u8>(), prop::collection::vec(frame, 0..60)).prop_map(|(choice, frames)| {
        let mut input = vec![choice];
        if choice & 1 == 0 {
            input.extend_from_slice(super::super::frame::PREFACE);
        }
        input.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        for (kind, flags, stream, payload) in frames {
            input.extend_from_slice(&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream]);
            input.extend_from_slice(&payload);
        }
        input
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn bounds_hold_for_anything(input in input()) {
        run(&input);
    }
}
