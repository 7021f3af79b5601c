//! What a container may and may not do, and that hostile root file systems stay inside (the runtime
//! rows of the attack table: CVE-2016-9962, 2019-19921, 2021-30465, 2024-21626, 2025-31133,
//! 2025-52565 and their kin).

#![allow(clippy::unwrap_used)]

mod fixture;

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use berth_oci::protocol::*;
use fixture::{Shim, cgroup_root, sandbox, spec_with};
use serde_json::json;

/// A directory that must not change.
struct Canary(tempfile::TempDir);

impl Canary {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ptmx"), "canary").unwrap();
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let names: Vec<_> = self.0.path().read_dir().unwrap().flatten().collect();
            assert_eq!(names.len(), 1, "{names:?}");
            assert_eq!(std::fs::read_to_string(self.0.path().join("ptmx")).unwrap(), "canary");
        }
    }
}

#[test]
fn an_ordinary_container_is_confined() {
    let mut shim = Shim::start(&sandbox());
    let script = "grep -E 'Cap|Seccomp:' /proc/1/status; cat /proc/kcore | wc -c; \
                  echo x > /proc/sys/kernel/hostname; mount -t tmpfs x /tmp; ls /sys/firmware; \
                  echo 1 > /sys/fs/cgroup/cgroup.procs; cat /proc/self/cgroup; ls -d /sys/fs/cgroup/cgroup.procs; \
                  echo ok > /dev/null; head -c 4 /dev/zero | wc -c; mknod /tmp/null c 1 3; umount /proc/kcore; id";
    let (exit, text) = shim.run("c", script);
    assert_eq!(exit.exit_code, 0);
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "Seccomp:\t2",
        "0::/",
        "/sys/fs/cgroup/cgroup.procs",
        "4",
        "uid=0(root) gid=0(root) groups=0(root)",
    ] {
        assert!(text.lines().any(|got| got == line), "{line}: {text}");
    }
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(
        text.contains("permission denied") || text.contains("Operation not permitted"),
        "{text}"
    );
    shim.shut_down();
}

#[test]
fn users_are_those_of_the_image() {
    let mut shim = Shim::start(&sandbox());
    let run = |shim: &mut Shim, id: &str, user: UserSelector| {
        let script =
            "id -u; id -g; id -G; echo $HOME; grep CapEff /proc/self/status; echo x > /dev/stderr";
        let mut request = shim.container(id, &["/bin/sh", "-c", script]);
        request.user = user;
        let id = request.id.clone();
        let record = shim.create(request)?;
        assert_eq!(record.state, ContainerPhase::Created);
        shim.ask(&Request::Start { id: id.clone() })?;
        shim.wait(&id);
        Ok::<_, Failure>((record.user, shim.log_text(&id)))
    };
    let web = UserSelector { user: "web".to_owned(), ..UserSelector::default() };
    let (user, text) = run(&mut shim, "a", web).unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (33, 34, vec![34, 50]));
    assert!(text.starts_with("33\n34\n34 50\n/srv/web\nCapEff:\t0000000000000000\n"), "{text}");
    assert!(text.ends_with("x\n"), "{text}");
    let numeric = UserSelector {
        user: "1234".to_owned(),
        group: Some(5),
        supplemental_groups: vec![6, 7],
        strict_groups: true,
    };
    let (_, text) = run(&mut shim, "b", numeric).unwrap();
    assert!(text.starts_with("1234\n5\n5 6 7\n/\n"), "{text}");
    for (index, user) in ["4294967296", "2147483648", " 1", "1:4294967296"].into_iter().enumerate()
    {
        let user = UserSelector { user: user.to_owned(), ..UserSelector::default() };
        let failure = run(&mut shim, &format!("bad{index}"), user).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid, "{failure:?}");
    }
    shim.shut_down();
}

#[test]
fn special_or_huge_user_databases_are_refused_at_once() {
    let mut shim = Shim::start(&sandbox());
    let passwd = shim.image().join("etc/passwd");
    std::fs::remove_file(&passwd).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&passwd).status().unwrap().success());
    let failure = shim.create(shim.container("fifo", &["/bin/true"])).unwrap_err();
    assert!(failure.message.contains("not a regular file"), "{failure:?}");
    std::fs::remove_file(&passwd).unwrap();
    std::fs::File::create(&passwd).unwrap().set_len(20 << 30).unwrap();
    let failure = shim.create(shim.container("huge", &["/bin/true"])).unwrap_err();
    assert!(failure.message.contains("exceeds 10 MiB"), "{failure:?}");
    shim.shut_down();
}

