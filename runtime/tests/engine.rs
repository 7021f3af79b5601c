//! Sandboxes and containers with the real shim, in a cgroup of the test's own. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use berth_runtime::interface::*;
use support::names;
use support::node::Node;

const TERM: StopSignal = StopSignal::ImageDefault;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_removed_before_it_ran_is_never_seen_as_ended() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("pod").await;
    for _ in 0..10 {
        let config = node.container("c", "true");
        let id = node.engine.create_container(&sandbox, config).await.unwrap();
        let removal = node.engine.remove_container(&id);
        let watch = async {
            loop {
                let seen = node.engine.list().await.unwrap().remove(0).containers;
                assert!(seen.iter().all(|c| c.state == ContainerState::Created), "{seen:?}");
                if seen.is_empty() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        let (removed, ()) = tokio::join!(removal, watch);
        removed.unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_runs_logs_and_tells_its_exit() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let status = node.engine.pod("u1").await.unwrap().remove(0);
    assert_eq!(status.state, SandboxState::Ready);
    assert_eq!(status.ips.len(), 1);
    let mut events = node.engine.events();
    let script =
        "echo out; echo err >&2; hostname; echo $FROM $FROM_POD; cat /etc/hostname; exit 7";
    let id = node.run(&sandbox, "c", script).await;
    assert_eq!(node.exit(&id).await, (7, String::new()));
    let event = tokio::time::timeout(Duration::from_secs(5), events.recv()).await.unwrap().unwrap();
    assert_eq!(
        event,
        RuntimeEvent::Exited { pod: status.config.pod.clone(), container: id.clone() }
    );
    let log = node.log(&id).await;
    for line in ["out\n", "err\n", "pod-host\n", "image yes\n"] {
        assert!(log.contains(line), "{line:?} is not in {log:?}");
    }
    let path = node.engine.log_path(&id).unwrap();
    node.engine.remove_container(&id).await.unwrap();
    node.engine.remove_container(&id).await.unwrap();
    assert!(path.exists(), "the log outlives its container");
    assert!(node.engine.pod("u1").await.unwrap()[0].containers.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn a_restarted_engine_finds_its_containers_and_learns_their_exits() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let stays = node.run(&sandbox, "stays", "echo up; sleep 1000").await;
    let ends = node.run(&sandbox, "ends", "sleep 0.3; exit 3").await;
    let created =
        node.engine.create_container(&sandbox, node.container("later", "exit 4")).await.unwrap();
    node.wait_for_log(&stays, "up").await;
    let shims = node.shims();
    let node = node.restart_after(|_| std::thread::sleep(Duration::from_millis(800))).await;
    assert_eq!(node.shims(), shims);
    assert_eq!(node.exit(&ends).await.0, 3);
    let before = node.state(&stays).await;
    assert!(matches!(before, ContainerState::Running { .. }), "{before:?}");
    let live = node.network.collected.lock().unwrap().clone();
    assert_eq!(live, Some(vec![sandbox.clone()]));
    let output =
        node.engine.exec_sync(&stays, vec!["echo".into(), "hi".into()], None).await.unwrap();
    assert_eq!((output.exit_code, output.stdout.as_slice()), (0, &b"hi\n"[..]));
    node.engine.start_container(&created).await.unwrap();
    assert_eq!(node.exit(&created).await.0, 4);

    // Once more: an exit after the restart is heard as well, and the image may go meanwhile.
    node.images.remove("test/busybox:1").await.unwrap();
    let node = node.restart().await;
    assert_eq!(node.exit(&ends).await.0, 3);
    node.engine.stop_container(&stays, TERM, Duration::from_secs(0)).await.unwrap();
    assert_eq!(node.exit(&stays).await.0, 137);
    node.finish().await;
}

#[tokio::test]
async fn a_lost_shim_ends_its_containers_and_is_told() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let id = node.run(&sandbox, "c", "echo up; sleep 1000 & sleep 1000").await;
    node.wait_for_log(&id, "up").await;
    let mut events = node.engine.events();
    let shims = node.shims();
    assert_eq!(shims.len(), 1);
    kill(shims[0]);
    let (code, message) = node.exit(&id).await;
    assert_eq!(code, 137);
    assert!(message.contains("shim was lost"), "{message}");
    let mut lost = false;
    for _ in 0..3 {
        let event = tokio::time::timeout(Duration::from_secs(5), events.recv()).await;
        lost |= matches!(event, Ok(Ok(RuntimeEvent::SandboxLost { .. })));
        if lost {
            break;
        }
    }
    assert!(lost, "the loss is not told");
    let status = node.engine.pod("u1").await.unwrap().remove(0);
    assert_eq!(status.state, SandboxState::NotReady);
    // A restart does not forget how it ended.
    let node = node.restart().await;
    assert_eq!(node.exit(&id).await.0, 137);
    node.finish().await;
}

#[tokio::test]
async fn a_shim_lost_while_no_engine_runs_is_noticed_at_the_start() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let runs = node.run(&sandbox, "runs", "echo up; sleep 1000").await;
    let done = node.run(&sandbox, "done", "exit 5").await;
    node.wait_for_log(&runs, "up").await;
    assert_eq!(node.exit(&done).await.0, 5);
    let shim = node.shims()[0];
    let node = node
        .restart_after(|_| {
            kill(shim);
            std::thread::sleep(Duration::from_millis(300));
        })
        .await;
    assert_eq!(node.exit(&runs).await.0, 137);
    assert_eq!(node.exit(&done).await.0, 5);
    node.finish().await;
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn what_cannot_run_is_told_with_its_exit_code_and_leaves_nothing() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let mut config = node.container("c", "");
    config.command = vec!["/no/such/command".into()];
    let id = node.engine.create_container(&sandbox, config.clone()).await.unwrap();
    let error = node.engine.start_container(&id).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Start { exit_code: 127, .. }), "{error:?}");
    assert_eq!(node.exit(&id).await.0, 127);

    config.command = vec!["/etc/passwd".into()];
    let id = node.engine.create_container(&sandbox, config.clone()).await.unwrap();
    let error = node.engine.start_container(&id).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Start { exit_code: 126, .. }), "{error:?}");

    let before = names(&node.dir.path().join("state/containers")).len();
    let mut missing = node.container("c", "true");
    missing.image = ImageId::try_from(format!("sha256:{}", "0".repeat(64))).unwrap();
    let mut outside = node.container("c", "true");
    outside.log_path = "../../x".into();
    let mut user = node.container("c", "true");
    user.security.run_as_user = Some(u32::MAX);
    let mut capability = node.container("c", "true");
    capability.security.add_capabilities = vec!["NOPE".into()];
    let mut profile = node.container("c", "true");
    profile.security.seccomp = Seccomp::Localhost("/no/such/profile.json".into());
    for config in [missing, outside, user, capability, profile] {
        let error = node.engine.create_container(&sandbox, config).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Create(_) | RuntimeError::Invalid(_)), "{error:?}");
    }
    assert_eq!(names(&node.dir.path().join("state/containers")).len(), before);
    node.finish().await;
}

