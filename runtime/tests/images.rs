//! The image store against Debian's docker-registry and hand-made layouts. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_runtime::images::digest::Digest;
use berth_runtime::images::{Budget, Config, Store};
use berth_runtime::interface::{Credentials, ImageError, Images, PullProgress};
use support::image::{Image, Layer, Layout, Tar, compress};
use support::names;
use support::registry::{PASSWORD, Registry, free_port};
use tokio::io::AsyncWriteExt;

struct Fixture {
    dir: tempfile::TempDir,
    store: Arc<Store>,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = support::scratch();
        let mut config = Config::new(dir.path().to_owned(), support::oci());
        change(&mut config);
        let store = Store::open(config).await.unwrap();
        Self { dir, store }
    }

    /// Nothing but empty directories is left.
    fn assert_empty(&self) {
        for dir in ["blobs/sha256", "images", "refs", "layers", "tmp", "quarantine"] {
            let left = names(&self.dir.path().join(dir));
            assert!(left.is_empty(), "{dir} holds {left:?}");
        }
    }

    async fn refused(&self, reference: &str) -> String {
        let error = self.store.pull(reference, vec![], None).await.unwrap_err();
        assert!(matches!(error, ImageError::Pull { .. }), "{error:?}");
        self.assert_empty();
        error.to_string()
    }
}

#[tokio::test]
async fn an_image_is_pulled_found_by_all_its_names_and_removed() {
    let registry = Registry::start();
    let reference = registry.push("team/busybox:1", &Image::busybox());
    let fixture = Fixture::new().await;
    let last = Arc::new(std::sync::Mutex::new(PullProgress::default()));
    let sink = last.clone();
    let progress = Arc::new(move |now: PullProgress| *sink.lock().unwrap() = now);
    let image = fixture.store.pull(&reference, vec![], Some(progress)).await.unwrap().image;
    assert_eq!(image.tags, std::slice::from_ref(&reference));
    assert!(image.size_bytes > 1_900_000, "{}", image.size_bytes);
    let seen = *last.lock().unwrap();
    assert!(seen.total_bytes > 0 && seen.received_bytes == seen.total_bytes, "{seen:?}");
    for name in [&reference, &image.digests[0], &image.id.to_string()] {
        let found = fixture.store.status(name).await.unwrap();
        assert_eq!(found.as_ref(), Some(&image), "{name}");
    }
    let prepared = fixture.store.prepare(&image.id).await.unwrap();
    assert_eq!(prepared.lower.len(), 2);
    assert!(prepared.lower[0].join("etc/passwd").exists());
    assert!(prepared.lower[1].join("bin/busybox").exists());

    // A restarted store has it, by digest as well; a container's hold keeps the layers.
    let again = fixture.store.pull(&image.digests[0], vec![], None).await.unwrap().image;
    assert_eq!(again.id, image.id);
    fixture.store.remove(&reference).await.unwrap();
    assert!(fixture.store.status(&reference).await.unwrap().is_none());
    assert!(prepared.lower[1].join("bin/busybox").exists());
    drop(prepared);
    fixture.store.collect().await.unwrap();
    fixture.assert_empty();
    fixture.store.remove(&reference).await.unwrap();
}

#[tokio::test]
async fn a_restarted_store_knows_its_images() {
    let registry = Registry::start();
    let reference = registry.push("busybox:1", &Image::busybox());
    let fixture = Fixture::new().await;
    let image = fixture.store.pull(&reference, vec![], None).await.unwrap().image;
    let config = Config::new(fixture.dir.path().to_owned(), support::oci());
    let store = Store::open(config).await.unwrap();
    assert_eq!(store.list().await.unwrap(), std::slice::from_ref(&image));
    // A layer that vanished makes the image one to be pulled again.
    let layers = fixture.dir.path().join("layers");
    std::fs::remove_dir_all(layers.join(&names(&layers)[0])).unwrap();
    let config = Config::new(fixture.dir.path().to_owned(), support::oci());
    let store = Store::open(config).await.unwrap();
    assert!(store.list().await.unwrap().is_empty());
    assert_eq!(store.pull(&reference, vec![], None).await.unwrap().image.id, image.id);
}

