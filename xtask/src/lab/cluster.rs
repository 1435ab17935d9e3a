//! What runs in the lab: takes manifests, runs pods, and keeps the folder of objects that the agents
//! read, the nodes' NAT rules and the names of services up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::endpoints::{self, Service};
use super::images::{self, Programs};
use super::manifest::{self, Document, scalar, selects};
use super::node::{Node, pod_v4, pod_v6};
use super::pod::{Pod, Sandbox, SandboxSpec};
use super::proxy;

/// Kinds that the lab itself understands.
const RUN: [&str; 2] = ["Pod", "Deployment"];

/// A pod and what it is made from.
struct Running {
    pod: Pod,
    /// Metadata and spec as in the manifest or template.
    object: Value,
    /// Deployment that owns it, `namespace/name`.
    owner: Option<String>,
    /// Ports that must listen before it is ready.
    ports: Vec<u16>,
    ready: bool,
}

/// The cluster's state.
pub(super) struct Cluster {
    run_dir: PathBuf,
    nodes: Vec<Arc<Node>>,
    programs: Programs,
    documents: BTreeMap<(String, String, String), Document>,
    pods: BTreeMap<String, Running>,
    services: BTreeMap<String, Service>,
    next_host: Vec<u16>,
    next_service: u16,
    next_node: usize,
    /// Files written, with their content.
    files: BTreeMap<String, String>,
    rules: String,
}

impl Cluster {
    pub(super) fn new(run_dir: PathBuf, nodes: Vec<Arc<Node>>, programs: Programs) -> Self {
        let next_host = vec![1; nodes.len()];
        Self {
            run_dir,
            nodes,
            programs,
            documents: BTreeMap::new(),
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            next_host,
            next_service: 1,
            next_node: 0,
            files: BTreeMap::new(),
            rules: String::new(),
        }
    }

    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    pub(super) fn services(&self) -> &BTreeMap<String, Service> {
        &self.services
    }

    pub(super) fn apply(&mut self, manifests: &str) -> anyhow::Result<()> {
        for document in manifest::read(manifests)? {
            let key = (document.kind.clone(), document.namespace.clone(), document.name.clone());
            let before = self.documents.insert(key, document.clone());
            let changed = before.is_none_or(|before| before.value != document.value);
            self.take(&document, changed).with_context(|| document.id())?;
        }
        self.refresh()
    }

