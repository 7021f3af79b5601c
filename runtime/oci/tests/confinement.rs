//! What a container may and may not do, and that hostile root file systems stay inside (the runtime
//! rows of the attack table: CVE-2016-9962, 2019-19921, 2021-30465, 2024-21626, 2025-31133,
//! 2025-52565 and their kin).

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::os::unix::fs::symlink;
use std::path::Path;

use berth_oci::protocol::*;
use fixture::oracle::Witness;
use fixture::{Shim, cgroup_root, sandbox, spec_with};
use serde_json::json;

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

/// CVE-2022-29162: what can be inherited is gained by whatever file has such capabilities.
#[test]
fn no_process_can_pass_capabilities_on() {
    let all = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n";
    let script = "grep -E 'CapInh|CapAmb' /proc/self/status";
    let mut shim = Shim::start(&sandbox());
    assert_eq!(shim.run("first", script).1, all);
    shim.launch(shim.container("c", &["/bin/sleep", "60"])).unwrap();
    assert_eq!(shim.exec("c", &["sh", "-c", script]).unwrap().1, all);
    shim.shut_down();
    let bundle = bundle::Bundle::new(script);
    assert_eq!(bundle.text(), all);
    let bundle = bundle::Bundle::new("sleep 60");
    bundle.write();
    let id = bundle.id();
    let run = ["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), &id];
    let null = std::process::Stdio::null;
    assert!(bundle.command(&run).stdout(null()).stderr(null()).status().unwrap().success());
    for user in ["0", "1000"] {
        let output = bundle.command(&["exec", "--user", user, &id, "sh", "-c", script]).output();
        assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), all, "{user}");
    }
    assert!(bundle.command(&["delete", "--force", &id]).status().unwrap().success());
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

/// Replaces a directory of an image by a link.
fn replace(image: &Path, directory: &str, target: &Path) {
    let path = image.join(directory);
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        std::fs::remove_dir_all(&path).unwrap();
    }
    symlink(target, path).unwrap();
}

#[test]
fn mount_targets_that_are_links_are_refused_or_stay_inside() {
    let witness = Witness::new();
    let inside = Path::new("tmp");
    for directory in ["proc", "sys"] {
        for target in
            [inside, Path::new("/tmp"), witness.path(), Path::new("/proc"), Path::new("/sys")]
        {
            let mut shim = Shim::start(&sandbox());
            replace(&shim.image(), directory, target);
            let failure = shim.create(shim.container("c", &["/bin/true"])).unwrap_err();
            let reason = "must be mounted on ordinary directory";
            assert!(failure.message.contains(reason), "{target:?} {failure:?}");
            shim.shut_down();
        }
    }
    for directory in ["dev", "dev/pts", "dev/shm"] {
        let mut shim = Shim::start(&sandbox());
        replace(&shim.image(), directory, witness.path());
        // Made inside the root: the container runs and the host's directory is untouched.
        let (exit, text) = shim.run("c", "ls -l /dev/; echo fine > /dev/null");
        assert_eq!(exit.exit_code, 0, "{text}");
        shim.shut_down();
    }
    witness.assert_untouched();
}

#[test]
fn nothing_but_a_procfs_is_mounted_where_programs_look_for_one() {
    let mut shim = Shim::start(&sandbox());
    let volume = shim.root.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    symlink("/proc", shim.image().join("link")).unwrap();
    for mount in [
        json!({"destination": "/proc", "source": volume, "options": ["rbind"]}),
        json!({"destination": "/x/../proc/", "source": volume, "options": ["rbind"]}),
        json!({"destination": "/link", "source": volume, "options": ["rbind"]}),
        json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}),
    ] {
        let mut request = shim.container("c", &["/bin/true"]);
        request.spec = spec_with(&["/bin/true"], |spec| {
            spec["mounts"].as_array_mut().unwrap().push(mount.clone());
        });
        let failure = shim.create(request).unwrap_err();
        assert!(failure.message.contains("is no procfs"), "{mount} {failure:?}");
    }
    let mut request = shim.container("d", &["/bin/true"]);
    request.spec = spec_with(&["/bin/true"], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/proc", "source": "/proc", "options": ["rbind"]}));
    });
    assert_eq!(shim.run_request(request).0.exit_code, 0);
    // Another procfs may be covered, and what is in the container's own.
    let mut request = shim.container("e", &["/bin/cat", "/proc/uptime"]);
    std::fs::write(volume.join("uptime"), "1 1\n").unwrap();
    request.spec = spec_with(&["/bin/cat", "/proc/uptime"], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/host", "type": "proc", "source": "proc"}));
        mounts.push(json!({"destination": "/host", "type": "tmpfs", "source": "tmpfs"}));
        let uptime = volume.join("uptime");
        mounts.push(json!({"destination": "/proc/uptime", "source": uptime, "options": ["bind"]}));
    });
    assert_eq!(shim.run_request(request).1, "1 1\n");
    shim.shut_down();
}

/// A specification without mounts on and below `/dev`.
fn without_dev(spec: &mut serde_json::Value) {
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
}

