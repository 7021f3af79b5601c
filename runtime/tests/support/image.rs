//! Small images as OCI layouts, made without any tool, so that a test can also make wrong ones.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use berth_runtime::images::digest::Digest;
use serde_json::{Value, json};

/// One layer: its tar, what is stored of it, and what the manifest and configuration say.
#[derive(Clone)]
pub struct Layer {
    pub diff_id: Digest,
    pub blob: Vec<u8>,
    pub media_type: &'static str,
}

impl Layer {
    /// A compressed layer of a tar.
    pub fn gzip(tar: &[u8]) -> Self {
        Self {
            diff_id: Digest::of(tar),
            blob: compress(tar),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
        }
    }
}

pub fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .args(["-nc1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = gzip.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let output = gzip.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

/// A tar of files and links.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header
    }

    pub fn dir(mut self, path: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Directory, 0o755, 0);
        self.0.append_data(&mut header, path, &b""[..]).unwrap();
        self
    }

    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, mode, content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn link(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Debian's static busybox with the applets that the tests call.
pub fn busybox_layer() -> Layer {
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let mut tar = Tar::new().dir("bin/").file("bin/busybox", 0o755, &busybox);
    for applet in [
        "sh", "sleep", "echo", "cat", "true", "false", "id", "touch", "ls", "kill", "env",
        "hostname", "seq", "grep",
    ] {
        tar = tar.link(&format!("bin/{applet}"), "busybox");
    }
    Layer::gzip(&tar.bytes())
}

/// `/etc` and `/tmp` on top of it.
pub fn etc_layer() -> Layer {
    let passwd = b"root:x:0:0::/root:/bin/sh\nwww:x:1000:1000::/:/bin/sh\n";
    let tar = Tar::new()
        .dir("etc/")
        .file("etc/passwd", 0o644, passwd)
        .file("etc/group", 0o644, b"root:x:0:\nwww:x:1000:\nextra:x:2000:www\n")
        .dir("tmp/")
        .dir("root/");
    Layer::gzip(&tar.bytes())
}

/// An image: layers, bottom first, and its configuration's `config`.
#[derive(Clone)]
pub struct Image {
    pub layers: Vec<Layer>,
    pub config: Value,
}

impl Image {
    pub fn busybox() -> Self {
        Self {
            layers: vec![busybox_layer(), etc_layer()],
            config: json!({ "Cmd": ["sh"], "Env": ["FROM=image"] }),
        }
    }
}

/// An OCI layout in a directory, filled image by image.
pub struct Layout {
    dir: tempfile::TempDir,
    entries: Vec<Value>,
}

impl Layout {
    pub fn new() -> Self {
        let dir = super::scratch();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir, entries: vec![] }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        std::fs::write(self.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    }

    /// Adds an image under `org.opencontainers.image.ref.name`.
    pub fn add(&mut self, name: &str, image: &Image) -> Digest {
        let diff_ids: Vec<&str> = image.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64", "os": "linux", "config": image.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }))
        .unwrap();
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|layer| {
                json!({ "mediaType": layer.media_type, "digest": self.blob(&layer.blob).as_str(), "size": layer.blob.len() })
            })
            .collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(&config).as_str(), "size": config.len(),
            },
            "layers": layers,
        }))
        .unwrap();
        let digest = self.blob(&manifest);
        self.entries.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest.as_str(), "size": manifest.len(),
            "platform": { "os": "linux", "architecture": "amd64" },
            "annotations": { "org.opencontainers.image.ref.name": name },
        }));
        let index = json!({ "schemaVersion": 2, "manifests": self.entries });
        std::fs::write(self.path().join("index.json"), index.to_string()).unwrap();
        digest
    }

    /// The layout as an archive.
    pub fn archive(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all(".", self.path()).unwrap();
        builder.into_inner().unwrap()
    }
}
