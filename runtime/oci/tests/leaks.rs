//! A shim that has served long is as one that has just begun: no zombie, no descriptor, no memory.
//!
//! `BERTH_EXECS` and `BERTH_EXITS` say how many rounds; 10 000 and 1 000 are the long ones.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::time::{Duration, Instant};

use berth_oci::protocol::*;
use fixture::{Shim, sandbox};

fn rounds(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// What a shim holds on to.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    children: usize,
    threads: usize,
}

fn entries(path: &str) -> usize {
    std::fs::read_dir(path).unwrap().count()
}

fn holdings(shim: &Shim) -> Holdings {
    let pid = shim.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    Holdings {
        descriptors: entries(&format!("/proc/{pid}/fd")),
        children: children.split_whitespace().count(),
        threads: entries(&format!("/proc/{pid}/task")),
    }
}

fn private_kib(pid: u32) -> usize {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    // Pages of the executable are private only as long as no other shim runs: they do not count.
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn settles(shim: &Shim, before: &Holdings) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let more = |now: &Holdings| {
        now.descriptors > before.descriptors
            || now.children > before.children
            || now.threads > before.threads
    };
    while more(&holdings(shim)) {
        assert!(Instant::now() < deadline, "{before:?} became {:?}", holdings(shim));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn execs_leave_nothing_behind() {
    let rounds = rounds("BERTH_EXECS", 100);
    let mut shim = Shim::start(&sandbox());
    shim.launch(shim.container("c", &["/bin/sh", "-c", "echo up; sleep 100000"])).unwrap();
    // Each leaves an orphan that ends a little later, and some output.
    let script = "(sleep 0.01 & ) ; echo out; echo err >&2";
    for _ in 0..20 {
        assert_eq!(shim.exec("c", &["sh", "-c", script]).unwrap().0, 0);
    }
    let before = holdings(&shim);
    assert_eq!(before.threads, 1);
    let memory = private_kib(shim.pid());
    for _ in 0..rounds {
        let (code, out, err, _) = shim.exec("c", &["sh", "-c", script]).unwrap();
        assert_eq!((code, out.as_str(), err.as_str()), (0, "out\n", "err\n"));
    }
    settles(&shim, &before);
    let after = private_kib(shim.pid());
    println!("{rounds} execs: private memory {memory} KiB before, {after} KiB after");
    assert!(after <= memory + 64, "{memory} KiB became {after} KiB");
    shim.shut_down();
}

#[test]
fn containers_that_come_and_go_leave_nothing_behind() {
    let rounds = rounds("BERTH_EXITS", 30);
    let mut shim = Shim::start(&sandbox());
    let once = |shim: &mut Shim, number: usize| {
        let id = format!("c{number}");
        let (exit, text) = shim.run(&id, "(sleep 0.01 & ) ; echo out; exit 3");
        assert_eq!((exit.exit_code, text.as_str()), (3, "out\n"));
        assert_eq!(shim.ask(&Request::Delete { id }), Ok(Reply::Done));
    };
    for number in 0..5 {
        once(&mut shim, number);
    }
    let before = holdings(&shim);
    let memory = private_kib(shim.pid());
    for number in 5..5 + rounds {
        once(&mut shim, number);
    }
    settles(&shim, &before);
    let after = private_kib(shim.pid());
    println!("{rounds} exits: private memory {memory} KiB before, {after} KiB after");
    assert!(after <= memory + 64, "{memory} KiB became {after} KiB");
    shim.shut_down();
}

#[test]
fn nobody_but_root_speaks_to_a_shim_and_no_socket_is_abstract() {
    use std::os::unix::fs::PermissionsExt;
    let mut shim = Shim::start(&sandbox());
    let socket = shim.directory().join("shim.sock");
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // As nobody, with the modes of directory and socket taken out of the way one after the other.
    let ask = |what: &str| {
        let program = "use Socket; $SIG{PIPE} = 'IGNORE'; socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; \
             connect($s, sockaddr_un($ARGV[0])) or do { print 'refused'; exit }; \
             syswrite($s, \"\\x0e\\0\\0\\0{\\\"op\\\":\\\"hello\\\"}\"); \
             print sysread($s, my $answer, 100) ? 'answered' : 'dropped'";
        let output = std::os::unix::process::CommandExt::uid(
            std::process::Command::new("perl").args(["-e", program]).arg(&socket),
            65_534,
        )
        .output()
        .unwrap();
        assert!(output.status.success(), "{what}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for directory in [shim.root.path().to_owned(), shim.directory()] {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory, open).unwrap();
    }
    assert_eq!(ask("by the socket's mode"), "refused");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(ask("by its credentials"), "dropped");
    assert!(matches!(shim.ask(&Request::Hello), Ok(Reply::Shim { .. })));
    shim.launch(shim.container("c", &["/bin/sh", "-c", "echo up; sleep 100"])).unwrap();
    assert_eq!(shim.exec("c", &["true"]).unwrap().0, 0);
    let inodes: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", shim.pid()))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|target| {
            let name = target.display().to_string();
            Some(name.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.get(6).is_some_and(|inode| inodes.iter().any(|own| own == inode)) {
            assert!(!fields.get(7).is_some_and(|name| name.starts_with('@')), "{line}");
        }
    }
    shim.shut_down();
}
