//! The agent dies at any moment: what it leaves is found again or removed. Needs root.
//!
//! The agent is this test program started again with a role in its environment; it makes and removes
//! sandboxes until it is killed.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_runtime::interface::*;
use futures::future::join_all;
use support::node::Node;

const ROLE: &str = "BERTH_TEST_AGENT_DIRECTORY";
/// The file by which the agent says that it has begun.
const AT_WORK: &str = "agent-at-work";
/// How often it is killed where `BERTH_CRASH_ROUNDS` does not say.
const ROUNDS: u64 = 16;
/// How many sandboxes it makes at once, so that a kill finds all kinds of work half done.
const AT_ONCE: u32 = 4;
/// How long what it left may take to be found again.
const RECOVERY: Duration = Duration::from_secs(5);

/// The agent's part; nothing where the test program runs as itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_that_is_killed() {
    let Some(dir) = std::env::var_os(ROLE) else { return };
    let node = Node::at(PathBuf::from(&dir)).await;
    std::fs::write(PathBuf::from(dir).join(AT_WORK), b"").unwrap();
    join_all((0..AT_ONCE).map(|worker| make_and_remove(&node, worker))).await;
}

async fn make_and_remove(node: &Node, worker: u32) {
    for round in 0u32.. {
        let config = node.sandbox_config(&format!("pod{worker}-{}", round % 3));
        let Ok(sandbox) = node.engine.run_sandbox(config).await else { continue };
        let mut made = Vec::new();
        for script in ["exit 3", "sleep 1000"] {
            let config = node.container("c", script);
            let id = node.engine.create_container(&sandbox.id, config).await.unwrap();
            let _ = node.engine.start_container(&id).await;
            made.push(id);
        }
        let grace = Duration::from_millis(20);
        let _ = node.engine.stop_container(&made[1], StopSignal::ImageDefault, grace).await;
        let _ = node.engine.remove_container(&made[0]).await;
        if round % 2 == 0 {
            let _ = node.engine.remove_sandbox(&sandbox.id).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_at_any_moment_leaves_only_what_can_be_found() {
    let node = Node::new().await;
    let keeper = node.run_sandbox("keeper").await;
    let kept = node.run(&keeper, "kept", "echo up; sleep 1000").await;
    node.wait_for_log(&kept, "up").await;
    let mut node = node;
    let rounds = std::env::var("BERTH_CRASH_ROUNDS");
    let rounds =
        rounds.map_or(ROUNDS, |text| text.parse().expect("BERTH_CRASH_ROUNDS is a number"));
    for round in 0..rounds {
        let directory = node.dir.path().to_owned();
        let mut killed = None;
        let kill = |_: &Path| {
            kill_an_agent(directory, round * 37 % 599);
            killed = Some(Instant::now());
        };
        node = node.restart_after(kill).await;
        let recovery = killed.unwrap().elapsed();
        assert!(recovery < RECOVERY, "round {round}: {recovery:?}");
        assert!(matches!(node.state(&kept).await, ContainerState::Running { .. }));
        let live = node.engine.list().await.unwrap();
        let shims = node.shims().len();
        let ready = live.iter().filter(|s| s.state == SandboxState::Ready).count();
        assert_eq!(shims, ready, "shims and ready sandboxes differ");
        for sandbox in live {
            // What was half made is gone, and not only hidden.
            let files = node.dir.path().join("run/pods").join(sandbox.id.as_str());
            let kept = support::names(&files.join("containers"));
            assert_eq!(kept.len(), sandbox.containers.len(), "{kept:?}");
            for container in &sandbox.containers {
                if let ContainerState::Exited { exit_code, message, .. } = &container.state {
                    let expected = [0, 3, 137, 143].contains(exit_code);
                    assert!(expected && message.is_empty(), "{exit_code} {message}");
                }
            }
            if sandbox.id != keeper {
                node.engine.remove_sandbox(&sandbox.id).await.unwrap();
            }
        }
        assert_eq!(node.shims().len(), 1);
        assert_eq!(node.network.attached.lock().unwrap().len(), 1);
    }
    node.finish().await;
}

/// Starts an agent on the node's directories and kills it after a while. Blocking.
fn kill_an_agent(directory: PathBuf, milliseconds: u64) {
    let at_work = directory.join(AT_WORK);
    let _ = std::fs::remove_file(&at_work);
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_agent_that_is_killed", "--nocapture"])
        .env(ROLE, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if at_work.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(at_work.exists(), "the agent does not begin");
    std::thread::sleep(Duration::from_millis(milliseconds));
    agent.kill().unwrap();
    agent.wait().unwrap();
}
