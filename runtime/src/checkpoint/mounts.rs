//! Which mounts of a container criu is to take as they are: those that come from outside. Pure.
//!
//! criu makes again what the runtime made anew (proc, sysfs, the tmpfs of `/dev`); a bind of anything of
//! the host must be declared to it, by the place where it is mounted, as runc declares it, so that what
//! runc restores finds it again. What is so is read from the mount tables (proc_pid_mountinfo(5)), not
//! from the specification, whose paths may lead over links of the image.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::mount_table::unescape;

/// File systems of the kernel's own that criu makes anew with the namespace that they show.
const OF_NAMESPACES: [&[u8]; 5] = [b"proc", b"sysfs", b"mqueue", b"cgroup", b"cgroup2"];

struct Mount<'a> {
    device: &'a [u8],
    root: &'a [u8],
    place: &'a [u8],
    kind: &'a [u8],
}

fn parse(table: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let (device, root, place) = (fields.next()?, fields.next()?, fields.next()?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Mount { device, root, place, kind })
    })
}

/// What `--external` is told of a container's mounts, given its table and that of the host.
pub(crate) fn external(container: &[u8], host: &[u8]) -> Vec<OsString> {
    let of_host: BTreeSet<&[u8]> = parse(host).map(|mount| mount.device).collect();
    let is_whole = |mount: &Mount<'_>| mount.root == b"/";
    let own: BTreeSet<&[u8]> = parse(container)
        .filter(|mount| is_whole(mount) && !of_host.contains(mount.device))
        .map(|mount| mount.device)
        .collect();
    let is_made_anew = |mount: &Mount<'_>| {
        let with_namespace = OF_NAMESPACES.contains(&mount.kind);
        // In a cgroup namespace the root is seen from outside.
        let of_cgroups = mount.kind.starts_with(b"cgroup");
        // A terminal whose other side the shim has, bound on `/dev/console`.
        let is_terminal = mount.kind == b"devpts" && !is_whole(mount);
        own.contains(mount.device) && !is_terminal
            || with_namespace && (is_whole(mount) || of_cgroups)
    };
    let places: BTreeSet<Vec<u8>> = parse(container)
        .filter(|mount| mount.place != b"/" && !is_made_anew(mount))
        .map(|mount| unescape(mount.place))
        .collect();
    places.into_iter().map(|place| declare(&place)).collect()
}

fn declare(place: &[u8]) -> OsString {
    OsString::from_vec([b"mnt[", place, b"]:", place].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &[u8] = b"\
24 1 0:6 / /dev rw - devtmpfs devtmpfs rw
30 1 254:0 / / rw - ext4 /dev/vda rw
31 1 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
32 1 0:23 / /sys rw - sysfs sysfs rw
41 30 0:41 / /run/memory rw - tmpfs none rw
42 30 0:42 / /run/pods/a/shm rw - tmpfs shm rw
45 30 0:45 / /run/pods/a rw - tmpfs none rw
";

    #[test]
    fn what_comes_from_the_host_is_declared_and_nothing_else() {
        let container = b"\
94 53 0:46 / / rw - overlay overlay rw
95 94 0:48 / /proc rw - proc proc rw
96 94 0:49 / /dev rw - tmpfs tmpfs rw
97 96 0:50 / /dev/pts rw - devpts devpts rw
98 96 0:44 / /dev/mqueue rw - mqueue mqueue rw
99 94 0:23 / /sys ro - sysfs sysfs rw
100 99 0:38 /kubepods/pod/x /sys/fs/cgroup ro - cgroup2 cgroup rw
104 95 0:48 /sys /proc/sys ro - proc proc rw
105 95 0:52 / /proc/acpi ro - tmpfs none ro
83 95 0:6 /null /proc/interrupts rw - devtmpfs devtmpfs rw
84 96 0:42 / /dev/shm rw shared:3 master:4 - tmpfs shm rw
85 94 254:0 /volumes/e /data\\040of\\134us rw - ext4 /dev/vda rw
86 94 0:41 / /mem rw - tmpfs none rw
87 94 0:45 /etc-hosts /etc/hosts rw - tmpfs none rw
88 94 0:45 /etc-hosts /etc/hosts rw - tmpfs none rw
89 94 0:48 /net/tcp /proc-file rw - proc proc rw
91 96 0:50 /0 /dev/console rw - devpts devpts rw
90 94 0:99 /piece /of-elsewhere rw - tmpfs none rw
";
        let told: Vec<_> = external(container, HOST)
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect();
        assert_eq!(
            told,
            [
                "mnt[/data of\\us]:/data of\\us",
                "mnt[/dev/console]:/dev/console",
                "mnt[/dev/shm]:/dev/shm",
                "mnt[/etc/hosts]:/etc/hosts",
                "mnt[/mem]:/mem",
                "mnt[/of-elsewhere]:/of-elsewhere",
                "mnt[/proc/interrupts]:/proc/interrupts",
            ]
        );
    }

    #[test]
    fn a_torn_table_tells_nothing_wrong() {
        assert!(external(b"1 2 3\n\n- - -\n", b"x").is_empty());
    }
}
