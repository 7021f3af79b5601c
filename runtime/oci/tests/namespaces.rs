//! User, time and joined namespaces, asserted from inside the container and from the host.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio as ProcessStdio};

use berth_oci::protocol::*;
use fixture::{Shim, sandbox, spec_with};
use serde_json::{Value, json};

const BASE: u32 = 200_000;

/// A shim whose containers have the namespaces of their specification alone.
fn bare() -> Shim {
    let config = ShimConfig {
        hostname: None,
        new_network: false,
        new_ipc: false,
        pid: PidNamespace::Host,
        ..sandbox()
    };
    let shim = Shim::start(&config);
    // Mapped ids must pass to the image.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(shim.root.path(), mode).unwrap();
    shim
}

fn give(path: &Path, id: u32) {
    std::os::unix::fs::lchown(path, Some(id), Some(id)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in path.read_dir().unwrap() {
            give(&entry.unwrap().path(), id);
        }
    }
}

fn mapped(spec: &mut Value) {
    let map = json!([{"containerID": 0, "hostID": BASE, "size": 65_536}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
}

fn namespace(spec: &mut Value, kind: &str, path: Option<&str>) {
    let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|namespace| namespace["type"] != kind);
    list.push(json!({"type": kind, "path": path}));
}

fn run(shim: &mut Shim, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> (i32, String) {
    let args = ["/bin/sh", "-c", script];
    let request = CreateContainer { spec: spec_with(&args, change), ..shim.container(id, &args) };
    let (exit, text) = shim.run_request(request);
    (exit.exit_code, text)
}

/// Somebody else's namespaces, there until dropped.
struct Holder(Child);

impl Holder {
    fn new(arguments: &[&str]) -> Self {
        let child = Command::new("unshare")
            .args(arguments)
            .args(["--fork", "sh", "-c", "echo ready; exec sleep 60"])
            .stdout(ProcessStdio::piped())
            .spawn()
            .unwrap();
        let mut holder = Self(child);
        let mut ready = [0; 6];
        std::io::Read::read_exact(holder.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
        holder
    }

    fn inner(&self) -> String {
        let pid = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.trim().to_owned()
    }

    fn path(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.inner())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-9", &self.inner()]).status();
        let _ = self.0.wait();
    }
}

#[test]
fn root_of_a_user_namespace_is_nobody_outside_and_has_what_containers_have() {
    let mut shim = bare();
    give(&shim.image(), BASE);
    let script = "id -u; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; echo x > /made; \
                  echo y > /dev/null && echo null; ls /dev | tr '\\n' ' '; hostname one && hostname; \
                  mknod /tmp/node b 7 7 2>&1 | grep -c 'not permitted'; stat -c %u /proc/1; \
                  echo fine > /dev/stdout; grep CapInh /proc/self/status; \
                  cat /proc/sys/net/core/somaxconn; echo 1 > /proc/sys/kernel/core_pattern; \
                  grep -c ' /sys/fs/cgroup ro,' /proc/self/mountinfo; \
                  echo 1 > /sys/fs/cgroup/cgroup.procs";
    let (code, text) = run(&mut shim, "c", script, |spec| {
        mapped(spec);
        for set in ["bounding", "permitted", "effective", "inheritable"] {
            spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN", "CAP_MKNOD"]);
        }
        spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "77"});
        spec["linux"].as_object_mut().unwrap().remove("seccomp");
    });
    let id = format!(" 0 {BASE} 65536");
    assert!(text.starts_with(&format!("0\n{id}\n{id}\nnull\n")), "{text}");
    for expected in
        ["full mqueue null", "zero one\n1\n0\nfine\n", "CapInh:\t0000000000000000\n77\n"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(text.contains("core_pattern: Read-only"), "{text}");
    assert!(text.contains("\n1\n") && text.contains("can't create /sys/fs/cgroup"), "{text}");
    assert_eq!(code, 1, "{text}");
    let made = std::fs::metadata(shim.image().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (BASE, BASE));
    shim.shut_down();
}

#[test]
fn without_a_cgroup_namespace_a_user_namespace_sees_its_own_cgroup_alone() {
    let mut shim = bare();
    give(&shim.image(), BASE);
    let script = "cat /sys/fs/cgroup/cgroup.procs | wc -l; test -e /sys/fs/cgroup/cgroup.kill && \
                  echo own; grep -c ' /sys/fs/cgroup ro,' /proc/self/mountinfo";
    let (code, text) = run(&mut shim, "c", script, |spec| {
        mapped(spec);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((code, &lines[1..]), (0, ["own", "1"].as_slice()), "{text}");
    assert!(matches!(lines[0], "2" | "3"), "{text}");
    shim.shut_down();
}

#[test]
fn a_further_process_is_in_the_user_namespace_too() {
    let mut shim = bare();
    give(&shim.image(), BASE);
    let args = ["/bin/sleep", "60"];
    let request = CreateContainer { spec: spec_with(&args, mapped), ..shim.container("c", &args) };
    let record = shim.create(request).unwrap();
    shim.ask(&Request::Start { id: "c".to_owned() }).unwrap();
    let owner = std::fs::metadata(format!("/proc/{}", record.pid)).unwrap().uid();
    assert_eq!(owner, BASE);
    let script = "id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user; ls /root; id -G";
    let (code, out, err, _) = shim.exec("c", &["/bin/sh", "-c", script]).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines[0], lines[1] == lines[2]), ("0", true), "{out}{err}");
    assert_ne!(lines[1], std::fs::read_link("/proc/self/ns/user").unwrap().to_str().unwrap());
    assert_eq!((code, lines[3]), (0, "0"), "{out}{err}");
    let limits = fixture::cgroup_root().join(&record.cgroup_path).join("cgroup.procs");
    let inside = std::fs::read_to_string(limits).unwrap();
    assert!(inside.lines().any(|line| line == record.pid.to_string()), "{inside}");
    shim.shut_down();
}

#[test]
fn an_image_that_is_not_mapped_fails_with_what_was_missing_and_leaves_nothing() {
    let mut shim = bare();
    std::fs::remove_dir(shim.image().join("proc")).unwrap();
    let args = ["/bin/true"];
    let request = CreateContainer { spec: spec_with(&args, mapped), ..shim.container("c", &args) };
    let failure = shim.create(request).unwrap_err();
    assert!(failure.message.contains("find the mount point /proc"), "{failure:?}");
    shim.shut_down();
}

#[test]
fn clocks_are_offset_in_a_time_namespace() {
    let mut shim = bare();
    let (code, text) =
        run(&mut shim, "c", "cat /proc/uptime; cat /proc/self/timens_offsets", |s| {
            namespace(s, "time", None);
            s["linux"]["timeOffsets"] =
                json!({"boottime": {"secs": 5_000_000}, "monotonic": {"secs": 3}});
        });
    let uptime: f64 = text.split_whitespace().next().unwrap().parse().unwrap();
    assert!(code == 0 && uptime > 5_000_000.0, "{text}");
    let offsets: Vec<&str> = text.lines().skip(1).collect();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(offsets[0]), ["monotonic", "3", "0"]);
    assert_eq!(words(offsets[1]), ["boottime", "5000000", "0"]);
    shim.shut_down();
}

