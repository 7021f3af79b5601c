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
        // Tests of cgroups want them below the new /sys too.
        let cgroups = cgroup_mounts();
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>)
            .expect("mount the new network's /sys");
        for (target, kind, options) in cgroups {
            let options = Some(options.as_str()).filter(|options| !options.is_empty());
            // The hierarchies are the same; a tmpfs above them may be needed and is new.
            let _ = fs::create_dir_all(&target);
            let _ = mount(Some(&*kind), &*target, Some(&*kind), MsFlags::empty(), options);
        }
        let _ = umount2("/run/netns", MntFlags::MNT_DETACH);
        fs::create_dir_all("/run/netns").expect("create /run/netns");
        mount(Some("netns"), "/run/netns", Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("an empty /run/netns");
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

/// Where cgroups are mounted: target, type, the controllers of a version 1 hierarchy.
fn cgroup_mounts() -> Vec<(String, String, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(target) = before.split(' ').nth(4) else { continue };
        let words: Vec<&str> = after.split(' ').collect();
        let [kind, _source, options] = words[..] else { continue };
        match kind {
            "cgroup2" => found.push((target.to_owned(), kind.to_owned(), String::new())),
            "cgroup" => {
                let own = options.split(',').filter(|word| *word != "rw" && *word != "ro");
                let own = own.collect::<Vec<_>>().join(",");
                found.push((target.to_owned(), kind.to_owned(), own));
            }
            "tmpfs" if target == "/sys/fs/cgroup" => {
                found.push((target.to_owned(), kind.to_owned(), "mode=755".to_owned()));
            }
            _ => {}
        }
    }
    found
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
