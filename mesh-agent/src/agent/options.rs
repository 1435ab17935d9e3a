//! Command line of `mesh-agent`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Sidecarless service mesh: the node agent.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version)]
pub struct Options {
    /// What to be.
    #[command(subcommand)]
    pub role: Role,
}

/// Roles and one-off commands.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Serve the pods of this node.
    Node(Box<NodeOptions>),
    /// Make a root certificate and key for the local certificate authority.
    Ca(CaOptions),
    /// Remove everything that an agent left in the kernel: programs, maps and their pins.
    Cleanup(CleanupOptions),
}

/// `mesh-agent node`.
#[derive(Clone, Debug, Args)]
pub struct NodeOptions {
    /// Name of this node, as in the pods' `spec.nodeName`.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Folder of Kubernetes manifests (YAML or JSON) that configures the mesh.
    #[arg(long)]
    pub config_dir: PathBuf,
    /// Cgroup (v2) below which pods are captured; the agent itself must run inside it.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub cgroup: PathBuf,
    /// Directory on a BPF file system where maps and links are pinned.
    #[arg(long, default_value = "/sys/fs/bpf/malha")]
    pub pin_dir: PathBuf,
    /// Unix socket of the admin interface, for `meshctl`.
    #[arg(long, default_value = crate::api::DEFAULT_SOCKET)]
    pub admin_socket: PathBuf,
    /// Worker threads of the data path; a connection stays on its worker.
    #[arg(long, default_value_t = default_workers())]
    pub workers: usize,
    /// Root certificate of the mesh (PEM).
    #[arg(long, requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,
    /// Key of the root certificate (PEM). Without both, the agent makes its own at start, which
    /// only suits a single node.
    #[arg(long, requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
    /// Trust domain of the mesh's identities.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    /// DNS suffix of services.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Namespace whose policies hold for the whole mesh.
    #[arg(long, default_value = "istio-system")]
    pub root_namespace: String,
    /// Also select pods by Istio's labels (`istio.io/dataplane-mode=ambient`,
    /// `istio-injection=enabled`).
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub istio_labels: bool,
    /// Life of a workload certificate, in seconds; renewed at half of it.
    #[arg(long, default_value_t = 24 * 3600, value_parser = clap::value_parser!(u64).range(10..))]
    pub certificate_ttl: u64,
    /// Pods that one node can hold.
    #[arg(long, default_value_t = 1024)]
    pub max_pods: u32,
    /// Connections that may be between `connect` and `accept` at one moment, on the whole node.
    #[arg(long, default_value_t = 65_536)]
    pub max_pending_connections: u32,
    /// Connections that the agent may be opening towards pods of this node at one moment.
    #[arg(long, default_value_t = 262_144)]
    pub max_admitted_connections: u32,
    /// Connections that one pod may hold open through the agent, those it makes and those made to
    /// it; a further one is reset. In any case a pod may hold no more sockets and streams than twice
    /// what it leaves free to the others.
    #[arg(long)]
    pub max_connections_per_pod: Option<usize>,
    /// Memory in MiB that connections of all pods may take: a sixth for sockets (32 KiB each), a
    /// sixth for tunnel streams (96 KiB), a third for HTTP requests (640 KiB), a third for larger
    /// buffers. A pod may hold no more of each than twice what it leaves free to the others: at that
    /// its connections are reset, its requests answered 503, its buffers small. Without it, three
    /// quarters of the machine's memory or of the limit of a cgroup that the agent is in.
    #[arg(long)]
    pub max_memory_mib: Option<u64>,
    /// Excluded ports, and excluded address ranges, of all pods of the node.
    #[arg(long, default_value_t = 16_384)]
    pub max_exclusions: u32,
    /// Seconds that connections get to end when the agent stops.
    #[arg(long, default_value_t = 5)]
    pub drain_seconds: u64,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,access=debug`.
    #[arg(long, default_value = "info", overrides_with = "log_level")]
    pub log_level: String,
    /// `text` or `json`.
    #[arg(long, default_value = "text")]
    pub log_format: LogFormat,
}

/// Shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One human-readable line.
    Text,
    /// One JSON object per line.
    Json,
}

/// `mesh-agent ca`.
#[derive(Clone, Debug, Args)]
pub struct CaOptions {
    /// Directory for `root-cert.pem` and `root-key.pem`.
    #[arg(long)]
    pub out: PathBuf,
    /// Trust domain.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
}

/// `mesh-agent cleanup`.
#[derive(Clone, Debug, Args)]
pub struct CleanupOptions {
    /// Directory on a BPF file system where maps and links are pinned.
    #[arg(long, default_value = "/sys/fs/bpf/malha")]
    pub pin_dir: PathBuf,
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
