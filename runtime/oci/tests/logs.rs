//! Logs by a real shim: rotation and compression, a writer that stalls or dies, a disk that is full.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_oci::protocol::*;
use berth_oci::{read_frame, write_frame};
use fixture::{Shim, sandbox};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The rotated set of a log, oldest first, the current file last.
fn files(log: &Path) -> Vec<PathBuf> {
    let name = format!("{}.", log.file_name().unwrap().to_str().unwrap());
    let entries = log.parent().unwrap().read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut rotated: Vec<PathBuf> = entries
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&name))
        .collect();
    rotated.sort();
    rotated.push(log.to_owned());
    rotated
}

fn content(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = File::open(path)?;
    match path.extension().is_some_and(|extension| extension == "gz") {
        true => flate2::read::GzDecoder::new(file).read_to_end(&mut bytes)?,
        false => file.read_to_end(&mut bytes)?,
    };
    Ok(bytes)
}

/// All that a set holds, read as compression wants it read: of a file that is there twice the plain one,
/// and anew where one has gone meanwhile.
fn whole(log: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    until("the files do not rest", || {
        let all = files(log);
        let is_read = |path: &&PathBuf| match path.extension().and_then(|kind| kind.to_str()) {
            Some("tmp") => false,
            Some("gz") => !all.contains(&path.with_extension("")),
            _ => true,
        };
        let read = all.iter().filter(is_read).map(|path| content(path)).collect();
        let read: std::io::Result<Vec<_>> = read;
        bytes = read.as_ref().map(|parts| parts.concat()).unwrap_or_default();
        read.is_ok()
    });
    bytes
}

/// The texts of the lines of a log's bytes, which must be whole records.
fn lines(bytes: &[u8]) -> Vec<String> {
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "the last record is torn");
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let one = |line: &str| {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        assert!(fields[0].ends_with('Z'), "{line}");
        assert_eq!(fields[1..3], ["stdout", "F"], "{line}");
        fields[3].to_owned()
    };
    text.lines().map(one).collect()
}

fn counted(upto: u32) -> Vec<String> {
    (1..=upto).map(|n| n.to_string()).collect()
}

/// The process of a shim that goes by a name.
fn helper(shim: &Shim, name: &str) -> Option<Pid> {
    let children = format!("/proc/{0}/task/{0}/children", shim.pid());
    let children = std::fs::read_to_string(children).unwrap();
    let named = |pid: &&str| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim_end() == name
    };
    let found = children.split_whitespace().find(named)?;
    Pid::from_raw(found.parse().unwrap())
}

