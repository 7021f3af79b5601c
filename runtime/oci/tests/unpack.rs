//! The unpacker as a process: what honest layers become, and that hostile ones stay inside.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tar::{Builder, EntryType, Header};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("root")).unwrap();
        std::fs::create_dir(directory.path().join("canary")).unwrap();
        std::fs::write(directory.path().join("canary/file"), "untouched").unwrap();
        Self { directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn canary(&self) -> PathBuf {
        self.directory.path().join("canary")
    }

    fn unpack(&self, layer: &[u8], flags: &[&str]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_berth-oci"))
            .args(["unpack", "--root"])
            .arg(self.root())
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // An unpacker that refuses stops reading.
        let _ = child.stdin.take().unwrap().write_all(layer);
        let output = child.wait_with_output().unwrap();
        self.check_canary();
        output
    }

    fn unpack_all(&self, layer: &[u8]) -> serde_json::Value {
        let output = self.unpack(layer, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refuse(&self, layer: &[u8], flags: &[&str]) -> String {
        let output = self.unpack(layer, flags);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }

    fn check_canary(&self) {
        let names: Vec<_> = self.canary().read_dir().unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let file = self.canary().join("file");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "untouched");
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.nlink()), (0o644, 0, 1));
        let siblings = self.directory.path().read_dir().unwrap().count();
        assert_eq!(siblings, 2, "something appeared beside the root");
    }
}

/// An entry with exactly the name given, however malformed.
fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, data: &[u8]) {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o640 });
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1_000_000_000);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

fn layer(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    fill(&mut builder);
    builder.into_inner().unwrap()
}

fn file(builder: &mut Builder<Vec<u8>>, name: &str, data: &[u8]) {
    entry(builder, EntryType::Regular, name, "", data);
}

fn link(builder: &mut Builder<Vec<u8>>, name: &str, target: &str) {
    entry(builder, EntryType::Symlink, name, target, b"");
}

#[test]
fn an_honest_layer_is_unpacked_with_its_metadata() {
    use sha2::Digest;
    let place = Place::new();
    let bytes = layer(|b| {
        entry(b, EntryType::Directory, "etc/", "", b"");
        file(b, "etc/hosts", b"data");
        link(b, "etc/link", "/absolute/target");
        entry(b, EntryType::Link, "etc/hard", "etc/hosts", b"");
        entry(b, EntryType::Fifo, "fifo", "", b"");
        entry(b, EntryType::Char, "null", "", b"");
        let mut header = Header::new_ustar();
        header.set_path("su").unwrap();
        header.set_size(0);
        header.set_mode(0o4755);
        header.set_uid(1);
        header.set_gid(1);
        header.set_mtime(5);
        header.set_cksum();
        let extensions = [
            ("SCHILY.xattr.user.kept", b"1".as_slice()),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("mtime", b"5.25"),
        ];
        b.append_pax_extensions(extensions).unwrap();
        b.append(&header, std::io::empty()).unwrap();
    });
    let answer = place.unpack_all(&bytes);
    let digest: String = sha2::Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(answer["diff_id"], format!("sha256:{digest}"));
    assert_eq!(answer["bytes"], bytes.len());
    assert_eq!(answer["entries"], 7);
    let root = place.root();
    let hosts = root.join("etc/hosts").metadata().unwrap();
    assert_eq!((hosts.mode() & 0o7777, hosts.uid(), hosts.gid()), (0o640, 12, 34));
    assert_eq!((hosts.mtime(), hosts.nlink()), (1_000_000_000, 2));
    assert_eq!(root.join("etc").metadata().unwrap().mtime(), 1_000_000_000);
    assert_eq!(std::fs::read_link(root.join("etc/link")).unwrap(), Path::new("/absolute/target"));
    assert!(root.join("fifo").metadata().unwrap().file_type().is_fifo());
    assert!(root.join("null").metadata().unwrap().file_type().is_char_device());
    let su = root.join("su");
    assert_eq!(su.metadata().unwrap().permissions().mode() & 0o7777, 0o4755);
    assert_eq!(su.metadata().unwrap().mtime_nsec(), 250_000_000);
    let mut names = vec![0; 256];
    let count = rustix::fs::listxattr(&su, &mut names[..]).unwrap();
    assert_eq!(&names[..count], b"user.kept\0");
}

