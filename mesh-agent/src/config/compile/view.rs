//! The objects in force, sorted by kind, and by age where the oldest wins
//! (istio-surface 1.0, "Order of object precedence").

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::config::api::Labels;
use crate::config::diagnostic::Report;
use crate::config::objects::{Body, InForce, Key, Object};
use crate::config::translate::{
    EntryFacts, MeshFacts, PeerFacts, PodFacts, RateLimitFacts, RuleFacts, ServiceFacts,
    SliceFacts, UnenforcedFacts, VirtualServiceFacts,
};
use crate::model::Locality;

/// An object in force with its facts.
pub(super) struct Entry<'a, T> {
    /// The object.
    pub(super) object: &'a Object,
    /// Its age.
    pub(super) created: i64,
    /// What it says.
    pub(super) facts: &'a T,
}

impl<T> Clone for Entry<'_, T> {
    fn clone(&self) -> Self {
        Self { object: self.object, created: self.created, facts: self.facts }
    }
}

impl<T> Entry<'_, T> {
    /// A report about the object.
    pub(super) fn report(&self) -> Report {
        Report::new(Some(self.object.key.to_ref()), self.object.place.clone())
    }
}

/// Objects by kind; each list is in order of age.
#[derive(Default)]
pub(super) struct View<'a> {
    /// Labels of namespaces, by name.
    pub(super) namespaces: HashMap<&'a str, Entry<'a, Labels>>,
    /// Where nodes are, by name; those whose labels do not say are not here.
    pub(super) nodes: BTreeMap<&'a str, &'a Arc<Locality>>,
    /// Pods.
    pub(super) pods: Vec<Entry<'a, PodFacts>>,
    /// Services.
    pub(super) services: Vec<Entry<'a, ServiceFacts>>,
    /// Slices by namespace and service.
    pub(super) slices: HashMap<(&'a str, &'a str), Vec<&'a SliceFacts>>,
    /// Virtual services.
    pub(super) virtual_services: Vec<Entry<'a, VirtualServiceFacts>>,
    /// Destination rules.
    pub(super) rules: Vec<Entry<'a, RuleFacts>>,
    /// Service entries.
    pub(super) entries: Vec<Entry<'a, EntryFacts>>,
    /// Peer authentications.
    pub(super) peers: Vec<Entry<'a, PeerFacts>>,
    /// Rate limits.
    pub(super) rate_limits: Vec<Entry<'a, RateLimitFacts>>,
    /// The mesh's own configuration.
    pub(super) mesh: MeshFacts,
    /// Security objects that are not enforced.
    pub(super) unenforced: Vec<Entry<'a, UnenforcedFacts>>,
}

impl<'a> View<'a> {
    /// Sorts the objects.
    pub(super) fn new(in_force: &BTreeMap<&'a Key, InForce<'a>>) -> Self {
        let mut view = Self::default();
        for (key, InForce { object, created }) in in_force {
            let (object, created) = (*object, *created);
            match &object.body {
                Body::Namespace(facts) => {
                    view.namespaces.insert(&key.name, Entry { object, created, facts });
                }
                Body::Node(locality) => {
                    view.nodes.extend(locality.as_ref().map(|found| (&*key.name, found)));
                }
                Body::ServiceAccount => {}
                Body::Pod(facts) => view.pods.push(Entry { object, created, facts }),
                Body::Service(facts) => view.services.push(Entry { object, created, facts }),
                Body::EndpointSlice(facts) => {
                    view.slices.entry((&key.namespace, &facts.service)).or_default().push(facts);
                }
                Body::VirtualService(facts) => {
                    view.virtual_services.push(Entry { object, created, facts });
                }
                Body::DestinationRule(facts) => view.rules.push(Entry { object, created, facts }),
                Body::ServiceEntry(facts) => view.entries.push(Entry { object, created, facts }),
                Body::MeshConfig(facts) => view.mesh = facts.clone(),
                Body::PeerAuthentication(facts) => {
                    view.peers.push(Entry { object, created, facts });
                }
                Body::RateLimit(facts) => {
                    view.rate_limits.push(Entry { object, created, facts });
                }
                Body::Unenforced(facts) => {
                    view.unenforced.push(Entry { object, created, facts });
                }
            }
        }
        by_age(&mut view.pods);
        by_age(&mut view.services);
        by_age(&mut view.virtual_services);
        by_age(&mut view.rules);
        by_age(&mut view.entries);
        by_age(&mut view.peers);
        by_age(&mut view.rate_limits);
        by_age(&mut view.unenforced);
        view
    }
}

fn by_age<T>(entries: &mut [Entry<'_, T>]) {
    entries.sort_by(|a, b| {
        let (left, right) = (&a.object.key, &b.object.key);
        let names = || (&left.name, &left.namespace).cmp(&(&right.name, &right.namespace));
        a.created.cmp(&b.created).then_with(names)
    });
}
