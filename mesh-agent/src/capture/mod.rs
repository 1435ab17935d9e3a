//! Captures the TCP connections of enrolled pods with eBPF, and makes the agent's own.
//!
//! Outbound connections arrive at listeners inside the pod with their original destination;
//! inbound ones with the destination as their local address. It decides nothing about services
//! or policy and reads no configuration. The invariant: pods that are not enrolled are
//! untouched, and what the agent leaves behind when it stops refuses rather than leaks.
//!
//! `probe` asks the kernel, `pins` and `loader` put the programs in place, `enroll`, `network`
//! and `netlink` take a pod in, `netns`, `socket` and `dial` make sockets in it, `pods` finds it, `files`
//! reads its files, `origin` reads the kernel's records, `unreached` leaves destinations to the kernel, `direct` lets
//! pods of the node reach each other past the agent. `nri` hears from the container runtime of pods
//! that are about to start.

mod dial;
mod direct;
mod enroll;
mod error;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod kubelet;
mod loader;
mod netlink;
mod netns;
mod network;
mod nri;
mod origin;
mod pins;
mod pods;
mod probe;
mod socket;
mod unreached;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::{Map, MapData, PerCpuArray, RingBuf, SkStorage};
use mesh_common::counter::Counter;
use mesh_common::maps::{self, ELSEWHERE, OriginalDestination};
use tokio::net::TcpStream;

use dial::Dialer;
use direct::Direct;
use enroll::Tables;
use kubelet::Probes;
use netlink::Diagnosis;
use pins::Pins;
use unreached::Unreached;

pub use direct::{DirectEvent, DirectFlow, DirectFlows, DirectPort};
pub use enroll::{PodListeners, PodSettings};
pub use error::CaptureError;
pub use files::read_in_pod;
pub use kubelet::kubelet_cgroup;
pub use netns::PodNet;
pub use nri::{PodHooks, Sandbox, serve_runtime};
pub use pods::{LocalPod, PodFinder, local_pods, pods_cgroup};
pub use probe::{foreign_programs, probe};
pub use socket::Acceptor;

/// Where and how large.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// The cgroup below which connections are captured. The agent's own process must be below it
    /// too: callbacks of accepted sockets follow whoever made the listener.
    pub cgroup: PathBuf,
    /// Folder for pins; a bpf file system is mounted if there is none.
    pub pin_dir: PathBuf,
    /// Sizes of the kernel maps.
    pub sizes: MapSizes,
}

/// Sizes of the kernel maps, in entries. A full map refuses and is counted or reported; a map
/// that is pinned keeps its size until `mesh-agent cleanup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Enrolled pods of this node.
    pub pods: u32,
    /// Captured connections between SYN and accept.
    pub pending_connections: u32,
    /// The agent's connections into applications.
    pub admitted_connections: u32,
    /// Excluded ports, and excluded ranges, of all pods.
    pub exclusions: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            pods: 1024,
            pending_connections: 65_536,
            admitted_connections: 262_144,
            exclusions: 16_384,
        }
    }
}

/// Where an application meant to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// What it dialled.
    pub address: SocketAddr,
    /// Its connection belongs to the share of a direct service's endpoints that are no pods of this
    /// node: those have got theirs.
    pub elsewhere: bool,
}

/// Who changes the pinned maps and links of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// This agent.
    This,
    /// Another agent has taken over.
    Another,
    /// Another agent has taken over and has ended since.
    Nobody,
}

/// The capture of one node. Shared by all threads of the agent.
pub struct Capture {
    pins: Pins,
    cgroup: PathBuf,
    /// The kernel's number for this agent's programs.
    program: u32,
    /// Locked as long as this agent lives.
    _alive: File,
    own_cookie: u64,
    tables: Mutex<Tables>,
    dialer: Dialer,
    unreached: Unreached,
    direct: Direct,
    flows: Mutex<Option<RingBuf<MapData>>>,
    origins: SkStorage<MapData, OriginalDestination>,
    counters: PerCpuArray<MapData, u64>,
    probes: Probes,
    /// What was last seen of [`Pins::is_asked_to_leave`].
    leaving: AtomicBool,
}

