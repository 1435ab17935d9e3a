//! Where workloads are, and what is made of how far they are from each other.
//!
//! Source: Istio `localityLbSetting` (istio-surface 1.2), `Service.spec.trafficDistribution`; which of
//! a rule's, a Service's and the mesh's holds, and for whom, is decided in `balance`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// Label of a region, on nodes and for `failoverPriority`.
pub const REGION: &str = "topology.kubernetes.io/region";
/// Label of a zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Label of a part of a zone.
pub const SUBZONE: &str = "topology.istio.io/subzone";
/// Name under which `failoverPriority` knows the node.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// Label of a network; the same for all where nobody has it.
pub const NETWORK: &str = "topology.istio.io/network";

/// `region/zone/subzone`; what is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// Such as `eu-west`.
    pub region: Arc<str>,
    /// Such as `eu-west-1a`.
    pub zone: Arc<str>,
    /// Such as a rack.
    pub subzone: Arc<str>,
}

impl Locality {
    /// Reads `region/zone/subzone`, of which the last parts may be missing.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(Arc::from);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}/{}/{}", self.region, self.zone, self.subzone);
        f.write_str(text.trim_end_matches('/'))
    }
}

/// Localities by name, or by `*`; the last parts may be missing, which is as `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalityPattern {
    /// `None`: any.
    pub region: Option<Arc<str>>,
    /// `None`: any.
    pub zone: Option<Arc<str>>,
    /// `None`: any.
    pub subzone: Option<Arc<str>>,
}

impl LocalityPattern {
    /// Reads `region/zone/subzone`.
    pub fn parse(text: &str) -> Self {
        let Locality { region, zone, subzone } = Locality::parse(text);
        let named = |part: Arc<str>| (!part.is_empty() && &*part != "*").then_some(part);
        Self { region: named(region), zone: named(zone), subzone: named(subzone) }
    }

    /// Whether it covers a locality.
    pub fn matches(&self, locality: &Locality) -> bool {
        let is = |wanted: &Option<Arc<str>>, part: &Arc<str>| {
            wanted.as_ref().is_none_or(|wanted| wanted == part)
        };
        is(&self.region, &locality.region)
            && is(&self.zone, &locality.zone)
            && is(&self.subzone, &locality.subzone)
    }

    /// Whether some locality is covered by both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let may = |a: &Option<Arc<str>>, b: &Option<Arc<str>>| a.is_none() || b.is_none() || a == b;
        may(&self.region, &other.region)
            && may(&self.zone, &other.zone)
            && may(&self.subzone, &other.subzone)
    }
}

/// `localityLbSetting` of a `DestinationRule` or of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalitySetting {
    /// `enabled`: localities count.
    pub enabled: bool,
    /// `distribute[]`: fixed shares; the first that is for the client's locality.
    pub distribute: Vec<Distribute>,
    /// `failover[]`: which region comes first once the client's own has too few healthy endpoints.
    pub failover: Vec<RegionFailover>,
    /// `failoverPriority[]`, the most important first.
    pub failover_priority: Vec<PriorityLabel>,
}

impl Default for LocalitySetting {
    fn default() -> Self {
        Self {
            enabled: true,
            distribute: Vec::new(),
            failover: Vec::new(),
            failover_priority: Vec::new(),
        }
    }
}

/// `distribute[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribute {
    /// Clients that it is for.
    pub from: LocalityPattern,
    /// Percentages; they add up to 100. Endpoints elsewhere get nothing.
    pub to: Vec<(LocalityPattern, u32)>,
}

/// `failover[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionFailover {
    /// The client's region.
    pub from: Arc<str>,
    /// The region before all others.
    pub to: Arc<str>,
}

/// `failoverPriority[]`: endpoints that have the client's value of a label, or this one, come before
/// those that do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriorityLabel {
    /// The label.
    pub key: Arc<str>,
    /// In place of the client's value.
    pub value: Option<Arc<str>>,
}

impl PriorityLabel {
    fn of_client(key: &str) -> Self {
        Self { key: key.into(), value: None }
    }
}

