//! What the engine keeps on disk of sandboxes and containers, written before it acts.
//!
//! ```text
//! <run>/pods/<sandbox>/record.json                       Sandbox
//!                      sandbox.json, shim.sock, ns/      the shim's
//!                      shm/, hostname, resolv.conf       mounted into containers
//!                      containers/<id>/config.json       Container
//!                                      spec.json         its OCI specification
//!                                      state.json        the shim's
//!                      volumes/<id>/<n>                  resolved sub paths and images, bound
//! <state>/containers/<id>/{upper,work}                   writable layers
//! <state>/checkpointing/<id>/                            checkpoints that are being made
//! ```
//! Sub paths are bound outside `containers/<id>`: the shim removes that directory whole when it
//! forgets a container, and must not meet a volume in it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_oci::protocol::UserIds;
use serde::{Deserialize, Serialize};

use crate::images::digest::ChainId;
use crate::interface::{
    ContainerConfig, ContainerId, ContainerState, ResolvedUser, SandboxConfig, SandboxId,
};

/// How far a sandbox or container has come.
///
/// ```text
/// Making ─► Ready ─► Stopped ─► Removing        (a container knows no Stopped)
/// ```
/// What is found `Making` after a restart is removed: nobody was told of it. What is found
/// `Removing` is removed to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Making,
    Ready,
    Stopped,
    Removing,
}

/// `record.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sandbox {
    pub(super) id: SandboxId,
    pub(super) boot_id: String,
    pub(super) config: SandboxConfig,
    pub(super) phase: Phase,
    pub(super) created_at: i64,
    pub(super) ips: Vec<IpAddr>,
    /// The ids of a pod with a user namespace.
    #[serde(default)]
    pub(super) user_ids: Option<UserIds>,
    /// The SELinux level that is its own.
    #[serde(default)]
    pub(super) selinux_level: Option<String>,
}

/// `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Container {
    pub(super) id: ContainerId,
    pub(super) config: ContainerConfig,
    pub(super) phase: Phase,
    pub(super) created_at: i64,
    /// The layers of its image and of those that its volumes are, so that they are held again after a
    /// restart.
    pub(super) layers: Vec<ChainId>,
    pub(super) stop_signal: i32,
    pub(super) user: Option<ResolvedUser>,
    /// How it ended, where the shim could not record it.
    pub(super) ended: Option<ContainerState>,
}

/// Where things are.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) run_dir: PathBuf,
    pub(super) state_dir: PathBuf,
}

impl Layout {
    pub(super) fn sandboxes(&self) -> PathBuf {
        self.run_dir.join("pods")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.run_dir.join("quarantine")
    }

    pub(super) fn writable_layers(&self) -> PathBuf {
        self.state_dir.join("containers")
    }

    pub(super) fn sandbox(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir(self.sandboxes().join(id.as_str()))
    }

    pub(super) fn writable_layer(&self, id: &ContainerId) -> PathBuf {
        self.writable_layers().join(id.as_str())
    }

    pub(super) fn checkpointing(&self) -> PathBuf {
        self.state_dir.join("checkpointing")
    }

    /// What a container has written to its root.
    pub(super) fn written_files(&self, id: &ContainerId) -> PathBuf {
        self.writable_layer(id).join("upper")
    }
}

/// A sandbox's directory.
#[derive(Debug, Clone)]
pub(super) struct SandboxDir(PathBuf);

impl SandboxDir {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    pub(super) fn shim_config(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("shim.sock")
    }

    pub(super) fn shim_log(&self) -> PathBuf {
        self.0.join("shim.log")
    }

    pub(super) fn network_namespace(&self) -> PathBuf {
        self.0.join("ns/net")
    }

    pub(super) fn user_namespace(&self) -> PathBuf {
        self.0.join("ns/user")
    }

    pub(super) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    pub(super) fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    pub(super) fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    pub(super) fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    pub(super) fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    pub(super) fn container(&self, id: &ContainerId) -> ContainerDir {
        ContainerDir {
            own: self.containers().join(id.as_str()),
            volumes: self.volumes().join(id.as_str()),
        }
    }
}

/// A container's directories below its sandbox's.
#[derive(Debug, Clone)]
pub(super) struct ContainerDir {
    own: PathBuf,
    volumes: PathBuf,
}

impl ContainerDir {
    pub(super) fn path(&self) -> &Path {
        &self.own
    }

    pub(super) fn record(&self) -> PathBuf {
        self.own.join("config.json")
    }

    pub(super) fn spec(&self) -> PathBuf {
        self.own.join("spec.json")
    }

    pub(super) fn shim_state(&self) -> PathBuf {
        self.own.join("state.json")
    }

    pub(super) fn volumes(&self) -> &Path {
        &self.volumes
    }

    pub(super) fn volume(&self, index: usize) -> PathBuf {
        self.volumes.join(index.to_string())
    }
}
