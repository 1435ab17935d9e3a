//! Writes container images: one layer, made of files of this machine, in an archive that both
//! `ctr images import` and `docker load` take.
//!
//! Invariant: the same content gives the same bytes; whose machine it was, when, and in which order
//! files were added leaves no trace. Formats: <https://github.com/opencontainers/image-spec> and
//! Docker's `manifest.json` beside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::tool::{installed, output};

const FOLDER_MODE: u32 = 0o755;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Where an image without a registry's name is taken to come from.
const DEFAULT_REGISTRY: &str = "docker.io";

/// The files of an image, by path without the first `/`.
#[derive(Clone, Debug, Default)]
pub struct Tree(BTreeMap<String, Entry>);

#[derive(Clone, Debug)]
enum Entry {
    Folder(u32),
    File(Vec<u8>, u32),
    Link(String),
}

/// What an image says of itself.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// `name:tag`.
    pub name: String,
    /// Command that arguments are added to.
    pub entrypoint: Vec<String>,
    /// Arguments, or the command where there is no entry point.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Facts for people and tools.
    pub labels: BTreeMap<String, String>,
}

// === impl Tree ===

impl Tree {
    /// A folder with these permissions.
    pub fn folder(&mut self, path: &str, mode: u32) {
        self.put(path, Entry::Folder(mode));
    }

    /// A file with these permissions.
    pub fn file(&mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) {
        self.put(path, Entry::File(content.into(), mode));
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, Entry::Link(target.to_owned()));
    }

    /// A program of this machine at `path`, with the shared libraries that it is linked to where it
    /// looks for them. A program without any is fine.
    ///
    /// # Errors
    /// It cannot be read, or a library is missing.
    pub fn program(&mut self, source: &Path, path: &str) -> anyhow::Result<()> {
        self.file(path, read(source)?, 0o755);
        for library in libraries(source)? {
            self.file(&library, read(Path::new(&library))?, 0o755);
        }
        Ok(())
    }

    /// Adds an entry and the folders above it.
    fn put(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            let above = path.get(..end).unwrap_or_default().to_owned();
            self.0.entry(above).or_insert(Entry::Folder(FOLDER_MODE));
        }
        self.0.insert(path.to_owned(), entry);
    }

    fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        // A folder's path comes before those of its content in this order.
        for (path, entry) in &self.0 {
            match entry {
                Entry::Folder(mode) => {
                    let mut header = header(tar::EntryType::Directory, 0, *mode);
                    archive.append_data(&mut header, format!("{path}/"), &[][..])?;
                }
                Entry::File(content, mode) => {
                    let mut header = header(tar::EntryType::Regular, content.len(), *mode);
                    archive.append_data(&mut header, path, &content[..])?;
                }
                Entry::Link(target) => {
                    let mut header = header(tar::EntryType::Symlink, 0, 0o777);
                    archive.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(archive.into_inner()?)
    }
}

/// Writes the image to a file; the digest of its manifest (`sha256:…`).
///
/// # Errors
/// The file cannot be written.
pub fn write(tree: &Tree, description: &Description, file: &Path) -> anyhow::Result<String> {
    let layer = tree.archive()?;
    let layer_digest = format!("sha256:{}", sha256(&layer));
    let config = text(&config(description, &layer_digest));
    let descriptor = |kind: &str, content: &[u8]| {
        let digest = format!("sha256:{}", sha256(content));
        json!({ "mediaType": kind, "digest": digest, "size": content.len() })
    };
    let manifest = text(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    }));
    let mut listed = descriptor(MANIFEST, &manifest);
    listed["annotations"] = json!({
        "io.containerd.image.name": full_name(&description.name),
        "org.opencontainers.image.ref.name": tag(&description.name),
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [listed] });
    let docker = json!([{
        "Config": blob(&config),
        "RepoTags": [description.name],
        "Layers": [blob(&layer)],
    }]);
    let mut files = Tree::default();
    files.file("index.json", text(&index), 0o644);
    files.file("manifest.json", text(&docker), 0o644);
    files.file("oci-layout", text(&json!({ "imageLayoutVersion": "1.0.0" })), 0o644);
    for content in [&layer, &config, &manifest] {
        files.file(&blob(content), content.clone(), 0o644);
    }
    let mut out = File::create(file)
        .map(BufWriter::new)
        .with_context(|| format!("make {}", file.display()))?;
    out.write_all(&files.archive()?)?;
    out.flush().with_context(|| format!("write {}", file.display()))?;
    Ok(format!("sha256:{}", sha256(&manifest)))
}

fn config(description: &Description, layer_digest: &str) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": description.entrypoint,
            "Cmd": description.command,
            "Env": description.environment,
            "Labels": description.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
    })
}

