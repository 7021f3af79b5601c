//! Exec and attach over the shim's socket: descriptors, ends, terminals, readers that do not read.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use berth_oci::protocol::*;
use berth_oci::{read_frame, write_frame};
use fixture::{Shim, sandbox};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true };

/// A session, with blocking descriptors.
struct Session {
    connection: UnixStream,
    descriptors: Vec<(Descriptor, File)>,
}

impl Session {
    fn open(shim: &Shim, request: &Request) -> Result<Self, Failure> {
        let mut connection = shim.connect();
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write_frame(&mut connection, request).unwrap();
        let mut prefix = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut prefix)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        rustix::net::recvmsg(&connection, &mut slices, &mut control, flags).unwrap();
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let mut payload = vec![0; u32::from_le_bytes(prefix) as usize];
        connection.read_exact(&mut payload).unwrap();
        let answer: Answer = serde_json::from_slice(&payload).unwrap();
        let Reply::Opened { descriptors } = answer? else { panic!("not opened") };
        assert_eq!(descriptors.len(), fds.len());
        for fd in &fds {
            rustix::io::ioctl_fionbio(fd, false).unwrap();
        }
        let descriptors = descriptors.into_iter().zip(fds.into_iter().map(File::from)).collect();
        Ok(Self { connection, descriptors })
    }

    fn take(&mut self, kind: Descriptor) -> Option<File> {
        let index = self.descriptors.iter().position(|(k, _)| *k == kind)?;
        Some(self.descriptors.remove(index).1)
    }

    fn end(mut self) -> (i32, u64) {
        let answer: Answer = read_frame(&mut self.connection).unwrap().unwrap();
        match answer.unwrap() {
            Reply::Ended { exit_code, dropped_bytes } => (exit_code, dropped_bytes),
            other => panic!("{other:?}"),
        }
    }
}

fn exec(args: &[&str], streams: Streams) -> Exec {
    let args = args.iter().map(|text| (*text).to_owned()).collect();
    Exec { id: "c".to_owned(), args, streams, tty: false, size: None }
}

fn attach(streams: Streams) -> Request {
    Request::Attach(Attach { id: "c".to_owned(), streams })
}