impl Capture {
    /// Loads, pins and attaches the kernel programs, or takes over from another agent.
    ///
    /// Pods that are enrolled stay so. After an agent of the same layout version their links run
    /// this agent's program at once; after another, whose maps this one cannot fill, they do so
    /// with [`Capture::enroll`], and with [`Capture::settle`] in the end. Without an agent and without
    /// listeners their connections are refused.
    ///
    /// # Errors
    /// What the kernel refuses, or [`CaptureError::Layout`] for pins of an incompatible agent.
    pub fn start(options: &CaptureOptions) -> Result<Self, CaptureError> {
        if !pods::is_inside(&options.cgroup) {
            let cgroup = options.cgroup.display();
            tracing::warn!(%cgroup, "the agent is outside the captured cgroup: no destinations");
        }
        let pins = Pins::create(&options.pin_dir)?;
        let _alone = pins.lock()?;
        let mut ebpf = loader::load(options, &pins)?;
        let program = loader::own_program(&ebpf)?;
        let alive = pins.live(program)?;
        loader::attach(&mut ebpf, &options.cgroup, &pins)?;
        let mut take = |name: &'static str| {
            let missing = || aya::maps::MapError::InvalidName { name: name.to_owned() };
            ebpf.take_map(name).ok_or_else(missing)
        };
        let origins = open(maps::ORIGINS, &mut take)?;
        let counters = open(maps::COUNTERS, &mut take)?;
        let dialer = Dialer::new(open(maps::MARKS, &mut take)?, open(maps::ADMITTED, &mut take)?);
        let unreached = Unreached::new(open(maps::UNREACHED, &mut take)?);
        let services = open(maps::DIRECT, &mut take)?;
        let direct = Direct::new(services, open(maps::DIRECT_SLOTS, &mut take)?);
        let flows = Mutex::new(Some(open(maps::FLOWS, &mut take)?));
        let probes = Probes::new(open(maps::PROBES, &mut take)?);
        let pods = open(maps::PODS, &mut take)?;
        let pending = open(maps::PENDING, &mut take)?;
        let inbound = open(maps::INBOUND, &mut take)?;
        let ports = open(maps::EXCLUDED_PORTS, &mut take)?;
        let ranges = open(maps::EXCLUDED_RANGES, &mut take)?;
        let listeners = open(maps::LISTENERS, &mut take)?;
        let mut tables = Tables { ebpf, pods, pending, inbound, ports, ranges, listeners };
        adopt(&mut tables, &pins, pins.other_versions().is_empty())?;
        let own_cookie =
            socket::netns_cookie().map_err(CaptureError::network("ask for the cookie"))?;
        let tables = Mutex::new(tables);
        let cgroup = options.cgroup.clone();
        Ok(Self {
            pins,
            cgroup,
            program,
            _alive: alive,
            own_cookie,
            tables,
            dialer,
            unreached,
            direct,
            flows,
            origins,
            counters,
            probes,
            leaving: AtomicBool::new(false),
        })
    }

    /// Captures a pod's new connections, both ways. May be repeated, also with other settings.
    ///
    /// # Errors
    /// [`CaptureError::NoAddress`], [`CaptureError::HostNetwork`], or what the kernel refuses;
    /// then the pod is left as it would be after [`Capture::withdraw`]. [`CaptureError::TakenOver`]:
    /// the pod is left as it is.
    pub fn enroll(
        &self,
        net: &PodNet,
        settings: &PodSettings,
    ) -> Result<PodListeners, CaptureError> {
        if net.cookie() == self.own_cookie {
            return Err(CaptureError::HostNetwork);
        }
        let listeners = enroll::listen(net, settings)?;
        let pin = self.pins.inbound(net.cookie());
        let done = self.in_charge(|tables| {
            let done = tables.add(net, settings, &listeners, &pin);
            if done.is_err()
                && let Err(error) = tables.remove(net.cookie(), &settings.ips, &pin)
            {
                tracing::warn!(%error, "cannot undo a failed enrolment");
            }
            done
        });
        done.map(|()| listeners)
    }

    /// Leaves a pod's new connections alone. Open ones live on as long as the agent proxies
    /// them; when the last is gone, call [`Capture::restore`]. Also for pods that are gone.
    ///
    /// # Errors
    /// What the kernel refuses, or [`CaptureError::TakenOver`].
    pub fn withdraw(&self, cookie: u64, ips: &[IpAddr]) -> Result<(), CaptureError> {
        self.in_charge(|tables| tables.remove(cookie, ips, &self.pins.inbound(cookie)))
    }

    /// The pods of the node are enrolled: ends what another layout version has left, in the links
    /// of other pods and in pins.
    ///
    /// # Errors
    /// What the kernel refuses, or [`CaptureError::TakenOver`].
    pub fn settle(&self) -> Result<(), CaptureError> {
        let others = self.pins.other_versions();
        if others.is_empty() {
            return Ok(());
        }
        self.in_charge(|tables| {
            adopt(tables, &self.pins, true)?;
            others.iter().try_for_each(|folder| pins::remove_folder(folder))
        })
    }

    /// Lets the kubelet reach these ports of enrolled pods past the agent, and no others.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn admit_probes(&self, ports: &BTreeSet<SocketAddr>) -> Result<(), CaptureError> {
        self.probes.set(ports).map_err(CaptureError::map(maps::PROBES))
    }

    /// Says where the kubelet is: probes come from there ([`kubelet_cgroup`]).
    ///
    /// # Errors
    /// What the kernel refuses, or [`CaptureError::TakenOver`].
    pub fn follow_kubelet(&self, cgroup: &Path) -> Result<(), CaptureError> {
        let pin = self.pins.link(loader::PROBE_PROGRAM);
        self.in_charge(|tables| loader::attach_probes(&mut tables.ebpf, cgroup, &pin))
    }

    /// Who changes the node's pins now.
    pub fn charge(&self) -> Charge {
        match loader::program_in_charge(&self.pins) {
            Ok(Some(other)) if other != self.program => match self.pins.is_dead(other) {
                true => Charge::Nobody,
                false => Charge::Another,
            },
            Ok(Some(_)) => Charge::This,
            // Detached by `cleanup`: not this agent's to attach again.
            Ok(None) => Charge::Another,
            // If in doubt, go on: what it does is asked again under the lock.
            Err(_) => Charge::This,
        }
    }

    /// Looks whether `mesh-agent cleanup --withdraw` wants every pod of the node out of the mesh.
    pub fn look_for_leave(&self) -> bool {
        let is_asked = self.pins.is_asked_to_leave();
        self.leaving.store(is_asked, Ordering::Relaxed);
        is_asked
    }

    /// What [`Capture::look_for_leave`] last saw.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Takes over again from an agent that has ended. The pods must be enrolled anew.
    ///
    /// # Errors
    /// [`CaptureError::TakenOver`] if the other one lives, or what the kernel refuses.
    pub fn take_back(&self) -> Result<(), CaptureError> {
        let _alone = self.pins.lock()?;
        let mut tables = lock(&self.tables);
        if self.charge() != Charge::Nobody {
            return Err(CaptureError::TakenOver);
        }
        loader::attach(&mut tables.ebpf, &self.cgroup, &self.pins)?;
        adopt(&mut tables, &self.pins, true)
    }

    /// Changes the pinned maps and links, if they are still this agent's to change.
    fn in_charge(
        &self,
        change: impl FnOnce(&mut Tables) -> Result<(), CaptureError>,
    ) -> Result<(), CaptureError> {
        let _alone = self.pins.lock()?;
        let mut tables = lock(&self.tables);
        if loader::program_in_charge(&self.pins)? != Some(self.program) {
            return Err(CaptureError::TakenOver);
        }
        change(&mut tables)
    }

    /// Takes the routes, rules and settings out of a withdrawn pod's network namespace.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn restore(&self, net: &PodNet) -> Result<(), CaptureError> {
        network::restore(net).map_err(CaptureError::network("remove routes"))
    }

    /// Where the application meant to connect, for a socket accepted on an outbound listener.
    ///
    /// `None` for a connection that was not captured: somebody dialled the listener itself. Never
    /// one of the mesh's own ports, nor an address inside the pod.
    pub fn original_destination(&self, socket: &impl AsFd) -> Option<Destination> {
        let origin = self.origins.get(&socket.as_fd().as_raw_fd(), 0).ok()?;
        let address = origin::destination(&origin)?;
        Some(Destination { address, elsewhere: origin.flags & ELSEWHERE != 0 })
    }

    /// Makes these the services whose pods on this node are reached past the agent, and no others.
    /// Connections that are open stay.
    ///
    /// # Errors
    /// What the kernel refuses; the services that could not be written are not direct.
    pub fn set_direct(&self, ports: Vec<DirectPort>) -> Result<(), CaptureError> {
        self.direct.set(ports).map_err(CaptureError::map(maps::DIRECT))
    }

    /// The kernel's reports of direct connections, for one reader: later calls return `None`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_flows(&self) -> std::io::Result<Option<DirectFlows>> {
        lock(&self.flows).take().map(DirectFlows::new).transpose()
    }

    /// Open direct connections: client and endpoint, those from before this agent among them.
    pub fn direct_connections(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.dialer.admitted_directly()
    }

    /// Ends a direct connection of a pod's with a reset to both sides; it is no error if it has ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end_direct(
        &self,
        net: &PodNet,
        client: SocketAddr,
        endpoint: SocketAddr,
    ) -> Result<(), CaptureError> {
        let ended = net.within(|| Diagnosis::open()?.destroy(client, endpoint));
        ended.and_then(|ended| ended).map_err(CaptureError::network("end a connection"))
    }

    /// Connects as a pod would, uncaptured. To be called on a runtime with I/O and time.
    ///
    /// # Errors
    /// The kernel's, or `TimedOut`.
    pub async fn dial_from_pod(
        &self,
        net: &PodNet,
        destination: SocketAddr,
        timeout: Duration,
    ) -> std::io::Result<TcpStream> {
        self.dialer.out_of_pod(net, destination, timeout).await
    }

    /// Leaves a pod's connections to a destination that could not be reached to the kernel, until it
    /// answers or nobody has tried it for five minutes. Only for what is outside the mesh: they are
    /// in plaintext.
    pub fn leave_unreached(&self, net: &PodNet, destination: SocketAddr) {
        self.unreached.add(net.cookie(), destination);
    }

    /// Captures connections to those unreached destinations again that are not `outside` any more.
    pub fn keep_unreached(&self, outside: impl Fn(SocketAddr) -> bool) {
        self.unreached.retain(outside);
    }

    /// Connects to an application in a pod, which sees the client's address.
    ///
    /// Only after the destination's policy has let the client pass: the kernel lets this
    /// connection through to the application.
    ///
    /// # Errors
    /// The kernel's, `TimedOut`, or `AddrNotAvailable` when the client has no source port left.
    pub async fn dial_into_pod(
        &self,
        net: &PodNet,
        client: IpAddr,
        destination: SocketAddr,
        timeout: Duration,
    ) -> std::io::Result<TcpStream> {
        self.dialer.to_pod(net, client, destination, timeout).await
    }

    /// What the kernel programs counted since they were first loaded, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let sum = |counter: Counter| {
            let values = self.counters.get(&(counter as u32), 0);
            values.map_or(0, |values| values.iter().sum())
        };
        Counter::ALL.iter().map(|(counter, name)| (*name, sum(*counter))).collect()
    }

    /// Number of live connections into applications that were let through: the agent's and direct
    /// ones.
    pub fn admitted(&self) -> usize {
        self.dialer.admitted()
    }

    /// Detaches and unpins everything, and restores the network of pods that were enrolled.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub fn cleanup(pin_dir: &Path) -> Result<(), CaptureError> {
        let cookies = Pins::existing(pin_dir).inbound_cookies();
        Pins::remove_all(pin_dir)?;
        for net in pods::namespaces(&cookies) {
            network::restore(&net).map_err(CaptureError::network("remove routes"))?;
        }
        Ok(())
    }

    /// Restores the network of all pods below a cgroup that have ever been enrolled, those that were
    /// withdrawn since among them. Not while an agent has connections to them.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub fn restore_pods(cgroup: &Path) -> Result<(), CaptureError> {
        let pods = local_pods(cgroup).map_err(CaptureError::file("list pods in", cgroup))?;
        for pod in pods {
            // A pod may end at any moment, and with it its network.
            let Ok(net) = PodNet::of_pid(pod.pid) else { continue };
            network::restore_if_prepared(&net).map_err(CaptureError::network("remove routes"))?;
        }
        Ok(())
    }
}

