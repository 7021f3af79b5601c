//! Mounts of a bundle where callers rely on what runc does: links at the mount point, sources inside the
//! root, file systems that are read-only at last, modes, propagation.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use bundle::Bundle;
use serde_json::{Value, json};

fn add(bundle: &mut Bundle, mount: Value) {
    bundle.spec["mounts"].as_array_mut().unwrap().push(mount);
}

fn bind(source: &Path, destination: impl AsRef<Path>) -> Value {
    let (source, destination) = (source, destination.as_ref());
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate"]})
}

/// A mapping to the host's ids 200000 and up, of a user namespace or a mount.
fn map() -> Value {
    json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}])
}

fn add_user_namespace(bundle: &mut Bundle) {
    let linux = bundle.spec["linux"].as_object_mut().unwrap();
    linux.insert("uidMappings".to_owned(), map());
    linux.insert("gidMappings".to_owned(), map());
    linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
}

#[test]
fn dangling_links_at_mount_points_have_their_targets_made_inside() {
    let outside = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new("cat /tmp/foo/bar/baz/hosts; ls /tmp/directory; cat /out");
    let image = bundle.image();
    symlink("/tmp/foo/bar", image.join("jump")).unwrap();
    symlink("/jump/baz/hosts", image.join("etc/hosts")).unwrap();
    symlink("/tmp/directory", image.join("link")).unwrap();
    // Absolute links of the image are the image's, wherever they lead on the host.
    symlink(outside.path().join("made"), image.join("out")).unwrap();
    let file = bundle.path().join("file");
    std::fs::write(&file, "bound\n").unwrap();
    let directory = bundle.path().join("directory");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("entry"), "").unwrap();
    add(&mut bundle, bind(&file, "/etc/hosts"));
    add(&mut bundle, bind(&directory, "/link"));
    add(&mut bundle, bind(&file, "/out"));
    for _ in 0..2 {
        assert_eq!(bundle.text(), "bound\nentry\nbound\n");
    }
    assert_eq!(outside.path().read_dir().unwrap().count(), 0);
    assert!(image.join("tmp/foo/bar/baz/hosts").is_file());
}

#[test]
fn a_read_only_tmpfs_gets_its_devices_and_mount_points_first() {
    let mut bundle = Bundle::new(
        "touch /dev/x /ro/x 2>/dev/null; grep -c '^tmpfs /\\(dev\\|ro\\) tmpfs ro,' /proc/mounts; \
         ls -d /dev/pts /dev/shm /dev/null /ro/below; echo x > /dev/shm/x && echo written",
    );
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    let dev = mounts.iter_mut().find(|mount| mount["destination"] == "/dev").unwrap();
    dev["options"].as_array_mut().unwrap().push(json!("ro"));
    let tmpfs = |destination: &str, options: Value| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options});
    add(&mut bundle, tmpfs("/ro", json!(["ro"])));
    add(&mut bundle, tmpfs("/ro/below", json!([])));
    let expected = "2\n/dev/null\n/dev/pts\n/dev/shm\n/ro/below\nwritten\n";
    assert_eq!(bundle.text(), expected);
    add_user_namespace(&mut bundle);
    assert_eq!(bundle.text(), expected);
}

/// Binds of which each needs the one before, the last ones from inside the root.
fn ordered(inside: impl Fn(Value) -> Value) -> Bundle {
    let mut bundle = Bundle::new("cat /final/x/y/z/z/x/y/z/x/file");
    let image = bundle.image();
    let source = bundle.path().join("source");
    for (name, below) in [("a", "x"), ("b", "y"), ("c", "z")] {
        std::fs::create_dir_all(source.join(name).join(below)).unwrap();
        let text = format!("{name}/{below}\n");
        std::fs::write(source.join(name).join(below).join("file"), text).unwrap();
        symlink(name, source.join(format!("link-{name}"))).unwrap();
    }
    for directory in ["mnt", "final"] {
        std::fs::create_dir(image.join(directory)).unwrap();
    }
    add(&mut bundle, bind(&source.join("a"), "/mnt"));
    add(&mut bundle, bind(&source.join("link-b"), "/mnt/x"));
    add(&mut bundle, bind(&source.join("c"), "/mnt/x/y"));
    add(&mut bundle, bind(&source.join("link-a"), "/mnt/x/y/z"));
    for (from, to) in [("mnt/x", "mnt/x/y/z/x"), ("mnt/x/y", "mnt/x/y/z"), ("mnt", "final")] {
        let mount = bind(&image.join(from), image.join(to));
        add(&mut bundle, inside(mount));
    }
    bundle
}

