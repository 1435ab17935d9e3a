//! Databases and a broker among the lab's images: Debian's programs, started as the official
//! images start theirs, on a fresh file system and as an unprivileged user.
//!
//! Not here: whatever those images do that no manifest of ours asks for (other users, databases,
//! scripts to load).

use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::{Image, words};
use crate::tool::installed;

const ENTRYPOINT: &str = "/usr/local/bin/docker-entrypoint.sh";

/// An image that begins with a script of ours.
fn scripted(script: &str, arguments: &[&str]) -> Image {
    Image {
        entrypoint: words(&["sh", ENTRYPOINT]),
        arguments: words(arguments),
        files: vec![(ENTRYPOINT, script.into())],
        ..Image::default()
    }
}

/// `POSTGRES_PASSWORD` is the one variable that is played.
pub(super) fn postgres() -> anyhow::Result<Image> {
    let root = Path::new("/usr/lib/postgresql");
    let versions = root.read_dir().into_iter().flatten().filter_map(Result::ok);
    let mut programs = versions.map(|version| version.path().join("bin/postgres"));
    ensure!(
        programs.any(|program| program.is_file()),
        "there is no PostgreSQL server in {}: run `cargo xtask setup`",
        root.display()
    );
    Ok(scripted(include_str!("postgres.sh"), &["postgres"]))
}

/// `MARIADB_ROOT_PASSWORD` is the one variable that is played.
pub(super) fn mariadb() -> anyhow::Result<Image> {
    installed("mariadbd")?;
    Ok(scripted(include_str!("mariadb.sh"), &["mariadbd"]))
}

pub(super) fn redis() -> anyhow::Result<Image> {
    // One program that looks at its own name. Debian's redis-tools has it as redis-check-rdb, and
    // brings no service that would be started; redis-server adds that and a link.
    let program = installed("redis-check-rdb")?;
    let programs: Vec<(PathBuf, String)> = vec![(program, "/usr/local/bin/redis-server".into())];
    Ok(Image { programs, ..scripted(include_str!("redis.sh"), &["redis-server"]) })
}

/// Without a configuration of its own it serves the pod's loopback only, as the real one does.
pub(super) fn mosquitto() -> anyhow::Result<Image> {
    let program = installed("mosquitto")?.to_string_lossy().into_owned();
    let configuration = "/mosquitto/config/mosquitto.conf";
    Ok(Image {
        arguments: words(&[&program, "-c", configuration]),
        files: vec![(configuration, String::new())],
        ..Image::default()
    })
}
