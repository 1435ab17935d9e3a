//! Which endpoints of an upstream belong together for one client, and which come first. Pure.
//!
//! Invariant: the groups depend on configuration alone; who is healthy only moves the load between
//! them (`priority`). Source: Istio's `ApplyLocalityLoadBalancer` (istio-surface 1.2.1); the order is
//! DestinationRule, Service, mesh.

use std::collections::BTreeMap;

use crate::model::{
    Distribute, Endpoint, Locality, LocalitySetting, PriorityLabel, RegionFailover, Service,
    TrafficPolicy, Workload,
};

/// Distances by region, zone and subzone: 0 to 4.
const DISTANCES: usize = 5;
/// A weight of one per cent of the requests: finer than any split among localities.
const PERCENT: u64 = 1 << 20;

/// What one client wants of an upstream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preference<'a> {
    client: &'a Workload,
    wanted: Wanted<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Wanted<'a> {
    /// `distribute`.
    Shares(&'a Distribute),
    /// Nearer ones first: by labels, then by regions, zones and subzones, where these count.
    Order { labels: &'a [PriorityLabel], regions: Option<&'a [RegionFailover]> },
}

/// Endpoints in groups, by index; each in the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    pub(super) members: Vec<Vec<usize>>,
    /// What each group gets while all are healthy; `None`: the first gets all, the next what is left.
    pub(super) weights: Option<Vec<u64>>,
}

impl<'a> Preference<'a> {
    /// What the client of a service wants; `None`: that localities do not count. An order needs
    /// ejections, as in Istio, but for one that the Service asks for.
    pub(super) fn of(
        client: &'a Workload,
        service: &Service,
        policy: &'a TrafficPolicy,
        mesh: &'a LocalitySetting,
    ) -> Option<Self> {
        let wanted = match (policy.locality.as_deref(), service.distribution) {
            (None, Some(distribution)) => {
                Wanted::Order { labels: distribution.priorities(), regions: None }
            }
            (Some(of_rule), _) => Wanted::of(client, of_rule, policy)?,
            (None, None) => Wanted::of(client, mesh, policy)?,
        };
        Some(Self { client, wanted })
    }

    /// The groups of these endpoints; `None`: all are alike.
    pub(super) fn groups<'b>(
        &self,
        endpoints: impl Iterator<Item = &'b Endpoint> + Clone,
    ) -> Option<Groups> {
        match self.wanted {
            Wanted::Shares(distribute) => Some(shares(distribute, endpoints)),
            Wanted::Order { labels, regions } => {
                let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
                for (at, endpoint) in endpoints.enumerate() {
                    let by_labels = label_priority(self.client, endpoint, labels);
                    let by_region = regions.map_or(0, |regions| self.distance(endpoint, regions));
                    groups.entry(by_labels * DISTANCES + by_region).or_default().push(at);
                }
                let members: Vec<_> = groups.into_values().collect();
                (members.len() > 1).then_some(Groups { members, weights: None })
            }
        }
    }

    /// 0: the same subzone, 1: zone, 2: region, 3: another region (with a `failover` for the client's
    /// own, the one that it names), 4: any other.
    fn distance(&self, endpoint: &Endpoint, regions: &[RegionFailover]) -> usize {
        let unknown = Locality::default();
        let own = self.client.locality.as_deref().unwrap_or(&unknown);
        let its = endpoint.locality().unwrap_or(&unknown);
        if own.region != its.region {
            let failover = regions.iter().find(|failover| failover.from == own.region);
            return if failover.is_none_or(|failover| failover.to == its.region) { 3 } else { 4 };
        }
        match (own.zone == its.zone, own.subzone == its.subzone) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }
}

impl<'a> Wanted<'a> {
    fn of(client: &Workload, setting: &'a LocalitySetting, policy: &TrafficPolicy) -> Option<Self> {
        if !setting.enabled {
            return None;
        }
        if !setting.distribute.is_empty() {
            let unknown = Locality::default();
            let own = client.locality.as_deref().unwrap_or(&unknown);
            return setting.distribute.iter().find(|of| of.from.matches(own)).map(Self::Shares);
        }
        policy.outlier.as_ref()?;
        let labels = &*setting.failover_priority;
        let is_by_region = labels.is_empty() || !setting.failover.is_empty();
        let regions = (is_by_region && client.locality.is_some()).then_some(&*setting.failover);
        (!labels.is_empty() || regions.is_some()).then_some(Self::Order { labels, regions })
    }
}

/// 0 if all labels are the same; else the higher, the earlier the first that differs. What neither
/// has is the same.
fn label_priority(client: &Workload, endpoint: &Endpoint, labels: &[PriorityLabel]) -> usize {
    let differs = |label: &PriorityLabel| {
        let wanted = label.value.as_deref().unwrap_or_else(|| client.topology(&label.key));
        wanted != endpoint.topology(&label.key)
    };
    labels.iter().position(differs).map_or(0, |at| labels.len() - at)
}

/// One group for each locality: an entry's share is split among those that it covers, by the number of
/// their endpoints. Endpoints that no entry covers are in no group.
fn shares<'b>(
    distribute: &Distribute,
    endpoints: impl Iterator<Item = &'b Endpoint> + Clone,
) -> Groups {
    let unknown = Locality::default();
    let mut groups: BTreeMap<(usize, &Locality), Vec<usize>> = BTreeMap::new();
    for (at, endpoint) in endpoints.enumerate() {
        let its = endpoint.locality().unwrap_or(&unknown);
        if let Some(to) = distribute.to.iter().position(|(pattern, _)| pattern.matches(its)) {
            groups.entry((to, its)).or_default().push(at);
        }
    }
    let size = |of: usize| -> usize {
        groups.iter().filter(|((to, _), _)| *to == of).map(|(_, members)| members.len()).sum()
    };
    let weight = |(to, members): (usize, &Vec<usize>)| {
        let share = distribute.to.get(to).map_or(0, |(_, share)| u64::from(*share));
        share * PERCENT * members.len() as u64 / size(to).max(1) as u64
    };
    let weights = groups.iter().map(|((to, _), members)| weight((*to, members))).collect();
    Groups { weights: Some(weights), members: groups.into_values().collect() }
}
