//! One pod on its node: sandbox, containers, and how it looks as an object.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use serde_json::{Value, json};

use super::SHARED;
use super::cluster::{Cluster, container_count, service_account};
use super::container::{Container, JOIN, Restart, Sandbox, detach};
use super::host;
use super::manifest::text_at;
use super::names::LabId;
use super::plan::{self, Surroundings};
use super::service::PodFacts;
use super::topology::{self, Node};
use super::zone::DOMAIN;
use crate::tool::workspace;

/// Seconds that a pod has to end if it does not say (Kubernetes' default).
const GRACE: u64 = 30;

/// Where a pod is put.
pub(super) struct Place<'a> {
    pub(super) id: LabId,
    pub(super) run: &'a Path,
    pub(super) node: &'a Node,
    /// Host part of its addresses.
    pub(super) host: u8,
}

/// A pod that runs, or ends.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Its Deployment and the hash of the template it was made from.
    pub(super) owner: Option<(String, String)>,
    pub(super) node: String,
    /// Host part of its addresses on its node.
    pub(super) host: u8,
    pub(super) ips: Vec<IpAddr>,
    /// Labels and annotations, and `spec` as applied.
    pub(super) value: Value,
    pub(super) sandbox: Sandbox,
    pub(super) containers: Vec<Container>,
    pub(super) made: Instant,
    born: SystemTime,
    host_ips: [IpAddr; 2],
    pause: Child,
    /// When it is killed, once it was asked to end.
    pub(super) deadline: Option<Instant>,
    asked: Option<SystemTime>,
}

impl Pod {
    /// Makes the sandbox and starts the containers.
    pub(super) fn start(
        place: &Place<'_>,
        cluster: &Cluster,
        names: (&str, &str),
        owner: Option<(String, String)>,
        value: Value,
    ) -> anyhow::Result<Self> {
        let (namespace, name) = names;
        let uid = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        let host_network = value.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
        let pair = place.id.pod(place.node.number, place.host);
        let netns = if host_network {
            place.node.netns.clone()
        } else {
            let netns = place.id.pod_netns(namespace, name);
            topology::add_pod(place.node, &netns, &format!("pod{}", place.host), pair)?;
            netns
        };
        let ips = if host_network {
            place.node.addresses().to_vec()
        } else {
            vec![pair.0.into(), pair.1.into()]
        };
        let sandbox = sandbox(place, (namespace, name, &uid), netns, &ips);
        let pause = start_pause(&sandbox).inspect_err(|_| {
            if !host_network {
                // The first error is the one to tell.
                let _ = topology::remove_netns(&sandbox.netns);
            }
        })?;
        let mut pod = Self {
            namespace: namespace.into(),
            name: name.into(),
            uid,
            owner,
            node: place.node.name.clone(),
            host: place.host,
            ips,
            value,
            sandbox,
            containers: Vec::new(),
            made: Instant::now(),
            born: SystemTime::now(),
            host_ips: place.node.addresses(),
            pause,
            deadline: None,
            asked: None,
        };
        if let Err(error) = pod.start_containers(cluster) {
            pod.remove()?;
            return Err(error);
        }
        Ok(pod)
    }

    fn start_containers(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.write_volumes(cluster)?;
        let spec = &self.value["spec"];
        let config_map = |name: &str| cluster.config_map(&self.namespace, name);
        let volumes = self.volumes();
        let around =
            Surroundings { fields: self.fields(), config_map: &config_map, volumes: &volumes };
        for number in 0..container_count(spec) {
            self.containers.push(Container::new(plan::plan(spec, number, &around)?));
        }
        self.containers.iter_mut().try_for_each(|container| container.start(&self.sandbox))
    }

    /// Writes ConfigMaps into the pod's volumes, again after they have changed.
    pub(super) fn write_volumes(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let config_map = |name: &str| cluster.config_map(&self.namespace, name);
        let volumes = self.volumes();
        let around =
            Surroundings { fields: BTreeMap::new(), config_map: &config_map, volumes: &volumes };
        plan::write_volumes(&self.value["spec"], &around)
    }