#[tokio::test]
async fn stopping_asks_first_and_kills_after_the_grace() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let polite = node
        .run(&sandbox, "polite", "trap 'exit 9' TERM; echo up; while true; do sleep 0.05; done")
        .await;
    let deaf =
        node.run(&sandbox, "deaf", "trap '' TERM; echo up; while true; do sleep 0.05; done").await;
    node.wait_for_log(&polite, "up").await;
    node.wait_for_log(&deaf, "up").await;
    node.engine.stop_container(&polite, TERM, Duration::from_secs(20)).await.unwrap();
    assert_eq!(node.exit(&polite).await.0, 9);

    // A later call with a shorter grace shortens the first one.
    let started = Instant::now();
    let (engine, id) = (node.engine.clone(), deaf.clone());
    let long =
        tokio::spawn(
            async move { engine.stop_container(&id, TERM, Duration::from_secs(600)).await },
        );
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.engine.stop_container(&deaf, TERM, Duration::from_millis(200)).await.unwrap();
    long.await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(node.exit(&deaf).await.0, 137);
    node.finish().await;
}

#[tokio::test]
async fn commands_run_in_a_container_one_beside_another() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let id = node.run(&sandbox, "c", "echo up; sleep 1000").await;
    node.wait_for_log(&id, "up").await;
    let command = |script: &str| vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let (engine, slow_id) = (node.engine.clone(), id.clone());
    let slow_command = command("sleep 2; echo slow");
    let slow = tokio::spawn(async move { engine.exec_sync(&slow_id, slow_command, None).await });
    let started = Instant::now();
    let quick =
        node.engine.exec_sync(&id, command("echo a; echo b >&2; exit 3"), None).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(1500), "a long command holds up another");
    let expected = ExecOutput { exit_code: 3, stdout: b"a\n".to_vec(), stderr: b"b\n".to_vec() };
    assert_eq!(quick, expected);
    let timeout = Some(Duration::from_millis(300));
    let error = node.engine.exec_sync(&id, command("sleep 100"), timeout).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Host { .. }), "{error:?}");
    assert_eq!(slow.await.unwrap().unwrap().stdout, b"slow\n");
    let error = node.engine.exec_sync(&id, vec!["/nope".into()], None).await;
    assert!(error.is_err() || error.is_ok_and(|output| output.exit_code != 0));
    node.finish().await;
}

