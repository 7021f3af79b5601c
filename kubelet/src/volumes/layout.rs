//! Where a pod's files are: `<root>/pods/<uid>/…`, as upstream lays them out.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::MountAttrFlags;

use super::{VolumeError, directory, tmpfs};
use crate::container_config::{ConfigError, require_component};
use crate::pod_files::write_in_place;

/// What the kubelet's files of a pod may hold together: a host's long list of names, and more.
const FILES_BYTES: u64 = 8 << 20;

/// The kinds of volumes that have a directory, by upstream's plugin names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VolumePlugin {
    /// `emptyDir`.
    EmptyDir,
    /// `configMap`.
    ConfigMap,
    /// `secret`.
    Secret,
    /// `downwardAPI`.
    DownwardApi,
    /// `projected`.
    Projected,
    /// A claim bound to a `local` volume. Nothing is in its directory, which says that the volume was
    /// made the pod's.
    Local,
    /// `nfs`.
    Nfs,
}

impl VolumePlugin {
    /// The directory of the plugin.
    pub fn directory_name(self) -> &'static str {
        match self {
            Self::EmptyDir => "kubernetes.io~empty-dir",
            Self::ConfigMap => "kubernetes.io~configmap",
            Self::Secret => "kubernetes.io~secret",
            Self::DownwardApi => "kubernetes.io~downward-api",
            Self::Projected => "kubernetes.io~projected",
            Self::Local => "kubernetes.io~local-volume",
            Self::Nfs => "kubernetes.io~nfs",
        }
    }
}

/// A pod's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDirectory {
    root: PathBuf,
    uid: String,
}

impl PodDirectory {
    /// The directory of a pod below the kubelet's root; the UID must be fit for a path.
    pub fn new(root: &Path, uid: &str) -> Result<Self, ConfigError> {
        require_component("pod UID", uid)?;
        Ok(Self { root: root.to_owned(), uid: uid.to_owned() })
    }

    /// The kubelet's root, which exists and is the kubelet's alone.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pod's UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The directory itself.
    pub fn path(&self) -> PathBuf {
        self.root.join("pods").join(&self.uid)
    }

    /// The volumes' directory.
    pub fn volumes_path(&self) -> PathBuf {
        self.path().join("volumes")
    }

    /// A volume's directory.
    pub fn volume_path(&self, plugin: VolumePlugin, name: &str) -> Result<PathBuf, VolumeError> {
        if require_component("volume name", name).is_err() {
            return Err(VolumeError::InvalidValue { field: "volume name", value: name.to_owned() });
        }
        Ok(self.volumes_path().join(plugin.directory_name()).join(name))
    }

    /// Where the files are that the kubelet makes and containers may write to: in memory and bounded,
    /// so that they do not fill the node's disk (CVE-2020-8557).
    ///
    /// Differs: upstream has them on the disk and counts them for eviction.
    pub fn files_path(&self) -> PathBuf {
        self.path().join("files")
    }

    /// The pod's `/etc/hosts`.
    pub fn hosts_path(&self) -> PathBuf {
        self.files_path().join("etc-hosts")
    }

    /// The pod's `/etc/resolv.conf`.
    pub fn resolv_conf_path(&self) -> PathBuf {
        self.files_path().join("resolv.conf")
    }

    /// The pod's `/etc/hostname`.
    pub fn hostname_path(&self) -> PathBuf {
        self.files_path().join("hostname")
    }

    /// What a container writes its last words to.
    pub fn termination_log_path(&self, container: &str, attempt: u32) -> PathBuf {
        self.files_path().join("containers").join(container).join(attempt.to_string())
    }

    /// The UIDs of all pods that have a directory. Blocks.
    pub fn list(root: &Path) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(root.join("pods")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut uids = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if require_component("pod UID", &name).is_ok() {
                uids.push(name);
            }
        }
        uids.sort();
        Ok(uids)
    }

    /// Makes the pod's directory. Blocks; idempotent.
    pub fn create(&self) -> io::Result<()> {
        directory::make_all(&self.root, &self.volumes_path())
    }

    /// Makes the place of the kubelet's files. Blocks; idempotent.
    pub fn create_files(&self) -> io::Result<()> {
        let path = self.files_path();
        directory::make_all(&self.root, &path)?;
        let opened = directory::open_path(&path)?;
        if tmpfs::is_mount(&opened)? {
            return Ok(());
        }
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        tmpfs::mount(
            &opened,
            tmpfs::Options { page_bytes: None, size_bytes: Some(FILES_BYTES), flags },
        )
    }

    /// Makes an empty termination log that any user may write. Blocks; idempotent.
    pub fn create_termination_log(&self, container: &str, attempt: u32) -> io::Result<PathBuf> {
        require_component("container name", container).map_err(io::Error::other)?;
        let path = self.termination_log_path(container, attempt);
        if let Some(parent) = path.parent() {
            directory::make_all(&self.root, parent)?;
        }
        write_in_place(&path, b"", 0o666)?;
        Ok(path)
    }
}
