//! Exec and attach through the engine, with the real shim. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use berth_runtime::interface::*;
use support::node::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true };

fn exec(script: &str) -> Exec {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Exec { command, streams: ALL, tty: false, size: None }
}

async fn text(output: Option<SessionOutput>) -> String {
    let mut text = String::new();
    let reading = output.unwrap();
    tokio::pin!(reading);
    let read = tokio::time::timeout(Duration::from_secs(20), reading.read_to_string(&mut text));
    read.await.unwrap().unwrap();
    text
}

#[tokio::test]
async fn a_command_in_a_container_has_streams_and_an_exit_code() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let id = node.run(&sandbox, "c", "echo up; sleep 1000").await;
    node.wait_for_log(&id, "up").await;
    let mut session = node.engine.exec(&id, exec("cat; echo err >&2; exit 9")).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let sent = "line\n".repeat(200_000);
    let bytes = sent.clone();
    let writing = tokio::spawn(async move { stdin.write_all(bytes.as_bytes()).await });
    assert!(text(session.stdout.take()).await == sent);
    writing.await.unwrap().unwrap();
    assert_eq!(text(session.stderr.take()).await, "err\n");
    assert!(session.terminal.is_none());
    let end = session.end.await.unwrap();
    assert_eq!(end, SessionEnd { exit_code: 9, dropped_bytes: 0 });
    let missing = Exec { command: vec!["/nothing".to_owned()], ..exec("") };
    let error = node.engine.exec(&id, missing).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Start { exit_code: 127, .. }), "{error:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_command_with_a_terminal_is_resized() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let id = node.run(&sandbox, "c", "echo up; sleep 1000").await;
    node.wait_for_log(&id, "up").await;
    let size = Some(TerminalSize { columns: 100, rows: 30 });
    let request = Exec { tty: true, size, ..exec("stty size; read x; stty size; exit 2") };
    let mut session = node.engine.exec(&id, request).await.unwrap();
    let terminal = session.terminal.take().unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let mut stdout = session.stdout.take().unwrap();
    let mut first = [0; 8];
    stdout.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"30 100\r\n");
    terminal.resize(TerminalSize { columns: 7, rows: 5 }).unwrap();
    stdin.write_all(b"\n").await.unwrap();
    let rest = text(Some(stdout)).await;
    assert!(rest.ends_with("5 7\r\n"), "{rest:?}");
    assert_eq!(session.end.await.unwrap().exit_code, 2);
    node.finish().await;
}

#[tokio::test]
async fn two_hundred_commands_at_once_all_end() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let id = node.run(&sandbox, "c", "echo up; sleep 1000").await;
    node.wait_for_log(&id, "up").await;
    let one = |number: usize| {
        let engine = node.engine.clone();
        let id = id.clone();
        async move {
            let mut session = engine.exec(&id, exec(&format!("echo {number}"))).await.unwrap();
            let said = text(session.stdout.take()).await;
            assert_eq!(said, format!("{number}\n"));
            session.end.await.unwrap().exit_code
        }
    };
    let codes = futures::future::join_all((0..200).map(one)).await;
    assert!(codes.iter().all(|code| *code == 0));
    node.finish().await;
}

#[tokio::test]
async fn an_attached_client_talks_to_the_container_before_and_after_a_restart() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let script = "echo up; while read x; do echo \"got $x\"; test $x = end && exit 6; done";
    let mut config = node.container("c", script);
    config.stdin = true;
    let id = node.engine.create_container(&sandbox, config).await.unwrap();
    node.engine.start_container(&id).await.unwrap();
    node.wait_for_log(&id, "up").await;
    let mut session = node.engine.attach(&id, ALL).await.unwrap();
    session.stdin.take().unwrap().write_all(b"one\n").await.unwrap();
    let mut said = [0; 8];
    session.stdout.as_mut().unwrap().read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"got one\n");
    drop(session);
    let node = node.restart().await;
    let mut session = node.engine.attach(&id, ALL).await.unwrap();
    session.stdin.take().unwrap().write_all(b"end\n").await.unwrap();
    assert_eq!(text(session.stdout.take()).await, "got end\n");
    assert_eq!(session.end.await.unwrap().exit_code, 6);
    assert_eq!(node.exit(&id).await.0, 6);
    let error = node.engine.attach(&id, ALL).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Invalid(_)), "{error:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_log_that_was_moved_away_is_opened_anew() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let script = "echo one; while ! test -e /go; do sleep 0.02; done; echo two; exit 3";
    let id = node.run(&sandbox, "c", script).await;
    node.wait_for_log(&id, "one").await;
    let path = node.engine.log_path(&id).unwrap();
    std::fs::rename(&path, path.with_extension("moved")).unwrap();
    node.engine.reopen_log(&id).await.unwrap();
    node.engine.exec(&id, exec("touch /go")).await.unwrap().end.await.unwrap();
    assert_eq!(node.exit(&id).await.0, 3);
    assert_eq!(node.log(&id).await, "two\n");
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_is_told_to_sees_its_targets_processes() {
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let target = node.run(&sandbox, "c", "echo up; sleep 4321").await;
    node.wait_for_log(&target, "up").await;
    let mut config = node.container("debug", "cat /proc/*/cmdline | tr '\\0' ' '; exit 0");
    config.pid_target = Some(target);
    let id = node.engine.create_container(&sandbox, config).await.unwrap();
    node.engine.start_container(&id).await.unwrap();
    assert_eq!(node.exit(&id).await.0, 0);
    let log = node.log(&id).await;
    assert!(log.contains("sleep 4321"), "{log}");
    node.finish().await;
}