#[tokio::test]
async fn a_failed_network_undoes_the_sandbox() {
    let node = Node::new().await;
    *node.network.refuse.lock().unwrap() = Some("no more addresses".into());
    let error = node.engine.run_sandbox(node.sandbox_config("u1")).await.unwrap_err();
    assert_eq!(error.to_string(), "failed to setup network for sandbox: no more addresses");
    node.assert_clean();
    *node.network.refuse.lock().unwrap() = None;
    node.run_sandbox("u1").await;
    node.finish().await;
}

#[tokio::test]
async fn a_stopped_sandbox_keeps_its_exits_and_frees_its_network() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let done = node.run(&sandbox, "done", "exit 5").await;
    let runs = node.run(&sandbox, "runs", "sleep 1000").await;
    assert_eq!(node.exit(&done).await.0, 5);
    node.engine.stop_sandbox(&sandbox).await.unwrap();
    node.engine.stop_sandbox(&sandbox).await.unwrap();
    let status = node.engine.pod("u1").await.unwrap().remove(0);
    assert_eq!(status.state, SandboxState::NotReady);
    assert!(node.network.attached.lock().unwrap().is_empty());
    assert!(node.shims().is_empty());
    assert_eq!(node.exit(&runs).await.0, 137);
    let error =
        node.engine.create_container(&sandbox, node.container("x", "true")).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Invalid(_)), "{error:?}");
    let node = node.restart().await;
    assert_eq!((node.exit(&done).await.0, node.exit(&runs).await.0), (5, 137));
    // The next sandbox of the pod shares its cgroup and outlives the removal of this one.
    let next = node.run_sandbox("u1").await;
    let lives = node.run(&next, "lives", "echo up; sleep 1000").await;
    node.wait_for_log(&lives, "up").await;
    node.engine.remove_sandbox(&sandbox).await.unwrap();
    assert!(matches!(node.state(&lives).await, ContainerState::Running { .. }));
    node.finish().await;
}