fn text(file: Option<File>) -> String {
    let mut bytes = Vec::new();
    // EIO: the other side of a terminal was closed.
    match file.unwrap().read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.raw_os_error(), Some(5)),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn read_until(file: &mut File, wanted: &str) -> String {
    let mut seen = String::new();
    let mut chunk = [0; 4096];
    while !seen.contains(wanted) {
        let count = file.read(&mut chunk).unwrap();
        assert!(count > 0, "{seen:?} ended without {wanted:?}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    seen
}

#[test]
fn an_exec_gives_its_streams_away_and_tells_its_end() {
    let mut shim = Shim::start(&sandbox());
    shim.launch(shim.container("c", &["/bin/sleep", "100"])).unwrap();
    let script = "cat; echo oops >&2; exit 5";
    let request = Request::Exec(Box::new(exec(&["sh", "-c", script], ALL)));
    let mut session = Session::open(&shim, &request).unwrap();
    let mut stdin = session.take(Descriptor::Stdin).unwrap();
    let megabyte = vec![b'x'; 1 << 20];
    let writer = std::thread::spawn(move || stdin.write_all(&megabyte).unwrap());
    assert_eq!(text(session.take(Descriptor::Stdout)).len(), 1 << 20);
    writer.join().unwrap();
    assert_eq!(text(session.take(Descriptor::Stderr)), "oops\n");
    assert_eq!(session.end(), (5, 0));
    // What is not wanted is the null device.
    let quiet = exec(&["sh", "-c", "cat; echo unheard; exit $?"], Streams::default());
    let session = Session::open(&shim, &Request::Exec(Box::new(quiet))).unwrap();
    assert!(session.descriptors.is_empty());
    assert_eq!(session.end().0, 0);
    let missing = Request::Exec(Box::new(exec(&["nothing"], ALL)));
    let failure = Session::open(&shim, &missing).err().unwrap();
    assert_eq!((failure.kind, failure.exit_code), (FailureKind::Start, Some(127)));
    shim.shut_down();
}

#[test]
fn an_exec_outlives_its_client() {
    let mut shim = Shim::start(&sandbox());
    shim.launch(shim.container("c", &["/bin/sleep", "100"])).unwrap();
    let script = "sleep 0.3; touch /tmp/done; sleep 100";
    let request = Request::Exec(Box::new(exec(&["sh", "-c", script], ALL)));
    drop(Session::open(&shim, &request).unwrap());
    let deadline = Instant::now() + Duration::from_secs(5);
    while !shim.image().join("tmp/done").exists() {
        assert!(Instant::now() < deadline, "the process was ended with its client");
        std::thread::sleep(Duration::from_millis(20));
    }
    shim.shut_down();
}

#[test]
fn an_exec_has_a_terminal_of_the_container_that_hangs_up() {
    let mut shim = Shim::start(&sandbox());
    let mut container = shim.container("c", &["/bin/sleep", "100"]);
    container.user.user = "web".to_owned();
    shim.launch(container).unwrap();
    let mut request = exec(&["sh", "-c", "tty; stty size; echo $TERM; read x; stty size"], ALL);
    request.tty = true;
    request.size = Some(TerminalSize { columns: 132, rows: 43 });
    let mut session = Session::open(&shim, &Request::Exec(Box::new(request.clone()))).unwrap();
    assert!(session.take(Descriptor::Stderr).is_none());
    let mut stdin = session.take(Descriptor::Stdin).unwrap();
    let mut stdout = session.take(Descriptor::Stdout).unwrap();
    let seen = read_until(&mut stdout, "xterm\r\n");
    assert_eq!(seen, "/dev/pts/0\r\n43 132\r\nxterm\r\n");
    let terminal = session.take(Descriptor::Terminal).unwrap();
    let size = rustix::termios::Winsize { ws_col: 80, ws_row: 25, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal, size).unwrap();
    stdin.write_all(b"go\n").unwrap();
    assert_eq!(text(Some(stdout)), "go\r\n25 80\r\n");
    assert_eq!(session.end(), (0, 0));
    // Nobody holds the master any more: the session gets SIGHUP.
    request.args =
        ["sh", "-c", "trap 'touch /tmp/hup; exit 0' HUP; echo up; while :; do sleep 0.05; done"]
            .map(str::to_owned)
            .to_vec();
    let tmp = shim.image().join("tmp");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&tmp, mode).unwrap();
    let mut session = Session::open(&shim, &Request::Exec(Box::new(request))).unwrap();
    read_until(&mut session.take(Descriptor::Stdout).unwrap(), "up");
    session.descriptors.clear();
    assert_eq!(session.end().0, 0);
    assert!(tmp.join("hup").exists());
    shim.shut_down();
}

#[test]
fn attached_clients_see_what_is_logged_and_the_end() {
    let mut shim = Shim::start(&sandbox());
    let mut request =
        shim.container("c", &["/bin/sh", "-c", "read x; echo got $x; echo e >&2; exit 4"]);
    request.stdio.stdin = true;
    shim.launch(request).unwrap();
    let mut first = Session::open(&shim, &attach(ALL)).unwrap();
    let mut second = Session::open(&shim, &attach(Streams { stdin: false, ..ALL })).unwrap();
    assert!(first.take(Descriptor::Terminal).is_none());
    // Held open: the end of one attachment is not the end of the input.
    drop(Session::open(&shim, &attach(ALL)).unwrap());
    first.take(Descriptor::Stdin).unwrap().write_all(b"word\n").unwrap();
    for session in [&mut first, &mut second] {
        assert_eq!(text(session.take(Descriptor::Stdout)), "got word\n");
        assert_eq!(text(session.take(Descriptor::Stderr)), "e\n");
    }
    assert_eq!(first.end(), (4, 0));
    assert_eq!(second.end(), (4, 0));
    assert_eq!(shim.log_text("c"), "got word\ne\n");
    let failure = Session::open(&shim, &attach(ALL)).err().unwrap();
    assert_eq!(failure.kind, FailureKind::State);
    shim.shut_down();
}

#[test]
fn standard_input_once_ends_with_the_first_attachment() {
    let mut shim = Shim::start(&sandbox());
    let mut request = shim.container("c", &["/bin/sh", "-c", "cat; echo eof; sleep 100"]);
    request.stdio.stdin = true;
    request.stdio.stdin_once = true;
    shim.launch(request).unwrap();
    let mut watching = Session::open(&shim, &attach(Streams { stdin: false, ..ALL })).unwrap();
    let mut first = Session::open(&shim, &attach(ALL)).unwrap();
    let mut second = Session::open(&shim, &attach(ALL)).unwrap();
    assert!(second.take(Descriptor::Stdin).is_none());
    first.take(Descriptor::Stdin).unwrap().write_all(b"a\n").unwrap();
    let mut stdout = watching.take(Descriptor::Stdout).unwrap();
    assert!(read_until(&mut stdout, "eof\n").starts_with("a\n"));
    shim.shut_down();
}

#[test]
fn a_container_with_a_terminal_is_attached_to_and_resized() {
    let mut shim = Shim::start(&sandbox());
    let mut request = shim.container(
        "c",
        &["/bin/sh", "-c", "trap 'stty size' WINCH; echo up; read x; echo $x; read y"],
    );
    request.stdio.tty = true;
    request.stdio.stdin = true;
    request.spec =
        fixture::spec_with(&["/bin/sh", "-c", "read x; stty size; echo =$x=; read y"], |spec| {
            spec["process"]["terminal"] = json!(true)
        });
    shim.launch(request).unwrap();
    let mut session = Session::open(&shim, &attach(ALL)).unwrap();
    assert!(session.take(Descriptor::Stderr).is_none());
    let terminal = session.take(Descriptor::Terminal).unwrap();
    let size = rustix::termios::Winsize { ws_col: 99, ws_row: 33, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal, size).unwrap();
    let mut stdin = session.take(Descriptor::Stdin).unwrap();
    stdin.write_all(b"hey\n").unwrap();
    let mut stdout = session.take(Descriptor::Stdout).unwrap();
    let seen = read_until(&mut stdout, "=hey=\r\n");
    assert!(seen.contains("33 99\r\n"), "{seen}");
    stdin.write_all(b"\n").unwrap();
    read_until(&mut stdout, "\n");
    drop((stdin, terminal));
    assert_eq!(session.end().0, 0);
    shim.shut_down();
}

#[test]
fn an_attached_reader_that_does_not_read_holds_nobody() {
    let mut shim = Shim::start(&sandbox());
    let mut request = shim.container("c", &["/bin/sh", "-c", "read x; seq 1 200000; echo done"]);
    request.stdio.stdin = true;
    request.stdio.log_max_bytes = 100 << 20;
    shim.launch(request).unwrap();
    let mut dead = Session::open(&shim, &attach(ALL)).unwrap();
    let mut alive = Session::open(&shim, &attach(Streams { stdin: false, ..ALL })).unwrap();
    let start = Instant::now();
    dead.take(Descriptor::Stdin).unwrap().write_all(b"\n").unwrap();
    let seen = text(alive.take(Descriptor::Stdout));
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    let expected: String =
        (1..=200_000).map(|n| format!("{n}\n")).chain(["done\n".into()]).collect();
    assert!(seen == expected, "the reader that reads misses nothing");
    assert_eq!(shim.wait("c").exit_code, 0);
    assert!(shim.log_text("c") == expected, "the log misses nothing");
    assert_eq!(alive.end(), (0, 0));
    let given = text(dead.take(Descriptor::Stdout));
    assert!(expected.starts_with(&given), "what was given is the beginning");
    let (_, dropped) = dead.end();
    assert_eq!(given.len() as u64 + dropped, expected.len() as u64);
    assert!(dropped > 0);
    shim.shut_down();
}

#[test]
fn a_container_sees_the_processes_of_its_target() {
    let mut shim = Shim::start(&sandbox());
    shim.launch(shim.container("c", &["/bin/sleep", "777"])).unwrap();
    let mut request = shim.container("debug", &["/bin/sh", "-c", "ps; exit 3"]);
    request.pid_target = Some("c".to_owned());
    let (exit, seen) = shim.run_request(request);
    assert_eq!(exit.exit_code, 3);
    assert!(
        seen.contains("1 0         0:00 /bin/sleep 777") || seen.contains("sleep 777"),
        "{seen}"
    );
    // Those that come later have their own again.
    let (_, seen) = shim.run("other", "ps");
    assert!(!seen.contains("sleep 777"), "{seen}");
    let mut request = shim.container("lost", &["/bin/true"]);
    request.pid_target = Some("nobody".to_owned());
    let failure = shim.create(request).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Invalid);
    assert!(failure.message.contains("nobody"), "{failure}");
    shim.shut_down();
}

