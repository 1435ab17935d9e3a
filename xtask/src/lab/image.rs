//! The table of images: what a container's `image` means on this machine.
//!
//! An image is a few files on top of the machine's own file system and the command that its
//! maker gave it. There are no registries and no layers.

mod bookinfo;
mod servers;

use std::path::PathBuf;

use anyhow::Context;

use crate::tool::installed;

/// Where programs that are built here appear in a container.
const LOCAL_BIN: &str = "/usr/local/bin";
/// Ports of `malha/echo` without arguments: HTTP (1.1, 2, gRPC, WebSocket), echoed TCP.
const ECHO: [&str; 4] = ["--http", "8080", "--tcp", "9000"];

/// What a container starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Image {
    /// Replaced by the manifest's `command`.
    pub(super) entrypoint: Vec<String>,
    /// Replaced by the manifest's `args`, dropped with its `command`.
    pub(super) arguments: Vec<String>,
    /// Variables; the manifest's own win.
    pub(super) environment: Vec<(String, String)>,
    /// Files that the image has: path in the container, contents.
    pub(super) files: Vec<(&'static str, String)>,
    /// Programs of this machine: where they are, path in the container.
    pub(super) programs: Vec<(PathBuf, String)>,
}

/// Looks an image up.
///
/// # Errors
/// The table has no such image, or the program behind it is not on this machine.
pub(super) fn look_up(image: &str) -> anyhow::Result<Image> {
    let mut found = entry(image)?;
    // For tests and hand work: in every container, whatever its image.
    for program in ["malha-echo", "malha-load"] {
        if let Ok(path) = built_here(program) {
            found.programs.push((path, format!("{LOCAL_BIN}/{program}")));
        }
    }
    Ok(found)
}

fn entry(image: &str) -> anyhow::Result<Image> {
    let (name, tag) = split(image);
    match name {
        "nginx" => nginx(None),
        "wesleywillians/nginx-ab" if tag == "b" => nginx(Some("Full Cycle B")),
        "wesleywillians/nginx-ab" => nginx(Some("Full Cycle A")),
        "wesleywillians/circuit-breaker-example-go" => servicex(tag),
        "curlimages/curl" => {
            installed("curl")?;
            // The real one runs curl and ends; a client that stays is what people want of it.
            Ok(Image { arguments: words(&["sleep", "infinity"]), ..Image::default() })
        }
        "busybox" | "alpine" | "debian" => {
            Ok(Image { arguments: words(&["sh"]), ..Image::default() })
        }
        "malha/echo" => {
            built_here("malha-echo")?;
            let entrypoint = vec!["malha-echo".into()];
            Ok(Image { entrypoint, arguments: words(&ECHO), ..Image::default() })
        }
        "fortio/fortio" => Ok(Image {
            entrypoint: vec!["/usr/bin/fortio".into()],
            arguments: vec!["server".into()],
            programs: vec![(crate::peers::fortio()?, "/usr/bin/fortio".into())],
            ..Image::default()
        }),
        "postgres" => servers::postgres(),
        "mariadb" => servers::mariadb(),
        "redis" => servers::redis(),
        "eclipse-mosquitto" => servers::mosquitto(),
        _ => match bookinfo::arguments(name) {
            Some(arguments) => {
                built_here("malha-echo")?;
                let entrypoint = vec!["malha-echo".into()];
                Ok(Image { entrypoint, arguments, ..Image::default() })
            }
            None => anyhow::bail!(
                "{image} is not among the lab's images: nginx, wesleywillians/nginx-ab (:b), \
                 wesleywillians/circuit-breaker-example-go (:error-504), curlimages/curl, \
                 malha/echo, fortio/fortio, istio/examples-bookinfo-*, postgres, mariadb, redis, \
                 eclipse-mosquitto, busybox, alpine, debian"
            ),
        },
    }
}

/// Name without registry, and tag.
fn split(image: &str) -> (&str, &str) {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    let (name, tag) = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    };
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    (name.strip_prefix("library/").unwrap_or(name), tag)
}

fn nginx(page: Option<&str>) -> anyhow::Result<Image> {
    let program = installed("nginx")?;
    let main = include_str!("image/nginx.conf").into();
    let mut files = vec![
        ("/etc/nginx/nginx.conf", main),
        ("/etc/nginx/conf.d/default.conf", include_str!("image/default.conf").into()),
    ];
    if let Some(page) = page {
        files.push(("/usr/share/nginx/html/index.html", page.into()));
    }
    Ok(Image {
        entrypoint: vec![program.to_string_lossy().into_owned()],
        arguments: words(&["-g", "daemon off;"]),
        files,
        ..Image::default()
    })
}

/// The tutorial's server behind a circuit breaker; the tag `error-504` is the one that fails.
fn servicex(tag: &str) -> anyhow::Result<Image> {
    let fails = tag == "error-504";
    let program = "/usr/local/bin/servicex";
    Ok(Image {
        entrypoint: vec![program.into()],
        environment: if fails { vec![("error".into(), "yes".into())] } else { Vec::new() },
        programs: vec![(built_here("malha-servicex")?, program.into())],
        ..Image::default()
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// A program of this workspace, beside the one that runs us (a test lies one folder below).
pub(super) fn built_here(program: &str) -> anyhow::Result<PathBuf> {
    let own = crate::tool::own_program().context("find the running program")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not built: run `cargo xtask build`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_tags_and_digests_are_not_the_name() {
        assert_eq!(split("nginx"), ("nginx", "latest"));
        assert_eq!(split("docker.io/library/nginx:1.25"), ("nginx", "1.25"));
        assert_eq!(split("wesleywillians/nginx-ab:b"), ("wesleywillians/nginx-ab", "b"));
        assert_eq!(split("host:5000/a/b"), ("host:5000/a/b", "latest"));
        assert_eq!(split("curlimages/curl@sha256:00"), ("curlimages/curl", "latest"));
    }

    #[test]
    fn an_unknown_image_is_named() {
        let error = look_up("quay.io/nobody/nothing:1").unwrap_err().to_string();
        assert!(error.starts_with("quay.io/nobody/nothing:1 is not among"), "{error}");
    }
}