/// Takes the pods of a node out of the mesh before [`Capture::cleanup`]: asks the node's agents for
/// it until dropped.
#[derive(Debug)]
pub struct Leave {
    pins: Pins,
    _asking: File,
}

impl Leave {
    /// Asks from now on. `None` if no agent has been here since the node was started.
    ///
    /// # Errors
    /// The folder cannot be made or locked.
    pub fn ask(pin_dir: &Path) -> Result<Option<Self>, CaptureError> {
        if !pin_dir.exists() {
            return Ok(None);
        }
        let pins = Pins::existing(pin_dir);
        let asking = pins.ask_to_leave()?;
        Ok(Some(Self { pins, _asking: asking }))
    }

    /// Whether no pod is captured any more, or no agent is there who could withdraw it.
    pub fn is_withdrawn(&self) -> bool {
        self.pins.inbound_cookies().is_empty() || self.is_alone()
    }

    /// Whether no agent lives.
    pub fn is_alone(&self) -> bool {
        !self.pins.is_any_alive()
    }
}

/// Forgets pods whose namespace is gone, and with `update` makes the others' links run this agent's
/// program.
fn adopt(tables: &mut Tables, pins: &Pins, update: bool) -> Result<(), CaptureError> {
    let mut alive = Vec::new();
    for cookie in pins.inbound_cookies() {
        let pin = pins.inbound(cookie);
        let is_alive = match update {
            true => loader::update_inbound(&mut tables.ebpf, &pin)?,
            false => loader::is_attached(&pin)?,
        };
        if is_alive {
            alive.push(cookie);
        }
    }
    tables.retain(&alive, |cookie| pins.inbound(cookie));
    Ok(())
}

fn open<M: TryFrom<Map, Error = aya::maps::MapError>>(
    name: &'static str,
    take: &mut impl FnMut(&'static str) -> Result<Map, aya::maps::MapError>,
) -> Result<M, CaptureError> {
    take(name).and_then(M::try_from).map_err(CaptureError::map(name))
}

/// A panic while a map was written leaves at worst one entry behind: go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