#[test]
fn every_kind_of_namespace_is_joined_by_its_path() {
    let holder = Holder::new(&["-n", "-u", "-i", "-p", "-m", "-C", "-T"]);
    let mut shim = bare();
    let kinds = [
        ("network", "net"),
        ("uts", "uts"),
        ("ipc", "ipc"),
        ("pid", "pid"),
        ("cgroup", "cgroup"),
        ("time", "time"),
    ];
    for (kind, file) in kinds {
        let path = holder.path(file);
        let expected = std::fs::read_link(&path).unwrap();
        let script = format!("readlink /proc/self/ns/{file}");
        let (code, text) = run(&mut shim, kind, &script, |spec| namespace(spec, kind, Some(&path)));
        assert_eq!((code, text.trim()), (0, expected.to_str().unwrap()), "{kind}");
    }
    let own = holder.path("mnt");
    let expected = std::fs::read_link(&own).unwrap();
    let (code, text) = run(&mut shim, "mount", "readlink /proc/self/ns/mnt", |spec| {
        namespace(spec, "mount", Some(&own));
    });
    assert_eq!((code, text.trim()), (0, expected.to_str().unwrap()));
    shim.shut_down();
}

#[test]
fn a_user_namespace_is_joined_by_its_path_and_must_be_mapped_as_is_said() {
    let holder = Holder::new(&["-U"]);
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{file}", holder.inner());
        std::fs::write(path, format!("0 {BASE} 65536")).unwrap();
    }
    let mut shim = bare();
    give(&shim.image(), BASE);
    let path = holder.path("user");
    let expected = std::fs::read_link(&path).unwrap();
    let join = |spec: &mut Value| {
        mapped(spec);
        namespace(spec, "user", Some(&path));
    };
    let (code, text) = run(&mut shim, "c", "readlink /proc/self/ns/user; id -u", join);
    assert_eq!((code, text), (0, format!("{}\n0\n", expected.display())));
    let args = ["/bin/true"];
    let other = |spec: &mut Value| {
        join(spec);
        spec["linux"]["uidMappings"][0]["hostID"] = json!(BASE + 1);
    };
    let request = CreateContainer { spec: spec_with(&args, other), ..shim.container("d", &args) };
    let failure = shim.create(request).unwrap_err();
    assert!(failure.message.contains("linux.uidMappings: is not what"), "{failure:?}");
    shim.shut_down();
}

