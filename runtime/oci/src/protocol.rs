//! What the agent says to a shim, and what the shim answers.
//!
//! A shim listens on a `SOCK_STREAM` socket, mode 0600, in its sandbox directory, and serves peers
//! of uid 0 only. Each message is a little-endian `u32` length, at most [`MAX_FRAME_BYTES`], followed
//! by that many bytes of JSON. A connection carries one request at a time, answered in order; after
//! [`Request::Subscribe`] it carries only [`Event`]s towards the agent. After the answer to
//! [`Request::Exec`] or [`Request::Attach`], with which descriptors come (`SCM_RIGHTS`, at the frame's
//! first byte), it carries one [`Reply::Ended`] and nothing else.
//!
//! Messages are versioned by [`VERSION`]: an agent may talk to a shim of an older release, so fields
//! are only added, with defaults. A request that a shim does not know, or cannot read, is answered by a
//! [`Failure`] that names it.

mod parse;

pub use parse::parse_request;

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

/// The protocol's version, told by [`Reply::Shim`].
pub const VERSION: u32 = 1;

/// The largest message either side accepts.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// A shim's own settings: `sandbox.json` in the sandbox directory, read once at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShimConfig {
    /// The sandbox's identifier.
    pub sandbox_id: String,
    /// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid host.
    pub cgroup_root: PathBuf,
    /// The UTS host name; absent keeps the host's UTS namespace.
    pub hostname: Option<String>,
    /// A network namespace of the pod's own, pinned at `ns/net`.
    pub new_network: bool,
    /// An IPC namespace of the pod's own, pinned at `ns/ipc`.
    pub new_ipc: bool,
    /// How containers see processes.
    pub pid: PidNamespace,
    /// Sysctls of the pod's namespaces, in the dotted form, already admitted by the agent.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// A user namespace of the pod's own, pinned at `ns/user`, that the other namespaces belong to.
    /// Containers name it by that path. It goes with [`PidNamespace::Host`] as little as with the
    /// host's network.
    #[serde(default)]
    pub user_ids: Option<UserIds>,
}

/// The ids of the host that a pod's ids from 0 on stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UserIds {
    /// What 0 stands for.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// How the containers of a sandbox see processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidNamespace {
    /// Each container has its own namespace.
    Container,
    /// All share one whose PID 1 is the shim's reaper.
    Sandbox,
    /// The host's.
    Host,
}

/// A request of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Who are you and what do you hold? Answered by [`Reply::Shim`].
    Hello,
    /// Makes a container up to the point of `execve`. Answered by [`Reply::Created`].
    Create(Box<CreateContainer>),
    /// Lets a created container execute its command. Answered by [`Reply::Done`] once the command
    /// was executed, or by [`Failure`] with the exit code when it could not be.
    Start {
        /// The container.
        id: String,
    },
    /// Sends a signal. Signalling what has exited answers [`Reply::Done`].
    Signal {
        /// The container.
        id: String,
        /// The signal number.
        signal: i32,
        /// Whom it reaches.
        target: SignalTarget,
    },
    /// Forgets an exited container: its cgroup, its record. Unknown ids answer [`Reply::Done`].
    Delete {
        /// The container.
        id: String,
    },
    /// Runs a further process in a running container, collecting its output. Answered by
    /// [`Reply::Executed`] when it has ended; the connection is busy until then.
    ExecSync(Box<ExecSync>),
    /// Runs a further process in a running container. Answered by [`Reply::Opened`] once the command
    /// was executed; [`Reply::Ended`] follows. The process outlives the connection.
    Exec(Box<Exec>),
    /// Joins the streams of a running container. Answered by [`Reply::Opened`]; [`Reply::Ended`]
    /// follows with the container's end. Closing the connection detaches.
    Attach(Attach),
    /// Opens a container's log anew under its path, somebody else having moved it. Answered by
    /// [`Reply::Done`] once what follows goes to the new file.
    ReopenLog {
        /// The container.
        id: String,
    },
    /// Changes when a container's log rotates, from its next record on. Answered by [`Reply::Done`].
    LimitLog {
        /// The container.
        id: String,
        /// See [`Stdio::log_max_bytes`].
        max_bytes: u64,
        /// See [`Stdio::log_max_files`].
        max_files: u32,
    },
    /// Turns the connection into a stream of [`Event`]s: first one for every container that has
    /// exited already, then as they happen.
    Subscribe {
        /// Send [`Event::LogLost`] too, which agents of the first release do not know.
        #[serde(default)]
        log_losses: bool,
    },
    /// Kills all containers and ends the shim; namespaces are unpinned. Answered by [`Reply::Done`].
    Shutdown,
}

