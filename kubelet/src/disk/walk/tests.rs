//! Walks of real directories: what is counted, what leads nowhere, and what the bounds do.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use super::*;

fn whole(path: &Path, bounds: Bounds) -> Used {
    match measure(path, bounds, &mut || ControlFlow::Continue(())).unwrap() {
        Measured::Whole(used) => used,
        Measured::Least(used) => panic!("only {used:?} was seen"),
    }
}

fn least(path: &Path, bounds: Bounds) -> Used {
    match measure(path, bounds, &mut || ControlFlow::Continue(())).unwrap() {
        Measured::Least(used) => used,
        Measured::Whole(used) => panic!("{used:?} is not all"),
    }
}

/// The same by names, for a tree that holds still and has no hard links.
fn naive(path: &Path) -> Used {
    let metadata = fs::symlink_metadata(path).unwrap();
    let own = Used { bytes: metadata.blocks() * 512, inodes: 1 };
    let below = metadata.is_dir().then(|| fs::read_dir(path).unwrap());
    let below = below.into_iter().flatten().map(|entry| naive(&entry.unwrap().path()));
    below.fold(own, |sum, one| sum + one)
}

/// Directories in directories, down to where no path reaches.
fn deep(root: &Path, levels: u32) {
    let mut current = openat(CWD, root, DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..levels {
        for name in [c"side", c"deeper", c"x"] {
            rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(0o700)).unwrap();
        }
        current = openat(&current, c"deeper", DIRECTORY, Mode::empty()).unwrap();
    }
}

fn remove_deep(root: &Path, levels: u32) {
    // `remove_dir_all` would recurse; take the levels away from the top.
    for _ in 0..levels {
        for name in ["side", "x"] {
            fs::remove_dir(root.join(name)).unwrap();
        }
        fs::rename(root.join("deeper"), root.join("old")).unwrap();
        for entry in fs::read_dir(root.join("old")).unwrap() {
            let entry = entry.unwrap();
            fs::rename(entry.path(), root.join(entry.file_name())).unwrap();
        }
        fs::remove_dir(root.join("old")).unwrap();
    }
}

#[test]
fn files_directories_links_and_holes_are_counted_as_du_counts_them() {
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("tree");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::write(tree.join("a/file"), vec![1; 100_000]).unwrap();
    fs::write(tree.join("a/b/c/other"), vec![1; 5000]).unwrap();
    File::create(tree.join("hole")).unwrap().set_len(1 << 40).unwrap();
    fs::write(root.path().join("outside"), vec![1; 1 << 20]).unwrap();
    symlink(root.path(), tree.join("a/up")).unwrap();
    symlink("nowhere", tree.join("dangling")).unwrap();
    for number in 0..1000 {
        fs::create_dir(tree.join(format!("a/b/{number}-{}", "n".repeat(100)))).unwrap();
    }
    let before = naive(&tree);
    assert_eq!(whole(&tree, Bounds::default()), before);
    assert!(before.bytes > 105_000 && before.bytes < 16 << 20 && before.inodes == 1009);
    fs::hard_link(tree.join("a/file"), tree.join("twin")).unwrap();
    assert_eq!(whole(&tree, Bounds::default()), before, "a second link is no second file");
}

#[test]
fn beyond_the_bound_each_hard_link_counts_its_share() {
    let tree = tempfile::tempdir().unwrap();
    for file in 0..20 {
        fs::write(tree.path().join(format!("{file}")), vec![1; 10_000]).unwrap();
        for link in 0..file % 3 {
            let twin = tree.path().join(format!("{file}-{link}"));
            fs::hard_link(tree.path().join(format!("{file}")), twin).unwrap();
        }
    }
    let exact = whole(tree.path(), Bounds::default());
    assert_eq!(exact.inodes, 21);
    for links in [0, 1, 7] {
        assert_eq!(whole(tree.path(), Bounds { links, ..Bounds::default() }), exact, "{links}");
    }
}

#[test]
fn a_tree_deeper_than_paths_reach_is_counted_within_the_bound_of_levels() {
    let tree = tempfile::tempdir().unwrap();
    deep(tree.path(), 700);
    let used = whole(tree.path(), Bounds { levels: 701, ..Bounds::default() });
    assert_eq!(used.inodes, 1 + 3 * 700);
    let seen = least(tree.path(), Bounds { levels: 100, ..Bounds::default() });
    assert!((100..2101).contains(&seen.inodes), "{seen:?}");
    remove_deep(tree.path(), 700);
}