#[test]
fn a_path_to_a_namespace_of_another_type_is_refused() {
    let mut shim = bare();
    let args = ["/bin/true"];
    let kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    for (index, kind) in kinds.into_iter().enumerate() {
        let name = match kind {
            "mnt" => "mount",
            "net" => "network",
            other => other,
        };
        let path = format!("/proc/self/ns/{}", kinds[(index + 1) % kinds.len()]);
        let spec = spec_with(&args, |spec| namespace(spec, name, Some(&path)));
        let request = CreateContainer { spec, ..shim.container(kind, &args) };
        let failure = shim.create(request).unwrap_err();
        assert!(failure.message.contains("linux.namespaces"), "{kind}: {failure:?}");
    }
    shim.shut_down();
}

#[test]
fn a_sysctl_never_reaches_the_host_by_a_path_to_its_own_namespace() {
    let before = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let mut shim = bare();
    let args = ["/bin/true"];
    let spec = spec_with(&args, |spec| {
        namespace(spec, "network", Some("/proc/self/ns/net"));
        spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "99"});
    });
    let failure = shim.create(CreateContainer { spec, ..shim.container("c", &args) }).unwrap_err();
    assert!(failure.message.contains("is the host's own"), "{failure:?}");
    assert_eq!(std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap(), before);
    shim.shut_down();
}

#[test]
fn the_ids_of_a_bind_and_of_a_new_file_system_are_mapped() {
    let mut shim = bare();
    let source = tempfile::tempdir_in(shim.root.path()).unwrap();
    std::fs::write(source.path().join("file"), "x").unwrap();
    chown(source.path().join("file"), Some(1_000), Some(1_001)).unwrap();
    let map = |from: u32, to: u32| json!([{"containerID": from, "hostID": to, "size": 10}]);
    let (code, text) = run(&mut shim, "c", "stat -c %u:%g /data/file", |spec| {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "source": source.path(), "options": ["rbind", "ridmap"],
            "uidMappings": map(1_000, 5_000), "gidMappings": map(1_001, 6_000)
        }));
    });
    assert_eq!((code, text.as_str()), (0, "5000:6000\n"));
    shim.shut_down();
}

