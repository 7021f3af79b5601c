//! Images from a real registry, Debian's docker-registry on loopback: pulled, verified, refused.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::image;
use crate::node::{Node, told};

/// A registry inside a node's namespace, on 127.0.0.1:5000.
pub(crate) struct Registry {
    process: Child,
    storage: PathBuf,
}

/// The login of a registry that asks for one, and its line in a password file.
const LOGIN: &str = "user:hunter2";
const PASSWORD_LINE: &str = "user:$2b$04$C.GYkAEVAwOfKc9tDwbBbuv/yE6HeIXuIZhs5LvBZF.fvEeTInIlK\n";

impl Registry {
    pub(crate) fn start(node: &Node) -> Self {
        Self::launch(node, "", &[])
    }

    /// One that asks for [`LOGIN`].
    fn with_login(node: &Node) -> Self {
        let passwords = node.path("passwords");
        fs::write(&passwords, PASSWORD_LINE).unwrap();
        let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", passwords.display());
        Self::launch(node, &auth, &["-u", LOGIN])
    }

    fn launch(node: &Node, auth: &str, login: &[&str]) -> Self {
        let storage = node.path("registry");
        let configuration = node.path("registry.yaml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:5000\"}}\n{auth}",
            storage.display()
        );
        fs::write(&configuration, text).unwrap();
        let mut command = node.namespace().command("docker-registry");
        command.arg("serve").arg(&configuration).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { process: command.spawn().expect("docker-registry starts"), storage };
        node.wait_for("the registry to answer", || {
            let ask = ["-sf", "http://127.0.0.1:5000/v2/"];
            node.namespace()
                .command("curl")
                .args(ask)
                .args(login)
                .output()
                .ok()?
                .status
                .success()
                .then_some(())
        });
        registry
    }

    /// Pushes an OCI layout tar as this name.
    pub(crate) fn push(&self, node: &Node, archive: &Path, name: &str) {
        let source = format!("oci-archive:{}", archive.display());
        let target = format!("docker://127.0.0.1:5000/{name}");
        // Who does not ask for a login does not see it.
        let flags = ["--insecure-policy", "copy", "--dest-tls-verify=false", "--dest-creds", LOGIN];
        node.namespace().run("skopeo", &[&flags[..], &[&source, &target]].concat());
    }

    /// The largest blob: the layer.
    fn layer(&self) -> PathBuf {
        let blobs = self.storage.join("docker/registry/v2/blobs/sha256");
        let mut found: Vec<(u64, PathBuf)> = Vec::new();
        for prefix in fs::read_dir(blobs).unwrap() {
            for blob in fs::read_dir(prefix.unwrap().path()).unwrap() {
                let data = blob.unwrap().path().join("data");
                found.push((fs::metadata(&data).unwrap().len(), data));
            }
        }
        found.into_iter().max().expect("a blob").1
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn running(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         restartPolicy: Never\n  imagePullSecrets: [{{name: nowhere}}]\n  containers:\n  \
         - {{name: main, image: '{image}', imagePullPolicy: Always, command: [echo, pulled]}}\n"
    )
}

#[test]
fn an_image_is_pulled_from_a_registry_and_run() {
    let node = Node::start();
    let registry = Registry::start(&node);
    registry.push(&node, &image::busybox(), "tools/busybox:2");
    node.apply(&running("puller", "127.0.0.1:5000/tools/busybox:2"));
    node.wait_phase("puller", "Succeeded");
    assert_eq!(node.kubectl(&["logs", "puller"]), "pulled\n");
    let message = node.wait_event("puller", "Pulled");
    assert!(message.contains("Successfully pulled image"), "{message}");
    assert_eq!(
        node.wait_event("puller", "FailedToRetrieveImagePullSecret"),
        "Unable to retrieve some image pull secrets (nowhere); attempting to pull the image may not \
         succeed."
    );
    let pod = node.get("pod", "puller");
    let id = pod["status"]["containerStatuses"][0]["imageID"].as_str().unwrap();
    assert!(id.contains("@sha256:"), "{id}");

    let said = node.berth(&["pull", "127.0.0.1:5000/tools/busybox:2"]);
    assert!(said.contains("127.0.0.1:5000/tools/busybox"), "{said}");
    assert!(node.berth(&["images"]).contains("127.0.0.1:5000/tools/busybox"));
    node.kubectl(&["delete", "pod", "puller"]);
    drop(registry);
    node.finish();
}

/// A pod that stays, with this pull secret or none.
fn wanting(name: &str, secrets: &str, policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  imagePullSecrets: [{secrets}]\n  containers:\n  \
         - {{name: main, image: '127.0.0.1:5000/team/app:1', imagePullPolicy: {policy}, \
         command: [/bin/busybox, sleep, '100000']}}\n"
    )
}

