//! Small images from Debian's packages, as no registry is within reach: `registry.lab/pause:1`,
//! `busybox:1`, `tools:1` (busybox, curl, getent) and `nginx:1` (answers with its pod's name); and, by
//! their own names, those that a well-known tutorial of Istio uses.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::oci::{Description, Tree, compile_c, sha256, write};
use crate::tool::{installed, output, say};

const PAUSE: &str = include_str!("pause.c");
/// What decides how an image looks, beside the programs in it.
const RECIPE: [&str; 3] = [include_str!("images.rs"), include_str!("../oci.rs"), PAUSE];
const PROGRAMS: [&str; 4] = ["busybox", "curl", "getent", "nginx"];
const NAMES: [&str; 4] = ["pause", "busybox", "tools", "nginx"];
/// Archives of the tutorial's images.
const TUTORIAL: [&str; 3] = ["web-a", "web-b", "fortio"];
/// Names in the tutorial's manifests, and what the pages of its two servers say.
const FORTIO: &str = "fortio/fortio:latest_release";
const PAGES: [(&str, &str); 2] = [
    ("wesleywillians/nginx-ab:latest", "Full Cycle A"),
    ("wesleywillians/nginx-ab:b", "Full Cycle B"),
];
const NGINX: &str = "\
daemon off; user root; worker_processes 1; error_log /dev/stderr; pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    access_log /dev/stdout;
    server {
        listen 80;
        listen [::]:80;
        location / { default_type text/plain; return 200 \"$hostname\\n\"; }
    }
}
";
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// The images as archives; made the first time, and when a program in them has changed.
///
/// # Errors
/// A program is missing, or there is no room.
pub(super) fn archives() -> anyhow::Result<Vec<PathBuf>> {
    let programs = PROGRAMS.map(installed).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    kept("images", &NAMES, &programs, make)
}

/// The archives of a folder, which `make` writes if they are not there for these programs.
fn kept(
    folder: &str,
    names: &[&str],
    programs: &[PathBuf],
    make: fn(&Path, &[PathBuf]) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<PathBuf>> {
    let folder = super::folder().join(folder);
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("wait for another process that makes images")?;
    let mut facts = RECIPE.concat();
    for program in programs {
        let meta = program.metadata()?;
        facts += &format!("{} {} {}\n", program.display(), meta.len(), meta.mtime());
    }
    let stamp = sha256(facts.as_bytes());
    if !fs::read_to_string(folder.join("stamp")).is_ok_and(|found| found == stamp) {
        say("kube: making images");
        make(&folder, programs)?;
        fs::write(folder.join("stamp"), stamp)?;
    }
    Ok(names.iter().map(|name| folder.join(format!("{name}.tar"))).collect())
}

fn make(folder: &Path, programs: &[PathBuf]) -> anyhow::Result<()> {
    let [busybox, curl, getent, nginx] = programs else { return Ok(()) };
    let idle = ["/bin/sleep", "1000000"];
    let mut pause = Tree::default();
    let program = folder.join("pause");
    compile_c(PAUSE, &program)?;
    pause.program(&program, "/pause")?;
    image(folder, &pause, "pause", &["/pause"])?;
    let base = base(busybox)?;
    image(folder, &base, "busybox", &idle)?;
    let mut tools = base.clone();
    tools.program(curl, "/usr/bin/curl")?;
    tools.program(getent, "/usr/bin/getent")?;
    image(folder, &tools, "tools", &idle)?;
    image(folder, &server(base, nginx, "$hostname")?, "nginx", &["/usr/sbin/nginx"])
}

/// A web server that always says the same.
fn server(base: Tree, nginx: &Path, page: &str) -> anyhow::Result<Tree> {
    let mut server = base;
    server.program(nginx, "/usr/sbin/nginx")?;
    for path in ["/var/log/nginx", "/var/lib/nginx", "/run"] {
        server.folder(path, 0o755);
    }
    server.file("/etc/nginx/nginx.conf", NGINX.replace("$hostname", page), 0o644);
    Ok(server)
}

/// The tutorial's manifest for nodes that have its images: the kubelet is told not to pull what was
/// imported.
#[must_use]
pub fn imported(manifest: &str) -> String {
    let policy = "imagePullPolicy: IfNotPresent";
    let image = "image: wesleywillians/nginx-ab";
    manifest
        .replace("imagePullPolicy: Always", policy)
        .replace(image, &format!("{policy}\n        {image}"))
}

/// Archives of the tutorial's images: two versions of a web server, and fortio; kept as the others.
///
/// # Errors
/// A program is missing or cannot be built, or there is no room.
pub fn tutorial_images() -> anyhow::Result<Vec<PathBuf>> {
    let programs = [installed("busybox")?, installed("nginx")?, crate::peers::fortio()?];
    kept("tutorial", &TUTORIAL, &programs, make_tutorial)
}

fn make_tutorial(folder: &Path, programs: &[PathBuf]) -> anyhow::Result<()> {
    let [busybox, nginx, program] = programs else { return Ok(()) };
    let [a, b, load] = TUTORIAL.map(|name| folder.join(format!("{name}.tar")));
    let base = base(busybox)?;
    for (archive, (name, page)) in [a, b].iter().zip(PAGES) {
        named(archive, &server(base.clone(), nginx, page)?, name, &["/usr/sbin/nginx"])?;
    }
    let mut fortio = Tree::default();
    fortio.program(program, "/usr/bin/fortio")?;
    fortio.folder("/tmp", 0o1777);
    named(&load, &fortio, FORTIO, &["/usr/bin/fortio", "server"])
}

/// What the others are built on: busybox under all its names.
fn base(busybox: &Path) -> anyhow::Result<Tree> {
    let mut tree = Tree::default();
    tree.program(busybox, "/bin/busybox")?;
    for name in output(Command::new(busybox).arg("--list"))?.lines() {
        if name != "busybox" {
            tree.link(&format!("/bin/{name}"), "busybox");
        }
    }
    for path in ["/root", "/proc", "/sys", "/dev", "/var/www"] {
        tree.folder(path, 0o755);
    }
    tree.folder("/tmp", 0o1777);
    tree.file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644);
    tree.file("/etc/group", "root:x:0:\n", 0o644);
    tree.file("/etc/nsswitch.conf", "hosts: files dns\n", 0o644);
    Ok(tree)
}

fn image(folder: &Path, tree: &Tree, name: &str, command: &[&str]) -> anyhow::Result<()> {
    let archive = folder.join(format!("{name}.tar"));
    named(&archive, tree, &format!("registry.lab/{name}:1"), command)
}

fn named(archive: &Path, tree: &Tree, name: &str, command: &[&str]) -> anyhow::Result<()> {
    let description = Description {
        name: name.to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        environment: vec![PATH.to_owned()],
        ..Description::default()
    };
    write(tree, &description, archive).map(drop)
}
