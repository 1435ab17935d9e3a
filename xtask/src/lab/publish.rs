//! The configuration folder that the agents read: one file an object, replaced as a whole.
//!
//! What the lab plays itself is written as the API server would show it; everything else is the
//! text that was applied, word for word.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;

use super::host;
use super::manifest::{Key, Object, text_at};

/// Core kinds that the lab fills in, or that every cluster has: written from their value.
const FILLED_IN: [&str; 5] = ["Namespace", "ServiceAccount", "Service", "Pod", "ConfigMap"];

/// The folder, and what was last written there.
#[derive(Debug)]
pub(super) struct Publisher {
    dir: PathBuf,
    draft: PathBuf,
    written: BTreeMap<String, String>,
}

impl Publisher {
    /// Makes the folder. `draft` is on the same file system, outside of it.
    pub(super) fn new(dir: PathBuf, draft: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { dir, draft, written: BTreeMap::new() })
    }

    /// Makes the folder hold these objects: `objects` as applied, `made` by the controllers. Says
    /// whether anything was written.
    pub(super) fn publish<'a>(
        &mut self,
        objects: impl Iterator<Item = &'a Object>,
        made: &[Value],
    ) -> anyhow::Result<bool> {
        let mut files = BTreeMap::new();
        for object in objects {
            // Pods are among `made`, as they run.
            if let Some(text) = text_of(object)? {
                files.insert(file_name(&object.key), text);
            }
        }
        for value in made {
            let text = |at| text_at(value, at).unwrap_or_default().to_owned();
            let version = text("/apiVersion");
            let key = Key {
                group: version.rsplit_once('/').map_or("", |(group, _)| group).to_owned(),
                kind: text("/kind"),
                namespace: text("/metadata/namespace"),
                name: text("/metadata/name"),
            };
            files.insert(file_name(&key), serde_saphyr::to_string(value)?);
        }
        self.write(files)
    }

    fn write(&mut self, files: BTreeMap<String, String>) -> anyhow::Result<bool> {
        if self.written == files {
            return Ok(false);
        }
        for (name, text) in &files {
            if self.written.get(name) != Some(text) {
                host::replace(&self.draft, &self.dir.join(name), text)?;
            }
        }
        for name in self.written.keys().filter(|name| !files.contains_key(*name)) {
            let path = self.dir.join(name);
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        self.written = files;
        Ok(true)
    }
}

/// What the agents read of an object; nothing of Deployments and Pods, whose pods are written.
fn text_of(object: &Object) -> anyhow::Result<Option<String>> {
    let Key { group, kind, .. } = &object.key;
    match (group.as_str(), kind.as_str()) {
        ("apps", "Deployment") | ("", "Pod") => Ok(None),
        ("", kind) if FILLED_IN.contains(&kind) => {
            Ok(Some(serde_saphyr::to_string(&object.value)?))
        }
        _ => Ok(Some(object.text.clone())),
    }
}

fn file_name(key: &Key) -> String {
    let parts = [key.kind.to_lowercase(), key.namespace.clone(), key.name.clone()];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let group = match key.group.as_str() {
        "" => String::new(),
        group => format!(".{group}"),
    };
    format!("{}{group}.yaml", parts.join("_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::manifest::parse;
    use serde_json::json;

    #[test]
    fn what_is_filled_in_survives_being_written_as_yaml() {
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": "c", "namespace": "n", "labels": {"on": "true", "n": "1.10", "e": "", "z": "null",
            "date": "2026-01-01", "colon": "a: b", "hash": "a #b", "lines": "a\n  b\n\n", "t": "~"}},
            "data": {"list": "- a", "hex": "0x10", "oct": "010", "exp": "1e3", "y": "yes"}});
        let text = serde_saphyr::to_string(&value).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value, "{text}");
    }

    #[test]
    fn the_folder_follows_the_objects_and_foreign_text_is_verbatim() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("config");
        let mut publisher = Publisher::new(folder.clone(), dir.path().join("draft")).unwrap();
        let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
            metadata: {name: web}\nspec: {hosts: [web], nonsense: 1}   # kept\n";
        let objects = parse(text).unwrap();
        publisher.publish(objects.iter(), &[]).unwrap();
        let file = folder.join("virtualservice_default_web.networking.istio.io.yaml");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "s", "namespace": "n"}});
        publisher.publish([].iter(), &[slice]).unwrap();
        let names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["endpointslice_n_s.discovery.k8s.io.yaml"]);
    }
}
