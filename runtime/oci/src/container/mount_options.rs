//! Mount options of the OCI specification: from strings to attributes. Pure.
//!
//! OCI runtime spec, `config.md`, Linux mount options; mount_setattr(2).

use super::{Error, Result};
use crate::sys::MountAttributes;

/// How a mount comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A new file system of the mount's type.
    New,
    /// The source path's mount.
    Bind,
    /// The source path's mount with all below it.
    BindTree,
    /// What is mounted at the destination already, changed.
    Present,
}

/// Which ids of a mount are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdMap {
    /// Those of the mount itself.
    Mount,
    /// Those of all below it too.
    Tree,
}

/// A mount's parsed options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) source: Source,
    /// For the mount itself.
    pub(crate) attributes: MountAttributes,
    /// For it and all below (`rro` and its like).
    pub(crate) tree_attributes: MountAttributes,
    /// In order: `rshared` and its like.
    pub(crate) propagation: Vec<MountAttributes>,
    /// What the file system itself reads: a flag, or a key and a value.
    pub(crate) data: Vec<(String, Option<String>)>,
    pub(crate) id_map: Option<IdMap>,
    /// What the destination holds is copied into the new file system.
    pub(crate) copies_up: bool,
}

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const ATIME_FIELD: u64 = libc::MOUNT_ATTR__ATIME;
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: u64 = 0x0020_0000;

/// An option's effect on attributes: bits to set, bits to clear.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "noatime" => (NOATIME, ATIME_FIELD),
        "strictatime" => (STRICTATIME, ATIME_FIELD),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, ATIME_FIELD),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        _ => return None,
    })
}

/// The propagation type an option names.
pub(crate) fn propagation(option: &str) -> Option<MountAttributes> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(rest) => (rest, true),
        None => (option, false),
    };
    let propagation = match name {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(MountAttributes { propagation, recursive, ..MountAttributes::default() })
}

fn apply(attributes: &mut MountAttributes, (set, clear): (u64, u64)) {
    attributes.set = (attributes.set & !clear) | set;
    // The kernel takes the access time modes as one field: cleared whole or not at all.
    attributes.clear = (attributes.clear & !(set & !ATIME_FIELD)) | clear;
}

/// Parses the options of a mount; `field` names it in errors.
pub(crate) fn parse(field: &str, options: &[String]) -> Result<Options> {
    let mut parsed = Options {
        source: Source::New,
        attributes: MountAttributes::default(),
        tree_attributes: MountAttributes { recursive: true, ..MountAttributes::default() },
        propagation: Vec::new(),
        data: Vec::new(),
        id_map: None,
        copies_up: false,
    };
    let mut remount = false;
    for option in options {
        let recursive = option.strip_prefix('r').and_then(attribute);
        if let Some(change) = attribute(option) {
            apply(&mut parsed.attributes, change);
        } else if let Some(change) = propagation(option) {
            parsed.propagation.push(change);
        } else if let Some(change) = recursive {
            apply(&mut parsed.tree_attributes, change);
        } else {
            match option.as_str() {
                "bind" => parsed.source = Source::Bind,
                "rbind" => parsed.source = Source::BindTree,
                "defaults" | "async" | "nomand" | "noiversion" | "loud" | "silent" => {}
                "idmap" => parsed.id_map = Some(IdMap::Mount),
                "ridmap" => parsed.id_map = Some(IdMap::Tree),
                "tmpcopyup" => parsed.copies_up = true,
                "remount" => remount = true,
                "iversion" => {
                    // The kernel's mount API has no word for it.
                    return Err(Error::invalid(field, format!("option {option} is not supported")));
                }
                "newinstance" => {} // Every devpts is one since Linux 4.7.
                data => parsed.data.push(match data.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (data.to_owned(), None),
                }),
            }
        }
    }
    if remount {
        // A remount of a bind changes the mount alone, whose attributes are all there is to it.
        parsed.source = Source::Present;
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_str(options: &str) -> Options {
        let options: Vec<String> = options.split(',').map(str::to_owned).collect();
        parse("mounts", &options).unwrap()
    }

    #[test]
    fn later_options_override_earlier_ones() {
        let options = parse_str("ro,nosuid,rw,noatime,relatime");
        assert_eq!(options.attributes.set, NOSUID);
        assert_eq!(options.attributes.clear, RDONLY | ATIME_FIELD);
    }

    #[test]
    fn setting_an_access_time_mode_clears_the_field_first() {
        let options = parse_str("strictatime");
        assert_eq!(options.attributes.set, STRICTATIME);
        assert_eq!(options.attributes.clear, ATIME_FIELD);
    }

    #[test]
    fn recursive_forms_are_kept_apart() {
        let options = parse_str("rbind,rro,rslave,ro");
        assert_eq!(options.source, Source::BindTree);
        assert_eq!(options.tree_attributes.set, RDONLY);
        assert!(options.tree_attributes.recursive);
        assert_eq!(options.propagation[0].propagation, libc::MS_SLAVE);
        assert!(options.propagation[0].recursive);
        assert_eq!(options.attributes.set, RDONLY);
    }

    #[test]
    fn what_is_no_flag_is_data_of_the_file_system() {
        let options = parse_str("mode=0755,size=64k,nr_inodes=3,hidepid");
        assert_eq!(options.data[0], ("mode".to_owned(), Some("0755".to_owned())));
        assert_eq!(options.data[3], ("hidepid".to_owned(), None));
    }

    #[test]
    fn options_that_are_no_attributes_are_told_apart() {
        assert_eq!(parse_str("rbind,ridmap").id_map, Some(IdMap::Tree));
        assert!(parse_str("tmpcopyup,size=1m").copies_up);
        assert_eq!(parse_str("bind,remount,ro").source, Source::Present);
        let error = parse("mounts[/x]", &["iversion".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "mounts[/x]: option iversion is not supported");
    }
}