#[tokio::test]
async fn torn_records_do_not_stop_the_engine_and_leave_nothing() {
    let node = Node::new().await;
    let torn = node.run_sandbox("u1").await;
    let lost = node.run(&torn, "c", "echo up; sleep 1000").await;
    node.wait_for_log(&lost, "up").await;
    let whole = node.run_sandbox("u2").await;
    let kept = node.run(&whole, "kept", "sleep 1000").await;
    let stale =
        node.engine.create_container(&whole, node.container("stale", "true")).await.unwrap();
    let node = node
        .restart_after(|dir| {
            let pods = dir.join("run/pods");
            std::fs::write(pods.join(torn.as_str()).join("record.json"), b"{\"id\":").unwrap();
            let containers = pods.join(whole.as_str()).join("containers");
            std::fs::write(containers.join(stale.as_str()).join("config.json"), b"\0\0\0").unwrap();
            std::fs::create_dir(pods.join("not-an-id")).unwrap();
        })
        .await;
    let listed = node.engine.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].containers.len(), 1);
    assert!(matches!(node.state(&kept).await, ContainerState::Running { .. }));
    assert_eq!(node.shims().len(), 1);
    assert!(!names(&node.dir.path().join("run/quarantine")).is_empty());
    node.finish().await;
}

#[tokio::test]
async fn another_boot_leaves_no_sandbox() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let id = node.run(&sandbox, "c", "sleep 1000").await;
    let shim = node.shims()[0];
    let node = node
        .restart_after(|dir| {
            let path = dir.join("run/pods").join(sandbox.as_str()).join("record.json");
            let text = std::fs::read_to_string(&path).unwrap();
            let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
            record["boot_id"] = "another".into();
            std::fs::write(&path, record.to_string()).unwrap();
            kill(shim);
        })
        .await;
    assert!(node.engine.list().await.unwrap().is_empty());
    assert!(node.engine.start_container(&id).await.is_err());
    node.assert_clean();
    node.finish().await;
}

#[tokio::test]
async fn volumes_are_mounted_and_a_sub_path_stays_within_its_volume() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let volume = node.dir.path().join("volume");
    std::fs::create_dir_all(volume.join("inner")).unwrap();
    std::fs::write(volume.join("inner/file"), b"from the volume\n").unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("escape")).unwrap();
    let mount = |sub_path: Option<&str>, container_path: &str| Mount {
        host_path: volume.clone(),
        image: None,
        sub_path: sub_path.map(Into::into),
        container_path: container_path.into(),
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::Private,
        relabel: false,
    };
    let mut config = node.container(
        "c",
        "cat /whole/inner/file /inner/file /file; echo new > /inner/new; echo x > /ro/x; echo $?",
    );
    let read_only = Mount { read_only: true, ..mount(None, "/ro") };
    config.mounts = vec![
        mount(None, "/whole"),
        mount(Some("inner"), "/inner"),
        mount(Some("inner/file"), "/file"),
        read_only,
    ];
    let id = node.engine.create_container(&sandbox, config.clone()).await.unwrap();
    node.engine.start_container(&id).await.unwrap();
    assert_eq!(node.exit(&id).await.0, 0);
    let log = node.log(&id).await;
    assert_eq!(log.matches("from the volume").count(), 3, "{log}");
    assert!(log.lines().any(|line| line == "1"), "a read-only mount takes a file: {log}");
    assert!(volume.join("inner/new").exists());

    config.mounts = vec![mount(Some("escape/passwd"), "/stolen")];
    let error = node.engine.create_container(&sandbox, config).await.unwrap_err();
    assert!(error.to_string().contains("not within the volume"), "{error}");
    node.engine.remove_container(&id).await.unwrap();
    node.finish().await;
    drop(volume);
}

#[tokio::test]
async fn what_is_mounted_below_a_stale_directory_is_spared() {
    let node = Node::new().await;
    let canary = node.dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), b"x").unwrap();
    let stale = node.dir.path().join("state/containers/stale");
    std::fs::create_dir_all(stale.join("deep/mount")).unwrap();
    rustix::mount::mount_bind(&canary, stale.join("deep/mount")).unwrap();
    let node = node.restart().await;
    assert!(canary.join("file").exists());
    rustix::mount::unmount(stale.join("deep/mount"), rustix::mount::UnmountFlags::DETACH).unwrap();
    let node = node.restart().await;
    assert!(!stale.exists());
    node.finish().await;
}

