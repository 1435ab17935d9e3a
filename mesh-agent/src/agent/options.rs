//! Command line of `mesh-agent`.

use std::net::{IpAddr, SocketAddr};
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
    /// Sign the identities of the cluster's pods for their agents.
    Authority(Box<AuthorityOptions>),
    /// Make a root certificate and key for the local certificate authority.
    Ca(CaOptions),
    /// Remove everything that an agent left in the kernel: programs, maps and their pins.
    Cleanup(CleanupOptions),
    /// Print the CustomResourceDefinitions of Istio's kinds, for a cluster that does not have them:
    /// `mesh-agent crds | kubectl apply -f -`.
    Crds,
    /// Print what becomes of each field of Istio's routing kinds: `deploy/FIELDS.md`.
    #[command(hide = true)]
    Fields,
}

/// `mesh-agent node`.
#[derive(Clone, Debug, Args)]
pub struct NodeOptions {
    /// Name of this node, as in the pods' `spec.nodeName`.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Folder of Kubernetes manifests (YAML or JSON) that configures the mesh. Without it, the API
    /// server of the cluster does.
    #[arg(long)]
    pub config_dir: Option<PathBuf>,
    /// How to reach the API server: a kubeconfig. Without it the account that Kubernetes gives to the
    /// agent's pod.
    #[arg(long, conflicts_with = "config_dir")]
    pub kubeconfig: Option<PathBuf>,
    /// Folder where the API server's objects are kept, for a start while it is away.
    #[arg(long, conflicts_with = "config_dir")]
    pub state_dir: Option<PathBuf>,
    /// Address of `/healthz`, `/readyz` and `/metrics`, such as `[::]:15020`; without it they are not
    /// served.
    #[arg(long)]
    pub probe_address: Option<SocketAddr>,
    /// Cgroup (v2) below which pods are captured; the agent itself must run inside it.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub cgroup: PathBuf,
    /// Of that, the folder of the pods, if the agent is one itself.
    #[arg(skip)]
    pub pods_cgroup: PathBuf,
    /// Directory on a BPF file system where maps and links are pinned.
    #[arg(long, default_value = "/sys/fs/bpf/malha")]
    pub pin_dir: PathBuf,
    /// Unix socket of the container runtime's plugins (NRI): pods are captured before their first
    /// process. Where there is none, and with an empty one, they are once they run.
    #[arg(long, default_value = "/var/run/nri/nri.sock")]
    pub nri_socket: PathBuf,
    /// Unix socket of the admin interface, for `meshctl`.
    #[arg(long, default_value = crate::api::DEFAULT_SOCKET)]
    pub admin_socket: PathBuf,
    /// Worker threads of the data path; a connection stays on its worker.
    #[arg(long, default_value_t = default_workers())]
    pub workers: usize,
    /// Root certificate of the mesh (PEM).
    #[arg(long, requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,
    /// Key of the root certificate (PEM). Without both and without an authority, the agent makes its
    /// own at start, which only suits a single node.
    #[arg(long, requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
    /// Certificate authority that signs this node's identities: `mesh-agent authority`, an istiod or
    /// istio-csr, such as `https://malha-authority.malha-system.svc:15012`.
    #[arg(long, requires_all = ["ca_root", "ca_token"], conflicts_with_all = ["ca_cert", "ca_key"])]
    pub ca_address: Option<String>,
    /// File of the roots (PEM, one or more) by which the authority and the mesh's peers are believed;
    /// a change is followed.
    #[arg(long, requires = "ca_address")]
    pub ca_root: Option<PathBuf>,
    /// File of the agent's service-account token for the authority; read for each certificate.
    #[arg(long, requires = "ca_address")]
    pub ca_token: Option<PathBuf>,
    /// Folder for certificates and keys, such as `/run/malha/keys`: on a tmpfs, so that an agent that
    /// starts anew serves at once while the authority is away. Without it they are in memory only.
    #[arg(long, requires = "ca_address")]
    pub key_dir: Option<PathBuf>,
    /// Name server for the hosts of `ServiceEntry` objects, as an address with or without a port; may
    /// be given several times. Without it, those of `/etc/resolv.conf`.
    #[arg(long)]
    pub dns_server: Vec<DnsServer>,
    /// File of roots (PEM) by which servers are believed that destination rules have the agent speak TLS
    /// to (`tls.mode` SIMPLE and MUTUAL without `caCertificates`). Without it, Mozilla's.
    #[arg(long)]
    pub tls_roots: Option<PathBuf>,
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
    /// Take pods into the mesh that an `AuthorizationPolicy` or a `RequestAuthentication` selects,
    /// though nothing of these is enforced yet; without it such pods wait outside, but those that
    /// are in the mesh already stay.
    #[arg(long)]
    pub accept_not_enforced: bool,
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
    /// The log.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Address of a name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsServer(pub SocketAddr);

impl std::str::FromStr for DnsServer {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const PORT: u16 = 53;
        let with_port = text.parse::<SocketAddr>();
        with_port.or_else(|_| Ok(SocketAddr::new(text.parse::<IpAddr>()?, PORT))).map(Self)
    }
}