#[test]
fn without_a_dev_mount_what_the_image_left_there_is_not_followed() {
    let witness = Witness::new();
    let up = Path::new("..").join(witness.path().strip_prefix("/").unwrap());
    for target in [witness.path().to_owned(), witness.path().join("bare"), up.join("bare")] {
        let mut shim = Shim::start(&sandbox());
        replace(&shim.image(), "dev", &target);
        let mut request = shim.container("a", &["/bin/true"]);
        request.spec = spec_with(&["/bin/true"], without_dev);
        // Inside the root or an error: never the canary, whose `ptmx` would have been replaced.
        let _ = shim.launch(request);
        shim.shut_down();
    }
    let mut shim = Shim::start(&sandbox());
    for target in [witness.path().join("null"), "/proc/sys/kernel/core_pattern".into()] {
        let _ = std::fs::remove_file(shim.image().join("dev/null"));
        symlink(&target, shim.image().join("dev/null")).unwrap();
        let mut request = shim.container("b", &["/bin/true"]);
        request.spec = spec_with(&["/bin/true"], without_dev);
        let failure = shim.create(request).unwrap_err();
        assert!(failure.message.contains("make device /dev/null"), "{failure:?}");
    }
    shim.shut_down();
    witness.assert_untouched();
}

#[test]
fn terminals_that_are_links_are_refused() {
    let witness = Witness::new();
    let terminal = |spec: &mut serde_json::Value| spec["process"]["terminal"] = json!(true);
    let only_pts = |spec: &mut serde_json::Value| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev");
    };
    let link = |shim: &Shim, name: &str| {
        let path = shim.image().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(witness.path().join(name.rsplit('/').next().unwrap()), path).unwrap();
    };
    type Case<'a> = (&'a [&'a str], bool, &'a str);
    let cases: [Case<'_>; 5] = [
        (&["dev/console"], true, "/dev/console"),
        (&["dev/console"], false, "make a terminal"),
        (&["dev/pts/0", "dev/pts/ptmx"], false, "make a terminal"),
        (&["dev/ptmx", "dev/pts/0"], false, "make a terminal"),
        (&["dev/pts"], false, "make a terminal"),
    ];
    for (links, has_pts, reason) in cases {
        let mut shim = Shim::start(&sandbox());
        links.iter().for_each(|name| link(&shim, name));
        let mut request = shim.container("c", &["/bin/true"]);
        request.stdio.tty = true;
        request.spec = spec_with(&["/bin/true"], |spec| {
            terminal(spec);
            if has_pts { only_pts(spec) } else { without_dev(spec) }
        });
        let failure = shim.create(request).unwrap_err();
        assert!(failure.message.contains(reason), "{links:?} {failure:?}");
        shim.shut_down();
    }
    // The right device on a file system that is none of terminals.
    let mut shim = Shim::start(&sandbox());
    std::fs::create_dir_all(shim.image().join("dev/pts")).unwrap();
    let ptmx = shim.image().join("dev/pts/ptmx");
    let made = std::process::Command::new("mknod").arg(ptmx).args(["c", "5", "2"]).status();
    assert!(made.unwrap().success());
    let mut request = shim.container("c", &["/bin/true"]);
    request.stdio.tty = true;
    request.spec = spec_with(&["/bin/true"], |spec| {
        terminal(spec);
        without_dev(spec);
    });
    let failure = shim.create(request).unwrap_err();
    assert!(failure.message.contains("there is no devpts at /dev/pts"), "{failure:?}");
    shim.shut_down();
    witness.assert_untouched();
}

#[test]
fn a_terminal_is_the_container_s_own() {
    let script = "tty; test -t 0 && test -t 1 && echo yes; ls -l /dev/console; \
                  echo controls > /dev/tty; test -d /proc/self/fd || exit 1";
    for pid in [PidNamespace::Container, PidNamespace::Sandbox] {
        let mut shim = Shim::start(&ShimConfig { pid, ..sandbox() });
        let mut request = shim.container("c", &["/bin/sh", "-c", script]);
        request.stdio.tty = true;
        let (exit, text) = shim.run_request(request);
        assert_eq!(exit.exit_code, 0, "{text}");
        let text = text.replace('\r', "");
        assert!(text.contains("/dev/pts/0\nyes\n") && text.contains("crw"), "{text}");
        assert!(text.contains("controls\n"), "{text}");
        shim.shut_down();
    }
}

#[test]
fn working_directories_lead_nowhere_else() {
    let mut shim = Shim::start(&sandbox());
    for fd in 3..=64 {
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
    let witness = Witness::new();
    let mut shim = Shim::start(&sandbox());
    symlink(witness.path(), shim.image().join("masked")).unwrap();
    symlink(witness.path().join("null"), shim.image().join("one")).unwrap();
    std::fs::write(shim.image().join("secret"), "secret").unwrap();
    std::fs::create_dir(shim.image().join("hidden")).unwrap();
    std::fs::write(shim.image().join("hidden/file"), "secret").unwrap();
    let args =
        ["/bin/sh", "-c", "cat /secret; ls /hidden; touch /hidden/x; touch /bin/x; ls /masked"];
    let mut request = shim.container("c", &args);
    request.spec = spec_with(&args, |spec| {
        spec["linux"]["maskedPaths"] = json!(["/masked", "/one", "/secret", "/hidden", "/missing"]);
        spec["linux"]["readonlyPaths"] = json!(["/bin", "/one"]);
    });
    let (_, text) = shim.run_request(request);
    assert!(!text.contains("secret\n") && !text.contains("file\n"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    shim.shut_down();
    witness.assert_untouched();
}

#[test]
fn mounts_have_their_options_and_binds_their_source() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path();
    std::fs::write(source.join("ptmx"), "canary").unwrap();
    let mut shim = Shim::start(&sandbox());
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
