//! The API server's part: the objects that were applied, with what it fills in, and the pods that
//! they ask for. Pure but for looking images up.
//!
//! Invariant: an `apply` is all or nothing; after an error the objects are what they were.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::manifest::{DEFAULT_NAMESPACE, Key, Object, list_at, selects, text_at};
use super::names::LabId;
use super::plan;
use super::service::Allocator;

/// Label with the hash of the template that a Deployment's pod was made from.
pub(super) const TEMPLATE_HASH: &str = "pod-template-hash";

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there.
    Created,
    /// It was there, and is different now.
    Configured,
    /// It was there just so.
    Unchanged,
    /// It is gone.
    Deleted,
}

impl Change {
    /// As kubectl says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}

/// Pods that some object asks for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) namespace: &'a str,
    /// The pod's name, or the Deployment's.
    pub(super) name: &'a str,
    /// Number of pods and hash of the template; `None` for a single Pod.
    pub(super) replicas: Option<(usize, String)>,
    /// Labels and annotations.
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
}

/// Objects of one lab.
#[derive(Debug)]
pub(super) struct Cluster {
    id: LabId,
    objects: BTreeMap<Key, Object>,
    allocator: Allocator,
}

impl Cluster {
    /// An empty cluster: the namespaces and service accounts that every cluster starts with.
    pub(super) fn new(id: LabId) -> Self {
        let mut cluster = Self { id, objects: BTreeMap::new(), allocator: Allocator::default() };
        // The last is the mesh's root namespace, which is there where a mesh is installed.
        for name in [DEFAULT_NAMESPACE, "kube-system", "istio-system"] {
            cluster.add_namespace(name);
        }
        cluster
    }

    fn add_namespace(&mut self, name: &str) {
        let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let key = Key::core("Namespace", "", name);
        self.objects.insert(key.clone(), Object { key, value, text: String::new() });
        self.add_default_account(name);
    }

    fn add_default_account(&mut self, namespace: &str) {
        let key = Key::core("ServiceAccount", namespace, "default");
        self.objects.entry(key.clone()).or_insert_with(|| Object {
            key,
            value: json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": namespace}}),
            text: String::new(),
        });
    }

    /// All objects.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// `data` of a ConfigMap.
    pub(super) fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<BTreeMap<String, String>> {
        let object = self.objects.get(&Key::core("ConfigMap", namespace, name))?;
        let data = object.at("/data").and_then(Value::as_object).cloned().unwrap_or_default();
        let text = |(key, value): (String, Value)| Some((key, value.as_str()?.to_owned()));
        Some(data.into_iter().filter_map(text).collect())
    }

    /// Takes objects over, or says which one is wrong and takes none.
    pub(super) fn apply(&mut self, objects: Vec<Object>) -> anyhow::Result<Vec<(Key, Change)>> {
        self.check_references(&objects)?;
        let mut ready = Vec::new();
        for mut object in objects {
            let key = object.key.clone();
            self.complete(&mut object).with_context(|| key.to_string())?;
            ready.push(object);
        }
        Ok(ready.into_iter().map(|object| self.store(object)).collect())
    }

    fn store(&mut self, object: Object) -> (Key, Change) {
        let key = object.key.clone();
        if key.kind == "Namespace" {
            self.add_default_account(&key.name);
        }
        let change = match self.objects.get(&key) {
            None => Change::Created,
            Some(old) if old.value == object.value && old.text == object.text => Change::Unchanged,
            Some(_) => Change::Configured,
        };
        self.objects.insert(key.clone(), object);
        (key, change)
    }

    /// Namespaces and service accounts that are named must be there, or come with this apply.
    fn check_references(&self, objects: &[Object]) -> anyhow::Result<()> {
        let coming: BTreeSet<&Key> = objects.iter().map(|object| &object.key).collect();
        let known = |key: Key| self.objects.contains_key(&key) || coming.contains(&key);
        for object in objects {
            let Key { kind, namespace, .. } = &object.key;
            let there = namespace.is_empty() || known(Key::core("Namespace", "", namespace));
            ensure!(there, "{}: namespace {namespace} not found", object.key);
            let Some((spec, at)) = pod_spec(kind, &object.value) else { continue };
            let account = service_account(spec);
            ensure!(
                account == "default" || known(Key::core("ServiceAccount", namespace, account)),
                "{}: {at}.serviceAccountName: {account} not found in namespace {namespace}",
                object.key
            );
        }
        Ok(())
    }

