//! Finds cgroup v2 in a mount table (`proc_pid_mountinfo(5)`).

use std::path::{Path, PathBuf};

/// The mount point of cgroup v2, the usual places first.
pub(super) fn find(mountinfo: &str) -> Option<PathBuf> {
    let mut points: Vec<PathBuf> = mountinfo.lines().filter_map(point).collect();
    let rank = |path: &Path| match path.to_str() {
        Some("/sys/fs/cgroup") => 0,
        Some("/sys/fs/cgroup/unified") => 1,
        _ => 2,
    };
    points.sort_by_key(|path| rank(path));
    points.into_iter().next()
}

/// The mount point, when the line is one of cgroup v2 with its root in view.
fn point(line: &str) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = before.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let whole = root == "/" && !point.contains('\\');
    whole.then(|| PathBuf::from(point))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";

    #[test]
    fn a_hybrid_host_has_it_at_unified() {
        assert_eq!(find(HYBRID), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn the_usual_place_is_preferred_to_another_mount() {
        let table = "\
50 1 0:38 / /mnt/cg rw - cgroup2 cgroup2 rw
51 1 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(find(table), Some("/sys/fs/cgroup".into()));
    }

    #[test]
    fn a_bound_subtree_and_an_empty_table_are_none() {
        assert_eq!(find("50 1 0:38 /sub /mnt/cg rw - cgroup2 cgroup2 rw"), None);
        assert_eq!(find(""), None);
        assert_eq!(find("garbage - cgroup2"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_table_has_a_mount_point_of_its_own_or_none(
            words in proptest::collection::vec(
                proptest::sample::select(
                    ["\n", " ", "-", " - ", "/", "/a", "/a\\040b", "cgroup2", "cgroup", "0:1", "1", "é"].as_slice()
                ),
                0..40,
            )
        ) {
            let table = words.concat();
            let Some(point) = find(&table) else { return Ok(()) };
            let point = point.to_str().unwrap();
            let shown = |line: &str| line.split(' ').any(|field| field == point) && line.contains(" - cgroup2");
            proptest::prop_assert!(table.lines().any(shown), "{table:?} {point:?}");
            proptest::prop_assert!(!point.contains('\\'));
        }
    }
}