#[test]
fn an_image_that_a_secret_opened_is_not_everybodys() {
    let mut node = Node::start();
    let registry = Registry::with_login(&node);
    // One that was not imported: such stay everybody's.
    registry.push(&node, &image::echo("berth.local/echo:1"), "team/app:1");
    for (name, password) in [("keys", "hunter2"), ("copied", "hunter2"), ("wrong", "guess")] {
        let password = format!("--docker-password={password}");
        let server = ["--docker-server=127.0.0.1:5000", "--docker-username=user"];
        node.kubectl(
            &[&["create", "secret", "docker-registry", name, &password], &server[..]].concat(),
        );
    }
    let waits = |node: &Node, name: &str, reasons: &[&str]| {
        node.wait_pod(name, &format!("waiting: {reasons:?}"), |pod| {
            let state = &pod["status"]["containerStatuses"][0]["state"];
            reasons.iter().any(|reason| state["waiting"]["reason"] == *reason)
        });
    };
    let denied = ["ErrImagePull", "ImagePullBackOff"];
    node.apply(&wanting("owner", "{name: keys}", "IfNotPresent"));
    node.wait_ready("owner");
    node.apply(&wanting("stranger", "", "IfNotPresent"));
    waits(&node, "stranger", &denied);
    node.apply(&wanting("guesser", "{name: wrong}", "IfNotPresent"));
    waits(&node, "guesser", &denied);
    node.apply(&wanting("silent", "", "Never"));
    waits(&node, "silent", &["ErrImageNeverPull"]);
    node.kill_agent();
    node.up(&[]);
    node.await_ready();
    // Who has the keys needs no registry, and others do not get in without one.
    drop(registry);
    node.apply(&wanting("copier", "{name: wrong}, {name: copied}", "IfNotPresent"));
    node.wait_ready("copier");
    assert_eq!(
        node.wait_event("copier", "Pulled"),
        "Container image \"127.0.0.1:5000/team/app:1\" already present on machine and can be \
         accessed by the pod"
    );
    node.apply(&wanting("late", "", "IfNotPresent"));
    waits(&node, "late", &["ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"]);
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

#[test]
fn a_layer_that_is_not_what_its_digest_says_is_refused() {
    let node = Node::start();
    let registry = Registry::start(&node);
    registry.push(&node, &image::numbers(), "tools/bitten:1");
    let layer = registry.layer();
    let mut bytes = fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::File::create(&layer).unwrap().write_all(&bytes).unwrap();
    let stored = layer_count(&node.path("state"));

    node.apply(&running("bitten", "127.0.0.1:5000/tools/bitten:1"));
    node.wait_event("bitten", "BackOff");
    let said = node.kubectl(&["describe", "pod", "bitten"]);
    assert!(said.contains("Failed to pull image \"127.0.0.1:5000/tools/bitten:1\""), "{said}");
    let waiting = node.wait_pod("bitten", "backing off", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
    });
    assert_eq!(waiting["status"]["phase"], "Pending");
    assert_eq!(layer_count(&node.path("state")), stored, "nothing of the layer is kept");

    let absent = node.namespace().command(crate::node::berth());
    let mut absent = absent;
    let output = absent
        .args(["pull", "127.0.0.1:5000/tools/absent:1"])
        .args(node.dir_flags())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(told(&output).contains("127.0.0.1:5000/tools/absent:1"), "{}", told(&output));
    node.kubectl(&["delete", "pod", "bitten"]);
    drop(registry);
    node.finish();
}

fn layer_count(state: &Path) -> usize {
    fs::read_dir(state.join("images/layers")).map_or(0, |entries| entries.count())
}