    /// Checks an object and fills in what the API server would.
    fn complete(&mut self, object: &mut Object) -> anyhow::Result<()> {
        let before = self.objects.get(&object.key);
        match (object.key.group.as_str(), object.key.kind.as_str()) {
            ("", "Service") => {
                self.allocator.complete(self.id, &mut object.value, before.map(|old| &old.value))
            }
            ("", "Pod") => {
                plan::check(object.at("/spec").context("spec: missing")?, "spec")?;
                if let Some(before) = before {
                    let same = before.value.get("spec") == object.value.get("spec");
                    ensure!(same, "spec: cannot change while the pod runs: delete it first");
                }
                Ok(())
            }
            ("apps", "Deployment") => {
                let spec =
                    object.at("/spec/template/spec").context("spec.template.spec: missing")?;
                plan::check(spec, "spec.template.spec")?;
                let selector = object.at("/spec/selector/matchLabels");
                let selector = selector.context("spec.selector.matchLabels: missing")?;
                let labels = object.at("/spec/template/metadata/labels").unwrap_or(&Value::Null);
                ensure!(
                    selects(selector, labels),
                    "spec.template.metadata.labels: do not match spec.selector.matchLabels"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Removes objects, with everything in a namespace that goes.
    pub(super) fn delete(&mut self, keys: &[Key]) -> anyhow::Result<Vec<(Key, Change)>> {
        for key in keys {
            ensure!(self.objects.contains_key(key), "{key}: not found");
        }
        for key in keys {
            self.objects.remove(key);
            if key.kind == "Namespace" {
                self.objects.retain(|other, _| other.namespace != key.name);
            }
        }
        Ok(keys.iter().map(|key| (key.clone(), Change::Deleted)).collect())
    }

    /// Sets or removes a label of an object that is played (so not handed on as text).
    pub(super) fn label(
        &mut self,
        key: &Key,
        name: &str,
        value: Option<&str>,
    ) -> anyhow::Result<()> {
        let object = self.objects.get_mut(key).with_context(|| format!("{key}: not found"))?;
        set_label(&mut object.value, name, value);
        Ok(())
    }

    /// Sets the number of replicas of a Deployment.
    pub(super) fn scale(
        &mut self,
        namespace: &str,
        name: &str,
        replicas: usize,
    ) -> anyhow::Result<()> {
        let mut key = Key::core("Deployment", namespace, name);
        key.group = "apps".into();
        let object = self.objects.get_mut(&key).with_context(|| format!("{key}: not found"))?;
        object.value["spec"]["replicas"] = replicas.into();
        Ok(())
    }

    /// What Pods and Deployments ask for.
    pub(super) fn wanted(&self) -> Vec<Wanted<'_>> {
        self.objects.values().filter_map(wanted).collect()
    }
}

/// The pods that an object asks for, if it asks for any.
fn wanted(object: &Object) -> Option<Wanted<'_>> {
    let Object { key: Key { group, kind, namespace, name }, value, .. } = object;
    let (metadata, spec, replicas) = match (group.as_str(), kind.as_str()) {
        ("", "Pod") => (value.get("metadata")?, value.get("spec")?, None),
        ("apps", "Deployment") => {
            let template = value.pointer("/spec/template")?;
            let count = value.pointer("/spec/replicas").and_then(Value::as_u64);
            let count = usize::try_from(count.unwrap_or(1)).ok()?;
            let replicas = Some((count, hash(template)));
            (template.get("metadata")?, template.get("spec")?, replicas)
        }
        _ => return None,
    };
    Some(Wanted { namespace, name, replicas, metadata, spec })
}

/// The account that a pod runs as.
pub(super) fn service_account(spec: &Value) -> &str {
    text_at(spec, "/serviceAccountName")
        .or_else(|| text_at(spec, "/serviceAccount"))
        .unwrap_or("default")
}

/// Sets or removes one of an object's labels.
pub(super) fn set_label(object: &mut Value, name: &str, value: Option<&str>) {
    let metadata = &mut object["metadata"];
    if !metadata["labels"].is_object() {
        metadata["labels"] = json!({});
    }
    match (value, metadata["labels"].as_object_mut()) {
        (Some(value), Some(labels)) => {
            labels.insert(name.to_owned(), value.into());
        }
        (None, Some(labels)) => {
            labels.remove(name);
        }
        (_, None) => {}
    }
}

fn pod_spec<'a>(kind: &str, value: &'a Value) -> Option<(&'a Value, &'static str)> {
    match kind {
        "Pod" => Some((value.get("spec")?, "spec")),
        "Deployment" => Some((value.pointer("/spec/template/spec")?, "spec.template.spec")),
        _ => None,
    }
}

/// A short name for a template (FNV-1a): the same template, the same name, in every lab.
fn hash(template: &Value) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in template.to_string().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")[..10].to_owned()
}