#[test]
fn compressed_layers_give_the_same_answer() {
    let bytes = layer(|b| file(b, "a", &vec![b'x'; 300_000]));
    let plain = Place::new().unpack_all(&bytes);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    assert_eq!(Place::new().unpack_all(&gzip.finish().unwrap()), plain);
    let zstd = zstd::stream::encode_all(bytes.as_slice(), 1).unwrap();
    assert_eq!(Place::new().unpack_all(&zstd), plain);
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let place = Place::new();
    place.unpack_all(&layer(|b| {
        file(b, "a/.wh.gone", b"");
        file(b, "b/.wh..wh..opq", b"");
        file(b, "b/new", b"x");
        file(b, ".wh..wh.plnk/1", b"x");
    }));
    let gone = place.root().join("a/gone").metadata().unwrap();
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    let mut value = [0; 4];
    let count =
        rustix::fs::getxattr(place.root().join("b"), "trusted.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..count], b"y");
    assert!(!place.root().join(".wh..wh.plnk").exists());
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in
        ["../canary/file", "a/../../canary/file", "..", ".wh...", ".wh.", "a/.wh..", "/../x"]
    {
        let place = Place::new();
        let error = place.refuse(&layer(|b| file(b, name, b"bad")), &[]);
        assert!(error.contains("invalid layer"), "{name}: {error}");
    }
}

#[test]
fn links_never_lead_out() {
    let outside = Place::new();
    let canary = outside.canary();
    let canary = canary.to_str().unwrap();
    type Fill = Box<dyn Fn(&mut Builder<Vec<u8>>, &str)>;
    let cases: Vec<Fill> = vec![
        Box::new(|b, canary| {
            link(b, "l", canary);
            file(b, "l/file", b"bad");
            file(b, "l/new", b"bad");
        }),
        Box::new(|b, _| {
            link(b, "l", "../canary");
            file(b, "l/file", b"bad");
        }),
        Box::new(|b, canary| {
            link(b, "l", &format!("{canary}/file"));
            file(b, "l", b"bad");
        }),
        Box::new(|b, canary| entry(b, EntryType::Link, "h", &format!("{canary}/file"), b"")),
        Box::new(|b, _| entry(b, EntryType::Link, "h", "../canary/file", b"")),
        Box::new(|b, canary| {
            link(b, "l", canary);
            entry(b, EntryType::Link, "h", "l/file", b"");
            file(b, "h", b"bad");
        }),
        Box::new(|b, canary| {
            link(b, "l", &format!("{canary}/file"));
            entry(b, EntryType::Link, "h", "l", b"");
            file(b, "h", b"bad");
        }),
        Box::new(|b, canary| {
            link(b, "l", canary);
            entry(b, EntryType::Directory, "l", "", b"");
            file(b, "l/x", b"inside");
        }),
        Box::new(|b, canary| {
            link(b, "a", canary);
            file(b, "a/.wh.file", b"");
            file(b, "a/.wh..wh..opq", b"");
        }),
        Box::new(|b, _| {
            link(b, "x", "y");
            link(b, "y", "x");
            file(b, "x/z", b"bad");
        }),
        Box::new(|b, _| {
            link(b, "p", "/proc/self/root");
            file(b, "p/tmp/berth-breakout", b"bad");
        }),
        Box::new(|b, _| {
            link(b, "p", "/proc/self/cwd");
            file(b, "p/berth-breakout", b"bad");
        }),
        Box::new(|b, canary| {
            link(b, "l", canary);
            entry(b, EntryType::Char, "l/device", "", b"");
            entry(b, EntryType::Fifo, "l/fifo", "", b"");
            link(b, "l/link", "x");
        }),
    ];
    for (index, case) in cases.iter().enumerate() {
        let place = Place::new();
        place.unpack(&layer(|b| case(b, canary)), &[]);
        outside.check_canary();
        assert!(!Path::new("/tmp/berth-breakout").exists(), "case {index}");
    }
}

#[test]
fn budgets_end_bombs() {
    let place = Place::new();
    let many = layer(|b| (0..50).for_each(|n| file(b, &format!("f{n}"), b"")));
    let error = place.refuse(&many, &["--max-entries", "10"]);
    assert!(error.contains("layer entries limit of 10 exceeded"), "{error}");
    let zeros = layer(|b| file(b, "zeros", &vec![0; 4 << 20]));
    let bomb = zstd::stream::encode_all(zeros.as_slice(), 3).unwrap();
    let error = place.refuse(&bomb, &["--max-bytes", "1000000"]);
    assert!(error.contains("unpacked size limit of 1000000 exceeded"), "{error}");
    let deep = layer(|b| file(b, &"d/".repeat(40), b""));
    let error = place.refuse(&deep, &["--max-depth", "20"]);
    assert!(error.contains("path depth limit of 20 exceeded"), "{error}");
    let long = layer(|b| file(b, &"n".repeat(90), b""));
    let error = place.refuse(&long, &["--max-path-length", "50"]);
    assert!(error.contains("path length limit of 50 exceeded"), "{error}");
}

#[test]
fn torn_and_foreign_streams_are_refused() {
    let place = Place::new();
    let whole = layer(|b| file(b, "a", &vec![1; 5000]));
    place.refuse(&whole[..3000], &[]);
    place.refuse(&b"no archive at all ".repeat(100), &[]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole).unwrap();
    let gzip = gzip.finish().unwrap();
    place.refuse(&gzip[..gzip.len() - 12], &[]);
}

#[test]
fn entries_replace_what_is_there_and_raw_whiteouts_are_refused() {
    let place = Place::new();
    place.unpack_all(&layer(|b| {
        file(b, "d/x", b"old");
        file(b, "d", b"file now");
        file(b, "e", b"file");
        entry(b, EntryType::Directory, "e", "", b"");
        file(b, "e/y", b"in");
        file(b, "f", b"one");
        file(b, "f", b"two");
    }));
    assert_eq!(std::fs::read_to_string(place.root().join("d")).unwrap(), "file now");
    assert_eq!(std::fs::read_to_string(place.root().join("e/y")).unwrap(), "in");
    assert_eq!(std::fs::read_to_string(place.root().join("f")).unwrap(), "two");
    let raw = layer(|b| {
        let mut header = Header::new_ustar();
        header.set_path("w").unwrap();
        header.set_entry_type(EntryType::Char);
        header.set_size(0);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        b.append(&header, std::io::empty()).unwrap();
    });
    place.refuse(&raw, &[]);
}

#[test]
fn an_entry_may_leave_its_owner_and_time_empty() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    place.unpack_all(&layer(|b| {
        let mut header = Header::new_ustar();
        header.set_path("blank").unwrap();
        header.set_size(0);
        header.set_mode(0o644);
        let fields = header.as_old_mut();
        (fields.uid, fields.gid, fields.mtime) = ([0; 8], [b' '; 8], [0; 12]);
        header.set_cksum();
        b.append(&header, std::io::empty()).unwrap();
    }));
    let metadata = place.root().join("blank").metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mtime()), (0, 0, 0));
}
