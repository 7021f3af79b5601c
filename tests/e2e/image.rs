//! Images for the tests: busybox from Debian's package, and the demo image from `berth` itself.
//!
//! Both are OCI layout tars, made once and shared by all tests; a later make replaces the file by a
//! rename, so that concurrent tests see a whole one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::node::{berth, shared_dir, succeed};

/// The busybox image's reference.
pub(crate) const BUSYBOX: &str = "berth.local/busybox:1";

/// An OCI layout tar of busybox with links for its applets.
pub(crate) fn busybox() -> PathBuf {
    made("busybox.tar", |path| fs::write(path, busybox_layout()).expect("an image can be written"))
}

/// The demo image.
pub(crate) fn demo() -> PathBuf {
    made("demo.tar", |path| {
        succeed(Command::new(berth()).arg("demo-image").arg(path));
    })
}

/// The file of this name for the executable under test: another build makes its own.
fn made(name: &str, make: impl Fn(&Path)) -> PathBuf {
    let executable = fs::metadata(berth()).expect("the executable under test");
    let path = shared_dir().join(format!("{}-{}-{name}", executable.len(), executable.mtime()));
    if !path.exists() {
        let temporary = shared_dir().join(format!("{name}.{}", std::process::id()));
        make(&temporary);
        fs::rename(&temporary, &path).expect("an image can be renamed");
    }
    path
}

/// The bytes of a layout whose one image is busybox.
pub(crate) fn busybox_layout() -> Vec<u8> {
    let layer = busybox_layer();
    let configuration = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    layout(BUSYBOX, &configuration, &layer)
}

/// A layout of an image that is only read: two files.
pub(crate) fn files() -> PathBuf {
    made("files.tar", |path| {
        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, "data.json", br#"{"image": "kitten.jpg"}"#, 0o644);
        append(&mut tar, "etc/os-release", b"NAME=\"Berth Linux\"\n", 0o644);
        let layer = tar.into_inner().expect("a layer");
        let configuration = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let reference = "berth.local/files:1";
        fs::write(path, layout(reference, &configuration, &layer))
            .expect("an image can be written");
    })
}

/// A layout of an image that no other has a layer of: one file of numbers.
pub(crate) fn numbers() -> PathBuf {
    made("numbers.tar", |path| {
        let mut tar = tar::Builder::new(Vec::new());
        let numbers: String = (0..20_000).map(|number| format!("{number}\n")).collect();
        append(&mut tar, "numbers", numbers.as_bytes(), 0o644);
        let layer = tar.into_inner().expect("a layer");
        let configuration = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": ["/none"] },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let reference = "berth.local/numbers:1";
        fs::write(path, layout(reference, &configuration, &layer))
            .expect("an image can be written");
    })
}

/// A layout of an image with an entry point and arguments of its own.
pub(crate) fn echo(reference: &str) -> PathBuf {
    made("echo.tar", |path| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut directory = header(0o755, 0);
        directory.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut directory, "bin/", std::io::empty()).expect("a directory");
        let executable = fs::read("/bin/busybox").expect("busybox-static is installed");
        append(&mut tar, "bin/busybox", &executable, 0o755);
        let layer = tar.into_inner().expect("a layer");
        let configuration = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": ["/bin/busybox", "echo", "entry"],
                "Cmd": ["default", "arguments"],
                "Env": ["PATH=/bin"],
            },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        fs::write(path, layout(reference, &configuration, &layer))
            .expect("an image can be written");
    })
}

/// A layer with `/bin/busybox`, its applets, `/etc/passwd` and a few directories.
fn busybox_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["bin/", "etc/", "home/", "tmp/", "root/"] {
        let mut header = header(if directory == "tmp/" { 0o1777 } else { 0o755 }, 0);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, directory, std::io::empty()).expect("a directory");
    }
    let executable = fs::read("/bin/busybox").expect("busybox-static is installed");
    append(&mut tar, "bin/busybox", &executable, 0o755);
    for applet in succeed(Command::new("/bin/busybox").arg("--list")).lines() {
        if applet != "busybox" {
            let mut header = header(0o777, 0);
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("a link");
        }
    }
    append(
        &mut tar,
        "etc/passwd",
        b"root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home:/bin/sh\n",
        0o644,
    );
    append(&mut tar, "etc/group", b"root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n", 0o644);
    tar.into_inner().expect("a layer")
}

/// An OCI layout tar with one image of one uncompressed layer.
pub(crate) fn layout(reference: &str, configuration: &Value, layer: &[u8]) -> Vec<u8> {
    let configuration = serde_json::to_vec(configuration).expect("JSON");
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &configuration),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }))
    .expect("JSON");
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({ "io.containerd.image.name": reference });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
    append(&mut tar, "index.json", &serde_json::to_vec(&index).expect("JSON"), 0o644);
    for blob in [&configuration[..], &manifest, layer] {
        append(&mut tar, &format!("blobs/{}", digest(blob).replace(':', "/")), blob, 0o644);
    }
    tar.into_inner().expect("a layout")
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) {
    tar.append_data(&mut header(mode, content.len() as u64), path, content).expect("a file");
}

/// A file of root's, of no particular time.
fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

/// The content's digest, `sha256:<hex>`.
pub(crate) fn digest(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