    fn volumes(&self) -> PathBuf {
        self.sandbox.dir.join("volumes")
    }

    /// The downward API.
    fn fields(&self) -> BTreeMap<&'static str, String> {
        let list = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
        BTreeMap::from([
            ("metadata.name", self.name.clone()),
            ("metadata.namespace", self.namespace.clone()),
            ("metadata.uid", self.uid.clone()),
            ("spec.nodeName", self.node.clone()),
            ("spec.serviceAccountName", service_account(&self.value["spec"]).to_owned()),
            ("status.podIP", self.ips.first().map(IpAddr::to_string).unwrap_or_default()),
            ("status.podIPs", list(&self.ips)),
            ("status.hostIP", self.host_ips[0].to_string()),
        ])
    }

    fn restart_policy(&self) -> Restart {
        match text_at(&self.value, "/spec/restartPolicy") {
            Some("Never") => Restart::Never,
            Some("OnFailure") => Restart::OnFailure,
            _ => Restart::Always,
        }
    }

    /// Looks after the containers; says whether anything that others can see has changed.
    pub(super) fn tick(&mut self) -> anyhow::Result<bool> {
        let restart = self.restart_policy();
        let mut changed = false;
        for container in &mut self.containers {
            changed |= container.tick(&self.sandbox, restart)?;
        }
        Ok(changed)
    }

    pub(super) fn ready(&self) -> bool {
        self.containers.iter().all(|container| container.ready)
    }

    pub(super) fn phase(&self) -> &'static str {
        let ends: Option<Vec<bool>> = self.containers.iter().map(|one| one.finished).collect();
        match ends {
            Some(ends) if ends.iter().all(|success| *success) => "Succeeded",
            Some(_) => "Failed",
            None if self.containers.iter().all(|one| one.pid().is_none()) => "Pending",
            None => "Running",
        }
    }

    /// Asks every container to end.
    pub(super) fn terminate(&mut self) {
        let grace =
            self.value.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
        self.deadline = Some(Instant::now() + Duration::from_secs(grace.unwrap_or(GRACE)));
        self.asked = Some(SystemTime::now());
        self.containers.iter().for_each(Container::terminate);
    }

    /// Whether a pod that was asked to end may be removed.
    pub(super) fn over(&mut self) -> bool {
        // Every one is asked, so that every one is collected.
        let left = self.containers.iter_mut().map(Container::gone).filter(|gone| !gone).count();
        left == 0 || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Kills what is left and removes every trace.
    pub(super) fn remove(&mut self) -> anyhow::Result<()> {
        let cgroup = &self.sandbox.cgroup;
        fs::write(cgroup.join("cgroup.kill"), "1").context("kill a pod (Linux 5.14 and later)")?;
        host::wait_for(Duration::from_secs(5), "the processes of a pod to end", || {
            let events = fs::read_to_string(cgroup.join("cgroup.events"))?;
            Ok(events.contains("populated 0").then_some(()))
        })?;
        self.pause.wait()?;
        self.containers.iter_mut().for_each(|container| {
            container.gone();
        });
        let parts = fs::read_dir(cgroup)?.filter_map(Result::ok);
        for part in parts.filter(|entry| entry.path().is_dir()) {
            fs::remove_dir(part.path())?;
        }
        fs::remove_dir(cgroup).with_context(|| format!("remove {}", cgroup.display()))?;
        if self.ips != self.host_ips {
            topology::remove_netns(&self.sandbox.netns)?;
        }
        fs::remove_dir_all(&self.sandbox.dir)
            .with_context(|| format!("remove {}", self.sandbox.dir.display()))
    }

    /// Collects processes that were killed with their cgroup.
    pub(super) fn collect(&mut self) {
        // Nothing is left to be done about one that cannot be collected.
        let _ = self.pause.wait();
        for container in &mut self.containers {
            container.gone();
        }
    }

    pub(super) fn facts(&self) -> PodFacts<'_> {
        PodFacts {
            namespace: &self.namespace,
            name: &self.name,
            uid: &self.uid,
            node: &self.node,
            ips: &self.ips,
            labels: &self.value["metadata"]["labels"],
            spec: &self.value["spec"],
            ready: self.ready(),
            terminating: self.deadline.is_some(),
        }
    }

    /// The pod as the API server would show it.
    pub(super) fn object(&self) -> Value {
        let mut metadata = self.value["metadata"].clone();
        metadata["name"] = self.name.clone().into();
        metadata["namespace"] = self.namespace.clone().into();
        metadata["uid"] = self.uid.clone().into();
        metadata["creationTimestamp"] = to_the_second(self.born).into();
        if let Some((deployment, hash)) = &self.owner {
            metadata["ownerReferences"] = json!([{
                "apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": format!("{deployment}-{hash}"), "controller": true,
            }]);
        }
        if let Some(asked) = self.asked {
            metadata["deletionTimestamp"] = to_the_second(asked).into();
        }
        let mut spec = self.value["spec"].clone();
        spec["nodeName"] = self.node.clone().into();
        spec["serviceAccountName"] = service_account(&self.value["spec"]).into();
        let ready = if self.ready() { "True" } else { "False" };
        let statuses = self.containers.iter().map(|container| {
            json!({"name": container.plan.name, "ready": container.ready,
                "restartCount": container.restarts})
        });
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec,
            "status": {
                "phase": self.phase(),
                "conditions": [{"type": "Ready", "status": ready}],
                "podIP": self.ips.first(),
                "podIPs": self.ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
                "hostIP": self.host_ips[0],
                "containerStatuses": statuses.collect::<Vec<_>>(),
            },
        })
    }
}

