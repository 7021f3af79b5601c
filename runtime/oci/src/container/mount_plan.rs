//! A container's mounts, from the specification: parsed and checked, in their order. Pure.
//!
//! OCI runtime spec, `config.md`, Mounts.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::mount_options::{self, IdMap, Options, Source};
use super::namespaces::{self, Mappings, User};
use super::{Error, Result};

/// A mount.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    /// Below the root.
    pub(crate) destination: PathBuf,
    /// The file system's type; empty for binds.
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    /// Where a bind's source is a path of the container, below its root: earlier mounts may have put it
    /// there.
    pub(crate) source_inside: Option<PathBuf>,
    pub(crate) options: Options,
    pub(crate) ids: Option<MappedIds>,
}

impl Mount {
    /// Whether it is the cgroup hierarchy at its usual place, and not read-only.
    pub(super) fn is_writable_hierarchy(&self) -> bool {
        self.kind == "cgroup2"
            && self.options.source == Source::New
            && self.destination == Path::new("sys/fs/cgroup")
            && self.options.attributes.set & libc::MOUNT_ATTR_RDONLY == 0
    }
}

/// By what a mount's ids are mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MappedIds {
    pub(crate) by: IdSource,
    /// Submounts too.
    pub(crate) recursive: bool,
}

/// Where a mapping of ids comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdSource {
    Mappings(Mappings),
    /// The user namespace of a path, which the container joins.
    Namespace(PathBuf),
}

/// File systems whose content is that of namespaces, not of the mount.
const OF_KERNEL: [&str; 5] = ["proc", "sysfs", "cgroup2", "mqueue", "devpts"];

/// Plans the mounts of a container in the user namespace `user`.
pub(super) fn plan(spec: &Spec, user: &User) -> Result<Vec<Mount>> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
    let label = label.filter(|label| !label.is_empty());
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let field = format!("mounts[{}]", mount.destination().display());
        let kind = mount.typ().clone().unwrap_or_default();
        let mut options =
            mount_options::parse(&field, mount.options().as_deref().unwrap_or_default())?;
        if options.source == Source::New && matches!(kind.as_str(), "bind" | "none" | "") {
            options.source = Source::Bind;
        }
        let kind = if kind == "cgroup" { "cgroup2".to_owned() } else { kind };
        let source = mount.source().clone().unwrap_or_default();
        let destination = super::rootfd::clean(mount.destination());
        check(&field, (&kind, &source, &destination), &options)?;
        let ids = mapped_ids(&field, mount, &options, user)?;
        if ids.is_some() && options.source == Source::New && OF_KERNEL.contains(&kind.as_str()) {
            return Err(Error::invalid(field, format!("ids of a {kind} cannot be mapped")));
        }
        if let Some(label) = &label
            && options.source == Source::New
            && !matches!(kind.as_str(), "proc" | "sysfs" | "cgroup2")
        {
            options.data.push(("context".to_owned(), Some(label.clone())));
        }
        let source_inside = None;
        mounts.push(Mount { destination, kind, source, source_inside, options, ids });
    }
    Ok(mounts)
}

/// Takes paths of the host that lead into the root file system, by their text, for paths of the
/// container. Differs: runc looks up such a source on the host, where a link of the image leads anywhere.
pub(super) fn relate(mounts: &mut [Mount], rootfs: &Path) -> Result<()> {
    let rootfs = super::rootfd::clean(rootfs);
    if rootfs.as_os_str().is_empty() {
        return Ok(());
    }
    for mount in mounts {
        if let Ok(inside) = mount.destination.strip_prefix(&rootfs) {
            if inside.as_os_str().is_empty() {
                let field = format!("mounts[/{}]", mount.destination.display());
                return Err(Error::invalid(field, "cannot mount over the root"));
            }
            mount.destination = inside.to_owned();
        }
        if matches!(mount.options.source, Source::Bind | Source::BindTree) {
            let source = super::rootfd::clean(&mount.source);
            mount.source_inside = source.strip_prefix(&rootfs).ok().map(Path::to_owned);
        }
    }
    Ok(())
}

fn check(
    field: &str,
    (kind, source, destination): (&str, &Path, &Path),
    options: &Options,
) -> Result<()> {
    let refuse = |reason: &str| Err(Error::invalid(field, reason));
    if destination.as_os_str().is_empty() {
        return refuse("cannot mount over the root");
    }
    if options.copies_up && (kind != "tmpfs" || options.source != Source::New) {
        return refuse("option tmpcopyup is for a tmpfs");
    }
    if matches!(options.source, Source::Bind | Source::BindTree) {
        if !source.is_absolute() {
            return refuse("the source is not an absolute path");
        }
        if let Some((option, _)) = options.data.iter().find(|(key, _)| !is_superblock_flag(key)) {
            return Err(Error::invalid(field, format!("option {option} is not for a bind mount")));
        }
    }
    Ok(())
}

/// What mount(2) passes over for a bind, as the file system is there already.
fn is_superblock_flag(option: &str) -> bool {
    matches!(option, "sync" | "dirsync" | "lazytime" | "nolazytime" | "mand" | "iversion")
}

