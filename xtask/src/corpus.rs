//! Runs the body of a fuzz target over its corpus, for the tests that go with each target.
//!
//! Not a fuzzer: no coverage, no search. Every seed as it is, and then a bounded number of random
//! changes of seeds, the same ones in every run, so that a failure is one for everybody.

use std::fs;

use crate::tool::workspace;

/// Longest input that is made here: longer ones cost time and find nothing more.
const MAX_INPUT: usize = 4096;
/// Changes to one input, at most.
const MAX_CHANGES: u64 = 6;

/// Runs `body` on every seed of the target `name`, then on `changed` changes of them.
///
/// # Panics
/// If the corpus is not there, or `body` panics; then the input is printed.
pub fn run(name: &str, changed: u32, body: fn(&[u8])) {
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "the corpus of {name} is empty");
    for seed in &seeds {
        one(seed, body);
    }
    let mut draw = Draw(0x6d61_6c68_615f_6d65);
    for _ in 0..changed {
        let mut input = seeds[draw.below(seeds.len())].clone();
        for _ in 0..=draw.next() % MAX_CHANGES {
            change(&mut input, &seeds, &mut draw);
        }
        input.truncate(MAX_INPUT);
        one(&input, body);
    }
}

/// One file per seed, as libFuzzer keeps them; in the order of their names.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = workspace().join("mesh-agent/fuzz/corpus").join(name);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("the corpus {name}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a seed can be read")).collect()
}

fn one(input: &[u8], body: fn(&[u8])) {
    let told = Tell(input);
    body(input);
    drop(told);
}

/// Says which input it was if the body panics.
struct Tell<'a>(&'a [u8]);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input: b\"{}\"", self.0.escape_ascii());
        }
    }
}

/// One change, of the kinds that libFuzzer makes.
fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], draw: &mut Draw) {
    let at = draw.below(input.len() + 1);
    let end = at + draw.below(input.len() - at + 1);
    match draw.below(6) {
        0 => input.insert(at, draw.octet()),
        1 => drop(input.drain(at..end)),
        2 => {
            let part = input[at..end].to_vec();
            let to = draw.below(input.len() + 1);
            input.splice(to..to, part);
        }
        3 => {
            let other = &seeds[draw.below(seeds.len())];
            input.truncate(at);
            input.extend_from_slice(&other[draw.below(other.len() + 1)..]);
        }
        4 if at < input.len() => input[at] ^= 1 << draw.below(8),
        _ if at < input.len() => input[at] = draw.octet(),
        _ => {}
    }
}

/// Numbers that look random and are the same in every run (SplitMix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn octet(&mut self) -> u8 {
        self.next() as u8
    }
}
