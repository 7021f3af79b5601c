//! The demo image and the server in it: this executable, packed with the libraries it has loaded.
//!
//! So the demo needs no registry and no internet. The image is an OCI layout (image-spec v1.1,
//! "image-layout") in a tar, with one uncompressed layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The reference under which the demo image is known.
pub(crate) const REFERENCE: &str = "berth.local/demo:1";

/// Serves `GET /` with the host name (a pod's name) and a count, and datagrams on the same port with
/// the host name and what they said, until SIGTERM.
pub(crate) async fn serve(port: u16) -> Result<()> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let served = Arc::new(AtomicU64::new(0));
    let name = host.clone();
    let answer = move || {
        let line = format!("{name} request {}\n", served.fetch_add(1, Ordering::Relaxed) + 1);
        async move { line }
    };
    let router = Router::new().route("/", get(answer)).route("/healthz", get(async || "ok\n"));
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = match tokio::net::TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(_) => tokio::net::TcpListener::bind(("0.0.0.0", port)).await?,
    };
    let datagrams = tokio::net::UdpSocket::bind(listener.local_addr()?).await?;
    tokio::spawn(echo(datagrams, host.clone()));
    println!("{host} listens on port {port}");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await?;
    println!("{host} ends");
    Ok(())
}

/// Answers each datagram with the host name and what it said.
async fn echo(socket: tokio::net::UdpSocket, host: String) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let answer = [host.as_bytes(), b" heard ", &buffer[..length]].concat();
        // Who asks over UDP asks again.
        let _ = socket.send_to(&answer, from).await;
    }
}

/// Writes the demo image to `out` as an OCI layout tar.
pub(crate) fn write_image(out: impl Write) -> Result<()> {
    let layer = layer()?;
    let layer_digest = digest(&layer);
    let configuration = to_bytes(&json!({
        "architecture": oci_architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/berth", "demo-server"],
            "User": "65532:65532",
            "ExposedPorts": { "8080/tcp": {} },
        },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
    }))?;
    let manifest = to_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &configuration),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({
        "org.opencontainers.image.ref.name": "1",
        "io.containerd.image.name": REFERENCE,
    });
    let index = to_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;
    let mut tar = tar::Builder::new(out);
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut tar, "index.json", &index, 0o644)?;
    for blob in [&configuration, &manifest, &layer] {
        let name = digest(blob).replace(':', "/");
        append(&mut tar, &format!("blobs/{name}"), blob, 0o644)?;
    }
    tar.into_inner()?.flush().context("writing the image")
}

/// The layer: `/berth` and the shared libraries that this process has mapped, where its dynamic
/// loader looks for them.
fn layer() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["etc/", "lib64/", "tmp/", "usr/", "usr/lib/"] {
        let mut header = header(if directory == "tmp/" { 0o1777 } else { 0o755 }, 0);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, directory, io::empty())?;
    }
    append(&mut tar, "etc/passwd", b"root:x:0:0::/:\ndemo:x:65532:65532::/:\n", 0o644)?;
    append(&mut tar, "etc/group", b"root:x:0:\ndemo:x:65532:\n", 0o644)?;
    let executable = fs::read("/proc/self/exe").context("reading this executable")?;
    append(&mut tar, "berth", &executable, 0o755)?;
    for library in mapped_libraries(&fs::read_to_string("/proc/self/maps")?) {
        let name = library.file_name().context("a library without a name")?.to_string_lossy();
        let directory = if name.starts_with("ld-linux") { "lib64" } else { "usr/lib" };
        let bytes = fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
        append(&mut tar, &format!("{directory}/{name}"), &bytes, 0o755)?;
        for short in short_names(&name) {
            let mut header = header(0o777, 0);
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, format!("{directory}/{short}"), name.as_ref())?;
        }
    }
    Ok(tar.into_inner()?)
}

/// The shared objects named by a `/proc/<pid>/maps` text, each once.
fn mapped_libraries(maps: &str) -> BTreeSet<PathBuf> {
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|path| path.starts_with('/') && path.contains(".so"))
        .map(|path| Path::new(path).to_owned())
        .collect()
}

/// The names with fewer version numbers, one of which the loader asks for: `libx.so.1` for
/// `libx.so.1.2.3`.
fn short_names(name: &str) -> Vec<&str> {
    let Some(start) = name.find(".so.").map(|at| at + ".so.".len()) else { return Vec::new() };
    name[start..].match_indices('.').map(|(at, _)| &name[..start + at]).collect()
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> io::Result<()> {
    tar.append_data(&mut header(mode, content.len() as u64), path, content)
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

fn digest(content: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(content) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn to_bytes(value: &Value) -> Result<Vec<u8>> {
    // A sorted map keeps the bytes, and so the digest, the same from run to run.
    let sorted: BTreeMap<String, Value> = serde_json::from_value(value.clone())?;
    Ok(serde_json::to_vec(&sorted)?)
}

fn oci_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_maps_once_each() {
        let maps = "\
7f00-7f01 r--p 00000000 fe:00 1 /usr/lib/x86_64-linux-gnu/libc.so.6
7f01-7f02 r-xp 00001000 fe:00 1 /usr/lib/x86_64-linux-gnu/libc.so.6
7f03-7f04 r--p 00000000 fe:00 2 /usr/bin/berth
7f05-7f06 r--p 00000000 00:00 0 [vdso]
7f07-7f08 rw-p 00000000 00:00 0";
        let found: Vec<_> = mapped_libraries(maps).into_iter().collect();
        assert_eq!(found, [PathBuf::from("/usr/lib/x86_64-linux-gnu/libc.so.6")]);
    }

    #[test]
    fn libraries_have_their_shorter_names_too() {
        assert_eq!(short_names("libnftnl.so.11.6.0"), ["libnftnl.so.11", "libnftnl.so.11.6"]);
        assert_eq!(short_names("libc.so.6"), Vec::<&str>::new());
    }

    #[test]
    fn the_image_is_the_same_from_run_to_run() {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        write_image(&mut first).unwrap();
        write_image(&mut second).unwrap();
        assert_eq!(digest(&first), digest(&second));
    }
}
