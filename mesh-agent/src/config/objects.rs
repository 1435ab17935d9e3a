//! The accepted objects: what `compile` reads.
//!
//! An object is here only in a version that could be translated; when a newer one cannot, the last
//! good one stays and the findings say so. Objects belong to files; the same object in two files
//! counts once, the first file by name. No file is read here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::api::{Kind, Labels};
use super::diagnostic::{Diagnostic, Place, Report};
use super::parse::Parsed;
use super::translate::{
    EntryFacts, MeshFacts, PeerFacts, PodFacts, RateLimitFacts, RuleFacts, ServiceFacts,
    SliceFacts, UnenforcedFacts, VirtualServiceFacts,
};
use crate::model::{Locality, MeshSettings, ObjectRef};

/// What an installation decides once; it never changes while the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Mesh-wide names.
    pub mesh: MeshSettings,
    /// Whether Istio's labels (`istio.io/dataplane-mode=ambient`, `istio-injection=enabled`) select
    /// pods, beside Malha's own.
    pub istio_labels: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { mesh: MeshSettings::default(), istio_labels: true }
    }
}

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for a `Namespace` or a `Node`.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Key {
    /// As it is named to users.
    pub fn to_ref(&self) -> ObjectRef {
        ObjectRef {
            kind: self.kind.name().into(),
            namespace: Arc::clone(&self.namespace),
            name: Arc::clone(&self.name),
        }
    }
}

/// One accepted object, translated as far as it can be without the others.
#[derive(Debug)]
pub struct Object {
    /// Which one.
    pub key: Key,
    /// `metadata.creationTimestamp`, seconds since the epoch.
    pub(super) created: Option<i64>,
    /// What it says.
    pub(super) body: Body,
    /// Where it was read.
    pub(super) place: Option<Place>,
    /// Warnings about it.
    pub(super) notes: Vec<Diagnostic>,
}

/// What an object says.
#[derive(Debug)]
pub(super) enum Body {
    Namespace(Labels),
    /// Where it is; `None`: its labels do not say.
    Node(Option<Arc<Locality>>),
    ServiceAccount,
    Pod(Box<PodFacts>),
    Service(ServiceFacts),
    EndpointSlice(SliceFacts),
    VirtualService(VirtualServiceFacts),
    DestinationRule(Box<RuleFacts>),
    ServiceEntry(EntryFacts),
    PeerAuthentication(PeerFacts),
    RateLimit(RateLimitFacts),
    MeshConfig(MeshFacts),
    /// An `AuthorizationPolicy` or a `RequestAuthentication`.
    Unenforced(UnenforcedFacts),
}

/// The store.
#[derive(Debug, Default)]
pub struct Objects {
    settings: Settings,
    files: BTreeMap<Arc<str>, FileState>,
    /// UIDs of enrolled pods, by the file that announces them.
    announced: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Age of objects that do not tell theirs.
    first_seen: HashMap<Key, i64>,
    last_stamp: i64,
    answers: Arc<Answers>,
}

/// What names of `ServiceEntry` objects resolve to. One that has not been asked for yet is not in it;
/// one that was in vain, and never had an answer, has no address.
pub type Answers = BTreeMap<Arc<str>, Vec<IpAddr>>;

#[derive(Debug, Default)]
struct FileState {
    objects: BTreeMap<Key, Arc<Object>>,
    diagnostics: Vec<Diagnostic>,
}

/// An object in force, with its age.
pub(super) struct InForce<'a> {
    /// The object.
    pub(super) object: &'a Object,
    /// Seconds since the epoch, or the moment when it was first seen.
    pub(super) created: i64,
}

