//! `Node`: where it is, and nothing else. Pure.
//!
//! Istio takes region, zone and subzone from a node's labels and no others: what else a
//! `failoverPriority` names is a label of pods, but for `kubernetes.io/hostname`, which is the node's
//! name. So no other label is kept.

use std::sync::Arc;

use crate::config::api::Labels;
use crate::model::{Locality, REGION, SUBZONE, ZONE};

/// The names of before Kubernetes 1.17.
const OLD_REGION: &str = "failure-domain.beta.kubernetes.io/region";
const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";

/// Labels that are read.
pub(in crate::config) const LABELS: [&str; 5] = [REGION, ZONE, SUBZONE, OLD_REGION, OLD_ZONE];

/// Where the node is; `None`: its labels do not say.
pub(in crate::config) fn node(labels: &Labels) -> Option<Arc<Locality>> {
    let first = |names: &[&str]| names.iter().find_map(|name| labels.get(*name)).cloned();
    let locality = Locality {
        region: first(&[REGION, OLD_REGION]).unwrap_or_default(),
        zone: first(&[ZONE, OLD_ZONE]).unwrap_or_default(),
        subzone: first(&[SUBZONE]).unwrap_or_default(),
    };
    (!locality.is_empty()).then(|| Arc::new(locality))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_labels_go_before_old_ones() {
        let of = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value)));
            node(&labels.collect()).map(|found| found.to_string())
        };
        assert_eq!(of(&[("kubernetes.io/hostname", "n1")]), None);
        assert_eq!(of(&[(OLD_REGION, "old"), (OLD_ZONE, "z")]).as_deref(), Some("old/z"));
        let both = of(&[(OLD_REGION, "old"), (REGION, "eu"), (SUBZONE, "r1"), (ZONE, "a")]);
        assert_eq!(both.as_deref(), Some("eu/a/r1"));
    }
}
