//! The tracer counts what changes something, kills after it, and leaves children alone. Needs root.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_testkit::{Tracer, require_root, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a line, has another process do something, and then makes three files.
const SCRIPT: &str =
    "read go; (read more; echo lives > child) < fifo & : > a; : > b; : > c; read end";

fn script(directory: &Path) -> Child {
    require_root();
    let fifo = Command::new("mkfifo").arg(directory.join("fifo")).status().expect("mkfifo runs");
    assert!(fifo.success());
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT]).current_dir(directory);
    shell.stdin(Stdio::piped()).spawn().expect("a shell")
}

fn tell(shell: &mut Child) {
    shell.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("it listens");
}

/// Lets the child of a script go on, and waits for what it makes.
fn release(directory: &Path) {
    fs::write(directory.join("fifo"), "\n").expect("the child listens");
    wait_until(PATIENCE, "what the child makes", || {
        fs::read_to_string(directory.join("child")).ok().filter(|text| text == "lives\n")
    });
}

#[test]
fn effects_are_counted_in_order_and_the_process_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut shell = script(directory.path());
    let tracer = Tracer::attach(shell.id(), None).expect("it can be traced");
    tell(&mut shell);
    wait_until(PATIENCE, "the last file", || directory.path().join("c").exists().then_some(()));
    release(directory.path());
    tell(&mut shell);
    wait_until(PATIENCE, "its end", || tracer.is_dead().then_some(()));
    let effects = tracer.end().expect("it was followed").effects;
    assert_eq!(effects.len(), 4, "{effects:?}");
    assert!(!effects[0].starts_with("open"), "{effects:?}");
    assert!(effects[1..].iter().all(|effect| effect.starts_with("open")), "{effects:?}");
}

#[test]
fn it_is_killed_after_the_effect_and_its_child_lives_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut shell = script(directory.path());
    let tracer = Tracer::attach(shell.id(), Some(3)).expect("it can be traced");
    tell(&mut shell);
    wait_until(PATIENCE, "its end", || tracer.is_dead().then_some(()));
    assert_eq!(tracer.end().expect("it was followed").effects.len(), 3);
    let there = |name: &str| directory.path().join(name).exists();
    assert_eq!((there("a"), there("b"), there("c")), (true, true, false));
    release(directory.path());
}
