//! What users of the host find closed of a node's state (CVE-2021-41103, 2024-25621), and what
//! containers made at the same time find of each other (CVE-2021-21334). Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use berth_runtime::interface::{Runtime, SandboxId};
use futures::future::join_all;
use support::image::{Image, Layer, Tar};
use support::node::Node;

/// What an ordinary user's shell makes of a program. setpriv itself has privileges until it executes.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args(["sh", "-c", "\"$@\"", "sh"]).arg(program);
    command
}

/// Every file below a directory, links not followed.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            left.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push(path);
    }
    found
}

#[tokio::test]
async fn nobody_but_root_looks_into_a_node_s_state_or_executes_what_images_brought() {
    let mut image = Image::busybox();
    let id = std::fs::read("/bin/busybox").unwrap();
    image.layers.push(Layer::gzip(&Tar::new().dir("bin/").file("bin/rise", 0o4755, &id).bytes()));
    let node = Node::with_image(image).await;
    let sandbox = node.run_sandbox("u1").await;
    let container = node.run(&sandbox, "c", "echo up; sleep 1000").await;
    node.wait_for_log(&container, "up").await;
    // The directory that the node is given is open: it must not rely on that.
    std::fs::set_permissions(node.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let find = |path: &Path| -> Output {
        as_nobody(Path::new("find")).arg(path).args(["-mindepth", "1"]).output().unwrap()
    };
    for part in ["images", "run", "state"] {
        let path = node.dir.path().join(part);
        assert!(files(&path).len() > 1, "{part} is empty");
        let output = find(&path);
        let (found, error) = (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
        assert_eq!(String::from_utf8_lossy(&found), "", "{part}");
        assert!(error.contains("Permission denied"), "{part}: {error}");
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{part}");
    }
    let rises: Vec<PathBuf> =
        files(node.dir.path()).into_iter().filter(|path| path.ends_with("bin/rise")).collect();
    let risen = |path: &&PathBuf| path.metadata().unwrap().permissions().mode() & 0o4000 != 0;
    assert!(rises.iter().any(|path| risen(&path)), "the layer has no setuid file: {rises:?}");
    for path in rises {
        let output = as_nobody(&path).args(["id", "-u"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let denied = !output.status.success() && error.contains("Permission denied");
        assert!(denied, "{}: {error}", path.display());
    }
    node.finish().await;
}

#[tokio::test]
async fn containers_made_at_once_have_nothing_of_each_other_s_environment() {
    let pairs = match std::env::var("BERTH_RACE_ROUNDS") {
        Ok(rounds) => rounds.parse::<usize>().unwrap().min(1_000),
        Err(_) => 24,
    };
    let node = Node::new().await;
    let sandboxes = [node.run_sandbox("u1").await, node.run_sandbox("u2").await];
    let mut done = 0;
    while done < pairs {
        let batch = (pairs - done).min(8);
        let runs = (done..done + batch).flat_map(|round| [(round, 0), (round, 1)]);
        let checked = runs.map(|(round, side)| check(&node, &sandboxes[side], round, side));
        join_all(checked).await;
        done += batch;
    }
    node.finish().await;
}

/// Makes one of a pair of containers with variables of its own, and reads all that it has.
async fn check(node: &Node, sandbox: &SandboxId, round: usize, side: usize) {
    let mut config = node.container(&format!("c{round}"), "env");
    let own = |name: &str| (format!("{name}_{side}_{round}"), format!("{side}-{round}"));
    config.env = vec![own("FIRST"), own("SECOND"), ("SHARED".to_owned(), format!("{side}"))];
    let expected: BTreeSet<String> =
        config.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let id = node.engine.create_container(sandbox, config).await.unwrap();
    node.engine.start_container(&id).await.unwrap();
    assert_eq!(node.exit(&id).await.0, 0);
    let log = node.log(&id).await;
    let others = ["PATH=", "HOME=", "HOSTNAME=", "FROM=image", "PWD=", "SHLVL=", "OLDPWD="];
    let known = |line: &&str| !others.iter().any(|other| line.starts_with(other));
    let found: BTreeSet<String> = log.lines().filter(known).map(str::to_owned).collect();
    assert_eq!(found, expected);
    node.engine.remove_container(&id).await.unwrap();
}