/// Finds the one object that `kind` (any case, singular) and `namespace/name` mean.
pub(super) fn find_key<'a>(
    objects: impl Iterator<Item = &'a Object>,
    kind: &str,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Key> {
    let matches = |key: &&Key| {
        key.kind.eq_ignore_ascii_case(kind)
            && key.name == name
            && (key.namespace.is_empty() || key.namespace == namespace)
    };
    let found: Vec<&Key> = objects.map(|object| &object.key).filter(matches).collect();
    match found.as_slice() {
        [key] => Ok((*key).clone()),
        [] => bail!("{kind} {namespace}/{name}: not found"),
        _ => bail!("{kind} {namespace}/{name}: in more than one API group"),
    }
}

/// Number of a pod's containers.
pub(super) fn container_count(spec: &Value) -> usize {
    list_at(spec, "/containers").len()
}

#[cfg(test)]
mod tests {
    use super::super::manifest::parse;
    use super::*;

    const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers: [{ name: web, image: alpine }]
";

    fn apply(cluster: &mut Cluster, text: &str) -> anyhow::Result<Vec<Change>> {
        Ok(cluster.apply(parse(text)?)?.into_iter().map(|(_, change)| change).collect())
    }

    #[test]
    fn applying_again_says_what_changed() {
        let mut cluster = Cluster::new(LabId(1));
        assert_eq!(apply(&mut cluster, DEPLOYMENT).unwrap(), [Change::Created]);
        assert_eq!(apply(&mut cluster, DEPLOYMENT).unwrap(), [Change::Unchanged]);
        let hash = |cluster: &Cluster| cluster.wanted()[0].replicas.clone().unwrap();
        let before = hash(&cluster);
        let scaled = DEPLOYMENT.replace("replicas: 2", "replicas: 3");
        assert_eq!(apply(&mut cluster, &scaled).unwrap(), [Change::Configured]);
        assert_eq!(hash(&cluster), (3, before.1.clone()), "scaling is no new template");
        let changed = scaled.replace("name: web, image", "name: shop, image");
        apply(&mut cluster, &changed).unwrap();
        assert_ne!(hash(&cluster).1, before.1);
    }

    #[test]
    fn one_wrong_object_keeps_all_out() {
        let mut cluster = Cluster::new(LabId(1));
        let before = cluster.objects().count();
        for (from, to, message) in [
            (
                "image: alpine",
                "image: nobody/x",
                "Deployment default/web: spec.template.spec.containers[0].image",
            ),
            ("labels: { app: web }", "labels: { app: wob }", "do not match"),
            ("name: web }\nspec", "name: web, namespace: far }\nspec", "namespace far not found"),
            (
                "containers:",
                "serviceAccountName: x\n      containers:",
                "serviceAccountName: x not found",
            ),
        ] {
            let text = format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a}}\n---{}",
                DEPLOYMENT.replacen(from, to, 1)
            );
            let error = format!("{:#}", apply(&mut cluster, &text).expect_err(message));
            assert!(error.contains(message), "{error}");
            assert_eq!(cluster.objects().count(), before);
        }
    }

    #[test]
    fn a_namespace_takes_its_objects_along() {
        let mut cluster = Cluster::new(LabId(1));
        let before = cluster.objects().count();
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
            apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: shop}\ndata: {a: b}\n";
        apply(&mut cluster, text).unwrap();
        assert_eq!(cluster.config_map("shop", "c").unwrap()["a"], "b");
        let key = find_key(cluster.objects(), "namespace", "default", "shop").unwrap();
        cluster.delete(&[key]).unwrap();
        assert_eq!(cluster.objects().count(), before);
    }
}