#[test]
fn mount_targets_that_are_links_are_refused_or_stay_inside() {
    let canary = Canary::new();
    for directory in ["proc", "sys"] {
        let mut shim = Shim::start(&sandbox());
        std::fs::remove_dir(shim.image().join(directory)).unwrap();
        symlink("tmp", shim.image().join(directory)).unwrap();
        let failure = shim.create(shim.container("c", &["/bin/true"])).unwrap_err();
        assert!(failure.message.contains("must be mounted on ordinary directory"), "{failure:?}");
        shim.shut_down();
    }
    let mut shim = Shim::start(&sandbox());
    std::fs::remove_dir(shim.image().join("dev")).unwrap();
    symlink(canary.path(), shim.image().join("dev")).unwrap();
    // Made inside the root: the container runs and the host's directory is untouched.
    let (exit, text) = shim.run("c", "ls -l /dev/; echo fine > /dev/null");
    assert_eq!(exit.exit_code, 0, "{text}");
    shim.shut_down();
}

#[test]
fn without_a_dev_mount_what_the_image_left_there_is_not_followed() {
    let canary = Canary::new();
    let no_dev = |spec: &mut serde_json::Value| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    };
    let mut shim = Shim::start(&sandbox());
    std::fs::remove_dir(shim.image().join("dev")).unwrap();
    symlink(canary.path(), shim.image().join("dev")).unwrap();
    let mut request = shim.container("a", &["/bin/true"]);
    request.spec = spec_with(&["/bin/true"], no_dev);
    // Inside the root or an error: never the canary.
    let _ = shim.launch(request);
    std::fs::remove_file(shim.image().join("dev")).unwrap();
    std::fs::create_dir(shim.image().join("dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", shim.image().join("dev/null")).unwrap();
    let mut request = shim.container("b", &["/bin/true"]);
    request.spec = spec_with(&["/bin/true"], no_dev);
    let failure = shim.create(request).unwrap_err();
    assert!(failure.message.contains("make device /dev/null"), "{failure:?}");
    shim.shut_down();
}

#[test]
fn a_console_that_is_a_link_is_refused() {
    let canary = Canary::new();
    let mut shim = Shim::start(&sandbox());
    symlink(canary.path().join("ptmx"), shim.image().join("dev/console")).unwrap();
    let mut request = shim.container("c", &["/bin/true"]);
    request.stdio.tty = true;
    request.spec = spec_with(&["/bin/true"], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev");
        spec["process"]["terminal"] = json!(true);
    });
    let failure = shim.create(request).unwrap_err();
    assert!(failure.message.contains("/dev/console"), "{failure:?}");
    shim.shut_down();
}

#[test]
fn a_terminal_is_the_container_s_own() {
    let mut shim = Shim::start(&sandbox());
    let mut request = shim.container(
        "c",
        &["/bin/sh", "-c", "tty; test -t 0 && test -t 1 && echo yes; ls -l /dev/console"],
    );
    request.stdio.tty = true;
    let (exit, text) = shim.run_request(request);
    assert_eq!(exit.exit_code, 0, "{text}");
    let text = text.replace('\r', "");
    assert!(text.contains("/dev/pts/0\nyes\n") && text.contains("crw"), "{text}");
    shim.shut_down();
}