/// What a container is made from. The shim clones it into `cgroup_path` and into the sandbox's
/// namespaces; `spec` follows the OCI runtime specification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateContainer {
    /// The container's identifier.
    pub id: String,
    /// Process, mounts, capabilities, seccomp, resources and so on. `root.path` is ignored in favour
    /// of `rootfs`; namespaces named without a path are new, and the sandbox's own net, ipc, uts (and
    /// pid) namespaces are joined in any case.
    #[serde(deserialize_with = "crate::spec::read")]
    pub spec: Spec,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Who the process is, resolved against the root file system's own `/etc/passwd` and `/etc/group`.
    pub user: UserSelector,
    /// The container's cgroup, relative to [`ShimConfig::cgroup_root`]. Made by the shim; limits of
    /// `spec.linux.resources` (incl. `unified`) are written before anything runs in it.
    pub cgroup_path: PathBuf,
    /// Where its output goes.
    pub stdio: Stdio,
    /// Join the PID namespace of this running container instead of one of its own. Changes nothing
    /// where the sandbox has one for all.
    #[serde(default)]
    pub pid_target: Option<String>,
}

/// A root file system to mount inside the container's own mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// An overlay of read-only layers and a writable one.
    Overlay {
        /// Lower directories, topmost first.
        lower: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// overlayfs' work directory, on the same file system as `upper`.
        work: PathBuf,
    },
    /// A directory that is bound as it is.
    Directory(PathBuf),
}

/// The user in the forms an image or a pod names it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserSelector {
    /// `""` (root), `uid`, `name`, `uid:gid`, `name:group` and so on: an image's `USER`, or the
    /// decimal `runAsUser`. All-digit strings are ids and never looked up as names; ids reach from 0
    /// to 2³¹−1.
    pub user: String,
    /// Replaces the primary group (`runAsGroup`).
    pub group: Option<u32>,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// Leaves out the groups that the image's `/etc/group` gives the user (policy Strict).
    pub strict_groups: bool,
}

/// Standard streams of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// The CRI-format log file, absolute; its directory exists.
    pub log_path: PathBuf,
    /// Rotate before the file would exceed this many bytes.
    pub log_max_bytes: u64,
    /// Keep at most this many files, the current one included.
    pub log_max_files: u32,
    /// A terminal instead of pipes.
    pub tty: bool,
    /// Standard input is a pipe held open for attach instead of `/dev/null`.
    pub stdin: bool,
    /// Standard input closes when the first attach session ends.
    pub stdin_once: bool,
}

/// Whom a signal reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalTarget {
    /// The container's first process.
    Init,
    /// Every process of its cgroup; with SIGKILL by `cgroup.kill`.
    All,
}

/// A further process in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSync {
    /// The container.
    pub id: String,
    /// The command and its arguments.
    pub args: Vec<String>,
    /// Kill it after this many milliseconds; absent waits for ever.
    pub timeout_ms: Option<u64>,
    /// Keep at most this many bytes of each stream; both together at most what fits into a frame,
    /// about 12 MiB. The rest is read and dropped.
    pub output_limit_bytes: u64,
    /// Makes the execution one that is carried out once: it outlives the connection, its result is
    /// kept until the container is deleted, and whoever asks with the same name gets that result, or
    /// waits for it. A plain file name. At most [`MAX_KEPT_RESULTS`] are kept a container.
    #[serde(default)]
    pub once: Option<String>,
}

/// How many results of named executions a container keeps; the oldest go first.
pub const MAX_KEPT_RESULTS: usize = 64;

/// Which standard streams are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Streams {
    /// Towards the process.
    #[serde(default)]
    pub stdin: bool,
    /// From the process.
    #[serde(default)]
    pub stdout: bool,
    /// From the process.
    #[serde(default)]
    pub stderr: bool,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// A further process in a container, whose streams the asker gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The container.
    pub id: String,
    /// The command and its arguments.
    pub args: Vec<String>,
    /// The streams; what is not wanted is the null device. With a terminal, standard error is one with
    /// standard output.
    pub streams: Streams,
    /// A terminal made in the container's own devpts.
    #[serde(default)]
    pub tty: bool,
    /// The terminal's size before the command runs.
    #[serde(default)]
    pub size: Option<TerminalSize>,
}

