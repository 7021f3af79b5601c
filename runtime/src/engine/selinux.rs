//! Which SELinux labels a pod's processes and files have, where the host has SELinux.
//!
//! Types come from the policy's `lxc_contexts`, parts of them from `seLinuxOptions`, and the level, where
//! none is asked for, is the pod's own: two categories that no other pod has, recorded with the sandbox.
//! What a label means is the policy's matter. Serves `seLinuxOptions` of the Kubernetes API as CRI runtimes
//! do; selabel_lxc(5).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use crate::interface::Security;

const FILES: &str = "/sys/fs/selinux";
const FILES_MAGIC: u64 = 0xf97c_ff8c;
const CONFIGURATION: &str = "/etc/selinux";
const ATTRIBUTE: &str = "security.selinux";
/// Categories are `c0` to `c1023`.
const CATEGORIES: u32 = 1024;
/// How deep a volume is walked.
const MAX_DEPTH: usize = 256;
/// Never labelled anew, nor what they lie in: the host would stop working.
const HOST: [&str; 18] = [
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc",
    "/root", "/run", "/sbin", "/srv", "/sys", "/usr", "/var",
];

/// Whether this host labels containers; told once. Blocks.
pub fn has_selinux() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| Contexts::of_host().is_some())
}

/// The contexts that the host's policy has for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contexts {
    process: Context,
    file: Context,
}

/// `user:role:type[:level]`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Context {
    user: String,
    role: String,
    kind: String,
    level: Option<String>,
}

/// A container's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Labels {
    /// Of its processes; a privileged container's have the agent's.
    pub(super) process: Option<String>,
    /// Of its files.
    pub(super) files: String,
}

impl Contexts {
    /// The host's; none where SELinux is off or its policy knows no containers. Blocks.
    pub(super) fn of_host() -> Option<Self> {
        let found = rustix::fs::statfs(Path::new(FILES)).ok()?;
        let configuration = Path::new(CONFIGURATION);
        let text = std::fs::read_to_string(configuration.join("config")).ok()?;
        let policy = value(&text, "SELINUXTYPE").filter(|_| found.f_type as u64 == FILES_MAGIC)?;
        let contexts = configuration.join(policy).join("contexts/lxc_contexts");
        Self::parse(&std::fs::read_to_string(contexts).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let context = |key| Context::parse(value(text, key)?);
        Some(Self { process: context("process")?, file: context("file")? })
    }

    /// A level of its own for a pod: a pair of categories that is not taken. The search begins
    /// anywhere, as `seed` says, so that a name tells nothing of a level.
    pub(super) fn free_level(&self, seed: u32, taken: &BTreeSet<String>) -> Option<String> {
        let level = self.process.level.as_ref()?;
        let sensitivity = level.split(['-', ':']).next().unwrap_or("s0");
        let pairs = CATEGORIES * (CATEGORIES - 1) / 2;
        let mut levels = (0..pairs).map(|step| {
            let (low, high) = pair((seed % pairs + step) % pairs);
            format!("{sensitivity}:c{low},c{high}")
        });
        levels.find(|level| !taken.contains(level))
    }

    /// The labels of a container of a pod with a level of its own.
    ///
    /// # Errors
    /// An option that cannot be part of a label.
    pub(super) fn labels(&self, security: &Security, own: Option<&str>) -> Result<Labels, String> {
        let asked = &security.selinux;
        for (name, part) in [
            ("user", &asked.user),
            ("role", &asked.role),
            ("type", &asked.kind),
            ("level", &asked.level),
        ] {
            let is_fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            let is_fine = |c: char| is_fine(c) || (name == "level" && ":,".contains(c));
            if let Some(part) = part.as_ref().filter(|part| !part.chars().all(is_fine)) {
                return Err(format!("invalid seLinuxOptions.{name} {part:?}"));
            }
        }
        let level = |policys: &Option<String>| {
            let wanted = asked.level.as_deref().or(own).or(policys.as_deref());
            wanted.filter(|_| policys.is_some()).map(str::to_owned)
        };
        let part =
            |asked: &Option<String>, policys: &String| asked.clone().unwrap_or(policys.clone());
        let process = Context {
            user: part(&asked.user, &self.process.user),
            role: part(&asked.role, &self.process.role),
            kind: part(&asked.kind, &self.process.kind),
            level: level(&self.process.level),
        };
        let files = Context {
            user: part(&asked.user, &self.file.user),
            level: level(&self.file.level),
            ..self.file.clone()
        };
        let process = (!security.privileged).then(|| process.to_string());
        Ok(Labels { process, files: files.to_string() })
    }
}

impl Context {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { user, role, kind, level: parts.next() })
    }
}

impl std::fmt::Display for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { user, role, kind, level } = self;
        write!(f, "{user}:{role}:{kind}")?;
        level.iter().try_for_each(|level| write!(f, ":{level}"))
    }
}

/// What a line `key = "value"` says, with or without quotes.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let found = pairs.filter(|(name, _)| name.trim() == key).map(|(_, value)| value).next();
    found.map(|value| value.trim().trim_matches('"')).filter(|value| !value.is_empty())
}

/// The pair of categories of a number below 1024 × 1023 / 2, the smaller one first.
fn pair(mut number: u32) -> (u32, u32) {
    let mut low = 0;
    while number >= CATEGORIES - 1 - low {
        number -= CATEGORIES - 1 - low;
        low += 1;
    }
    (low, low + 1 + number)
}