#[tokio::test]
async fn an_ordinary_container_is_confined_and_its_user_is_resolved() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let mut config = node.container("c", "id; grep -E 'CapEff|CapInh|Seccomp:|NoNewPrivs' /proc/self/status; touch /x || echo read-only");
    config.security.run_as_user = Some(1000);
    config.security.supplemental_groups = vec![3000];
    config.security.read_only_rootfs = true;
    config.security.no_new_privileges = true;
    let id = node.engine.create_container(&sandbox, config).await.unwrap();
    let status = node.engine.pod("u1").await.unwrap().remove(0).containers.remove(0);
    let user = status.user.unwrap();
    assert_eq!((user.uid, user.gid), (1000, 1000));
    node.engine.start_container(&id).await.unwrap();
    assert_eq!(node.exit(&id).await.0, 0);
    let log = node.log(&id).await;
    for text in [
        "uid=1000",
        "3000",
        "2000",
        "CapEff:\t0000000000000000",
        "CapInh:\t0000000000000000",
        "Seccomp:\t2",
        "NoNewPrivs:\t1",
        "read-only",
    ] {
        assert!(log.contains(text), "{text:?} is not in {log}");
    }
    node.finish().await;
}

#[tokio::test]
async fn host_namespaces_need_no_network() {
    let node = Node::new().await;
    *node.network.refuse.lock().unwrap() = Some("must not be asked".into());
    let mut config = node.sandbox_config("u1");
    config.network = NamespaceMode::Host;
    config.ipc = NamespaceMode::Host;
    config.pid = PidMode::Host;
    let sandbox = node.engine.run_sandbox(config).await.unwrap();
    assert!(sandbox.ips.is_empty());
    let id = node.run(&sandbox.id, "c", "exit 0").await;
    assert_eq!(node.exit(&id).await.0, 0);
    node.finish().await;
}

#[tokio::test]
async fn an_abandoned_request_is_carried_to_its_end() {
    let node = Node::new().await;
    for milliseconds in [0, 2, 10, 30] {
        let run = node.engine.run_sandbox(node.sandbox_config("u1"));
        let _ = tokio::time::timeout(Duration::from_millis(milliseconds), run).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for sandbox in node.engine.list().await.unwrap() {
        assert_eq!(sandbox.state, SandboxState::Ready);
    }
    node.finish().await;
}

#[tokio::test]
async fn other_limits_are_kept_with_what_runs_and_outlive_the_engine() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let runs = node.run(&sandbox, "runs", "echo up; sleep 1000").await;
    let ended = node.run(&sandbox, "ended", "exit 0").await;
    node.wait_for_log(&runs, "up").await;
    node.exit(&ended).await;
    let resize = |of, bytes| Resize {
        of,
        resources: Resources { memory_limit_bytes: Some(bytes), ..Resources::default() },
        labels: [("size".to_owned(), bytes.to_string())].into(),
    };
    let sizes = vec![
        resize(Resized::Pod, 3 << 30),
        resize(Resized::Container(runs.clone()), 2 << 30),
        resize(Resized::Container(ended.clone()), 1 << 30),
    ];
    node.engine.resize(&sandbox, sizes).await.unwrap();
    let node = node.restart().await;
    let status = node.engine.pod("u1").await.unwrap().remove(0);
    let size = |labels: &std::collections::BTreeMap<String, String>| labels.get("size").cloned();
    assert_eq!(status.config.resources.memory_limit_bytes, Some(3 << 30));
    assert_eq!(size(&status.config.labels), Some((3u64 << 30).to_string()));
    let held = |id: &ContainerId| {
        let found = status.containers.iter().find(|container| container.id == *id).unwrap();
        (found.config.resources.memory_limit_bytes, size(&found.config.labels))
    };
    assert_eq!(held(&runs), (Some(2 << 30), Some((2u64 << 30).to_string())));
    assert_eq!(held(&ended), (None, None), "what has ended stays as it was");
    node.finish().await;
}