#[tokio::test]
async fn a_changed_layer_manifest_or_configuration_is_refused() {
    let registry = Registry::start();
    let image = Image::busybox();
    let reference = registry.push("busybox:1", &image);
    let layer = registry.blob(&Digest::of(&image.layers[1].blob));
    let whole = std::fs::read(&layer).unwrap();
    let fixture = Fixture::new().await;

    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    std::fs::write(&layer, &changed).unwrap();
    let error = fixture.refused(&reference).await;
    assert!(error.contains("does not match its digest"), "{error}");

    let mut longer = whole.clone();
    longer.extend_from_slice(b"more");
    std::fs::write(&layer, &longer).unwrap();
    let error = fixture.refused(&reference).await;
    assert!(error.contains("longer than"), "{error}");

    std::fs::write(&layer, &whole).unwrap();
    let found = fixture.store.pull(&reference, vec![], None).await.unwrap().image;
    let config = registry.blob(&Digest::try_from(found.id.as_str()).unwrap());
    fixture.store.remove(&reference).await.unwrap();
    let text = std::fs::read_to_string(&config).unwrap().replace("FROM=image", "FROM=IMAGE");
    std::fs::write(&config, text).unwrap();
    let error = fixture.refused(&reference).await;
    assert!(error.contains("image configuration does not match its digest"), "{error}");

    let by_digest = &found.digests[0];
    let manifest = Digest::try_from(by_digest.split_once('@').unwrap().1).unwrap();
    let path = registry.blob(&manifest);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text} ")).unwrap();
    let error = fixture.refused(by_digest).await;
    assert!(error.contains("failed to pull image"), "{error}");
}

#[tokio::test]
async fn a_layer_that_is_no_archive_or_not_the_named_one_is_refused() {
    let registry = Registry::start();
    let fixture = Fixture::new().await;
    let garbage = compress(&vec![7; 100_000]);
    let corrupt = Layer {
        diff_id: Digest::of(b"x"),
        blob: garbage[..garbage.len() / 2].to_vec(),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
    };
    let mut image = Image::busybox();
    image.layers.push(corrupt);
    let error = fixture.refused(&registry.push("corrupt:1", &image)).await;
    assert!(error.contains("failed to unpack"), "{error}");

    let mut image = Image::busybox();
    image.layers[1].diff_id = Digest::of(b"another");
    let error = fixture.refused(&registry.push("swapped:1", &image)).await;
    assert!(error.contains("diff id"), "{error}");
}