#[test]
fn working_directories_lead_nowhere_else() {
    let mut shim = Shim::start(&sandbox());
    for fd in 3..20 {
        let mut request = shim.container("c", &["/bin/true"]);
        request.spec = spec_with(&["/bin/true"], |spec| {
            spec["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        });
        let failure = shim.create(request).unwrap_err();
        assert!(failure.message.contains("chdir to cwd"), "{failure:?}");
    }
    let mut request = shim.container("d", &["/bin/pwd"]);
    request.spec = spec_with(&["/bin/pwd"], |spec| spec["process"]["cwd"] = json!("/made/here"));
    assert_eq!(shim.run_request(request).1, "/made/here\n");
    shim.shut_down();
}

#[test]
fn masked_paths_that_are_links_stay_inside() {
    let canary = Canary::new();
    let mut shim = Shim::start(&sandbox());
    symlink(canary.path(), shim.image().join("masked")).unwrap();
    std::fs::write(shim.image().join("secret"), "secret").unwrap();
    std::fs::create_dir(shim.image().join("hidden")).unwrap();
    std::fs::write(shim.image().join("hidden/file"), "secret").unwrap();
    let args =
        ["/bin/sh", "-c", "cat /secret; ls /hidden; touch /hidden/x; touch /bin/x; ls /masked"];
    let mut request = shim.container("c", &args);
    request.spec = spec_with(&args, |spec| {
        spec["linux"]["maskedPaths"] = json!(["/masked", "/secret", "/hidden", "/missing"]);
        spec["linux"]["readonlyPaths"] = json!(["/bin"]);
    });
    let (_, text) = shim.run_request(request);
    assert!(!text.contains("secret\n") && !text.contains("file\n"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    shim.shut_down();
}

#[test]
fn mounts_have_their_options_and_binds_their_source() {
    let canary = Canary::new();
    let mut shim = Shim::start(&sandbox());
    let source = canary.path();
    let args = [
        "/bin/sh",
        "-c",
        "cat /data/ptmx /one; echo; touch /data/new; grep -E ' /(data|one|scratch|proc/sys) ' /proc/self/mountinfo | cut -d' ' -f5,6",
    ];
    let mut request = shim.container("c", &args);
    request.spec = spec_with(&args, |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/data", "source": source, "options": ["rbind", "rro", "rprivate"]}));
        mounts.push(json!({"destination": "/one", "source": source.join("ptmx"), "options": ["bind", "ro", "nosuid"]}));
        mounts.push(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs",
                           "options": ["nosuid", "noexec", "noatime", "size=1m", "mode=0700"]}));
        spec["root"]["readonly"] = json!(true);
    });
    let (_, text) = shim.run_request(request);
    assert!(text.starts_with("canarycanary"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    // What binds keep of their source's mount follows.
    for line in [
        "/data ro,",
        "/one ro,nosuid,",
        "/scratch rw,nosuid,noexec,noatime",
        "/proc/sys ro,nosuid,nodev,noexec,relatime",
    ] {
        assert!(text.lines().any(|got| got.starts_with(line)), "{line}: {text}");
    }
    shim.shut_down();
}

#[test]
fn an_overlay_keeps_layers_and_takes_writes() {
    let mut shim = Shim::start(&sandbox());
    let base = shim.root.path().to_owned();
    for name in ["extra", "upper", "work"] {
        std::fs::create_dir(base.join(name)).unwrap();
    }
    std::fs::write(base.join("extra/layer"), "top").unwrap();
    let mut request =
        shim.container("c", &["/bin/sh", "-c", "cat /layer; echo new > /written; rm /etc/group"]);
    std::os::unix::fs::symlink("busybox", shim.image().join("bin/rm")).unwrap();
    request.rootfs = Rootfs::Overlay {
        lower: vec![base.join("extra"), shim.image()],
        upper: base.join("upper"),
        work: base.join("work"),
    };
    let (exit, text) = shim.run_request(request);
    assert_eq!((exit.exit_code, text.as_str()), (0, "top\n"), "{exit:?}");
    assert_eq!(std::fs::read_to_string(base.join("upper/written")).unwrap(), "new\n");
    assert!(shim.image().join("etc/group").exists());
    shim.shut_down();
}

#[test]
fn what_the_host_cannot_enforce_is_told_and_what_berth_does_not_offer_is_refused() {
    let mut shim = Shim::start(&sandbox());
    let args = [
        "/bin/sh",
        "-c",
        "cat /proc/self/oom_score_adj; mknod /tmp/kmsg c 1 11 && head -c1 /tmp/kmsg; echo x > /dev/full; echo y > /dev/null && echo fine",
    ];
    let mut request = shim.container("c", &args);
    request.spec = spec_with(&args, |spec| {
        spec["process"]["oomScoreAdj"] = json!(900);
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 100_000_000},
            "pids": {"limit": 100},
            "devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
            ]
        });
    });
    let record = shim.create(request).unwrap();
    let has = |text: &str| record.warnings.iter().any(|warning| warning.contains(text));
    let controllers = std::fs::read_to_string(cgroup_root().join("cgroup.controllers")).unwrap();
    assert_eq!(has("memory.max"), !controllers.contains("memory"), "{:?}", record.warnings);
    assert_eq!(has("pids.max"), !controllers.contains("pids"), "{:?}", record.warnings);
    shim.ask(&Request::Start { id: "c".to_owned() }).unwrap();
    shim.wait("c");
    let text = shim.log_text("c");
    assert!(text.starts_with("900\n"), "{text}");
    assert!(text.contains("No space left on device") && text.contains("fine\n"), "{text}");
    let denied = text.contains("/tmp/kmsg: Operation not permitted");
    assert_eq!(denied, !has("bpf(2)"), "{text} {:?}", record.warnings);
    for (path, value, field) in [
        ("uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]), "linux.gidMappings"),
        ("namespaces", json!([{"type": "user"}]), "linux.uidMappings"),
        ("rootfsPropagation", json!("sideways"), "linux.rootfsPropagation"),
    ] {
        let mut request = shim.container("x", &["/bin/true"]);
        request.spec = spec_with(&["/bin/true"], |spec| spec["linux"][path] = value);
        let failure = shim.create(request).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(failure.message.starts_with(field), "{failure:?}");
    }
    assert!(cgroup_root().join(&shim.cgroup).exists());
    shim.shut_down();
}

#[test]
fn a_bidirectional_mount_passes_mounts_both_ways_and_nothing_else() {
    let mut shim = Shim::start(&sandbox());
    let shared = shim.root.path().join("shared");
    std::fs::create_dir_all(shared.join("host")).unwrap();
    std::fs::create_dir_all(shared.join("container")).unwrap();
    let mount = |args: &[&str]| {
        assert!(
            std::process::Command::new("mount").args(args).status().unwrap().success(),
            "{args:?}"
        );
    };
    let text = shared.to_str().unwrap();
    mount(&["-t", "tmpfs", "shared", text]);
    mount(&["--make-shared", text]);
    for directory in ["host", "container"] {
        std::fs::create_dir_all(shared.join(directory)).unwrap();
    }
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let script = "mount -t tmpfs inner /shared/container && echo mounted; \
                  while ! test -e /shared/host/seen; do sleep 0.05; done; echo saw";
    let args = ["/bin/sh", "-c", script];
    let mut request = shim.container("c", &args);
    request.spec = spec_with(&args, |spec| {
        let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
        spec["process"]["capabilities"] =
            json!({"bounding": all, "effective": all, "permitted": all});
        spec["linux"]["seccomp"] = json!(null);
        spec["linux"]["rootfsPropagation"] = json!("rshared");
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({"destination": "/shared", "source": text, "options": ["rbind", "rshared"]}),
        );
    });
    shim.launch(request).unwrap();
    let host = shared.join("host");
    mount(&["-t", "tmpfs", "outer", host.to_str().unwrap()]);
    std::fs::write(host.join("seen"), "").unwrap();
    let exit = shim.wait("c");
    assert_eq!((exit.exit_code, shim.log_text("c").as_str()), (0, "mounted\nsaw\n"));
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let inner = shared.join("container");
    assert!(after.contains(inner.to_str().unwrap()), "{after}");
    // Two mounts more, the container's and ours: nothing of its root reached the host. What others on
    // the machine mount meanwhile does not count.
    let root = shim.root.path().to_str().unwrap();
    let places = [root, "/proc", "/dev", "/sys", "/shared", "/bin"];
    let is_place = |line: &&str| {
        let point = line.split(' ').nth(4).unwrap_or_default();
        places.iter().any(|place| point.starts_with(place))
    };
    let count = |mounts: &str| {
        let ours = mounts.lines().filter(|line| !line.contains("/sandbox/ns/"));
        ours.filter(is_place).count()
    };
    assert_eq!(count(&after), count(&before) + 2, "{before}\n{after}");
    for path in [inner, host, shared.clone()] {
        assert!(std::process::Command::new("umount").arg(path).status().unwrap().success());
    }
    shim.shut_down();
}