/// Labels a file, or a directory with all that is in it: by descriptors, never through a link nor into
/// another mount. File systems without labels stay as they are. Blocks.
pub(super) fn relabel(path: &Path, label: &str) -> io::Result<()> {
    let path = std::fs::canonicalize(path)?;
    if path == Path::new("/") || HOST.iter().any(|place| path == Path::new(place)) {
        let text = format!("{} belongs to the host and is not labelled anew", path.display());
        return Err(io::Error::other(text));
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    match change(&top, label) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => walk(top, label, 0),
    }
}

/// Labels what is in a directory; anything else has nothing in it.
fn walk(at: OwnedFd, label: &str, depth: usize) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(&at, ".", flags, Mode::empty());
    // So that a level holds one descriptor.
    drop(at);
    let mut directory = match opened {
        Err(Errno::NOTDIR) => return Ok(()),
        opened => Dir::new(opened?)?,
    };
    if depth == MAX_DEPTH {
        return Err(io::Error::other("the directory tree is too deep"));
    }
    while let Some(entry) = directory.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let inner = match rustix::fs::openat2(directory.fd()?, name, flags, Mode::empty(), resolve)
        {
            // Gone meanwhile, or another mount.
            Err(Errno::NOENT | Errno::XDEV) => continue,
            inner => inner?,
        };
        change(&inner, label)?;
        walk(inner, label, depth + 1)?;
    }
    Ok(())
}

/// Labels what a descriptor stands for, through its entry in `/proc`, as `setxattrat` needs Linux 6.13.
fn change(file: &OwnedFd, label: &str) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let mut present = [0; 256];
    let length = rustix::fs::getxattr(&path, ATTRIBUTE, &mut present[..]).unwrap_or(0);
    let is_there = present[..length].strip_suffix(b"\0").unwrap_or(&present[..length]);
    match is_there == label.as_bytes() {
        true => Ok(()),
        false => rustix::fs::setxattr(&path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interface::SeLinuxOptions;

    const TEXT: &str = "process = \"system_u:system_r:container_t:s0\"\n\
        content = \"system_u:object_r:virt_var_lib_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n";

    fn contexts() -> Contexts {
        Contexts::parse(TEXT).unwrap()
    }

    fn asked(parts: [Option<&str>; 4]) -> Security {
        let [user, role, kind, level] = parts.map(|part| part.map(str::to_owned));
        let selinux = SeLinuxOptions { user, role, kind, level };
        Security { selinux, ..Security::default() }
    }

    #[test]
    fn options_take_the_place_of_the_policys_parts() {
        let own = Some("s0:c1,c2");
        for (parts, own, process, files) in [
            (
                [None; 4],
                own,
                "system_u:system_r:container_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
            (
                [None; 4],
                None,
                "system_u:system_r:container_t:s0",
                "system_u:object_r:container_file_t:s0",
            ),
            (
                [Some("u"), Some("r"), Some("t"), Some("s0:c5.c9,c12-s0:c0.c1023")],
                own,
                "u:r:t:s0:c5.c9,c12-s0:c0.c1023",
                "u:object_r:container_file_t:s0:c5.c9,c12-s0:c0.c1023",
            ),
            (
                [None, None, Some("spc_t"), None],
                own,
                "system_u:system_r:spc_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
        ] {
            let labels = contexts().labels(&asked(parts), own).unwrap();
            assert_eq!(labels, Labels { process: Some(process.into()), files: files.into() });
        }
        let privileged = Security { privileged: true, ..asked([None; 4]) };
        let labels = contexts().labels(&privileged, own).unwrap();
        assert_eq!(labels.process, None);
        for bad in [
            [Some("a:b"), None, None, None],
            [None, None, Some("t\""), None],
            [None, None, None, Some("s0 ")],
        ] {
            assert!(contexts().labels(&asked(bad), own).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_policy_without_levels_gives_none() {
        let plain = Contexts::parse("process=u:r:t\nfile=u:r:f\n").unwrap();
        assert_eq!(plain.free_level(0, &BTreeSet::new()), None);
        let labels = plain.labels(&asked([None, None, None, Some("s0")]), None).unwrap();
        assert_eq!(labels.process.as_deref(), Some("u:r:t"));
        assert_eq!(Contexts::parse("process = \"u:r\"\nfile = \"u:r:f\""), None);
        assert_eq!(Contexts::parse(""), None);
    }

    #[test]
    fn pods_get_pairs_of_categories_that_no_other_has() {
        let pairs = CATEGORIES * (CATEGORIES - 1) / 2;
        assert_eq!([pair(0), pair(1022), pair(1023)], [(0, 1), (0, 1023), (1, 2)]);
        assert_eq!(pair(pairs - 1), (1022, 1023));
        let mut taken = BTreeSet::new();
        for seed in [pairs - 1, pairs - 1, 2 * pairs - 1, u32::MAX] {
            let level = contexts().free_level(seed, &taken).unwrap();
            assert!(taken.insert(level));
        }
        assert!(taken.contains("s0:c1022,c1023") && taken.contains("s0:c0,c1"), "{taken:?}");
    }

    #[test]
    fn directories_of_the_host_are_not_labelled() {
        for path in ["/", "/etc", "/usr/", "/var"] {
            let error = relabel(Path::new(path), "u:r:t").unwrap_err();
            assert!(error.to_string().contains("belongs to the host"), "{path}");
        }
    }
}
