//! Layers of directories as hostile containers leave them.

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;

fn limits() -> Limits {
    Limits { deadline: Instant::now() + Duration::from_secs(60) }
}

/// An entry as it is read back.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    path: String,
    kind: tar::EntryType,
    target: Option<String>,
    content: Vec<u8>,
    uid: u64,
}

fn layer_of(upper: &Path, ids: Option<UserIds>) -> (Vec<Told>, u64) {
    let mut file = tempfile::tempfile().unwrap();
    let left_out = write(upper, ids, (file.try_clone().unwrap(), limits())).unwrap();
    file.rewind().unwrap();
    let mut archive = tar::Archive::new(file);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut content = Vec::new();
        entry.by_ref().take(1 << 16).read_to_end(&mut content).unwrap();
        Told {
            path: text(&entry.path_bytes()),
            kind: entry.header().entry_type(),
            target: entry.link_name_bytes().map(|name| text(&name)),
            content,
            uid: entry.header().uid().unwrap(),
        }
    });
    let mut told: Vec<_> = entries.collect();
    told.sort_by(|a, b| a.path.cmp(&b.path));
    (told, left_out)
}

fn paths(told: &[Told]) -> Vec<&str> {
    told.iter().map(|entry| entry.path.as_str()).collect()
}

#[test]
fn links_are_told_and_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("key"), b"secret").unwrap();
    symlink(secret.path(), dir.path().join("directory")).unwrap();
    symlink(secret.path().join("key"), dir.path().join("file")).unwrap();
    symlink("../../../..//etc/./passwd", dir.path().join("odd")).unwrap();
    let (told, left_out) = layer_of(dir.path(), None);
    assert_eq!(paths(&told), ["directory", "file", "odd"]);
    assert!(told.iter().all(|entry| entry.kind == tar::EntryType::Symlink));
    assert_eq!(told[2].target.as_deref(), Some("../../../..//etc/./passwd"));
    assert_eq!(left_out, 0);
}

#[test]
fn special_files_are_told_and_not_opened_and_sockets_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = CString::new(dir.path().join("fifo").into_os_string().into_encoded_bytes());
    rustix::fs::mknodat(CWD, fifo.unwrap().as_c_str(), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let (told, left_out) = layer_of(dir.path(), None);
    assert_eq!(paths(&told), ["fifo"]);
    assert_eq!(told[0].kind, tar::EntryType::Fifo);
    assert_eq!(left_out, 1);
}

#[test]
fn names_that_would_hide_files_of_lower_layers_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    for name in [".wh.passwd", ".wh..wh..opq", ".wharf"] {
        fs::write(dir.path().join(name), b"").unwrap();
    }
    fs::create_dir(dir.path().join(".wh.directory")).unwrap();
    let (told, left_out) = layer_of(dir.path(), None);
    assert_eq!(paths(&told), [".wharf"]);
    assert_eq!(left_out, 3);
}

#[test]
fn a_file_of_several_names_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("one"), [1; 10_000]).unwrap();
    fs::hard_link(dir.path().join("one"), dir.path().join("a/two")).unwrap();
    let (told, _) = layer_of(dir.path(), None);
    assert_eq!(paths(&told), ["a/", "a/two", "one"]);
    assert_eq!(told[1].kind, tar::EntryType::Link);
    assert_eq!(told[1].target.as_deref(), Some("one"));
    assert_eq!(told[2].content.len(), 10_000);
}

#[test]
fn a_tree_deeper_than_any_path_neither_fails_nor_exhausts_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let mut place = fs::File::open(dir.path()).unwrap();
    let name = "d".repeat(100);
    for _ in 0..2000 {
        rustix::fs::mkdirat(&place, name.as_str(), Mode::RWXU).unwrap();
        place = openat(&place, name.as_str(), DIRECTORY, Mode::empty()).unwrap().into();
    }
    let (told, left_out) = layer_of(dir.path(), None);
    assert_eq!(told.len(), MAX_PATH_BYTES / 101);
    assert_eq!(left_out, 1);
    // Deeper than what tempfile removes.
    crate::disk::remove_tree(&dir.path().join(name)).unwrap();
}

#[test]
fn a_file_that_claims_to_be_huge_takes_no_more_than_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("huge")).unwrap();
    file.write_all_at(b"end", 1 << 40).unwrap();
    let archive = tempfile::tempfile().unwrap();
    write(dir.path(), None, (archive.try_clone().unwrap(), limits())).unwrap();
    assert!(archive.metadata().unwrap().len() < 64 << 10);
}

#[test]
fn the_deadline_ends_a_layer() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"x").unwrap();
    let limits = Limits { deadline: Instant::now() };
    let error = write(dir.path(), None, (tempfile::tempfile().unwrap(), limits)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn owners_are_those_inside_a_user_namespace() {
    let ids = Some(UserIds { first: 100_000, count: 65_536 });
    assert_eq!(inside(ids, 100_000), 0);
    assert_eq!(inside(ids, 165_535), 65_535);
    assert_eq!(inside(ids, 165_536), NOBODY);
    assert_eq!(inside(ids, 0), NOBODY);
    assert_eq!(inside(None, 7), 7);
}

#[test]
fn only_what_a_layer_carries_is_kept_of_the_attributes() {
    let all = [
        "user.comment",
        "user.overlay.opaque",
        "user.a=b",
        "trusted.overlay.opaque",
        "security.capability",
        "security.selinux",
    ];
    let all = all.map(|name| (name.as_bytes().to_vec(), b"v".to_vec()));
    let names: Vec<_> = kept(all.into()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["user.comment", "security.capability"]);
}

#[test]
fn what_was_removed_is_told_by_whiteouts() {
    let mut walk =
        Walk { archive: Builder::new(Vec::new()), ids: None, links: HashMap::new(), left_out: 0 };
    walk.whiteout(b"etc/passwd").unwrap();
    walk.whiteout(b"old").unwrap();
    let bytes = walk.archive.into_inner().unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let paths: Vec<PathBuf> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into()).collect();
    assert_eq!(paths, [PathBuf::from("etc/.wh.passwd"), PathBuf::from(".wh.old")]);
}
