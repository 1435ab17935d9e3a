//! Which pods labels ask into the mesh, and label selectors. Pure.
//!
//! The agents' own rule ([`starting`]), asked about the API server's own types.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::facts::Facts;
use crate::cli::install::settings::Settings;
use crate::config::{self, StartingPod, starting};
use crate::model::Selection;

pub(super) type Labels = BTreeMap<String, String>;

/// Running pods that belong in the mesh.
pub(super) fn wanted<'a>(
    facts: &'a Facts,
    settings: &Settings,
) -> impl Iterator<Item = &'a Pod> + use<'a> {
    let selection = selection(&facts.namespaces, settings.selects_by_istio_labels());
    facts.pods.iter().filter(move |pod| is_running(pod) && is_selected(pod, &selection))
}

/// What namespaces ask for.
pub(super) fn selection(namespaces: &[Namespace], istio_labels: bool) -> Selection {
    let mut selection = Selection::new(istio_labels);
    for namespace in namespaces {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        selection.insert(name, &shared(namespace.metadata.labels.as_ref()));
    }
    selection
}

/// Whether labels ask for the pod to be in the mesh, and it can be.
pub(super) fn is_selected(pod: &Pod, selection: &Selection) -> bool {
    let spec = pod.spec.as_ref();
    let runtime = spec.and_then(|spec| spec.runtime_class_name.as_deref());
    let on_host = spec.is_some_and(|spec| spec.host_network == Some(true));
    let starting_pod = StartingPod {
        namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
        labels: &shared(pod.metadata.labels.as_ref()),
        annotations: &shared(pod.metadata.annotations.as_ref()),
        runtime: runtime.unwrap_or_default(),
    };
    !on_host && starting(selection, starting_pod).is_some()
}

/// As the model keeps them.
fn shared(labels: Option<&Labels>) -> config::Labels {
    let all = labels.into_iter().flatten();
    all.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

/// Whether a pod has not ended.
pub(super) fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// Whether a selector chooses these labels; an empty one chooses all.
pub(super) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let exact = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    exact.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().all(|expression| {
            let value = labels.get(&expression.key);
            let values = expression.values.as_deref().unwrap_or_default();
            let is_in = value.is_some_and(|value| values.contains(value));
            match expression.operator.as_str() {
                "In" => is_in,
                "NotIn" => !is_in,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::facts::read;
    use super::*;

    #[test]
    fn a_pods_own_label_wins_over_its_namespaces() {
        let namespaces: Vec<Namespace> = read(json!([
            {"metadata": {"name": "in", "labels": {"istio.io/dataplane-mode": "malha"}}},
            {"metadata": {"name": "istio", "labels": {"istio-injection": "enabled"}}},
            {"metadata": {"name": "out"}},
        ]));
        let selected = |namespace: &str, labels: serde_json::Value, istio_labels: bool| {
            let metadata = json!({"namespace": namespace, "labels": labels});
            let selection = selection(&namespaces, istio_labels);
            is_selected(&read(json!({"metadata": metadata})), &selection)
        };
        assert!(selected("in", json!({}), false));
        assert!(!selected("in", json!({"istio.io/dataplane-mode": "none"}), false));
        assert!(!selected("in", json!({"sidecar.istio.io/inject": "false"}), false));
        assert!(!selected("in", json!({"app.kubernetes.io/part-of": "malha"}), false));
        assert!(selected("istio", json!({}), true));
        assert!(!selected("istio", json!({}), false));
        assert!(!selected("out", json!({}), true));
        assert!(selected("out", json!({"istio.io/dataplane-mode": "ambient"}), true));
    }

    #[test]
    fn selectors() {
        let labels: Labels = read(json!({"app": "cart", "tier": "web"}));
        let chooses = |selector: serde_json::Value| matches(&read(selector), &labels);
        assert!(chooses(json!({})));
        assert!(chooses(json!({"matchLabels": {"app": "cart"}})));
        assert!(!chooses(json!({"matchLabels": {"app": "cart", "tier": "db"}})));
        let with = |key: &str, operator: &str, values: &[&str]| {
            chooses(json!({"matchExpressions": [
                {"key": key, "operator": operator, "values": values},
            ]}))
        };
        assert!(with("app", "In", &["cart", "shop"]) && !with("app", "In", &["shop"]));
        assert!(with("app", "NotIn", &["shop"]) && with("other", "NotIn", &["shop"]));
        assert!(with("app", "Exists", &[]) && !with("other", "Exists", &[]));
        assert!(with("other", "DoesNotExist", &[]) && !with("app", "DoesNotExist", &[]));
    }
}