/// An overlay over the shim's image; the writable layer is the mapped root's.
fn overlay(shim: &Shim, name: &str) -> Rootfs {
    let base = shim.root.path().join(name);
    let (upper, work) = (base.join("upper"), base.join("work"));
    let below = base.join("below");
    for directory in [&upper, &work, &below] {
        std::fs::create_dir_all(directory).unwrap();
    }
    std::fs::write(below.join("lowest"), "").unwrap();
    chown(below.join("lowest"), Some(33), Some(44)).unwrap();
    chown(&upper, Some(BASE), Some(BASE)).unwrap();
    Rootfs::Overlay { lower: vec![shim.image(), below], upper, work }
}

#[test]
fn the_pods_user_namespace_owns_its_others_and_maps_layers_and_binds() {
    for pid in [PidNamespace::Container, PidNamespace::Sandbox] {
        let ids = UserIds { first: BASE, count: 65_536 };
        let sysctls = [("net.core.somaxconn", "77"), ("kernel.shm_rmid_forced", "1")];
        let sysctls = sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let config = ShimConfig { pid, user_ids: Some(ids), sysctls, ..sandbox() };
        let mut shim = Shim::start(&config);
        let volume = shim.root.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("theirs"), "").unwrap();
        chown(volume.join("theirs"), Some(1000), Some(2000)).unwrap();
        let script = "id -u; tr -s ' ' < /proc/self/uid_map; stat -c '%u:%g' /lowest /bin/busybox / \
                      /v/theirs; echo new > /v/mine; chown 7:8 /v/mine; touch /own; chown 9:9 /lowest; \
                      hostname; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced; \
                      echo x > /dev/null && echo null; echo fine > /dev/stdout";
        let args = ["/bin/sh", "-c", script];
        let mut request = shim.container("c", &args);
        let user = shim.directory().join("ns/user");
        request.rootfs = overlay(&shim, "overlay");
        request.spec = spec_with(&args, |spec| {
            let map = json!([{"containerID": 0, "hostID": BASE, "size": 65_536}]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
            namespace(spec, "user", user.to_str());
            let bind = json!({"destination": "/v", "type": "bind", "source": volume,
                              "options": ["rbind", "rw", "idmap"]});
            spec["mounts"].as_array_mut().unwrap().push(bind);
        });
        let (exit, text) = shim.run_request(request);
        let expected =
            format!("0\n 0 {BASE} 65536\n33:44\n0:0\n0:0\n1000:2000\npod-one\n77\n1\nnull\nfine\n");
        assert_eq!((exit.exit_code, text), (0, expected), "{pid:?} {exit:?}");
        // On the disk a volume has the ids as the pod means them, the writable layer those outside.
        let owner = |path: &Path| {
            let metadata = std::fs::symlink_metadata(path).unwrap();
            (metadata.uid(), metadata.gid())
        };
        assert_eq!(owner(&volume.join("mine")), (7, 8));
        let upper = shim.root.path().join("overlay/upper");
        assert_eq!(owner(&upper.join("own")), (BASE, BASE));
        assert_eq!(owner(&upper.join("lowest")), (BASE + 9, BASE + 9));
        assert_eq!(owner(&shim.root.path().join("overlay/below/lowest")), (33, 44));
        shim.shut_down();
    }
}

#[test]
fn a_user_namespace_with_a_namespace_of_the_host_is_refused() {
    let ids = UserIds { first: BASE, count: 65_536 };
    let config = ShimConfig { new_ipc: false, user_ids: Some(ids), ..sandbox() };
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("sandbox.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_berth-oci"))
        .args(["shim", "--dir"])
        .arg(root.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("user_ids"), "{said}");
}