/// Hexadecimal SHA-256.
pub(crate) fn sha256(content: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, content);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names in objects are sorted: `serde_json`'s maps are.
fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn blob(content: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(content))
}

/// With registry and path, as a kubelet asks containerd for it.
fn full_name(name: &str) -> String {
    let registry = name.split_once('/').map(|(first, _)| first);
    match registry {
        None => format!("{DEFAULT_REGISTRY}/library/{name}"),
        Some(first) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("{DEFAULT_REGISTRY}/{name}"),
    }
}

fn tag(name: &str) -> &str {
    name.rsplit_once(':').map_or("latest", |(_, tag)| tag)
}

fn header(kind: tar::EntryType, size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// The shared libraries of a program with their loader, as absolute paths.
fn libraries(program: &Path) -> anyhow::Result<Vec<String>> {
    let result = Command::new(installed("ldd")?).arg(program).env("LC_ALL", "C").output()?;
    if !result.status.success() {
        let said = String::from_utf8_lossy(&result.stderr);
        ensure!(
            said.contains("not a dynamic executable"),
            "ldd {}: {}",
            program.display(),
            said.trim()
        );
        return Ok(Vec::new());
    }
    let lines = String::from_utf8_lossy(&result.stdout).into_owned();
    ensure!(!lines.contains("not found"), "{} misses libraries:\n{lines}", program.display());
    let words = lines.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(str::to_owned).collect())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Compiles a small C program without libraries.
///
/// # Errors
/// What the compiler said.
pub(crate) fn compile_c(source: &str, program: &Path) -> anyhow::Result<()> {
    let file = program.with_extension("c");
    fs::write(&file, source)?;
    let mut compiler = Command::new(installed("cc")?);
    output(compiler.args(["-Os", "-s", "-static", "-o"]).arg(program).arg(&file))?;
    Ok(fs::remove_file(file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(order: [&str; 3]) -> Vec<u8> {
        let mut tree = Tree::default();
        for path in order {
            tree.file(path, path, 0o644);
        }
        tree.link("a/link", "b");
        tree.folder("tmp", 0o1777);
        let description = Description {
            name: "malha/test:1".to_owned(),
            entrypoint: vec!["/a/b".to_owned()],
            labels: BTreeMap::from([("x".to_owned(), "y".to_owned())]),
            ..Description::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image.tar");
        write(&tree, &description, &file).unwrap();
        fs::read(file).unwrap()
    }

    #[test]
    fn the_same_files_give_the_same_bytes_in_any_order() {
        assert_eq!(image(["a/b", "a.b", "c"]), image(["c", "a/b", "a.b"]));
    }

    #[test]
    fn digests_lead_from_the_index_to_the_layer() {
        let archive = image(["/usr/bin/x", "etc/y", "z"]);
        let mut blobs = BTreeMap::new();
        for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
            use std::io::Read;
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            blobs.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        let parse = |path: &str| serde_json::from_slice::<Value>(&blobs[path]).unwrap();
        let follow = |value: &Value| {
            let digest = value["digest"].as_str().unwrap().replace(':', "/");
            format!("blobs/{digest}")
        };
        let index = parse("index.json");
        let name = &index["manifests"][0]["annotations"]["io.containerd.image.name"];
        assert_eq!(name, "docker.io/malha/test:1");
        let manifest = parse(&follow(&index["manifests"][0]));
        let config = parse(&follow(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let layer = &blobs[&follow(&manifest["layers"][0])];
        let mut files = tar::Archive::new(&layer[..]);
        let names = files
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned());
        let names: Vec<String> = names.collect();
        let expected =
            ["a/", "a/link", "etc/", "etc/y", "tmp/", "usr/", "usr/bin/", "usr/bin/x", "z"];
        assert_eq!(names, expected);
        assert_eq!(parse("manifest.json")[0]["Layers"][0], follow(&manifest["layers"][0]));
    }

    #[test]
    fn names_are_completed_as_a_kubelet_does() {
        assert_eq!(full_name("nginx:1"), "docker.io/library/nginx:1");
        assert_eq!(full_name("malha/mesh-agent:1"), "docker.io/malha/mesh-agent:1");
        assert_eq!(full_name("registry.lab/pause:1"), "registry.lab/pause:1");
    }

    #[test]
    fn a_program_brings_its_loader() {
        let mut tree = Tree::default();
        tree.program(&installed("sh").unwrap(), "/bin/sh").unwrap();
        assert!(tree.0.keys().any(|path| path.contains("/ld-linux")), "{:?}", tree.0.keys());
    }
}
