//! Keeps the pods that the cluster asks for: makes, watches, replaces and removes them, on all
//! nodes. Controllers (Deployment) and scheduler are here too, each a few lines.
//!
//! Invariant: pods are only changed by [`Kubelet::reconcile`] and [`Kubelet::tick`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::cluster::{Cluster, TEMPLATE_HASH, Wanted, set_label};
use super::manifest::text_at;
use super::names::{LabId, MAX_POD_HOST};
use super::pod::{Place, Pod};
use super::topology::Node;

/// Letters of generated pod names (Kubernetes': nothing that spells words).
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// First host part that a pod gets.
const FIRST_HOST: u8 = 2;

/// `(namespace, name)` of a pod.
pub(super) type PodName = (String, String);

/// Pods of all nodes.
#[derive(Debug)]
pub(super) struct Kubelet {
    id: LabId,
    run: PathBuf,
    nodes: Vec<Node>,
    pub(super) pods: BTreeMap<PodName, Pod>,
    /// Pods placed so far: whose turn it is.
    placed: usize,
    /// Last host part given out on each node.
    last_host: Vec<u8>,
    names: u64,
}

impl Kubelet {
    pub(super) fn new(id: LabId, run: PathBuf, nodes: Vec<Node>) -> Self {
        let last_host = vec![FIRST_HOST - 1; nodes.len()];
        Self { id, run, nodes, pods: BTreeMap::new(), placed: 0, last_host, names: 0 }
    }

    /// Makes and ends pods until they are those that the cluster asks for (ended pods go later,
    /// in `tick`). Says whether anything changed.
    pub(super) fn reconcile(&mut self, cluster: &Cluster) -> anyhow::Result<bool> {
        let wanted = cluster.wanted();
        let mut changed = self.end_unwanted(&wanted);
        for want in &wanted {
            changed |= match &want.replicas {
                None => self.keep_single(cluster, want)?,
                Some((count, hash)) => self.keep_replicas(cluster, want, *count, hash)?,
            };
        }
        Ok(changed)
    }

