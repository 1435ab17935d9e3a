//! What `meshctl` has installed: its settings and objects, in the ConfigMap `malha-install`, so that the
//! next upgrade keeps the one and removes what is no longer in the manifest of the other. Pure.
//!
//! Invariant: an object is in the list on the cluster before it is made, and until it is gone.

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::manifest::{MANAGED_BY, MANAGER, PART_OF};
use super::settings::Settings;

/// Name of the ConfigMap.
pub(super) const NAME: &str = "malha-install";

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Id {
    pub(super) api_version: String,
    pub(super) kind: String,
    /// Empty for an object of the cluster's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What is installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    /// Of the `meshctl` that installed it.
    pub(super) version: String,
    pub(super) settings: Settings,
    pub(super) objects: BTreeSet<Id>,
}

// === impl Id ===

impl Id {
    pub(super) fn new(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Of an object; `None` for something that is none.
    pub(super) fn of(object: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Self {
            api_version: text(&object["apiVersion"])?,
            kind: text(&object["kind"])?,
            namespace: text(&object["metadata"]["namespace"]).unwrap_or_default(),
            name: text(&object["metadata"]["name"])?,
        })
    }

    /// API group, and version.
    pub(super) fn group(&self) -> (&str, &str) {
        self.api_version.split_once('/').unwrap_or(("", &self.api_version))
    }

    /// Whether it goes with the mesh: definitions hold people's objects, and a namespace may.
    pub(super) fn is_ours_to_delete(&self) -> bool {
        !matches!(self.kind.as_str(), "Namespace" | "CustomResourceDefinition")
    }

    /// The same object, perhaps in another version of its kind.
    fn is(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.namespace == other.namespace
            && self.name == other.name
            && self.group().0 == other.group().0
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

// === impl Inventory ===

impl Inventory {
    pub(super) fn new(settings: Settings, objects: &[Value]) -> Self {
        let objects = objects.iter().filter_map(Id::of).collect();
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), settings, objects }
    }

    /// Read from the ConfigMap.
    ///
    /// # Errors
    /// Somebody has written into it.
    pub(super) fn read(map: &Value) -> anyhow::Result<Self> {
        let text = |key: &str| {
            let found = map["data"][key].as_str();
            found.with_context(|| format!("ConfigMap {NAME} has no key `{key}`"))
        };
        let unreadable = |key: &str| format!("ConfigMap {NAME}: cannot read `{key}`");
        let settings = serde_json::from_str(text("settings")?);
        let objects = serde_json::from_str(text("objects")?);
        Ok(Self {
            version: text("version")?.to_owned(),
            settings: settings.with_context(|| unreadable("settings"))?,
            objects: objects.with_context(|| unreadable("objects"))?,
        })
    }

    /// The ConfigMap.
    ///
    /// # Errors
    /// It cannot be written as JSON: a fault of ours.
    pub(super) fn config_map(&self, namespace: &str) -> anyhow::Result<Value> {
        Ok(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": NAME,
                "namespace": namespace,
                "labels": { PART_OF.0: PART_OF.1, MANAGED_BY: MANAGER },
            },
            "data": {
                "version": self.version,
                "settings": serde_json::to_string(&self.settings)?,
                "objects": serde_json::to_string(&self.objects)?,
            },
        }))
    }

    /// Objects that were there before and are in the manifest no more.
    pub(super) fn surplus<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a Id> {
        before
            .objects
            .iter()
            .filter(|old| old.is_ours_to_delete() && !self.objects.iter().any(|new| new.is(old)))
    }

    /// With all objects of the one before, too.
    pub(super) fn with(mut self, before: &Self) -> Self {
        self.objects.extend(before.objects.iter().cloned());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(objects: &[(&str, &str, &str)]) -> Inventory {
        let objects = objects.iter();
        let objects = objects.map(|(version, kind, name)| Id::new(version, kind, "mesh", name));
        Inventory { objects: objects.collect(), ..Inventory::default() }
    }

    #[test]
    fn what_is_no_longer_in_the_manifest_is_surplus() {
        let before = inventory(&[
            ("v1", "Namespace", "mesh"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "gone.example"),
            ("v1", "Service", "old"),
            ("policy/v1beta1", "PodDisruptionBudget", "authority"),
            ("v1", "ServiceAccount", "agent"),
        ]);
        let now = inventory(&[
            ("policy/v1", "PodDisruptionBudget", "authority"),
            ("v1", "ServiceAccount", "agent"),
            ("v1", "ConfigMap", "agent"),
        ]);
        let surplus: Vec<String> = now.surplus(&before).map(ToString::to_string).collect();
        assert_eq!(surplus, ["Service mesh/old"]);
        assert_eq!(now.clone().with(&before).objects.len(), 7);
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let settings = Settings { workers: Some(2), ..Settings::default() };
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}});
        let inventory = Inventory::new(settings, &[object]);
        let map = inventory.config_map("mesh").unwrap();
        assert_eq!(Inventory::read(&map).unwrap(), inventory);
        let error = Inventory::read(&json!({"data": {"settings": "{}"}})).unwrap_err();
        assert_eq!(error.to_string(), "ConfigMap malha-install has no key `objects`");
    }
}
