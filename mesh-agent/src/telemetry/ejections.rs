//! Ejected endpoints, as metrics.
//!
//! Nothing is counted here: whoever balances keeps the numbers, and they are read when the metrics
//! are written out. Invariant: labels are services and reasons, never endpoints, which come and go.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Ejections in one service for one reason, of all clients on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EjectionRow {
    /// Name of the service.
    pub service: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Envoy's name for why.
    pub reason: &'static str,
    /// Since the process began.
    pub total: u64,
    /// How many endpoints are out now, counted once for each client.
    pub active: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    destination_service_name: Arc<str>,
    destination_service_namespace: Arc<str>,
    reason: &'static str,
}

struct Ejections<F>(F);

/// Registers `malha_outlier_ejections_total` and `malha_outlier_ejections_active`; `read` is called
/// each time the metrics are written out.
pub fn register_ejections<F>(registry: &mut Registry, read: F)
where
    F: Fn() -> Vec<EjectionRow> + Send + Sync + 'static,
{
    registry.register_collector(Box::new(Ejections(read)));
}

impl<F> fmt::Debug for Ejections<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ejections")
    }
}

impl<F> Collector for Ejections<F>
where
    F: Fn() -> Vec<EjectionRow> + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let rows: Vec<(Labels, EjectionRow)> = (self.0)().into_iter().map(labelled).collect();
        // The library appends `_total` to counters.
        let (name, help) = ("malha_outlier_ejections", "Endpoints ejected by outlier detection");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, row) in &rows {
            ConstCounter::new(row.total).encode(family.encode_family(labels)?)?;
        }
        let (name, help) = ("malha_outlier_ejections_active", "Endpoints that are ejected now");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, row) in &rows {
            let active = i64::try_from(row.active).unwrap_or(i64::MAX);
            ConstGauge::new(active).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}

fn labelled(row: EjectionRow) -> (Labels, EjectionRow) {
    let labels = Labels {
        destination_service_name: Arc::clone(&row.service),
        destination_service_namespace: Arc::clone(&row.namespace),
        reason: row.reason,
    };
    (labels, row)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn numbers_are_those_of_the_moment() {
        let total = Arc::new(AtomicU64::new(1));
        let read = Arc::clone(&total);
        let mut registry = Registry::default();
        register_ejections(&mut registry, move || {
            vec![EjectionRow {
                service: "web".into(),
                namespace: "shop".into(),
                reason: "consecutive_5xx",
                total: read.load(Ordering::Relaxed),
                active: 1,
            }]
        });
        total.store(3, Ordering::Relaxed);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let labels = r#"{destination_service_name="web",destination_service_namespace="shop",reason="consecutive_5xx"}"#;
        for line in [
            format!("malha_outlier_ejections_total{labels} 3\n"),
            format!("malha_outlier_ejections_active{labels} 1\n"),
        ] {
            assert!(text.contains(&line), "{text}");
        }
    }
}