impl Objects {
    /// An empty store.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// What the installation decided.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes a file's new content in place of its last. `now`: seconds since the epoch, the age of
    /// objects that do not tell theirs, which keep the order in which they were first seen.
    pub fn apply(&mut self, file: &str, parsed: Parsed, now: i64) {
        let state = self.files.entry(file.into()).or_default();
        let mut before = std::mem::take(&mut state.objects);
        state.diagnostics = parsed.diagnostics;
        for object in parsed.accepted {
            before.remove(&object.key);
            if object.created.is_none() && !self.first_seen.contains_key(&object.key) {
                self.last_stamp = now.max(self.last_stamp + 1);
                self.first_seen.insert(object.key.clone(), self.last_stamp);
            }
            let mut report = Report::new(Some(object.key.to_ref()), object.place.clone());
            if state.objects.insert(object.key.clone(), Arc::new(object)).is_some() {
                report.warning("", "twice in this file: the later one counts");
            }
            state.diagnostics.extend(report.into_diagnostics());
        }
        let rejected: HashSet<Key> = parsed.rejected.into_iter().collect();
        for (key, object) in before {
            if !(parsed.unreadable || rejected.contains(&key)) || state.objects.contains_key(&key) {
                continue;
            }
            let mut report = Report::new(Some(key.to_ref()), object.place.clone());
            report.warning("", "its last good version stays in force");
            state.diagnostics.extend(report.into_diagnostics());
            state.objects.insert(key, object);
        }
    }

    /// Whether a file has objects in force.
    pub(super) fn has_any_of(&self, file: &str) -> bool {
        self.files.get(file).is_some_and(|state| !state.objects.is_empty())
    }

    /// Whether the file has this node in this place already: of a node, which the API server tells of
    /// every few minutes, nothing else counts.
    pub(super) fn has_same_node(&self, file: &str, node: &Object) -> bool {
        let known = self.files.get(file).and_then(|state| state.objects.get(&node.key));
        match (known.map(|known| &known.body), &node.body) {
            (Some(Body::Node(known)), Body::Node(new)) => known == new,
            _ => false,
        }
    }

    /// Forgets a file's objects.
    pub fn remove(&mut self, file: &str) {
        self.files.remove(file);
    }

    /// Takes one node's list of enrolled pods, or drops it.
    pub fn announce(&mut self, file: &str, uids: Option<BTreeSet<Arc<str>>>) {
        match uids {
            Some(uids) => self.announced.insert(file.into(), uids),
            None => self.announced.remove(file),
        };
    }

    /// Forgets the age of objects that are gone. To be called when a batch of changes is complete,
    /// so that an object which moves between files keeps its age.
    pub fn settle(&mut self) {
        let there: HashSet<&Key> =
            self.files.values().flat_map(|file| file.objects.keys()).collect();
        self.first_seen.retain(|key, _| there.contains(key));
    }

    /// Takes what names resolve to now.
    pub fn resolve(&mut self, answers: Arc<Answers>) {
        self.answers = answers;
    }

    /// What names resolve to.
    pub(super) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Whether some node announced this pod as enrolled.
    pub(super) fn is_announced(&self, uid: &str) -> bool {
        self.announced.values().any(|uids| uids.contains(uid))
    }

    /// Objects in force by key, and what is wrong with files and objects as such.
    pub(super) fn in_force(&self) -> (BTreeMap<&Key, InForce<'_>>, Vec<Diagnostic>) {
        let mut found: BTreeMap<&Key, InForce<'_>> = BTreeMap::new();
        let mut diagnostics = Vec::new();
        for file in self.files.values() {
            diagnostics.extend_from_slice(&file.diagnostics);
            for (key, object) in &file.objects {
                if let Some(other) = found.get(key) {
                    let mut report = Report::new(Some(key.to_ref()), object.place.clone());
                    let other = other.object.place.as_ref().map_or("", |place| &place.file);
                    report.warning("", format!("also in file {other}, which counts"));
                    diagnostics.extend(report.into_diagnostics());
                    continue;
                }
                diagnostics.extend_from_slice(&object.notes);
                let seen = self.first_seen.get(key).copied().unwrap_or_default();
                let created = object.created.unwrap_or(seen);
                found.insert(key, InForce { object, created });
            }
        }
        (found, diagnostics)
    }
}
