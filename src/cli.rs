//! What the user typed, and nothing else: the command line as clap reads it.
//!
//! Resolving it against the system and the configuration files is [`crate::settings`]'s job.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A Kubernetes node in one binary.
#[derive(Debug, Parser)]
#[command(name = "berth", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogFlags,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How much to say, and where.
#[derive(Debug, Args)]
pub(crate) struct LogFlags {
    /// Which log lines to print, as `level` or `target=level,…` [default: info for a node, else error]
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node with an embedded API server on this machine
    Up(UpFlags),
    /// Run a node against an API server
    Agent(AgentFlags),
    /// Join a cluster: know it by a token, get a certificate, and say how to run the agent
    Join(JoinFlags),
    /// Install this executable as the kubelet of kubeadm, with the CRI socket, as systemd services
    InstallKubelet,
    /// Serve the CRI socket (berth.sock in the run directory), whether an agent runs or not
    Cri(HostFlags),
    /// Say what this host lacks, what will then not be enforced, and how to mend it
    Check(HostFlags),
    /// Hold this node against the CIS Kubernetes benchmark, and say how to mend what fails
    Audit(AuditFlags),
    /// Stop every pod and remove everything that berth made on this host
    Reset(ResetFlags),
    /// List the pods on this node, also when the API server is down
    Pods(PodsFlags),
    /// Print a container's log, also when the API server is down
    Logs(LogsFlags),
    /// Run a command in a container, also when the API server is down
    Exec(ExecFlags),
    /// Join the streams of a container's first process, also when the API server is down
    Attach(AttachFlags),
    /// Forward ports of this host to a pod, also when the API server is down
    PortForward(PortForwardFlags),
    /// List what happened on this node lately, also what the API server was not told
    Events(EventsFlags),
    /// Print what the pods on this node use, also when the API server is down
    Stats(PodsFlags),
    /// List, import or remove images
    Images(ImagesFlags),
    /// Pull an image into this node's store
    Pull(PullFlags),
    /// Write the OCI runtime that berth carries to a file, for Podman, containerd and others
    OciRuntime(OciRuntimeFlags),
    /// Write the demo image, made from this executable, as an OCI layout tar
    DemoImage(DemoImageFlags),
    /// Answer HTTP requests with this pod's name (the demo image's command)
    #[command(hide = true)]
    DemoServer(DemoServerFlags),
}

/// Where a node keeps its things. Each has its place on a host with one node; several nodes on one
/// host need their own.
#[derive(Debug, Clone, Args)]
pub(crate) struct HostFlags {
    /// Configuration: KubeletConfiguration, KubeProxyConfiguration and NodeConfiguration documents
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// KubeletConfiguration documents (*.conf) that go over the one in --config, by their names' order
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// Images, volumes, keys and the embedded database [default: /var/lib/berth]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Sockets, namespaces and records of running pods; on a tmpfs [default: /run/berth]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Container logs [default: /var/log/pods]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,
    /// Fields of KubeletConfiguration that flags of another name said.
    #[arg(skip)]
    pub(crate) overlay: serde_json::Map<String, serde_json::Value>,
    /// A cloud's controller looks after the node.
    #[arg(skip)]
    pub(crate) external_cloud: bool,
}

/// What `agent` and `up` share.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// The node's name [default: the host name, in lower case]
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// The node's address, once a family [default: the source address of the default route]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) node_ip: Vec<IpAddr>,
    /// A label for the node
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) node_label: Vec<String>,
}

/// `berth agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentFlags {
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// How to reach the API server and as whom [default: kubelet.conf in the state directory, which
    /// `join` writes]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// How to ask for the node's certificate where there is none, or where it has ended [default:
    /// bootstrap.conf in the state directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) bootstrap_kubeconfig: Option<PathBuf>,
    /// The node's certificates [default: pki in the state directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) cert_dir: Option<PathBuf>,
}

impl NodeFlags {
    /// The flags that were given, by their names.
    pub(crate) fn told(&self) -> BTreeMap<String, String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let list = |all: Vec<String>| (!all.is_empty()).then(|| all.join(","));
        let Self { host, node_name, node_ip, node_label } = self;
        let given = [
            ("config", path(&host.config)),
            ("config-dir", path(&host.config_dir)),
            ("state-dir", path(&host.state_dir)),
            ("run-dir", path(&host.run_dir)),
            ("log-dir", path(&host.log_dir)),
            ("node-name", node_name.clone()),
            ("node-ip", list(node_ip.iter().map(ToString::to_string).collect())),
            ("node-label", list(node_label.clone())),
        ];
        given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

impl AgentFlags {
    /// The flags that were given, by their names.
    pub(crate) fn told(&self) -> BTreeMap<String, String> {
        let mut all = self.node.told();
        let own = [
            ("kubeconfig", &self.kubeconfig),
            ("bootstrap-kubeconfig", &self.bootstrap_kubeconfig),
            ("cert-dir", &self.cert_dir),
        ];
        let own = own.into_iter().filter_map(|(name, path)| {
            Some((name.to_owned(), path.as_ref()?.display().to_string()))
        });
        all.extend(own);
        all
    }
}

/// `berth join`. The flags are kubeadm's.
#[derive(Debug, Args)]
pub(crate) struct JoinFlags {
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// The API server
    #[arg(value_name = "HOST:PORT")]
    pub(crate) server: Option<String>,
    /// The token to know the cluster by, and to be known by
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Only to know the cluster by
    #[arg(long, value_name = "TOKEN")]
    pub(crate) discovery_token: Option<String>,
    /// Only to be known by
    #[arg(long, value_name = "TOKEN")]
    pub(crate) tls_bootstrap_token: Option<String>,
    /// A public key that the cluster's authority must have, as sha256:<hex>
    #[arg(long, value_name = "HASH")]
    pub(crate) discovery_token_ca_cert_hash: Vec<String>,
    /// Believe whoever knows the token
    #[arg(long)]
    pub(crate) discovery_token_unsafe_skip_ca_verification: bool,
    /// A kubeconfig of the cluster, instead of an address and a token
    #[arg(long, value_name = "FILE")]
    pub(crate) discovery_file: Option<PathBuf>,
    /// How long the cluster may take to answer, and to issue a certificate
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) timeout: u64,
    /// Install, enable and start a systemd service that runs the agent
    #[arg(long)]
    pub(crate) systemd: bool,
}