    fn take(&mut self, document: &Document, changed: bool) -> anyhow::Result<()> {
        match document.kind.as_str() {
            "Pod" => self.ensure_pod(document),
            "Deployment" => self.ensure_deployment(document, changed),
            "Service" => {
                let id = format!("{}/{}", document.namespace, document.name);
                let number = match self.services.get(&id) {
                    Some(service) => service.number,
                    None => {
                        self.next_service += 1;
                        self.next_service
                    }
                };
                self.services.insert(id, Service::read(document, number)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        if self.documents.remove(&key).is_none() {
            bail!("there is no {kind} {namespace}/{name}");
        }
        let id = format!("{namespace}/{name}");
        match kind {
            "Pod" => self.stop_pod(&id)?,
            "Deployment" => {
                for pod in self.names_of(&id) {
                    self.stop_pod(&pod)?;
                }
            }
            "Service" => {
                self.services.remove(&id);
            }
            _ => {}
        }
        self.refresh()
    }

    fn ensure_pod(&mut self, document: &Document) -> anyhow::Result<()> {
        let id = format!("{}/{}", document.namespace, document.name);
        let spec_changed = |running: &Running| running.object["spec"] != document.value["spec"];
        match self.pods.get_mut(&id) {
            Some(running) if !spec_changed(running) => {
                running.object = document.value.clone();
                return Ok(());
            }
            Some(_) => self.stop_pod(&id)?,
            None => {}
        }
        self.start_pod(&id, document.value.clone(), None)
    }

    fn ensure_deployment(&mut self, document: &Document, changed: bool) -> anyhow::Result<()> {
        let id = format!("{}/{}", document.namespace, document.name);
        let template = document.at("/spec/template");
        let replicas = document.at("/spec/replicas").as_u64().unwrap_or(1);
        let replicas = usize::try_from(replicas)?;
        let old = self.names_of(&id);
        let same = |name: &String| {
            self.pods.get(name).is_some_and(|running| running.object["spec"] == template["spec"])
        };
        let (mut keep, mut stop): (Vec<_>, Vec<_>) = old.into_iter().partition(same);
        stop.extend(keep.split_off(keep.len().min(replicas)));
        if changed {
            for name in &keep {
                if let Some(running) = self.pods.get_mut(name) {
                    running.object["metadata"]["labels"] = template["metadata"]["labels"].clone();
                }
            }
        }
        let mut index = 0;
        while keep.len() < replicas {
            index += 1;
            let name = format!("{id}-{index}");
            if self.pods.contains_key(&name) {
                continue;
            }
            self.start_pod(&name, template.clone(), Some(id.clone()))?;
            keep.push(name);
        }
        stop.iter().try_for_each(|name| self.stop_pod(name))
    }

    fn names_of(&self, deployment: &str) -> Vec<String> {
        let owned = |running: &Running| running.owner.as_deref() == Some(deployment);
        self.pods.iter().filter(|(_, running)| owned(running)).map(|(id, _)| id.clone()).collect()
    }

    fn start_pod(&mut self, id: &str, object: Value, owner: Option<String>) -> anyhow::Result<()> {
        let (namespace, name) = id.split_once('/').context("a pod's name")?;
        let index = self.place(&object)?;
        let node = self.nodes.get(index).context("no such node")?.clone();
        let slot = self.next_host.get_mut(index).context("no such node")?;
        let host = *slot;
        *slot += 1;
        let uid = format!("{:08x}-0000-4000-8000-{:012x}", node.index, host);
        let dir = self.run_dir.join("pods");
        let mounts = self.mounts(namespace, &object, &dir.join(&uid))?;
        let images = list(&object, "/spec/containers").iter().filter_map(|c| c["image"].as_str());
        let overlays = images::programs(images)?;
        let spec = SandboxSpec {
            uid: &uid,
            namespace,
            name,
            host,
            programs: &self.programs.dir,
            mounts: &mounts,
            overlays: &overlays,
        };
        let sandbox = Sandbox::create(&node, &dir, &spec)?;
        let ports = self.start_containers(&sandbox, &object, name, &dir.join(&uid))?;
        let ips = vec![IpAddr::V4(pod_v4(node.index, host)), IpAddr::V6(pod_v6(node.index, host))];
        let pod = Pod {
            name: id.to_owned(),
            uid: uid.into(),
            node: node.name.clone(),
            ips,
            sandbox: Arc::new(sandbox),
        };
        self.pods.insert(id.to_owned(), Running { pod, object, owner, ports, ready: false });
        Ok(())
    }

    /// The node that `spec.nodeName` asks for, or the next in turn.
    fn place(&mut self, object: &Value) -> anyhow::Result<usize> {
        if let Some(wanted) = object.pointer("/spec/nodeName").and_then(Value::as_str) {
            let found = self.nodes.iter().position(|node| node.name == wanted);
            return found.with_context(|| format!("spec.nodeName: there is no node `{wanted}`"));
        }
        self.next_node += 1;
        Ok((self.next_node - 1) % self.nodes.len().max(1))
    }

    /// ConfigMaps that containers mount, written to files.
    fn mounts(
        &self,
        namespace: &str,
        object: &Value,
        dir: &Path,
    ) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
        let mut mounts = Vec::new();
        for volume in list(object, "/spec/volumes") {
            let Some(map) = volume.pointer("/configMap/name").and_then(Value::as_str) else {
                continue;
            };
            let name = volume["name"].as_str().unwrap_or_default();
            let key = ("ConfigMap".to_owned(), namespace.to_owned(), map.to_owned());
            let document = self.documents.get(&key).with_context(|| {
                format!("spec.volumes[{name}].configMap.name: there is no ConfigMap `{map}`")
            })?;
            let files = dir.join("volumes").join(name);
            std::fs::create_dir_all(&files)?;
            for (file, content) in document.at("/data").as_object().into_iter().flatten() {
                std::fs::write(files.join(file), content.as_str().unwrap_or_default())?;
            }
            for mount in list(object, "/spec/containers")
                .iter()
                .flat_map(|container| list(container, "/volumeMounts"))
                .filter(|mount| mount["name"] == name)
            {
                let target = PathBuf::from(mount["mountPath"].as_str().unwrap_or_default());
                let source = match mount["subPath"].as_str() {
                    Some(file) => files.join(file),
                    None => files.clone(),
                };
                mounts.push((source, target));
            }
        }
        Ok(mounts)
    }

    fn start_containers(
        &self,
        sandbox: &Sandbox,
        object: &Value,
        pod: &str,
        dir: &Path,
    ) -> anyhow::Result<Vec<u16>> {
        let mut ports = Vec::new();
        for (index, container) in list(object, "/spec/containers").iter().enumerate() {
            let field = format!("spec.containers[{index}]");
            let name = container["name"].as_str().unwrap_or("main");
            let image = container["image"].as_str().with_context(|| format!("{field}.image"))?;
            let found = images::find(image, &self.programs, dir)
                .with_context(|| format!("{field}.image"))?;
            let strings = |path: &str| -> Vec<String> {
                list(container, path).iter().filter_map(scalar).collect()
            };
            let (command, args) = (strings("/command"), strings("/args"));
            // As in Kubernetes: a command replaces the image's own, and its arguments too.
            let own = command.is_empty();
            if own && args.is_empty() {
                ports.extend(found.ports);
            }
            let mut line = if own { found.command } else { command };
            line.extend(if own && args.is_empty() { found.arguments } else { args });
            let mut environment = vec![("HOSTNAME".to_owned(), pod.to_owned())];
            for variable in list(container, "/env") {
                if let (Some(name), Some(value)) =
                    (variable["name"].as_str(), scalar(&variable["value"]))
                {
                    environment.push((name.to_owned(), value));
                }
            }
            sandbox.start(name, &line, &environment)?;
            ports.extend(
                list(container, "/ports")
                    .iter()
                    .filter(|port| port["protocol"].as_str().unwrap_or("TCP") == "TCP")
                    .filter_map(|port| port["containerPort"].as_u64())
                    .filter_map(|port| u16::try_from(port).ok()),
            );
        }
        Ok(ports)
    }

    fn stop_pod(&mut self, id: &str) -> anyhow::Result<()> {
        if let Some(running) = self.pods.remove(id) {
            running.pod.sandbox.destroy()?;
        }
        Ok(())
    }

    pub(super) fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        let running = self.pods.get(name).with_context(|| format!("there is no pod {name}"))?;
        Ok(running.pod.clone())
    }

    pub(super) fn pods(&self) -> Vec<Pod> {
        self.pods.values().map(|running| running.pod.clone()).collect()
    }

    pub(super) fn pods_of(&self, deployment: &str) -> Vec<Pod> {
        let names = self.names_of(deployment);
        names.iter().filter_map(|name| self.pod(name).ok()).collect()
    }

    pub(super) fn is_ready(&self, name: &str) -> bool {
        self.pods.get(name).is_some_and(|running| running.ready)
    }

    /// Looks whether pods have become ready or ceased to be; publishes only then.
    pub(super) fn watch(&mut self) -> anyhow::Result<()> {
        if self.look() { self.publish() } else { Ok(()) }
    }

    /// Looks at the pods, and publishes what was applied and what was seen.
    fn refresh(&mut self) -> anyhow::Result<()> {
        self.look();
        self.publish()
    }

    /// Brings the readiness of pods up to date; whether any has changed.
    fn look(&mut self) -> bool {
        let mut changed = false;
        for running in self.pods.values_mut() {
            let listening = running.pod.sandbox.listening();
            let ready = running.ports.iter().all(|port| listening.contains(port));
            changed |= ready != std::mem::replace(&mut running.ready, ready);
        }
        changed
    }

    /// Brings files, rules and names up to date.
    fn publish(&mut self) -> anyhow::Result<()> {
        let pods: Vec<endpoints::PodView<'_>> = self
            .pods
            .values()
            .map(|running| endpoints::PodView {
                pod: &running.pod,
                object: &running.object,
                ready: running.ready,
            })
            .collect();
        for service in self.services.values_mut() {
            service.resolve(&pods);
        }
        let rules = proxy::rules(self.services.values());
        if rules != self.rules {
            for node in &self.nodes {
                node.nft(&rules)?;
            }
            self.rules = rules;
        }
        self.write_files()
    }

    fn write_files(&mut self) -> anyhow::Result<()> {
        let mut wanted: BTreeMap<String, String> = BTreeMap::new();
        for document in self.documents.values() {
            let file = format!(
                "{}-{}-{}",
                document.kind.to_lowercase(),
                document.namespace,
                document.name
            );
            match document.kind.as_str() {
                kind if RUN.contains(&kind) => {}
                "ConfigMap" => {}
                "Service" => {}
                _ => {
                    wanted.insert(format!("{file}.yaml"), document.text.clone());
                }
            }
        }
        for service in self.services.values() {
            for object in service.objects() {
                let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
                let (namespace, name) = (
                    object["metadata"]["namespace"].as_str().unwrap_or_default(),
                    object["metadata"]["name"].as_str().unwrap_or_default(),
                );
                let file = format!("{kind}-{namespace}-{name}.json");
                wanted.insert(file, serde_json::to_string_pretty(&object)?);
            }
        }
        for running in self.pods.values() {
            let object = pod_object(running);
            let file = format!("pod-{}.json", running.pod.name.replace('/', "-"));
            wanted.insert(file, serde_json::to_string_pretty(&object)?);
        }
        let dir = self.run_dir.join("config");
        for (file, content) in &wanted {
            if self.files.get(file) != Some(content) {
                // A name that the agents do not read until it is whole.
                let temporary = dir.join(format!(".{file}.tmp"));
                std::fs::write(&temporary, content)?;
                std::fs::rename(&temporary, dir.join(file))?;
            }
        }
        let gone: BTreeSet<&String> =
            self.files.keys().filter(|file| !wanted.contains_key(*file)).collect();
        for file in gone {
            let _ = std::fs::remove_file(dir.join(file));
        }
        self.files = wanted;
        Ok(())
    }
}

/// The Pod object as the API server would hold it.
fn pod_object(running: &Running) -> Value {
    let (namespace, name) = running.pod.name.split_once('/').unwrap_or_default();
    let mut object = running.object.clone();
    object["apiVersion"] = json!("v1");
    object["kind"] = json!("Pod");
    object["metadata"]["namespace"] = json!(namespace);
    object["metadata"]["name"] = json!(name);
    object["metadata"]["uid"] = json!(*running.pod.uid);
    object["spec"]["nodeName"] = json!(running.pod.node);
    if object["spec"]["serviceAccountName"].is_null() {
        object["spec"]["serviceAccountName"] = json!("default");
    }
    let ips: Vec<Value> = running.pod.ips.iter().map(|ip| json!({ "ip": ip })).collect();
    object["status"] = json!({
        "phase": "Running",
        "podIP": running.pod.ip(),
        "podIPs": ips,
        "conditions": [{ "type": "Ready", "status": if running.ready { "True" } else { "False" } }],
    });
    object
}

/// The list at a path, or nothing.
fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The labels of a pod's object select it.
pub(super) fn selected(selector: &Value, object: &Value) -> bool {
    selects(selector, &object["metadata"]["labels"])
}