fn sandbox(
    place: &Place<'_>,
    (namespace, name, uid): (&str, &str, &str),
    netns: String,
    ips: &[IpAddr],
) -> Sandbox {
    let own = ips.iter().map(|ip| format!("{ip}\t{name}\n")).collect::<String>();
    Sandbox {
        netns,
        hostname: name.into(),
        cgroup: place.node.cgroup.join("kubepods").join(format!("pod{uid}")),
        dir: place.run.join("pods").join(uid),
        shared: shared(place.run),
        resolv_conf: format!(
            "search {namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\nnameserver {}\n\
             options ndots:5\n",
            place.id.dns().0
        ),
        hosts: format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}"),
    }
}

/// The lab's shared folder, and what was built here (it may be on a file system of its own, which
/// the containers' overlay does not show).
fn shared(run: &Path) -> Vec<PathBuf> {
    let built = workspace().join("target").canonicalize();
    std::iter::once(run.join(SHARED)).chain(built).collect()
}

/// The process that a pod's cgroup is never without, so that its namespace can be found.
fn start_pause(sandbox: &Sandbox) -> anyhow::Result<Child> {
    let cgroup = sandbox.cgroup.join("pause");
    fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
    fs::create_dir_all(&sandbox.dir)?;
    let log = OpenOptions::new().create(true).append(true).open(sandbox.dir.join("pause.log"))?;
    let mut command = host::command("nsenter");
    command.arg(format!("--net={}", host::netns_path(&sandbox.netns).display()));
    command.args(["sh", "-c", JOIN, "pause"]).arg(cgroup.join("cgroup.procs"));
    command.args(["sleep", "infinity"]);
    detach(&mut command, &log)?;
    command.spawn().context("start a pod's pause process")
}

/// A time as objects have it.
fn to_the_second(time: SystemTime) -> String {
    let text = rfc3339(time);
    text.split_once('.').map_or_else(|| text.clone(), |(whole, _)| format!("{whole}Z"))
}

/// A time as logs have it, in UTC, to the microsecond (days to date: Hinnant's civil_from_days).
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, micros) = (since.as_secs(), since.subsec_micros());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00.000000Z");
        assert_eq!(at(1_798_761_600), "2027-01-01T00:00:00.000000Z");
    }
}