    fn end_unwanted(&mut self, wanted: &[Wanted<'_>]) -> bool {
        let mut changed = false;
        for pod in self.pods.values_mut().filter(|pod| pod.deadline.is_none()) {
            let keep = wanted.iter().any(|want| {
                want.namespace == pod.namespace
                    && match &pod.owner {
                        None => want.replicas.is_none() && want.name == pod.name,
                        Some((deployment, _)) => want.replicas.is_some() && want.name == deployment,
                    }
            });
            if !keep {
                pod.terminate();
                changed = true;
            }
        }
        changed
    }

    fn keep_single(&mut self, cluster: &Cluster, want: &Wanted<'_>) -> anyhow::Result<bool> {
        if let Some(pod) = self.pods.get_mut(&(want.namespace.into(), want.name.into())) {
            // One that ends makes place for the new one first.
            let changed = pod.deadline.is_none() && pod.value["metadata"] != *want.metadata;
            if changed {
                pod.value["metadata"] = want.metadata.clone();
            }
            return Ok(changed);
        }
        let value = json!({"metadata": want.metadata, "spec": want.spec});
        self.make(cluster, want, want.name.to_owned(), None, value)?;
        Ok(true)
    }

    /// New template: new pods first, old ones end when the new ones are ready.
    fn keep_replicas(
        &mut self,
        cluster: &Cluster,
        want: &Wanted<'_>,
        count: usize,
        hash: &str,
    ) -> anyhow::Result<bool> {
        let mut current = Vec::new();
        let mut old = Vec::new();
        for (name, pod) in &self.pods {
            let Some((deployment, made_from)) = &pod.owner else { continue };
            let ours = pod.namespace == want.namespace && deployment == want.name;
            if ours && pod.deadline.is_none() {
                let list = if made_from == hash { &mut current } else { &mut old };
                list.push((pod.made, name.clone(), pod.ready()));
            }
        }
        current.sort();
        let missing = count.saturating_sub(current.len());
        let all_ready = missing == 0 && current.iter().all(|(_, _, ready)| *ready);
        let surplus = current.into_iter().skip(count);
        let ending = surplus.chain(old.into_iter().filter(|_| all_ready));
        let ending: Vec<PodName> = ending.map(|(_, name, _)| name).collect();
        for name in &ending {
            if let Some(pod) = self.pods.get_mut(name) {
                pod.terminate();
            }
        }
        for _ in 0..missing {
            let mut value = json!({"metadata": want.metadata, "spec": want.spec});
            set_label(&mut value, TEMPLATE_HASH, Some(hash));
            let name = format!("{}-{hash}-{}", want.name, self.suffix());
            let owner = Some((want.name.to_owned(), hash.to_owned()));
            self.make(cluster, want, name, owner, value)?;
        }
        Ok(missing > 0 || !ending.is_empty())
    }

    fn make(
        &mut self,
        cluster: &Cluster,
        want: &Wanted<'_>,
        name: String,
        owner: Option<(String, String)>,
        value: Value,
    ) -> anyhow::Result<()> {
        let context = format!("Pod {}/{name}", want.namespace);
        let at = self.schedule(want.spec).with_context(|| context.clone())?;
        let host = self.free_host(at).with_context(|| context.clone())?;
        let node = self.nodes.get(at).context("no such node")?;
        let place = Place { id: self.id, run: &self.run, node, host };
        let pod = Pod::start(&place, cluster, (want.namespace, &name), owner, value)
            .with_context(|| context)?;
        self.pods.insert((want.namespace.to_owned(), name), pod);
        Ok(())
    }

    /// The node that `spec.nodeName` says, else each in turn.
    fn schedule(&mut self, spec: &Value) -> anyhow::Result<usize> {
        if let Some(name) = text_at(spec, "/nodeName") {
            let at = self.nodes.iter().position(|node| node.name == name);
            return at.with_context(|| format!("spec.nodeName: there is no node {name}"));
        }
        self.placed += 1;
        Ok((self.placed - 1) % self.nodes.len())
    }

    /// An address that was free for longest.
    fn free_host(&mut self, at: usize) -> anyhow::Result<u8> {
        let node = &self.nodes[at].name;
        let taken: Vec<u8> =
            self.pods.values().filter(|pod| pod.node == *node).map(|pod| pod.host).collect();
        let last = self.last_host[at];
        let mut candidates = (last + 1..=MAX_POD_HOST).chain(FIRST_HOST..=last);
        let Some(host) = candidates.find(|host| !taken.contains(host)) else {
            bail!("{node} has no address left");
        };
        self.last_host[at] = host;
        Ok(host)
    }

    /// Five letters that no pod of this lab had before.
    fn suffix(&mut self) -> String {
        self.names += 1;
        // An odd multiplier permutes: different counts, different names.
        let mut number = self.names.wrapping_mul(7_368_787) % 14_348_907;
        let letter = |_| {
            let letter = usize::try_from(number % 27).unwrap_or_default();
            number /= 27;
            char::from(LETTERS[letter])
        };
        (0..5).map(letter).collect()
    }

    /// Looks after every pod. Says whether anything that others can see has changed.
    pub(super) fn tick(&mut self) -> anyhow::Result<bool> {
        let mut changed = false;
        let mut over = Vec::new();
        for (name, pod) in &mut self.pods {
            if pod.deadline.is_none() {
                changed |= pod.tick().with_context(|| format!("Pod {}/{}", name.0, name.1))?;
            } else if pod.over() {
                over.push(name.clone());
            }
        }
        for name in over {
            if let Some(mut pod) = self.pods.remove(&name) {
                changed = true;
                pod.remove().with_context(|| format!("Pod {}/{}", name.0, name.1))?;
            }
        }
        Ok(changed)
    }
}