/// Joining the streams of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The container.
    pub id: String,
    /// The streams wanted.
    pub streams: Streams,
}

/// What a descriptor is that comes with [`Reply::Opened`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Descriptor {
    /// The writing end of the process's input, or its terminal's master side.
    Stdin,
    /// The reading end of its output, or its terminal's master side.
    Stdout,
    /// The reading end of its error output.
    Stderr,
    /// Its terminal's master side, to resize it.
    Terminal,
}

/// An answer of the shim: either a reply or a failure.
pub type Answer = Result<Reply, Failure>;

/// A shim's successful answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Answers [`Request::Hello`].
    Shim {
        /// [`VERSION`] of the shim.
        version: u32,
        /// The shim's process id.
        pid: i32,
        /// All containers it holds.
        containers: Vec<ContainerRecord>,
    },
    /// Answers [`Request::Create`].
    Created(ContainerRecord),
    /// The request was carried out.
    Done,
    /// Answers [`Request::Start`]; shims of older releases say [`Reply::Done`].
    Started {
        /// When it was let run, as its record has it; nanoseconds since the epoch.
        started_at: i64,
    },
    /// Answers [`Request::ExecSync`].
    Executed {
        /// Exit code, or 128 + signal.
        exit_code: i32,
        /// Standard output, base64.
        stdout: String,
        /// Standard error, base64.
        stderr: String,
        /// It was killed at its timeout.
        timed_out: bool,
    },
    /// Answers [`Request::Exec`] and [`Request::Attach`]: the descriptors that came with it, in order,
    /// all non-blocking.
    Opened {
        /// What each is.
        descriptors: Vec<Descriptor>,
    },
    /// The process, or the container with its output complete, has ended.
    Ended {
        /// Exit code, or 128 + signal.
        exit_code: i32,
        /// Output that was not given to this attachment, which did not take it.
        #[serde(default)]
        dropped_bytes: u64,
    },
}

/// Why the shim did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The class.
    pub kind: FailureKind,
    /// What failed, the chain of causes joined by `: `.
    pub message: String,
    /// For [`FailureKind::Start`], runc's exit code: 127 not found, 126 not executable, else 128.
    #[serde(default)]
    pub exit_code: Option<i32>,
}

/// The classes of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No such container.
    NotFound,
    /// The request cannot be met as it stands.
    Invalid,
    /// Making the container failed; nothing of it is left.
    Create,
    /// The command could not be executed; the container is exited with `exit_code`.
    Start,
    /// The container is in the wrong state for the request.
    State,
    /// The host failed.
    Host,
}

/// What the shim knows of a container: also `containers/<id>/state.json` below the sandbox directory,
/// written (temporary name, fsync, rename) at each change, so that it outlives the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The container.
    pub id: String,
    /// Its first process in the host's PID namespace; 0 once reaped.
    pub pid: i32,
    /// Its cgroup, relative to the cgroup root.
    pub cgroup_path: PathBuf,
    /// Its state.
    pub state: ContainerPhase,
    /// Who it runs as.
    pub user: ResolvedUser,
    /// What the host could not enforce: absent controllers, a refused `oom_score_adj` and the like.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Records that its log lacks: its disk was too slow or full.
    #[serde(default)]
    pub lost_log_records: u64,
}

/// The numeric identity of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub supplemental_groups: Vec<u32>,
}

/// Created → Running → Exited; a start failure goes from Created to Exited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// Waits for [`Request::Start`].
    Created,
    /// Runs.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Has ended.
    Exited(ExitRecord),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Nanoseconds since the epoch; 0 when it never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// Exit code, or 128 + signal.
    pub exit_code: i32,
    /// `memory.events` counted an OOM kill.
    pub oom_killed: bool,
    /// Why, where the exit code does not say.
    pub message: String,
}

/// Something the agent should know at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A container has ended and its log is complete.
    Exited {
        /// The container.
        id: String,
        /// How.
        exit: ExitRecord,
    },
    /// A container's log lacks records; told at most once a second, and before its exit.
    LogLost {
        /// The container.
        id: String,
        /// How many in all so far.
        records: u64,
    },
}
