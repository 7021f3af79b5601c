//! What is mounted in a container: the kernel's file systems, the sandbox's files, the pod's volumes.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::has_own_network;
use crate::interface::{ContainerConfig, NamespaceMode, Propagation, SandboxConfig};

/// A bind mount whose source on the host is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct PreparedMount {
    pub(in crate::engine) source: PathBuf,
    pub(in crate::engine) container_path: PathBuf,
    pub(in crate::engine) content: Content,
    pub(in crate::engine) read_only: bool,
    pub(in crate::engine) recursive_read_only: bool,
    pub(in crate::engine) propagation: Propagation,
}

/// What is behind a mount's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Content {
    /// Files with the host's ids.
    Files,
    /// An image, with the pod's ids.
    Image,
}

/// Files and directories that the containers of a sandbox share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct SandboxFiles {
    pub(in crate::engine) shm: PathBuf,
    pub(in crate::engine) hostname: PathBuf,
    pub(in crate::engine) resolv_conf: PathBuf,
}

/// Destination, type, source and options of what every container has.
const STANDARD: [(&str, &str, &str, &[&str]); 4] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
];

/// All mounts in order. One of the pod's replaces a standard one at the same place.
pub(super) fn plan(
    config: &ContainerConfig,
    sandbox: &SandboxConfig,
    volumes: &[PreparedMount],
    files: &SandboxFiles,
) -> Result<Vec<Mount>, String> {
    let mut mounts: Vec<Mount> = STANDARD
        .iter()
        .map(|(destination, kind, source, options)| {
            mount(destination, kind, Path::new(source), options)
        })
        .collect();
    let access = if config.security.privileged { "rw" } else { "ro" };
    let kernel = ["nosuid", "noexec", "nodev", access];
    mounts.push(mount("/sys", "sysfs", Path::new("sysfs"), &kernel));
    mounts.push(mount("/sys/fs/cgroup", "cgroup", Path::new("cgroup"), &kernel));
    mounts.push(bind("/dev/shm", &files.shm, &["rw", "nosuid", "nodev", "noexec"]));
    let access = if config.security.read_only_rootfs { "ro" } else { "rw" };
    if has_own_network(sandbox) {
        mounts.push(bind("/etc/hostname", &files.hostname, &[access]));
    }
    mounts.push(bind("/etc/resolv.conf", &files.resolv_conf, &[access]));
    mounts.retain(|standard| {
        !volumes.iter().any(|v| clean(&v.container_path) == *standard.destination())
    });
    for volume in volumes {
        mounts.push(volume_mount(volume)?);
    }
    if sandbox.users == NamespaceMode::Pod {
        let images: Vec<&Path> = volumes
            .iter()
            .filter(|volume| volume.content == Content::Image)
            .map(|volume| volume.source.as_path())
            .collect();
        let is_image =
            |mount: &Mount| mount.source().as_deref().is_some_and(|s| images.contains(&s));
        mounts
            .iter_mut()
            .filter(|mount| has_host_ids(mount, files) && !is_image(mount))
            .for_each(map_ids);
    }
    Ok(mounts)
}

/// What holds ids as the pod means them: all that is bound, but the memory that is made for its ids.
fn has_host_ids(mount: &Mount, files: &SandboxFiles) -> bool {
    mount.typ().as_deref() == Some("bind") && mount.source().as_ref() != Some(&files.shm)
}

/// Lets the pod's ids stand for the same ids there. Not for what is mounted below, as upstream's
/// runtimes have it: not every file system can.
fn map_ids(mount: &mut Mount) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.push("idmap".to_owned());
    mount.set_options(Some(options));
}

fn volume_mount(volume: &PreparedMount) -> Result<Mount, String> {
    let destination = clean(&volume.container_path);
    if !destination.is_absolute() || destination == Path::new("/") {
        return Err(format!("cannot mount at {:?}", volume.container_path));
    }
    let propagation = match volume.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (volume.read_only, volume.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let mut options = vec!["rbind", propagation, access];
    if volume.content == Content::Image {
        options.extend(["nosuid", "nodev", "noexec"]);
    }
    let mut mount = Mount::default();
    mount
        .set_destination(destination)
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(volume.source.clone()))
        .set_options(Some(owned(&options)));
    Ok(mount)
}

/// Without `.`, doubled and trailing slashes; `..` stays and is refused where it is resolved.
fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

fn bind(destination: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = mount(destination, "bind", source, options);
    let mut options = owned(&["rbind", "rprivate"]);
    options.extend(mount.options().clone().unwrap_or_default());
    mount.set_options(Some(options));
    mount
}

fn mount(destination: &str, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(owned(options)));
    mount
}

fn owned(options: &[&str]) -> Vec<String> {
    options.iter().map(|option| (*option).to_owned()).collect()
}