/// `Service.spec.trafficDistribution`, or the annotation `networking.istio.io/traffic-distribution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// `PreferSameZone`, and `PreferClose`, its older name.
    PreferSameZone,
    /// `PreferSameNode`.
    PreferSameNode,
}

impl TrafficDistribution {
    /// What it means, as Istio has it.
    pub fn priorities(self) -> &'static [PriorityLabel] {
        static ORDER: LazyLock<[PriorityLabel; 5]> = LazyLock::new(|| {
            [NETWORK, REGION, ZONE, SUBZONE, HOSTNAME].map(PriorityLabel::of_client)
        });
        match self {
            Self::PreferSameZone => ORDER.get(..3).unwrap_or_default(),
            Self::PreferSameNode => &*ORDER,
        }
    }
}

/// The value of a label as `failoverPriority` sees it; empty without one. What the node says goes
/// before the pod's own labels.
pub(super) fn topology<'a>(
    key: &str,
    (locality, node): (Option<&'a Locality>, &'a str),
    labels: Option<&'a BTreeMap<Arc<str>, Arc<str>>>,
) -> &'a str {
    let of_node = match key {
        REGION => locality.map(|found| &*found.region),
        ZONE => locality.map(|found| &*found.zone),
        SUBZONE => locality.map(|found| &*found.subzone),
        HOSTNAME => Some(node),
        _ => None,
    };
    let own = || labels.and_then(|labels| labels.get(key)).map(|value| &**value);
    of_node.filter(|value| !value.is_empty()).or_else(own).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localities_are_read_and_written() {
        for text in ["", "eu", "eu/a", "eu/a/rack-1", "eu//rack-1"] {
            assert_eq!(Locality::parse(text).to_string(), text);
        }
        assert_eq!(&*Locality::parse("eu/a/b/c").subzone, "b/c");
        assert!(Locality::parse("").is_empty() && !Locality::parse("//x").is_empty());
    }

    #[test]
    fn patterns_cover_and_overlap() {
        let matches = |pattern: &str, locality: &str| {
            LocalityPattern::parse(pattern).matches(&Locality::parse(locality))
        };
        for pattern in ["*", "eu", "eu/*", "eu/a", "eu/a/*", "eu/a/r1"] {
            assert!(matches(pattern, "eu/a/r1"), "{pattern}");
        }
        for pattern in ["us", "eu/b", "eu/a/r2", "us/*", "eu/b/*"] {
            assert!(!matches(pattern, "eu/a/r1"), "{pattern}");
        }
        assert!(matches("*", "") && !matches("eu", ""));
        let overlap = |one: &str, other: &str| {
            LocalityPattern::parse(one).overlaps(&LocalityPattern::parse(other))
        };
        for (one, other, expected) in [
            ("eu", "eu/a", true),
            ("*", "us/a/b", true),
            ("eu/a/*", "eu/a", true),
            ("eu/a", "eu/b", false),
            ("eu/a/r1", "eu/a/r2", false),
            ("eu/*", "us/*", false),
        ] {
            assert_eq!((overlap(one, other), overlap(other, one)), (expected, expected));
        }
    }

    #[test]
    fn what_the_node_says_goes_before_labels() {
        let locality = Locality::parse("eu/a");
        let labels = [(ZONE.into(), "b".into()), (SUBZONE.into(), "r".into())].into();
        let value = |key: &str| topology(key, (Some(&locality), "n1"), Some(&labels)).to_owned();
        assert_eq!(
            [REGION, ZONE, SUBZONE, HOSTNAME, NETWORK].map(value),
            ["eu", "a", "r", "n1", ""]
        );
    }

    #[test]
    fn distributions_are_orders_of_labels() {
        let keys = |of: TrafficDistribution| {
            of.priorities().iter().map(|label| label.key.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(keys(TrafficDistribution::PreferSameZone), [NETWORK, REGION, ZONE]);
        let of_node = [NETWORK, REGION, ZONE, SUBZONE, HOSTNAME];
        assert_eq!(keys(TrafficDistribution::PreferSameNode), of_node);
    }
}
