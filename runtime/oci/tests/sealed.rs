//! The command line's executable out of the container's reach: CVE-2019-5736.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bundle::Bundle;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, MountFlags, OpenTreeFlags};
use serde_json::json;

const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// Makes a container whose first process waits; returns its executable.
fn created(bundle: &Bundle, command: &mut Command) -> PathBuf {
    bundle.write();
    let pid = bundle.path().join("pid");
    let status = command
        .arg("--root")
        .arg(bundle.path().join("state"))
        .args(["create", "--bundle"])
        .arg(bundle.path())
        .arg("--pid-file")
        .arg(&pid)
        .arg(bundle.id())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    PathBuf::from(format!("/proc/{}/exe", std::fs::read_to_string(pid).unwrap()))
}

fn host_executable() -> Vec<u8> {
    std::fs::read(env!("CARGO_BIN_EXE_berth-oci")).unwrap()
}

#[test]
fn the_first_process_executes_what_cannot_be_made_writable() {
    let before = host_executable();
    let bundle = Bundle::new("true");
    let exe = created(&bundle, &mut Command::new(env!("CARGO_BIN_EXE_berth-oci")));
    let shown = File::open(&exe).unwrap();
    let kind = rustix::fs::fstatfs(&shown).unwrap().f_type as i64;
    assert_eq!(kind, OVERLAYFS_MAGIC, "not by way of an overlay");
    let write = |path: &PathBuf| rustix::fs::open(path, OFlags::WRONLY, Mode::empty());
    assert_eq!(write(&exe).unwrap_err(), Errno::ROFS);
    assert_eq!(rustix::fs::fchmod(&shown, Mode::from_raw_mode(0o777)).unwrap_err(), Errno::ROFS);
    // Nor with the host's own privileges: what it is on is attached nowhere.
    let bind = MountFlags::BIND;
    assert_eq!(rustix::mount::mount_remount(&exe, bind, "").unwrap_err(), Errno::INVAL);
    assert_eq!(
        rustix::mount::mount_remount(&exe, MountFlags::empty(), "").unwrap_err(),
        Errno::INVAL
    );
    let clone = OpenTreeFlags::OPEN_TREE_CLONE;
    assert_eq!(rustix::mount::open_tree(CWD, &exe, clone).unwrap_err(), Errno::INVAL);
    assert_eq!(rustix::mount::fspick(CWD, &exe, FsPickFlags::empty()).unwrap_err(), Errno::INVAL);
    let linked = bundle.path().join("linked");
    let link = rustix::fs::linkat(shown.as_fd(), "", CWD, &linked, AtFlags::EMPTY_PATH);
    assert_eq!(link.unwrap_err(), Errno::XDEV);
    // Held open beyond the end of all that execute it, as the attack does.
    let kept = PathBuf::from(format!("/proc/self/fd/{}", shown.as_raw_fd()));
    drop(bundle);
    assert_eq!(write(&kept).unwrap_err(), Errno::ROFS);
    assert!(host_executable() == before);
}

#[test]
fn an_executable_without_a_name_is_copied_into_sealed_memory() {
    let bundle = Bundle::new("true");
    let path = bundle.path().join("gone");
    std::fs::copy(env!("CARGO_BIN_EXE_berth-oci"), &path).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let number = file.as_raw_fd();
    let exe = created(&bundle, &mut Command::new(format!("/proc/self/fd/{number}")));
    let shown = std::fs::read_link(&exe).unwrap();
    assert!(shown.starts_with("/memfd:berth-oci (deleted)"), "{shown:?}");
    let opened = std::fs::OpenOptions::new().write(true).open(&exe);
    assert!(opened.and_then(|mut file| std::io::Write::write_all(&mut file, b"x")).is_err());
}

#[test]
fn another_executable_of_the_same_name_is_not_taken_for_this_one() {
    let bundle = Bundle::new("true");
    let path = bundle.path().join("replaced");
    std::fs::copy(env!("CARGO_BIN_EXE_berth-oci"), &path).unwrap();
    // Executed where a link leads that is another file's by the time it looks for itself.
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(bundle.path().join("replaced (deleted)"), "#!/bin/false\n").unwrap();
    let number = file.as_raw_fd();
    let exe = created(&bundle, &mut Command::new(format!("/proc/self/fd/{number}")));
    assert!(std::fs::read_link(&exe).unwrap().starts_with("/memfd:berth-oci (deleted)"));
}

#[test]
fn a_container_cannot_write_to_the_executable_of_who_joins_it() {
    let before = host_executable();
    // It may look into any process it sees, as a debugger may, and mount what it likes. It opens what
    // a process that joins executes, and keeps it until nobody executes it.
    let attack = "while :; do for p in /proc/[0-9]*; do (\
                  exec 3< $p/exe; case $(readlink /proc/self/fd/3) in */busybox) exit;; esac; \
                  echo seen; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.01; \
                  (: >> /proc/self/fd/3) && echo opened; done; \
                  mount -o remount,rw,bind /proc/self/fd/3 && echo remounted; \
                  mount --bind /proc/self/fd/3 /tmp/x && echo bound) 2> /dev/null; done; done";
    let mut bundle = Bundle::new(&format!("touch /tmp/x; {attack}"));
    let all = json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
    bundle.spec["process"]["capabilities"] =
        json!({"bounding": all, "effective": all, "permitted": all});
    bundle.write();
    let log = bundle.path().join("log");
    let id = bundle.id();
    let path = bundle.path().to_str().unwrap();
    let mut run = bundle.command(&["run", "--detach", "--bundle", path, &id]);
    assert!(run.stdout(File::create(&log).unwrap()).status().unwrap().success());
    let said = || std::fs::read_to_string(&log).unwrap();
    let mut count = 0;
    while count < 100 || !said().contains("seen") {
        count += 1;
        assert!(count < 10_000, "the attacker saw no process of ours");
        let mut exec = bundle.command(&["exec", &id, "true"]);
        assert!(exec.stdout(Stdio::null()).status().unwrap().success());
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(bundle.command(&["delete", "--force", &id]).status().unwrap().success());
    assert!(said().lines().all(|line| line == "seen"), "{}", said());
    assert!(host_executable() == before);
}
