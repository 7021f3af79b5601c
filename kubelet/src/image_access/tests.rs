//! Who may use images, over a store in memory and a real file.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::fake::{FakeImages, image, key};

const REFERENCE: &str = "r.example/app:1";

struct Scene {
    images: Arc<FakeImages>,
    root: tempfile::TempDir,
}

impl Scene {
    /// A node whose store has the image.
    fn new() -> Self {
        let images = Arc::new(FakeImages::default());
        images.present.lock().unwrap().insert(REFERENCE.to_owned());
        Self { images, root: tempfile::tempdir().unwrap() }
    }

    /// An agent that has just started.
    fn agent(&self) -> Access {
        self.agent_by(Verification::Pulled)
    }

    fn agent_by(&self, verification: Verification) -> Access {
        Access::new(verification, self.images.clone(), self.root.path())
    }

    fn file(&self) -> PathBuf {
        self.root.path().join(FILE)
    }
}

async fn need(access: &Access) -> Need {
    access.need(&image(REFERENCE), REFERENCE).await
}

async fn opens(access: &Access, names: &[&str]) -> bool {
    let keys: Vec<_> = names.iter().map(|name| key(name)).collect();
    access.opens(&image(REFERENCE), REFERENCE, &keys).await
}

async fn pull(access: &Access, by: Option<&Key>) {
    access.begin(REFERENCE).await.unwrap();
    access.pulled(REFERENCE, &image(REFERENCE).id, by).await;
}

#[tokio::test]
async fn what_was_brought_by_hand_is_everybodys_and_what_a_secret_opened_is_not() {
    let scene = Scene::new();
    let access = scene.agent();
    assert_eq!(need(&access).await, Need::Nothing);
    pull(&access, Some(&key("a"))).await;
    for access in [access, scene.agent()] {
        assert_eq!(need(&access).await, Need::Key);
        assert!(opens(&access, &["x", "a"]).await);
        assert!(!opens(&access, &["x"]).await);
        assert!(!opens(&access, &[]).await);
        // Another repository's may be another's.
        assert_eq!(access.need(&image(REFERENCE), "r.example/other:1").await, Need::Registry);
        assert_eq!(access.need(&image(REFERENCE), "r.example/app@sha256:abc").await, Need::Key);
    }
    let imported = Image { pinned: true, ..image(REFERENCE) };
    assert_eq!(scene.agent().need(&imported, "imported:1").await, Need::Nothing);
    let always = scene.agent_by(Verification::Always);
    assert_eq!(always.need(&image("elsewhere"), "elsewhere").await, Need::Registry);
    assert_eq!(always.need(&imported, "imported:1").await, Need::Registry);
    assert_eq!(need(&scene.agent_by(Verification::Never)).await, Need::Nothing);
    pull(&always, None).await;
    assert_eq!(need(&scene.agent()).await, Need::Nothing, "the registry asked for no key");
}

#[tokio::test]
async fn a_secret_opens_with_another_content_and_its_content_by_another_name() {
    let scene = Scene::new();
    let access = scene.agent();
    pull(&access, Some(&key("a"))).await;
    let shown = |key: Key| {
        let access = &access;
        async move { access.opens(&image(REFERENCE), REFERENCE, &[key]).await }
    };
    let copied = Key { secret: key("copy").secret, ..key("a") };
    let rotated = Key { secret: key("copy").secret, ..key("new") };
    let remade = Key { secret: SecretName { uid: "2".into(), ..key("a").secret }, ..key("x") };
    assert!(!shown(rotated.clone()).await, "nobody has seen it yet");
    assert!(shown(copied).await);
    assert!(shown(rotated).await, "it is a secret that has opened it");
    assert!(!shown(remade).await, "it has the name only");
    assert!(opens(&scene.agent(), &["new"]).await, "also after a restart");
}

#[tokio::test]
async fn a_pull_that_was_cut_off_leaves_nothing_that_everybody_may_use() {
    let scene = Scene::new();
    let access = scene.agent();
    access.begin(REFERENCE).await.unwrap();
    assert_eq!(need(&access).await, Need::Registry, "it may have come by this pull");
    // The agent was killed.
    let access = scene.agent();
    assert_eq!(need(&access).await, Need::Registry);
    access.begin(REFERENCE).await.unwrap();
    access.failed(REFERENCE).await;
    assert_eq!(need(&access).await, Need::Registry);
    assert_eq!(need(&scene.agent()).await, Need::Registry);
    // One that failed brought nothing.
    let other = image("other:22");
    scene.images.present.lock().unwrap().insert("other:22".into());
    access.begin("other:22").await.unwrap();
    access.begin("other:22").await.unwrap();
    access.failed("other:22").await;
    assert_eq!(access.need(&other, "other:22").await, Need::Registry, "the second goes on");
    access.failed("other:22").await;
    assert_eq!(access.need(&other, "other:22").await, Need::Nothing);
    assert_eq!(scene.agent().need(&other, "other:22").await, Need::Nothing);
}

#[tokio::test]
async fn what_cannot_be_read_is_asked_of_the_registry_again() {
    let scene = Scene::new();
    pull(&scene.agent(), None).await;
    for garbage in [&b"{"[..], b"{\"pulled\": 3}", b"\0\xff", b""] {
        fs::write(scene.file(), garbage).unwrap();
        assert_eq!(need(&scene.agent()).await, Need::Registry);
        assert_eq!(fs::read(scene.file().with_extension("json.bad")).unwrap(), garbage);
        assert_eq!(need(&scene.agent()).await, Need::Registry, "also the next time");
    }
    fs::remove_file(scene.file()).unwrap();
    fs::create_dir(scene.file()).unwrap();
    let access = scene.agent();
    assert_eq!(need(&access).await, Need::Registry);
    assert!(access.begin(REFERENCE).await.is_err(), "nothing is pulled that cannot be noted");
    fs::remove_dir(scene.file()).unwrap();
    pull(&access, None).await;
    assert_eq!(need(&access).await, Need::Nothing);
}

#[tokio::test]
async fn images_that_are_gone_are_forgotten() {
    let scene = Scene::new();
    let access = scene.agent();
    pull(&access, Some(&key("a"))).await;
    access.forget_gone().await.unwrap();
    assert_eq!(need(&access).await, Need::Key);
    assert_eq!(fs::metadata(scene.file()).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(scene.file()).unwrap().contains("token of a"));
    scene.images.present.lock().unwrap().clear();
    access.forget_gone().await.unwrap();
    for access in [access, scene.agent()] {
        assert_eq!(need(&access).await, Need::Nothing, "whoever brings it next decides");
    }
}