/// `berth up`.
#[derive(Debug, Args)]
pub(crate) struct UpFlags {
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// Apply these manifests once the node is ready
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub(crate) manifests: Vec<PathBuf>,
    /// Where the embedded API server listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6443")]
    pub(crate) api: SocketAddr,
    /// The longest life of certificates that the embedded API server signs
    #[arg(long, value_name = "SECONDS", default_value_t = 365 * 24 * 3600)]
    pub(crate) cluster_signing_duration: u64,
    /// Import this OCI layout tar before anything starts
    #[arg(long, value_name = "FILE")]
    pub(crate) import: Vec<PathBuf>,
}

/// `berth audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditFlags {
    /// The flags that the agent is given
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// The agent's kubeconfig [default: those in the state directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The service's unit [default: berth.service and kubelet.service with their drop-ins]
    #[arg(long, value_name = "FILE")]
    pub(crate) unit: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = OutputForm::Table)]
    pub(crate) output: OutputForm,
}

/// How something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputForm {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `berth reset`.
#[derive(Debug, Args)]
pub(crate) struct ResetFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// Keep images, keys and the embedded database
    #[arg(long)]
    pub(crate) keep_state: bool,
}

/// `berth pods`.
#[derive(Debug, Args)]
pub(crate) struct PodsFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `berth events`.
#[derive(Debug, Args)]
pub(crate) struct EventsFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// Only what is about this pod: its name, or namespace/name
    pub(crate) pod: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `berth logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// The pod: its name, or namespace/name
    pub(crate) pod: String,
    /// The container; needed where the pod has several
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Print what is written from now on, too
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The container before the last restart
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// Only this many lines from the end
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// Start each line with its time
    #[arg(long)]
    pub(crate) timestamps: bool,
}

/// `berth exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// The pod: its name, or namespace/name
    pub(crate) pod: String,
    /// The container; needed where several run
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Give the command this command's input
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

/// `berth attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// The pod: its name, or namespace/name
    pub(crate) pod: String,
    /// The container; needed where several run
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Give the process this command's input
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// The process has a terminal
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
}

impl From<AttachFlags> for ExecFlags {
    fn from(flags: AttachFlags) -> Self {
        let AttachFlags { host, pod, container, stdin, tty } = flags;
        Self { host, pod, container, stdin, tty, command: Vec::new() }
    }
}

/// `berth port-forward`.
#[derive(Debug, Args)]
pub(crate) struct PortForwardFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// The pod: its name, or namespace/name
    pub(crate) pod: String,
    /// Ports: `80`, `8080:80`, `:80`
    #[arg(required = true, value_name = "PORT")]
    pub(crate) ports: Vec<String>,
}

/// `berth images`.
#[derive(Debug, Args)]
pub(crate) struct ImagesFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) action: Option<ImagesAction>,
}

/// What to do to the image store.
#[derive(Debug, Subcommand)]
pub(crate) enum ImagesAction {
    /// Import an OCI layout tar
    Import {
        /// The tar, or - for standard input
        file: PathBuf,
    },
    /// Remove an image
    Remove {
        /// The image
        image: String,
    },
}

/// `berth pull`.
#[derive(Debug, Args)]
pub(crate) struct PullFlags {
    #[command(flatten)]
    pub(crate) host: HostFlags,
    /// The image
    pub(crate) image: String,
    /// The user, and where to read the password is standard input
    #[arg(long, value_name = "USER")]
    pub(crate) username: Option<String>,
}

/// `berth oci-runtime`.
#[derive(Debug, Args)]
pub(crate) struct OciRuntimeFlags {
    /// Where to; what is there is replaced, while containers it started run on
    pub(crate) file: PathBuf,
}

/// `berth demo-image`.
#[derive(Debug, Args)]
pub(crate) struct DemoImageFlags {
    /// Where to write it, or - for standard output
    pub(crate) file: PathBuf,
}

/// `berth demo-server`.
#[derive(Debug, Args)]
pub(crate) struct DemoServerFlags {
    /// The port to listen on
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
}
