//! Manifests: documents with their text, and the few fields that the lab reads.

use anyhow::{Context as _, bail};
use serde_json::Value;

/// One document.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) value: Value,
    /// As it was written: Istio's objects are handed on verbatim.
    pub(super) text: String,
}

impl Document {
    /// `Kind namespace/name`.
    pub(super) fn id(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }

    /// The value at a path such as `/spec/template`.
    pub(super) fn at(&self, path: &str) -> &Value {
        self.value.pointer(path).unwrap_or(&Value::Null)
    }
}

/// Splits and reads manifests.
pub(super) fn read(manifests: &str) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for text in split(manifests) {
        let value: Value = serde_saphyr::from_str(&text)
            .with_context(|| format!("cannot read the manifest:\n{text}"))?;
        if value.is_null() {
            continue;
        }
        let field = |path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let kind = field("/kind").with_context(|| format!("`kind` is missing in:\n{text}"))?;
        let Some(name) = field("/metadata/name") else {
            bail!("{kind}: metadata.name is missing in:\n{text}");
        };
        let namespace = match kind.as_str() {
            "Namespace" => String::new(),
            _ => field("/metadata/namespace").unwrap_or_else(|| "default".to_owned()),
        };
        documents.push(Document { kind, namespace, name, value, text });
    }
    Ok(documents)
}

/// Documents are separated by lines that begin with `---`.
fn split(manifests: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in manifests.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let content = |document: &String| {
        document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    };
    documents.retain(content);
    documents
}

/// A string, number or boolean as text: what a container's `env` or `args` may hold.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Whether `labels` has everything that `selector` asks for; an empty selector selects nothing.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    let Some(selector) = selector.as_object().filter(|selector| !selector.is_empty()) else {
        return false;
    };
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_text_and_defaults() {
        let read = read("# comment only\n---\nkind: Pod\nmetadata: { name: a }\n---\n").unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].id(), "Pod default/a");
        assert_eq!(read[0].text, "kind: Pod\nmetadata: { name: a }\n");
    }

    #[test]
    fn a_document_without_a_name_is_named() {
        let error = read("kind: Pod\n").unwrap_err().to_string();
        assert!(error.contains("Pod: metadata.name is missing"), "{error}");
    }

    #[test]
    fn an_empty_selector_selects_nothing() {
        let labels = serde_json::json!({ "a": "1", "b": "2" });
        assert!(selects(&serde_json::json!({ "a": "1" }), &labels));
        assert!(!selects(&serde_json::json!({ "a": "2" }), &labels));
        assert!(!selects(&serde_json::json!({}), &labels));
    }
}
