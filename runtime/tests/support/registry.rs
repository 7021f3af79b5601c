//! Debian's docker-registry on a free loopback port, with storage and configuration of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_runtime::images::digest::Digest;

use super::image::{Image, Layout};

pub struct Registry {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
    login: Option<&'static str>,
}

/// The password of `user` in a registry started with a login.
pub const PASSWORD: &str = "hunter2";
const HASH: &str = "$2b$04$C.GYkAEVAwOfKc9tDwbBbuv/yE6HeIXuIZhs5LvBZF.fvEeTInIlK";

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Registry {
    pub fn start() -> Self {
        Self::launch(None)
    }

    /// One that asks for `user` and [`PASSWORD`].
    pub fn with_login() -> Self {
        Self::launch(Some("user:hunter2"))
    }

    fn launch(login: Option<&'static str>) -> Self {
        let dir = super::scratch();
        let port = free_port();
        let storage = dir.path().join("storage");
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            storage.display()
        );
        if login.is_some() {
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, format!("user:{HASH}\n")).unwrap();
            config +=
                &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display());
        }
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, port, dir, login }
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address())
    }

    /// Pushes an image and returns its whole reference.
    pub fn push(&self, repository: &str, image: &Image) -> String {
        let mut layout = Layout::new();
        layout.add("it", image);
        let reference = self.name(repository);
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]);
        if let Some(login) = self.login {
            copy.args(["--dest-creds", login]);
        }
        let status = copy
            .arg(format!("oci:{}:it", layout.path().display()))
            .arg(format!("docker://{reference}"))
            .status()
            .expect("skopeo is installed");
        assert!(status.success(), "the push of {reference} fails");
        reference
    }

    /// The file that holds a blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let blobs = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        let hex = digest.hex();
        let path = blobs.join(&hex[..2]).join(hex).join("data");
        assert!(Path::new(&path).exists(), "no such blob");
        path
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