#[tokio::test]
async fn a_layer_beyond_its_budget_is_refused() {
    let registry = Registry::start();
    let fixture = Fixture::with(|config| {
        config.layer_budget = Budget { max_bytes: 4 << 20, max_entries: 100 };
    })
    .await;
    let bomb = Tar::new().file("zeros", 0o644, &vec![0; 16 << 20]).bytes();
    let image = Image { layers: vec![Layer::gzip(&bomb)], ..Image::busybox() };
    let error = fixture.refused(&registry.push("bomb:1", &image)).await;
    assert!(error.contains("failed to unpack"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_and_who_does_not_answer_are_told_apart() {
    let registry = Registry::start();
    registry.push("busybox:1", &Image::busybox());
    let fixture = Fixture::new().await;
    for missing in ["busybox:2", "nothing:1"] {
        let error = fixture.refused(&registry.name(missing)).await;
        assert!(error.contains("not found"), "{error}");
    }
    let nowhere = format!("127.0.0.1:{}/busybox:1", free_port());
    let error = fixture.store.pull(&nowhere, vec![], None).await.unwrap_err();
    assert!(matches!(error, ImageError::RegistryUnavailable { .. }), "{error:?}");
    let error = fixture.store.pull("Not A Name", vec![], None).await.unwrap_err();
    assert!(matches!(error, ImageError::InvalidName { .. }), "{error:?}");
    fixture.assert_empty();
}

#[tokio::test]
async fn credentials_are_tried_in_turn_and_never_told() {
    let registry = Registry::with_login();
    let reference = registry.push("private:1", &Image::busybox());
    let fixture = Fixture::new().await;
    let error = fixture.refused(&reference).await;
    assert!(error.contains("pull access denied"), "{error}");
    let basic =
        |password: &str| Credentials::Basic { username: "user".into(), password: password.into() };
    let wrong =
        fixture.store.pull(&reference, vec![basic("wr0ng-secret")], None).await.unwrap_err();
    assert!(!format!("{wrong} {wrong:?}").contains("wr0ng-secret"), "{wrong:?}");
    let both = vec![basic("wr0ng-secret"), basic(PASSWORD)];
    let pulled = fixture.store.pull(&reference, both, None).await.unwrap();
    assert_eq!(pulled.opened_by, Some(1));
    // All of it is there, and the registry is asked all the same.
    let error = fixture.store.pull(&reference, vec![], None).await.unwrap_err();
    assert!(error.to_string().contains("pull access denied"), "{error}");
}

#[tokio::test]
async fn concurrent_pulls_share_layers_and_one_removal_spares_the_other() {
    let registry = Registry::start();
    let first = Image::busybox();
    let mut second = Image::busybox();
    second.layers.push(Layer::gzip(&Tar::new().file("extra", 0o644, b"x").bytes()));
    let references = [registry.push("a:1", &first), registry.push("b:1", &second)];
    let fixture = Fixture::new().await;
    let received = Arc::new(AtomicU64::new(0));
    let pulls = references.iter().cycle().take(8).map(|reference| {
        let (store, reference, received) =
            (fixture.store.clone(), reference.clone(), received.clone());
        tokio::spawn(async move {
            let image = store.pull(&reference, vec![], None).await.unwrap().image;
            received.fetch_add(1, Ordering::Relaxed);
            image
        })
    });
    let pulls: Vec<_> = pulls.collect();
    for pull in pulls {
        pull.await.unwrap();
    }
    assert_eq!(received.load(Ordering::Relaxed), 8);
    assert_eq!(names(&fixture.dir.path().join("layers")).len(), 3);
    fixture.store.remove(&references[1]).await.unwrap();
    assert_eq!(names(&fixture.dir.path().join("layers")).len(), 2);
    let left = fixture.store.status(&references[0]).await.unwrap().unwrap();
    let prepared = fixture.store.prepare(&left.id).await.unwrap();
    assert!(prepared.lower.iter().all(|lower| lower.is_dir()));
}

/// Passes bytes between a client and the registry, and breaks every connection after so many.
async fn breaking_proxy(registry: &Registry, limits: Vec<u64>) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, target) = (listener.local_addr().unwrap(), registry.address());
    tokio::spawn(async move {
        let mut limits = limits.into_iter();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let limit = limits.next().unwrap_or(u64::MAX);
            tokio::spawn(async move {
                let server = tokio::net::TcpStream::connect(target).await.unwrap();
                let (from_server, mut to_server) = server.into_split();
                let (mut from_client, mut to_client) = client.split();
                let mut limited = tokio::io::AsyncReadExt::take(from_server, limit);
                tokio::select! {
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                    _ = tokio::io::copy(&mut limited, &mut to_client) => {}
                }
                let _ = to_client.shutdown().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_broken_transfer_is_resumed_where_it_broke() {
    let registry = Registry::start();
    let image = Image::busybox();
    registry.push("busybox:1", &image);
    let size = image.layers[0].blob.len() as u64;
    let address = breaking_proxy(&registry, vec![size / 3, size / 3, 5000]).await;
    let fixture = Fixture::new().await;
    let reference = format!("{address}/busybox:1");
    let received = Arc::new(AtomicU64::new(0));
    let sink = received.clone();
    let progress =
        Arc::new(move |now: PullProgress| sink.store(now.received_bytes, Ordering::Relaxed));
    fixture.store.pull(&reference, vec![], Some(progress)).await.unwrap();
    let total: u64 = image.layers.iter().map(|layer| layer.blob.len() as u64).sum();
    assert_eq!(received.load(Ordering::Relaxed), total);
}

#[tokio::test]
async fn an_abandoned_pull_leaves_nothing_and_does_not_harm_the_next() {
    let registry = Registry::start();
    let image = Image::busybox();
    let reference = registry.push("busybox:1", &image);
    let fixture = Fixture::new().await;
    for milliseconds in [1, 5, 20, 60] {
        let pull = fixture.store.pull(&reference, vec![], None);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(milliseconds), pull).await;
    }
    fixture.store.pull(&reference, vec![], None).await.unwrap();
    fixture.store.remove(&reference).await.unwrap();
    let drafts = fixture.dir.path().join("tmp");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !names(&drafts).is_empty() && std::time::Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    fixture.assert_empty();
}

#[tokio::test]
async fn a_layout_archive_is_imported_under_its_names() {
    let mut layout = Layout::new();
    let digest = layout.add("demo.example/web:1", &Image::busybox());
    layout.add("demo", &Image::busybox());
    let fixture = Fixture::new().await;
    let error = fixture.store.import(std::io::Cursor::new(layout.archive())).await.unwrap_err();
    assert!(matches!(error, ImageError::InvalidName { .. }), "a bare tag names nothing: {error}");

    let mut layout = Layout::new();
    layout.add("demo.example/web:1", &Image::busybox());
    let images = fixture.store.import(std::io::Cursor::new(layout.archive())).await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].tags, ["demo.example/web:1"]);
    assert_eq!(images[0].digests, [format!("demo.example/web@{digest}")]);
    assert!(names(&fixture.dir.path().join("tmp")).is_empty());
    fixture.store.remove("demo.example/web:1").await.unwrap();
    fixture.assert_empty();
}

#[tokio::test]
async fn a_forged_archive_is_refused_and_leaves_nothing() {
    let mut layout = Layout::new();
    let image = Image::busybox();
    layout.add("a/b:1", &image);
    let fixture = Fixture::new().await;
    let layer = Digest::of(&image.layers[1].blob);
    let path = layout.path().join("blobs/sha256").join(layer.hex());
    std::fs::write(&path, b"forged").unwrap();
    let archive = std::io::Cursor::new(layout.archive());
    let error = fixture.store.import(archive).await.unwrap_err();
    assert!(error.to_string().contains("does not match its name"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let archive = std::io::Cursor::new(layout.archive());
    let error = fixture.store.import(archive).await.unwrap_err();
    assert!(matches!(error, ImageError::Pull { .. }), "{error}");
    fixture.assert_empty();
}