#[test]
fn more_entries_than_the_bound_are_told_as_the_least() {
    let tree = tempfile::tempdir().unwrap();
    for number in 0..3000 {
        File::create(tree.path().join(number.to_string())).unwrap();
    }
    assert_eq!(least(tree.path(), Bounds { entries: 2000, ..Bounds::default() }).inodes, 2001);
}

#[test]
fn what_is_remembered_does_not_grow_with_the_tree() {
    let tree = tempfile::tempdir().unwrap();
    let mut place = tree.path().to_owned();
    for _ in 0..WIDE_LEVELS + 10 {
        for number in 0..40 {
            fs::create_dir(place.join(number.to_string())).unwrap();
        }
        place.push("7");
    }
    let mut go_on = || ControlFlow::Continue(());
    let mut walk = Walk::begin(tree.path(), Bounds::default(), &mut go_on).unwrap();
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    let (mut deepest, mut kept) = (0, 0);
    while let Some(level) = walk.levels.last_mut() {
        let step = match level.left.pop() {
            Some(name) => walk.enter(&name),
            None if level.is_read => walk.leave(),
            None => walk.read(&mut buffer),
        };
        assert!(step.is_ok());
        deepest = deepest.max(walk.levels.len());
        let below = walk.levels.iter().skip(WIDE_LEVELS).map(|level| level.left.len());
        kept = kept.max(below.sum());
    }
    assert_eq!((deepest, walk.sum.used().inodes), (WIDE_LEVELS + 11, 40 * 74 + 1));
    assert!(kept <= 10, "{kept} names below the wide levels");
}

/// A directory of so many entries that the walker rests in it.
fn crowded(path: PathBuf) -> PathBuf {
    fs::create_dir_all(path.join("sub")).unwrap();
    for number in 0..2 * STRIDE {
        File::create(path.join("sub").join(number.to_string())).unwrap();
    }
    path
}

#[test]
fn a_directory_that_is_moved_away_meanwhile_leads_nowhere_else() {
    let root = tempfile::tempdir().unwrap();
    let (tree, outside) = (root.path().join("tree"), root.path().join("outside"));
    for dir in [&tree, &outside] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(outside.join("large"), vec![1; 4 << 20]).unwrap();
    crowded(tree.join("a"));
    let moved = || drop(fs::rename(tree.join("a/sub"), outside.join("sub")));
    let mut pace = || {
        moved();
        ControlFlow::Continue(())
    };
    let seen = measure(&tree, Bounds::default(), &mut pace).unwrap();
    assert_eq!(seen, Measured::Whole(naive(&tree)), "what is left is counted, in a second attempt");

    let mut count = 0;
    crowded(tree.join("a"));
    let mut restless = || {
        count += 1;
        let place = root.path().join(count.to_string());
        fs::create_dir(&place).unwrap();
        let (from, back) = (tree.join("a/sub"), place.join("sub"));
        fs::rename(&from, &back).unwrap();
        crowded(tree.join("a"));
        ControlFlow::Continue(())
    };
    let Measured::Least(seen) = measure(&tree, Bounds::default(), &mut restless).unwrap() else {
        panic!("it did not hold still");
    };
    assert!(seen.inodes > STRIDE && seen.bytes < 4 << 20, "{seen:?}");
}

#[test]
fn a_walk_can_be_ended_and_a_mount_or_a_link_is_none() {
    let root = tempfile::tempdir().unwrap();
    let tree = crowded(root.path().join("tree"));
    let ended = measure(&tree, Bounds::default(), &mut || ControlFlow::Break(()));
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::Interrupted);
    let go_on: Pace<'_> = &mut || ControlFlow::Continue(());
    let mount = measure(Path::new("/proc"), Bounds::default(), go_on).unwrap_err();
    assert_eq!(mount.kind(), io::ErrorKind::CrossesDevices);
    let link = root.path().join("link");
    symlink(&tree, &link).unwrap();
    assert!(measure(&link, Bounds::default(), go_on).is_err());
}