fn mapped_ids(
    field: &str,
    mount: &oci_spec::runtime::Mount,
    options: &Options,
    user: &User,
) -> Result<Option<MappedIds>> {
    let (uids, gids) = (format!("{field}.uidMappings"), format!("{field}.gidMappings"));
    let own = namespaces::mappings(
        (&uids, mount.uid_mappings().as_deref()),
        (&gids, mount.gid_mappings().as_deref()),
    )?;
    let recursive = options.id_map == Some(IdMap::Tree);
    let by = match (own, options.id_map, user) {
        (None, None, _) => return Ok(None),
        (Some(mappings), _, _) => IdSource::Mappings(mappings),
        (None, Some(_), User::New(mappings)) => IdSource::Mappings(mappings.clone()),
        (None, Some(_), User::Joined { path, .. }) => IdSource::Namespace(path.clone()),
        (None, Some(_), User::Shared) => {
            return Err(Error::invalid(uids, "is needed, as there is no user namespace"));
        }
    };
    Ok(Some(MappedIds { by, recursive }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn planned(mount: Value, user: &User) -> Result<Mount> {
        let spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": [mount]})).unwrap();
        plan(&spec, user).map(|mut mounts| mounts.remove(0))
    }

    fn refusal(mount: Value) -> String {
        planned(mount, &User::Shared).unwrap_err().to_string()
    }

    #[test]
    fn a_relative_destination_is_below_the_root_and_a_cgroup_is_of_version_two() {
        let mount = planned(json!({"destination": "a/../b", "type": "cgroup"}), &User::Shared);
        let mount = mount.unwrap();
        assert_eq!((mount.destination, mount.kind.as_str()), (PathBuf::from("b"), "cgroup2"));
    }

    #[test]
    fn host_paths_into_the_root_are_the_container_s() {
        let mut mounts = Vec::new();
        for (destination, source, kind) in [
            ("/b/rootfs/x/y", "/b/rootfs/./mnt/x", "bind"),
            ("/b/rootfs2", "/b/rootfs/../other", "bind"),
            ("/b", "/b/rootfs/x", "tmpfs"),
            ("/all", "/b/rootfs", "bind"),
        ] {
            let mount = json!({"destination": destination, "source": source, "type": kind});
            mounts.push(planned(mount, &User::Shared).unwrap());
        }
        relate(&mut mounts, Path::new("/b/rootfs")).unwrap();
        let found = |mount: &Mount| (mount.destination.clone(), mount.source_inside.clone());
        let found: Vec<_> = mounts.iter().map(found).collect();
        let expected =
            [("x/y", Some("mnt/x")), ("b/rootfs2", None), ("b", None), ("all", Some(""))];
        let expected: Vec<_> =
            expected.into_iter().map(|(to, from)| (to.into(), from.map(PathBuf::from))).collect();
        assert_eq!(found, expected);
        let root = json!({"destination": "/b/rootfs", "source": "/s", "type": "bind"});
        let mut mounts = [planned(root, &User::Shared).unwrap()];
        assert!(relate(&mut mounts, Path::new("/b/rootfs")).is_err());
        assert!(relate(&mut mounts, Path::new("/")).is_ok());
    }

    #[test]
    fn a_mapped_mount_takes_its_own_mappings_or_those_of_the_container() {
        let map = json!([{"containerID": 0, "hostID": 5, "size": 9}]);
        let own = json!({"destination": "/a", "source": "/s", "options": ["rbind", "ridmap"],
                         "uidMappings": map, "gidMappings": map});
        let ids = planned(own, &User::Shared).unwrap().ids.unwrap();
        assert!(ids.recursive && matches!(ids.by, IdSource::Mappings(_)));
        let inherited = json!({"destination": "/a", "source": "/s", "options": ["bind", "idmap"]});
        let joined = User::Joined { path: "/n".into(), expected: None };
        let ids = planned(inherited.clone(), &joined).unwrap().ids.unwrap();
        assert_eq!(ids, MappedIds { by: IdSource::Namespace("/n".into()), recursive: false });
        assert_eq!(
            refusal(inherited),
            "mounts[/a].uidMappings: is needed, as there is no user namespace"
        );
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_by_the_field_s_name() {
        for (mount, message) in [
            (
                json!({"destination": "/..", "type": "tmpfs"}),
                "mounts[/..]: cannot mount over the root",
            ),
            (
                json!({"destination": "/a", "source": "b", "options": ["bind"]}),
                "mounts[/a]: the source is not an absolute path",
            ),
            (
                json!({"destination": "/a", "source": "/b", "options": ["bind", "mode=1"]}),
                "mounts[/a]: option mode is not for a bind mount",
            ),
            (
                json!({"destination": "/a", "type": "ext4", "options": ["tmpcopyup"]}),
                "mounts[/a]: option tmpcopyup is for a tmpfs",
            ),
        ] {
            assert_eq!(refusal(mount), message);
        }
    }
}