#[test]
fn a_request_that_is_not_known_is_refused_by_name_and_the_connection_lives() {
    let mut shim = Shim::start(&sandbox());
    let mut connection = shim.connect();
    write_frame(&mut connection, &json!({"op": "checkpoint"})).unwrap();
    let answer: Answer = read_frame(&mut connection).unwrap().unwrap();
    assert!(answer.unwrap_err().message.contains("checkpoint"));
    write_frame(&mut connection, &Request::Hello).unwrap();
    let answer: Answer = read_frame(&mut connection).unwrap().unwrap();
    assert!(matches!(answer, Ok(Reply::Shim { .. })));
    // A frame longer than any message ends it.
    connection.write_all(&u32::MAX.to_le_bytes()).unwrap();
    let mut rest = Vec::new();
    match connection.read_to_end(&mut rest) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    shim.shut_down();
}

#[test]
fn a_named_execution_is_carried_out_once_and_its_result_is_kept() {
    let mut shim = Shim::start(&sandbox());
    shim.launch(shim.container("c", &["/bin/sleep", "100"])).unwrap();
    let script = "echo x >> /tmp/times; sleep 0.5; echo out; echo err >&2; exit 6";
    let request = ExecSync {
        id: "c".to_owned(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        timeout_ms: Some(10_000),
        output_limit_bytes: 1000,
        once: Some("post-start".to_owned()),
    };
    let mut lost = shim.connect();
    write_frame(&mut lost, &Request::ExecSync(Box::new(request.clone()))).unwrap();
    let times = shim.image().join("tmp/times");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !times.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Its client is gone: a later one waits for the same, and a third finds the result.
    drop(lost);
    let expected = (6, "out\n".to_owned(), "err\n".to_owned(), false);
    assert_eq!(shim.exec_with(request.clone()).unwrap(), expected);
    assert_eq!(shim.exec_with(request.clone()).unwrap(), expected);
    assert_eq!(std::fs::read_to_string(times).unwrap(), "x\n");
    let mut bad = request;
    bad.once = Some("../up".to_owned());
    assert_eq!(shim.exec_with(bad).unwrap_err().kind, FailureKind::Invalid);
    shim.shut_down();
}