#[test]
fn sources_inside_the_root_are_what_earlier_mounts_made_of_them() {
    let mut bundle = ordered(|mount| mount);
    assert_eq!(bundle.text(), "a/x\n");
    add_user_namespace(&mut bundle);
    assert_eq!(bundle.text(), "a/x\n");
    let mapped = |mut mount: Value| {
        mount["options"] = json!(["rbind", "ridmap"]);
        (mount["uidMappings"], mount["gidMappings"]) = (map(), map());
        mount
    };
    let mut bundle = ordered(|mount| match mount["destination"].as_str().unwrap() {
        path if path.ends_with("/final") => mapped(mount),
        _ => mount,
    });
    bundle.spec["process"]["args"] = json!(["stat", "-c", "%u:%g", "/final/x"]);
    assert_eq!(bundle.text(), "200000:200000\n");
    // The root of a user namespace has no power to map the ids of the host's file system.
    add_user_namespace(&mut bundle);
    assert_eq!(bundle.text(), "0:0\n");
}

#[test]
fn a_source_inside_the_root_never_leads_to_the_host() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("canary"), "host").unwrap();
    let mut bundle = Bundle::new("ls /target");
    symlink(outside.path(), bundle.image().join("escape")).unwrap();
    symlink("../../../../../..", bundle.image().join("up")).unwrap();
    let escape = bundle.image().join("escape");
    add(&mut bundle, bind(&escape, "/target"));
    let refusal = bundle.refusal();
    assert!(refusal.contains("mounts[/target].source: open /escape of the container"), "{refusal}");
    bundle.spec["mounts"].as_array_mut().unwrap().pop();
    let up = bundle.image().join("up");
    add(&mut bundle, bind(&up, "/target"));
    // Up from the root is the root.
    assert!(bundle.text().lines().any(|name| name == "escape"));
}

#[test]
fn a_tmpfs_without_a_mode_takes_that_of_the_directory() {
    let mut bundle =
        Bundle::new("stat -c %a /there /new/one /named; grep -c mode=6710 /proc/mounts");
    for name in ["there", "named"] {
        let directory = bundle.image().join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o6710)).unwrap();
    }
    for (destination, options) in
        [("/there", json!([])), ("/new/one", json!([])), ("/named", json!(["mode=1500"]))]
    {
        add(
            &mut bundle,
            json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}),
        );
    }
    assert_eq!(bundle.text(), "6710\n1777\n1500\n1\n");
    let mode = std::fs::metadata(bundle.image().join("new/one")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn access_times_and_propagation_are_as_asked_for() {
    let own = |bundle: &Bundle| {
        let text = bundle.text();
        let line = text.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        line.split(' ').skip(6).take_while(|field| *field != "-").collect::<Vec<_>>().join(" ")
    };
    let mut bundle = Bundle::new("cat /proc/self/mountinfo");
    for (propagation, expected) in [("shared", "shared:"), ("private", ""), ("slave", "")] {
        bundle.spec["linux"]["rootfsPropagation"] = json!(propagation);
        let found = own(&bundle);
        let numbered = found.trim_end_matches(|character: char| character.is_ascii_digit());
        assert_eq!(numbered, expected, "{propagation}");
    }
    let mut bundle = Bundle::new("grep ' /t/' /proc/mounts | cut -d' ' -f2,4 | cut -d, -f1-2");
    let source = bundle.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for option in ["ratime", "rnoatime", "rnostrictatime", "rrelatime", "rnorelatime"] {
        let mut mount = bind(&source, format!("/t/{option}"));
        mount["options"] = json!(["rbind", option]);
        add(&mut bundle, mount);
    }
    let expected = "/t/ratime rw,relatime\n/t/rnoatime rw,noatime\n/t/rnostrictatime rw,relatime\n\
                    /t/rrelatime rw,relatime\n/t/rnorelatime rw,relatime\n";
    assert_eq!(bundle.text(), expected);
}

#[test]
fn a_path_is_masked_once_however_often_it_is_named() {
    let mut bundle = Bundle::new("grep -c ' /secret' /proc/mounts; cat /secret/file; cat /secret2");
    std::fs::create_dir(bundle.image().join("secret")).unwrap();
    for file in ["secret/file", "secret2"] {
        std::fs::write(bundle.image().join(file), "secret").unwrap();
    }
    bundle.spec["linux"]["maskedPaths"] =
        json!(["/secret", "/secret2", "/secret/", "/./secret2", "/secret"]);
    let output = bundle.run();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n");
}

#[test]
fn without_a_pivot_nothing_of_the_host_s_procfs_is_left_to_be_mounted() {
    let mut bundle = Bundle::new(
        "grep -c ' / \\| /proc\\| /sys ' /proc/mounts; unshare -mrpf mount -t proc none /proc",
    );
    for set in ["bounding", "effective", "permitted", "inheritable"] {
        bundle.spec["process"]["capabilities"][set] = json!(["CAP_SETFCAP"]);
    }
    symlink("busybox", bundle.image().join("bin/unshare")).unwrap();
    let run = |option: &[&str]| {
        bundle.write();
        let mut command = bundle.command(&["run", "--bundle", bundle.path().to_str().unwrap()]);
        command.args(option).arg(bundle.id()).output().unwrap()
    };
    for option in [&["--no-pivot"][..], &[]] {
        let output = run(option);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("permission denied"),
            "{option:?}: {said}"
        );
    }
}