/// `mesh-agent authority`.
#[derive(Clone, Debug, Args)]
pub struct AuthorityOptions {
    /// Namespace that it runs in: of its root's Secret and of the ConfigMap of trusted roots.
    #[arg(long, env = "POD_NAMESPACE", default_value = "malha-system")]
    pub namespace: String,
    /// How to reach the API server: a kubeconfig. Without it the account that Kubernetes gives to the
    /// authority's pod.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the certificate service.
    #[arg(long, default_value = "[::]:15012")]
    pub listen: SocketAddr,
    /// Address of the admission webhook, such as `[::]:15017`; without it there is none.
    #[arg(long)]
    pub webhook_address: Option<SocketAddr>,
    /// The webhook admits `AuthorizationPolicy`, `RequestAuthentication` and other security objects
    /// that are not enforced, with a warning; without it they are refused.
    #[arg(long)]
    pub accept_not_enforced: bool,
    /// Address of `/healthz`, `/readyz` and `/metrics`, such as `[::]:15020`; without it they are not
    /// served.
    #[arg(long)]
    pub probe_address: Option<SocketAddr>,
    /// Name of its Service, which its own certificate is for.
    #[arg(long, default_value = "malha-authority")]
    pub service: String,
    /// Further name or address that its own certificate is for; may be given several times.
    #[arg(long)]
    pub server_name: Vec<String>,
    /// Trust domain of the mesh's identities.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    /// DNS suffix of services.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Namespace whose policies hold for the whole mesh.
    #[arg(long, default_value = "istio-system")]
    pub root_namespace: String,
    /// Audience that callers' tokens must be for.
    #[arg(long, default_value = "malha-ca")]
    pub audience: String,
    /// Service account of the agents, as `namespace/name`: it alone may ask for the identities of its
    /// node's pods. Without it, `malha-agent` in the authority's namespace.
    #[arg(long)]
    pub agent_account: Option<String>,
    /// Longest life of a certificate, in seconds.
    #[arg(long, default_value_t = 24 * 3600, value_parser = clap::value_parser!(u64).range(60..))]
    pub max_certificate_ttl: u64,
    /// The log.
    #[command(flatten)]
    pub log: LogOptions,
}

/// The log of a role that serves.
#[derive(Clone, Debug, Args)]
pub struct LogOptions {
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
    /// Folder of certificates and keys (`--key-dir` of the agent), to be removed too.
    #[arg(long)]
    pub key_dir: Option<PathBuf>,
    /// Cgroup below which the node's pods are: also take the routes and settings of the mesh out of
    /// those that left it before.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// Folder of the API server's objects (`--state-dir` of the agent), to be emptied too.
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
    /// First ask the agents of this node to take every pod out of the mesh, as one does whose label
    /// is taken away, and wait until they have ended; new connections work all the while. Should this
    /// command end before, the pods are taken in again.
    #[arg(long)]
    pub withdraw: bool,
    /// With --withdraw, address of `/readyz`, which says that all pods are out of the mesh.
    #[arg(long, requires = "withdraw")]
    pub probe_address: Option<SocketAddr>,
    /// With --withdraw, give up if the agents still run after so many seconds.
    #[arg(long, default_value_t = 600)]
    pub patience_seconds: u64,
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
