//! Container images, as far as this machine has a program for them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

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
        let own = std::env::current_exe()?;
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
    /// Command and arguments when the manifest gives none.
    pub(super) command: Vec<String>,
    /// Ports that tell that it is ready, beside those that the manifest declares.
    pub(super) ports: Vec<u16>,
}

/// The program for an image name; `dir` takes its files.
pub(super) fn find(image: &str, programs: &Programs, dir: &Path) -> anyhow::Result<Image> {
    let name = image.rsplit_once("docker.io/").map_or(image, |(_, name)| name);
    let (base, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    match base {
        "wesleywillians/nginx-ab" => {
            let version = if tag == "b" { "B" } else { "A" };
            let answer = format!("return 200 'Full Cycle {version}';");
            nginx(dir, &format!("default_type text/plain; {answer}"))
        }
        "nginx" => nginx(dir, "root /usr/share/nginx/html; index index.html;"),
        "curlimages/curl" | "busybox" | "alpine" | "debian" => {
            Ok(Image { command: words(&["sleep", "infinity"]), ports: Vec::new() })
        }
        "malha/echo" => {
            let echo = programs.dir.join("malha-echo");
            if !echo.exists() {
                bail!("{} is not built: run `cargo xtask build`", echo.display());
            }
            let echo = echo.to_string_lossy().into_owned();
            Ok(Image { command: vec![echo], ports: Vec::new() })
        }
        _ => bail!(
            "this machine has no program for image `{image}`; known: nginx, \
             wesleywillians/nginx-ab, curlimages/curl, busybox, malha/echo"
        ),
    }
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
    let file = file.to_string_lossy().into_owned();
    Ok(Image { command: words(&["nginx", "-e", "stderr", "-c", &file]), ports: vec![80] })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