/// A base layer, and one that takes a file of it away.
fn tools() -> support::image::Image {
    use support::image::{Image, Layer, Tar};
    let base = Tar::new()
        .dir("data/")
        .file("data/file", 0o644, b"from the image\n")
        .file("data/gone", 0o644, b"x")
        .file("run", 0o755, b"#!/bin/sh\necho ran\n")
        .link("data/escape", "../../../etc/passwd");
    let top = Tar::new().dir("data/").file("data/.wh.gone", 0o644, b"");
    Image {
        layers: vec![Layer::gzip(&base.bytes()), Layer::gzip(&top.bytes())],
        config: serde_json::json!({}),
    }
}

#[tokio::test]
async fn an_image_is_a_volume_that_nobody_changes_or_executes() {
    let mut node = Node::new().await;
    let mut layout = support::image::Layout::new();
    layout.add("test/tools:1", &tools());
    let archive = std::io::Cursor::new(layout.archive());
    let image = node.images.import(archive).await.unwrap().remove(0).id;
    let mount = |sub_path: Option<&str>, container_path: &str| Mount {
        host_path: "".into(),
        image: Some(image.clone()),
        sub_path: sub_path.map(Into::into),
        container_path: container_path.into(),
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::Private,
        relabel: false,
    };
    let mut ids = Vec::new();
    for (uid, users) in [("u1", NamespaceMode::Host), ("u2", NamespaceMode::Pod)] {
        let config = SandboxConfig { users, ..node.sandbox_config(uid) };
        let sandbox = node.engine.run_sandbox(config).await.unwrap().id;
        let script = "cat /whole/data/file /data/file /file; ls -ln /whole/data/file; ls /data; \
                      touch /whole/x || echo unchanged; /whole/run || echo not run; \
                      until [ -e /tmp/again ]; do sleep 0.02; done; cat /whole/data/file";
        let mut config = node.container("c", script);
        config.mounts = vec![
            mount(None, "/whole"),
            mount(Some("data"), "/data"),
            mount(Some("data/file"), "/file"),
        ];
        let id = node.engine.create_container(&sandbox, config.clone()).await.unwrap();
        for bad in ["none", "data/escape", "../x"] {
            config.mounts = vec![mount(Some(bad), "/bad")];
            let error = node.engine.create_container(&sandbox, config.clone()).await.unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("ImageVolumeMountFailed: ") && text.contains(bad), "{text}");
        }
        node.engine.start_container(&id).await.unwrap();
        ids.push(id);
    }
    // Nothing but the containers keeps it now, over a restart of the engine too.
    node.images.remove("test/tools:1").await.unwrap();
    node = node.restart().await;
    for id in &ids {
        let command = vec!["/bin/touch".to_owned(), "/tmp/again".to_owned()];
        node.engine.exec_sync(id, command, None).await.unwrap();
        assert_eq!(node.exit(id).await.0, 0);
        let log = node.log(id).await;
        assert_eq!(log.matches("from the image").count(), 4, "{log}");
        assert!(log.contains("unchanged") && log.contains("not run"), "{log}");
        assert!(!log.contains("gone") && !log.lines().any(|line| line == "ran"), "{log}");
        assert!(log.contains(" 0        0 "), "the files are root's: {log}");
        node.engine.remove_container(id).await.unwrap();
    }
    node.images.collect().await.unwrap();
    let layers = node.dir.path().join("images/layers");
    assert_eq!(names(&layers).len(), 2, "those of the containers' own image stay");
    node.finish().await;
}
