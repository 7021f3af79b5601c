//! Private namespaces for a test.
//!
//! Owns giving the calling thread, and all it starts from then on, a network and a mount namespace
//! of its own. They end with the thread and its children: nothing is to be cleaned up in them.

use std::fs;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{geteuid, gettid};

/// Panics unless this is root: a test that needs privilege fails without, it never passes.
///
/// # Panics
/// The effective user is not root.
pub fn require_root() {
    assert!(geteuid().is_root(), "this test needs root: it makes namespaces, mounts and links");
}

/// The calling thread is in namespaces of its own.
#[derive(Debug)]
pub struct Private {
    hint: String,
}

impl Private {
    /// Moves the calling thread into a new network and mount namespace: loopback up, `/sys` of the
    /// new network, an empty `/run/netns`, no mount propagating out. Threads and processes that it
    /// starts afterwards are in there too, so call it first, before any runtime is built.
    ///
    /// # Panics
    /// Missing privilege.
    pub fn enter() -> Private {
        require_root();
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("a network and a mount namespace of its own: this test needs root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("make all mounts private");
        let _ = umount2("/run/netns", MntFlags::MNT_DETACH);
        fs::create_dir_all("/run/netns").expect("create /run/netns");
        attach("netns", "/run/netns", "tmpfs");
        new_sys();
        run("ip", &["link", "set", "lo", "up"]);
        let hint = format!("nsenter --target {} --net --mount", gettid());
        eprintln!("to look into this test while it runs: {hint}");
        Private { hint }
    }

    /// The command that enters the same namespaces while the test runs.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

/// `/sys` shows the links of the network namespace it was mounted in, so a new one is needed. What
/// was mounted for cgroups is moved onto it.
fn new_sys() {
    const CGROUPS: &str = "/sys/fs/cgroup";
    const ASIDE: &str = "/run/netns/.cgroup";
    fs::create_dir(ASIDE).expect("create a place for the cgroup mounts");
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(CGROUPS), ASIDE, None::<&str>, bind, None::<&str>).expect("keep the cgroup mounts");
    attach("sysfs", "/sys", "sysfs");
    mount(Some(ASIDE), CGROUPS, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .expect("move the cgroup mounts");
    fs::remove_dir(ASIDE).expect("remove the place of the cgroup mounts");
}

fn attach(source: &str, target: &str, kind: &str) {
    mount(Some(source), target, Some(kind), MsFlags::empty(), None::<&str>)
        .unwrap_or_else(|error| panic!("mount {kind} on {target}: {error}"));
}

/// Runs a program that must succeed.
///
/// # Panics
/// It does not, with what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("run {program}: {error}: run tests/setup/packages.sh"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {} failed ({}): {printed}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}