fn signal(pid: Pid, signal: Signal) {
    pidfd_send_signal(pidfd_open(pid, PidfdFlags::empty()).unwrap(), signal).unwrap();
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn record(shim: &mut Shim, id: &str) -> ContainerRecord {
    let Ok(Reply::Shim { containers, .. }) = shim.ask(&Request::Hello) else { panic!() };
    containers.into_iter().find(|c| c.id == id).unwrap()
}

#[test]
fn a_rotated_and_compressed_set_is_the_whole_log_in_order() {
    let mut shim = Shim::start(&sandbox());
    let mut request = shim.container("c", &["/bin/seq", "1", "60000"]);
    request.stdio.log_max_bytes = 200_000;
    request.stdio.log_max_files = 100;
    shim.launch(request).unwrap();
    assert_eq!(shim.wait("c").exit_code, 0);
    let log = shim.log("c");
    let plain = |path: &PathBuf| path.extension().is_none_or(|extension| extension != "gz");
    // The current file, and the youngest rotated one for those who still read it.
    until("old files stay uncompressed", || files(&log).iter().filter(|p| plain(p)).count() == 2);
    let files = files(&log);
    assert!(files.len() > 10, "{files:?}");
    let contents: Vec<Vec<u8>> = files.iter().map(|path| content(path).unwrap()).collect();
    for pair in contents.windows(2) {
        let first = pair[1].iter().position(|b| *b == b'\n').unwrap() + 1;
        assert!(pair[0].len() <= 200_000 && pair[0].len() + first > 200_000, "not at the byte");
    }
    assert!(lines(&contents.concat()) == counted(60_000), "lost, doubled or out of order");
    assert_eq!(record(&mut shim, "c").lost_log_records, 0);
    shim.shut_down();
}

#[test]
fn only_so_many_files_stay() {
    let mut shim = Shim::start(&sandbox());
    let mut request = shim.container("c", &["/bin/seq", "1", "20000"]);
    request.stdio.log_max_bytes = 50_000;
    request.stdio.log_max_files = 3;
    shim.launch(request).unwrap();
    assert_eq!(shim.wait("c").exit_code, 0);
    let log = shim.log("c");
    until("too many files", || files(&log).len() == 3);
    let last = whole(&log);
    let all = counted(20_000);
    assert!(all.ends_with(&lines(&last)), "the youngest stay");
    shim.shut_down();
}

#[test]
fn a_disk_that_stalls_holds_a_container_for_a_second_and_losses_are_counted() {
    let mut shim = Shim::start(&sandbox());
    let script = "echo up; while ! test -e /tmp/go; do sleep 0.01; done; seq 1 300000";
    shim.launch(shim.container("c", &["/bin/sh", "-c", script])).unwrap();
    shim.launch(shim.container("other", &["/bin/sleep", "100"])).unwrap();
    until("no line", || shim.log("c").metadata().is_ok_and(|m| m.len() > 0));
    let mut events = shim.connect();
    write_frame(&mut events, &Request::Subscribe { log_losses: true }).unwrap();
    let writer = helper(&shim, "berth-log").unwrap();
    signal(writer, Signal::STOP);
    let start = Instant::now();
    std::fs::write(shim.image().join("tmp/go"), "").unwrap();
    let mut told = 0;
    let exit = loop {
        match read_frame(&mut events).unwrap().unwrap() {
            Event::LogLost { records, .. } => told = records,
            Event::Exited { exit, .. } => break exit,
        }
        // The shim serves others meanwhile.
        assert_eq!(shim.exec("other", &["true"]).unwrap().0, 0);
    };
    assert_eq!(exit.exit_code, 0);
    // A second of patience, the run itself, and at most five for the log to be complete.
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    signal(writer, Signal::CONT);
    let record = record(&mut shim, "c");
    assert!(record.lost_log_records > 0 && told == record.lost_log_records, "{told} {record:?}");
    assert!(record.warnings.iter().any(|w| w.contains("log records were lost")), "{record:?}");
    let log = shim.log("c");
    let expected = 300_001 - record.lost_log_records as usize;
    let kept = || whole(&log).iter().filter(|b| **b == b'\n').count();
    until("what was not lost is written", || kept() == expected);
    shim.shut_down();
}

#[test]
fn a_full_disk_keeps_whole_records_and_counts_the_rest() {
    let mut shim = Shim::start(&sandbox());
    let logs = shim.log("c").parent().unwrap().to_owned();
    rustix::mount::mount("log", &logs, "tmpfs", MountFlags::empty(), Some(c"size=128k")).unwrap();
    let mut request = shim.container("c", &["/bin/seq", "1", "20000"]);
    request.stdio.log_max_bytes = 50_000;
    request.stdio.log_max_files = 100;
    shim.launch(request).unwrap();
    let exit = shim.wait("c");
    let lost = record(&mut shim, "c").lost_log_records as usize;
    let bytes = whole(&shim.log("c"));
    let kept = lines(&bytes).len();
    rustix::mount::unmount(&logs, UnmountFlags::DETACH).unwrap();
    shim.shut_down();
    assert_eq!(exit.exit_code, 0);
    assert!(lost > 0 && kept > 0);
    assert_eq!(kept + lost, 20_000);
}

#[test]
fn a_writer_that_dies_is_replaced_and_what_it_had_is_counted() {
    let mut shim = Shim::start(&sandbox());
    let script = "echo one; while ! test -e /tmp/go; do sleep 0.01; done; echo two";
    shim.launch(shim.container("c", &["/bin/sh", "-c", script])).unwrap();
    until("no line", || shim.log("c").metadata().is_ok_and(|m| m.len() > 0));
    let writer = helper(&shim, "berth-log").unwrap();
    signal(writer, Signal::KILL);
    until("it is not reaped", || helper(&shim, "berth-log") != Some(writer));
    std::fs::write(shim.image().join("tmp/go"), "").unwrap();
    assert_eq!(shim.wait("c").exit_code, 0);
    assert_eq!(shim.log_text("c"), "one\ntwo\n");
    // Written, but not confirmed: more may be counted than was lost, never less.
    assert_eq!(record(&mut shim, "c").lost_log_records, 1);
    shim.shut_down();
}

#[test]
fn a_log_is_opened_anew_and_limited_on_request() {
    let mut shim = Shim::start(&sandbox());
    let script = "echo one; while ! test -e /tmp/go; do sleep 0.01; done; seq 1 1000";
    shim.launch(shim.container("c", &["/bin/sh", "-c", script])).unwrap();
    let log = shim.log("c");
    until("no line", || log.metadata().is_ok_and(|m| m.len() > 0));
    let moved = log.with_extension("moved");
    std::fs::rename(&log, &moved).unwrap();
    let reopen = Request::ReopenLog { id: "c".to_owned() };
    assert_eq!(shim.ask(&reopen), Ok(Reply::Done));
    assert!(log.exists());
    let limit = Request::LimitLog { id: "c".to_owned(), max_bytes: 5_000, max_files: 100 };
    assert_eq!(shim.ask(&limit), Ok(Reply::Done));
    std::fs::write(shim.image().join("tmp/go"), "").unwrap();
    assert_eq!(shim.wait("c").exit_code, 0);
    assert_eq!(lines(&content(&moved).unwrap()), ["one"]);
    let files = files(&log);
    assert!(files.len() > 5, "{files:?}");
    assert_eq!(shim.ask(&reopen).unwrap_err().kind, FailureKind::State);
    let missing = Request::ReopenLog { id: "nobody".to_owned() };
    assert_eq!(shim.ask(&missing).unwrap_err().kind, FailureKind::NotFound);
    shim.shut_down();
}

#[test]
fn a_huge_line_is_cut_into_parts_and_costs_no_memory() {
    let mut shim = Shim::start(&sandbox());
    let megabytes: usize = std::env::var("BERTH_LINE_MIB").map_or(32, |text| text.parse().unwrap());
    let script = format!("dd if=/dev/zero bs=1M count={megabytes} 2>/dev/null; printf '\\377\\n'");
    let mut request = shim.container("c", &["/bin/sh", "-c", &script]);
    request.stdio.log_max_bytes = 4 << 30;
    shim.launch(request).unwrap();
    assert_eq!(shim.wait("c").exit_code, 0);
    let bytes = content(&shim.log("c")).unwrap();
    let records: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    assert_eq!(records.len(), megabytes * 64 + 1);
    let head = "2006-01-02T15:04:05.000000000Z stdout ".len();
    for record in &records[..megabytes * 64] {
        assert_eq!((record[head], record.len()), (b'P', head + 2 + (16 << 10) + 1));
    }
    // What is no UTF-8 is passed through.
    assert_eq!(&records[megabytes * 64][head..], b"F \xff\n");
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 16 << 10, "{peak} KiB");
    shim.shut_down();
}

#[test]
fn the_writer_is_not_seen_in_a_shared_pid_namespace() {
    let mut config = sandbox();
    config.pid = PidNamespace::Sandbox;
    let mut shim = Shim::start(&config);
    let script = "echo up; sleep 0.2; for p in /proc/[0-9]*; do cat $p/comm; done";
    let (_, seen) = shim.run("c", script);
    assert!(seen.contains("sh\n") && !seen.contains("berth-log"), "{seen}");
    assert!(helper(&shim, "berth-log").is_some());
    shim.shut_down();
}
