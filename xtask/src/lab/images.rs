//! Container images, as far as this machine has a program for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

const FORTIO_IMAGE: &str = "fortio/fortio";

/// Builds with Go 1.21. Later versions embed a script language whose module not every proxy serves.
const FORTIO: &str = "v1.66.5";

/// Programs that the lab starts or offers in pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Programs {
    /// Directory with `malha-echo` and `malha-load`.
    pub(super) dir: PathBuf,
    pub(super) meshctl: Option<PathBuf>,
}

impl Programs {
    /// Looks beside the agent, or beside this program.
    pub(super) fn find(agent: Option<&Path>) -> anyhow::Result<Self> {
        let own = crate::tool::own_program()?;
        let beside = agent.unwrap_or(&own);
        let mut dir = beside.parent().context("no directory")?.to_owned();
        // Test binaries are one level deeper.
        if dir.ends_with("deps") {
            dir.pop();
        }
        let meshctl = Some(dir.join("meshctl")).filter(|path| path.exists());
        Ok(Self { dir, meshctl })
    }
}

/// How an image is run.
pub(super) struct Image {
    /// Command when the manifest gives none.
    pub(super) command: Vec<String>,
    /// Arguments of that command when the manifest gives none.
    pub(super) arguments: Vec<String>,
    /// Ports that tell that these are ready, beside those that the manifest declares.
    pub(super) ports: Vec<u16>,
}

impl Image {
    fn new(command: &[&str], ports: &[u16]) -> Self {
        Self { command: words(command), arguments: Vec::new(), ports: ports.to_vec() }
    }
}

/// Directories with programs that these images have in `/usr/bin` and this machine has not.
pub(super) fn programs<'a>(images: impl Iterator<Item = &'a str>) -> anyhow::Result<Vec<PathBuf>> {
    let mut fortios = images.filter(|image| split(image).0 == FORTIO_IMAGE);
    fortios.next().map(|_| fortio()).into_iter().collect()
}

/// Name and tag.
fn split(image: &str) -> (&str, &str) {
    let name = image.rsplit_once("docker.io/").map_or(image, |(_, name)| name);
    name.rsplit_once(':').unwrap_or((name, "latest"))
}

/// The program for an image name; `dir` takes its files.
pub(super) fn find(image: &str, programs: &Programs, dir: &Path) -> anyhow::Result<Image> {
    let (base, tag) = split(image);
    match base {
        "wesleywillians/nginx-ab" => {
            let version = if tag == "b" { "B" } else { "A" };
            let answer = format!("return 200 'Full Cycle {version}';");
            nginx(dir, &format!("default_type text/plain; {answer}"))
        }
        "nginx" => nginx(dir, "root /usr/share/nginx/html; index index.html;"),
        "curlimages/curl" | "busybox" | "alpine" | "debian" => {
            Ok(Image::new(&["sleep", "infinity"], &[]))
        }
        "malha/echo" => {
            let echo = programs.dir.join("malha-echo");
            if !echo.exists() {
                bail!("{} is not built: run `cargo xtask build`", echo.display());
            }
            Ok(Image::new(&[&echo.to_string_lossy()], &[]))
        }
        FORTIO_IMAGE => {
            let mut image = Image::new(&["/usr/bin/fortio"], &[8080, 8079]);
            image.arguments = words(&["server"]);
            Ok(image)
        }
        _ => bail!(
            "this machine has no program for image `{image}`; known: nginx, \
             wesleywillians/nginx-ab, curlimages/curl, busybox, fortio/fortio, malha/echo"
        ),
    }
}

/// The directory of fortio, built from its Go module when first asked for.
fn fortio() -> anyhow::Result<PathBuf> {
    let dir = crate::tool::workspace().join(format!("target/peers/fortio-{FORTIO}"));
    if dir.join("fortio").exists() {
        return Ok(dir);
    }
    let go = crate::tool::find("go").context(
        "fortio is built from its Go module, and `go` is missing: install Debian's package \
         golang-go (1.21 or newer), or Go from go.dev",
    )?;
    let module = format!("fortio.org/fortio@{FORTIO}");
    crate::tool::say(&format!("lab: building {module} into {}", dir.display()));
    // go moves the finished program into place: nobody sees half of it.
    let mut install = Command::new(go);
    install.args(["install", &module]).env("GOBIN", &dir).env("CGO_ENABLED", "0");
    crate::tool::output(&mut install).with_context(|| format!("build {module}"))?;
    Ok(dir)
}

/// nginx with everything it writes below `dir`.
fn nginx(dir: &Path, location: &str) -> anyhow::Result<Image> {
    let d = dir.to_string_lossy();
    let config = format!(
        "pid {d}/nginx.pid;\nerror_log stderr;\nworker_processes 1;\ndaemon off;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {d}/body;\n  proxy_temp_path {d}/proxy;\n  \
         fastcgi_temp_path {d}/fastcgi;\n  uwsgi_temp_path {d}/uwsgi;\n  scgi_temp_path {d}/scgi;\n  \
         keepalive_requests 100000000;\n  \
         server {{\n    listen 80;\n    listen [::]:80;\n    location / {{ {location} }}\n  }}\n}}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config)?;
    Ok(Image::new(&["nginx", "-e", "stderr", "-c", &file.to_string_lossy()], &[80]))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
