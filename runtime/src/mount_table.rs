//! What is mounted where, by the kernel's table: no file system is asked, so none can hold it up.
//! proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// The mount points of this process at and below a directory, in mount order. Blocks on no file system.
///
/// # Errors
/// When the table cannot be read.
pub fn places_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?, dir))
}

/// The mount that a path lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Where it is mounted.
    pub(crate) place: PathBuf,
    /// Whether what is mounted below is seen by its peers.
    pub(crate) is_shared: bool,
    /// Whether what its master's peers mount is seen below.
    pub(crate) is_slave: bool,
}

/// The mount that a path lies on; `None` where the table does not show it. Links are followed. Blocks as
/// long as the path's file system. Kernel: 5.8.
///
/// # Errors
/// When the path is not there, or the table cannot be read.
pub(crate) fn mount_of(path: &Path) -> io::Result<Option<Mounted>> {
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    Ok(parse_one(&fs::read("/proc/self/mountinfo")?, id))
}

/// What is mounted where a path lies, as the table names it: a device, or a name that stands for none.
/// Blocks as long as the path's file system. Kernel: 5.8.
///
/// # Errors
/// When the path is not there, or the table cannot be read.
pub fn source_of(path: &Path) -> io::Result<Option<String>> {
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    Ok(parse_source(&fs::read("/proc/self/mountinfo")?, id))
}

fn parse_source(mountinfo: &[u8], id: u64) -> Option<String> {
    let id = id.to_string();
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let mut fields = lines
        .map(|line| line.split(|byte| *byte == b' '))
        .find_map(|mut fields| (fields.next() == Some(id.as_bytes())).then_some(fields))?;
    let source = fields.by_ref().skip_while(|field| *field != b"-").nth(2)?;
    Some(String::from_utf8_lossy(&unescape(source)).into_owned())
}

/// The mount of an id.
fn parse_one(mountinfo: &[u8], id: u64) -> Option<Mounted> {
    let id = id.to_string();
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let mut fields = lines
        .map(|line| line.split(|byte| *byte == b' '))
        .find_map(|mut fields| (fields.next() == Some(id.as_bytes())).then_some(fields))?;
    let place = PathBuf::from(OsString::from_vec(unescape(fields.nth(3)?)));
    let tags: Vec<&[u8]> = fields.skip(1).take_while(|field| *field != b"-").collect();
    let has = |tag: &[u8]| tags.iter().any(|known| known.starts_with(tag));
    Some(Mounted { place, is_shared: has(b"shared:"), is_slave: has(b"master:") })
}

/// The mount points at and below a directory, in mount order. Names are bytes: those of mounts that are
/// none of ours need not be text.
fn parse(mountinfo: &[u8], dir: &Path) -> Vec<PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let places = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    places
        .map(|place| PathBuf::from(OsString::from_vec(unescape(place))))
        .filter(|place| place.starts_with(dir))
        .collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
pub(crate) fn unescape(mut field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while let [first, rest @ ..] = field {
        let escaped = |(text, _): &&(&[u8], u8)| field.starts_with(text);
        let found = ESCAPED.iter().find(escaped).map(|(text, byte)| (*byte, &field[text.len()..]));
        let (byte, left) = found.unwrap_or((*first, rest));
        plain.push(byte);
        field = left;
    }
    plain
}

const ESCAPED: [(&[u8], u8); 4] =
    [(b"\\040", b' '), (b"\\011", b'\t'), (b"\\012", b'\n'), (b"\\134", b'\\')];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_a_mount_is_behind_any_number_of_tags() {
        let table = b"\
7 0 8:1 / / rw - ext4 /dev/vda1 rw
71 7 0:1 / /a rw shared:1 master:2 - nfs4 server:/a\\040b rw";
        assert_eq!(parse_source(table, 7).as_deref(), Some("/dev/vda1"));
        assert_eq!(parse_source(table, 71).as_deref(), Some("server:/a b"));
        assert_eq!(parse_source(table, 1), None);
        assert!(source_of(Path::new("/proc")).unwrap().is_some());
    }

    #[test]
    fn mount_points_below_a_directory_are_found_by_component() {
        let table = b"\
1 0 0:1 / /run/pods/a rw - tmpfs x rw
2 0 0:1 / /run/pods/a/shm\\040x rw - tmpfs x rw
3 0 0:1 / /run/pods/ab rw - tmpfs x rw";
        let places = parse(table, Path::new("/run/pods/a"));
        assert_eq!(places, [PathBuf::from("/run/pods/a"), "/run/pods/a/shm x".into()]);
    }

    #[test]
    fn a_mount_tells_who_sees_what_is_mounted_on_it() {
        let table = b"\
1 0 0:1 / / rw,relatime shared:1 - ext4 /dev/x rw
22 1 0:1 /a /srv/a\\040b rw master:3 propagate_from:1 - tmpfs x rw
2 1 0:1 / /private rw - tmpfs shared:9 rw
3 1 0:1 / /both rw shared:4 master:1 - tmpfs x rw";
        let tell = |id| parse_one(table, id).map(|m| (m.place, m.is_shared, m.is_slave));
        assert_eq!(tell(1), Some(("/".into(), true, false)));
        assert_eq!(tell(22), Some(("/srv/a b".into(), false, true)));
        assert_eq!(tell(2), Some(("/private".into(), false, false)));
        assert_eq!(tell(3), Some(("/both".into(), true, true)));
        assert_eq!(tell(4), None);
        assert!(mount_of(Path::new("/proc/self")).unwrap().unwrap().place.starts_with("/proc"));
    }

    /// As the kernel shows a name.
    fn escape(name: &[u8]) -> Vec<u8> {
        let show = |byte: &u8| match byte {
            b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
            _ => vec![*byte],
        };
        name.iter().flat_map(show).collect()
    }

    proptest::proptest! {
        #[test]
        fn a_mount_point_of_any_name_is_found_under_it(
            name in proptest::collection::vec(
                proptest::prop_oneof![
                    proptest::sample::select(b" \t\n\\0134:-".as_slice()), 1..=u8::MAX
                ],
                1..12,
            ),
            before in proptest::collection::vec(0..=u8::MAX, 0..40),
        ) {
            let name: Vec<u8> = name.into_iter().filter(|byte| *byte != b'/').collect();
            let line = [b"\n7 1 0:1 / /run/p/x", escape(&name).as_slice(), b" rw - tmpfs x rw"].concat();
            let table = [before, line].concat();
            let place = PathBuf::from(OsString::from_vec([b"/run/p/x", name.as_slice()].concat()));
            let places = parse(&table, Path::new("/run/p"));
            proptest::prop_assert_eq!(places.last(), Some(&place));
        }
    }
}
