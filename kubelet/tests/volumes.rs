//! Effects of volumes on disk. Needs root: ownership, tmpfs mounts.

#![allow(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_kubelet::downward::Facts;
use berth_kubelet::objects::{Fetched, Lookup, ObjectRef};
use berth_kubelet::qos::{PodDemand, ResourceAmounts};
use berth_kubelet::volumes::{
    Desired, Helper, PodDirectory, Sources, TeardownError, Tokens, VolumePlugin, desired_volumes,
    ensure_sub_paths, set_up, tear_down, usage_bytes,
};
use berth_runtime::interface::{Mount, Propagation};
use k8s_openapi::api::core::v1::Pod;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

/// A kubelet root that takes its mounts with it, whatever the test did.
struct Root {
    directory: tempfile::TempDir,
    pod: PodDirectory,
}

impl Root {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let directory = tempfile::tempdir().unwrap();
        let pod = PodDirectory::new(directory.path(), "u-1").unwrap();
        pod.create().unwrap();
        Self { directory, pod }
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.map(PathBuf::from).filter(|point| point.starts_with(self.directory.path())).collect()
    }

    fn path(&self, below: &str) -> PathBuf {
        self.pod.path().join(below)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for point in self.mounts().into_iter().rev() {
            let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
        }
    }
}

fn desired(spec: Value, data: &[(&str, &str)]) -> BTreeMap<String, Desired> {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
    let demand = PodDemand::parse(&pod).unwrap();
    let data: BTreeMap<_, _> = data.iter().copied().collect();
    let config_map = serde_json::from_value(json!({"data": data})).unwrap();
    let secret = serde_json::from_value(json!({"data": {"pw": "czNjcmV0"}})).unwrap();
    let fetched = Fetched::from_iter([
        (ObjectRef::config_map("cm"), Lookup::ConfigMap(Arc::new(config_map))),
        (ObjectRef::secret("s"), Lookup::Secret(Arc::new(secret))),
    ]);
    let allocatable = ResourceAmounts::from([("memory".to_owned(), "64Mi".parse().unwrap())]);
    let sources = Sources {
        facts: Facts {
            pod: &pod,
            demand: &demand,
            host_ips: &[],
            pod_ips: &[],
            allocatable: &allocatable,
        },
        fetched: &fetched,
        tokens: &Tokens::new(),
        node: None,
    };
    let volumes = desired_volumes(&pod, &sources).into_iter();
    volumes.map(|(name, desired)| (name, desired.unwrap())).collect()
}

fn set_up_one(root: &Root, spec: Value, data: &[(&str, &str)]) -> PathBuf {
    let volumes = desired(spec, data);
    assert_eq!(volumes.len(), 1);
    let (name, desired) = volumes.iter().next().unwrap();
    set_up(&root.pod, name, desired).unwrap().host_path
}

fn config_volume() -> Value {
    json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}]})
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_config_map_is_written_and_switched_over_at_once() {
    let root = Root::new();
    let path = set_up_one(&root, config_volume(), &[("a", "1"), ("b", "2")]);
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "1");
    assert_eq!(fs::read_link(path.join("a")).unwrap(), Path::new("..data/a"));
    let first = fs::read_link(path.join("..data")).unwrap();
    assert_eq!(fs::metadata(path.join("a")).unwrap().mode() & 0o7777, 0o644);

    set_up_one(&root, config_volume(), &[("a", "1"), ("b", "2")]);
    assert_eq!(fs::read_link(path.join("..data")).unwrap(), first, "nothing to do");

    set_up_one(&root, config_volume(), &[("a", "new"), ("c", "3")]);
    let second = fs::read_link(path.join("..data")).unwrap();
    assert_ne!(second, first);
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "new");
    let second = second.to_str().unwrap().to_owned();
    assert_eq!(names(&path), [second, "..data".into(), "a".into(), "c".into()]);
}

#[test]
fn damage_is_repaired_and_leftovers_are_cleared() {
    let root = Root::new();
    let path = set_up_one(&root, config_volume(), &[("a", "1")]);
    fs::create_dir_all(path.join("..2020_01_01_00_00_00.1/deep")).unwrap();
    symlink("gone", path.join("..data_tmp")).unwrap();
    fs::write(path.join("..data/a"), "changed").unwrap();
    set_up_one(&root, config_volume(), &[("a", "1")]);
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "1");
    assert_eq!(names(&path).len(), 3, "{:?}", names(&path));
}

#[test]
fn a_data_link_that_leaves_the_volume_is_replaced_not_followed() {
    let root = Root::new();
    let path = set_up_one(&root, config_volume(), &[("a", "1")]);
    let outside = root.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("a"), "1").unwrap();
    fs::remove_file(path.join("..data")).unwrap();
    symlink(&outside, path.join("..data")).unwrap();
    set_up_one(&root, config_volume(), &[("a", "1")]);
    assert!(fs::read_link(path.join("..data")).unwrap().to_str().unwrap().starts_with(".."));
    assert_eq!(names(&outside), ["a"]);
}

#[test]
fn a_secret_is_in_memory_and_comes_back_after_a_reboot() {
    let root = Root::new();
    let spec = || {
        json!({"volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": 0o400}}],
        "securityContext": {"fsGroup": 1234}})
    };
    let path = set_up_one(&root, spec(), &[]);
    assert_eq!(root.mounts(), std::slice::from_ref(&path));
    let metadata = fs::metadata(path.join("pw")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o440, 1234));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o2755);
    rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW).unwrap();
    set_up_one(&root, spec(), &[]);
    assert_eq!(fs::read_to_string(path.join("pw")).unwrap(), "s3cret");
    set_up_one(&root, spec(), &[]);
    assert_eq!(root.mounts().len(), 1, "mounted once");
    tear_down(&root.pod).unwrap();
    assert!(root.mounts().is_empty() && !root.pod.path().exists());
    tear_down(&root.pod).unwrap();
}

#[test]
fn an_empty_dir_is_everybodys_and_then_the_containers() {
    let root = Root::new();
    let spec =
        || json!({"volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {"fsGroup": 77}});
    let path = set_up_one(&root, spec(), &[]);
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    assert_eq!((mode(), fs::metadata(&path).unwrap().gid()), (0o2777, 77));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(path.join("kept"), "x").unwrap();
    set_up_one(&root, spec(), &[]);
    assert_eq!(mode(), 0o700, "what the container changed stays");
    assert_eq!(names(&path), ["kept"]);
}

#[test]
fn a_memory_volume_has_its_size() {
    let root = Root::new();
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "securityContext": {"fsGroup": 77}});
    let path = set_up_one(&root, spec, &[]);
    let status = rustix::fs::statvfs(&path).unwrap();
    assert_eq!(status.f_blocks * status.f_frsize, 1 << 20);
    let made = fs::metadata(&path).unwrap();
    assert_eq!((made.mode() & 0o7777, made.gid()), (0o3777, 77));
    assert!(fs::write(path.join("big"), vec![0; 2 << 20]).is_err());
}

#[test]
fn usage_counts_blocks_and_follows_nothing() {
    let root = Root::new();
    let path = set_up_one(&root, json!({"volumes": [{"name": "v", "emptyDir": {}}]}), &[]);
    fs::create_dir(path.join("d")).unwrap();
    fs::write(path.join("d/f"), vec![1; 1 << 20]).unwrap();
    fs::hard_link(path.join("d/f"), path.join("again")).unwrap();
    symlink("/usr", path.join("usr")).unwrap();
    let bytes = usage_bytes(&path).unwrap();
    assert!(((1 << 20)..(1 << 20) + 65_536).contains(&bytes), "{bytes}");
}

#[test]
fn teardown_removes_links_and_not_what_they_point_to() {
    let root = Root::new();
    let path = set_up_one(&root, json!({"volumes": [{"name": "v", "emptyDir": {}}]}), &[]);
    let outside = root.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "safe").unwrap();
    symlink(&outside, path.join("dir-link")).unwrap();
    symlink(outside.join("canary"), path.join("file-link")).unwrap();
    symlink("..", path.join("up")).unwrap();
    let mut deep = path.clone();
    for _ in 0..400 {
        deep.push("deep");
        fs::create_dir(&deep).unwrap();
    }
    fs::write(deep.join("bottom"), "x").unwrap();
    for n in 0..3000 {
        fs::write(path.join(format!("f{n}")), "").unwrap();
    }
    tear_down(&root.pod).unwrap();
    assert!(!root.pod.path().exists());
    assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "safe");
}

#[test]
fn teardown_never_enters_a_mount_and_says_so() {
    let root = Root::new();
    let path = set_up_one(&root, json!({"volumes": [{"name": "v", "emptyDir": {}}]}), &[]);
    let outside = root.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "safe").unwrap();
    let inside = path.join("sub/mnt");
    fs::create_dir_all(&inside).unwrap();
    fs::write(path.join("sub/other"), "").unwrap();
    rustix::mount::mount_bind(&outside, &inside).unwrap();
    let errors = tear_down(&root.pod).unwrap_err();
    assert!(
        matches!(&errors[..], [TeardownError::StillMounted(at)] if *at == inside),
        "{errors:?}"
    );
    assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "safe");
    assert!(!path.join("sub/other").exists(), "teardown goes on past the failure");
    rustix::mount::unmount(&inside, UnmountFlags::NOFOLLOW).unwrap();
    tear_down(&root.pod).unwrap();
    assert!(!root.pod.path().exists());
}

#[test]
fn a_foreign_file_system_on_a_volume_is_not_unmounted() {
    let root = Root::new();
    let path = set_up_one(&root, json!({"volumes": [{"name": "v", "emptyDir": {}}]}), &[]);
    let outside = root.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "safe").unwrap();
    rustix::mount::mount("proc", &path, "proc", MountFlags::empty(), None).unwrap();
    let errors = tear_down(&root.pod).unwrap_err();
    assert!(matches!(&errors[..], [TeardownError::Unmount { .. }]), "{errors:?}");
    assert_eq!(root.mounts().len(), 1);
}

#[test]
fn teardown_under_a_racing_exchange_leaves_the_canary() {
    let root = Root::new();
    let path = set_up_one(&root, json!({"volumes": [{"name": "v", "emptyDir": {}}]}), &[]);
    let outside = root.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for n in 0..50 {
        fs::write(outside.join(n.to_string()), "safe").unwrap();
    }
    fs::create_dir(path.join("swap")).unwrap();
    for n in 0..2000 {
        fs::write(path.join(format!("swap/{n}")), "").unwrap();
    }
    symlink(&outside, path.join("link")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, b) = (path.join("swap"), path.join("link"));
            while !stop.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &a,
                    rustix::fs::CWD,
                    &b,
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        });
        let _ = tear_down(&root.pod);
        stop.store(true, Ordering::Relaxed);
    });
    tear_down(&root.pod).unwrap();
    assert_eq!(names(&outside).len(), 50);
}

fn mount(volume: &Path, sub_path: &str) -> Mount {
    Mount {
        host_path: volume.to_owned(),
        image: None,
        sub_path: Some(sub_path.into()),
        container_path: "/data".into(),
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::Private,
        relabel: false,
    }
}

#[test]
fn missing_sub_paths_are_made_inside_the_volume_alone() {
    let root = Root::new();
    let spec =
        json!({"volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {"fsGroup": 77}});
    let path = set_up_one(&root, spec, &[]);
    ensure_sub_paths(&[mount(&path, "a/b/c")]).unwrap();
    let made = fs::metadata(path.join("a/b/c")).unwrap();
    assert_eq!((made.mode() & 0o7777, made.gid()), (0o2777, 77));
    fs::write(path.join("file"), "").unwrap();
    ensure_sub_paths(&[mount(&path, "file"), mount(&path, "a/b/c")]).unwrap();
    symlink("a/b", path.join("inner")).unwrap();
    ensure_sub_paths(&[mount(&path, "inner/d")]).unwrap();
    assert!(path.join("a/b/d").is_dir());

    let outside = root.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, path.join("absolute")).unwrap();
    symlink("../../../../../outside", path.join("relative")).unwrap();
    symlink(outside.join("new"), path.join("dangling")).unwrap();
    for escape in ["absolute/x", "relative/x", "absolute", "dangling", "../x", "file/x"] {
        let error = ensure_sub_paths(&[mount(&path, escape)]).unwrap_err();
        assert!(!error.to_string().contains("outside"), "{error}");
    }
    assert!(names(&outside).is_empty());
    assert_eq!(root.path("volumes"), root.pod.volumes_path());
}

#[test]
fn sub_paths_made_under_a_racing_exchange_are_never_made_outside() {
    let root = Root::new();
    let path = set_up_one(&root, json!({"volumes": [{"name": "v", "emptyDir": {}}]}), &[]);
    let outside = root.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(path.join("a")).unwrap();
    symlink(&outside, path.join("swap")).unwrap();
    let rounds = std::env::var("BERTH_RACE_ROUNDS");
    let rounds: u32 = rounds.map_or(3000, |text| text.parse().unwrap());
    let stop = AtomicBool::new(false);
    let (mut made, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, swap) = (path.join("a"), path.join("swap"));
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            while !stop.load(Ordering::Relaxed) {
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, &a, cwd, &swap, exchange).unwrap();
            }
        });
        for round in 0..rounds {
            match ensure_sub_paths(&[mount(&path, &format!("a/{round}/deep"))]) {
                Ok(()) => made += 1,
                Err(_) => refused += 1,
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(made > 0 && refused > 0, "no race: {made} made, {refused} refused");
    assert_eq!(names(&outside), Vec::<String>::new());
}

/// CVE-2020-8557: what a container writes to the kubelet's files must not fill the node's disk.
#[test]
fn the_kubelets_files_of_a_pod_are_bounded_and_go_with_it() {
    use std::io::Write;
    let root = Root::new();
    for _ in 0..2 {
        root.pod.create_files().unwrap();
    }
    assert_eq!(root.mounts().len(), 1);
    fs::write(root.pod.hosts_path(), "127.0.0.1 localhost\n").unwrap();
    let log = root.pod.create_termination_log("c", 0).unwrap();
    assert!(log.starts_with(root.pod.files_path()) && log.exists());
    let mut file = fs::OpenOptions::new().append(true).open(root.pod.hosts_path()).unwrap();
    let piece = vec![b'x'; 1 << 20];
    let written = (0..64).take_while(|_| file.write_all(&piece).is_ok()).count();
    assert!(written < 9, "{written} MiB were written");
    drop(file);
    tear_down(&root.pod).unwrap();
    assert!(root.mounts().is_empty() && !root.pod.path().exists());
}

#[test]
fn setgid_passes_the_group_on_and_links_are_left_alone() {
    let root = Root::new();
    let spec =
        json!({"volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {"fsGroup": 77}});
    let path = set_up_one(&root, spec, &[]);
    fs::create_dir(path.join("d")).unwrap();
    fs::write(path.join("d/f"), "").unwrap();
    assert_eq!(fs::metadata(path.join("d/f")).unwrap().gid(), 77);
}

#[test]
fn huge_pages_are_mounted_with_the_size_that_the_pod_asks_for() {
    let root = Root::new();
    let spec = json!({
        "volumes": [{"name": "v", "emptyDir": {"medium": "HugePages", "sizeLimit": "6Mi"}}],
        "securityContext": {"fsGroup": 77},
        "containers": [{"name": "c", "resources":
            {"requests": {"hugepages-2Mi": "8Mi"}, "limits": {"hugepages-2Mi": "8Mi", "memory": "1Mi"}}}],
    });
    let path = set_up_one(&root, spec.clone(), &[]);
    assert_eq!(set_up_one(&root, spec, &[]), path, "nothing to do");
    let place = path.to_str().unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines: Vec<_> = table.lines().filter(|line| line.contains(place)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in [" - hugetlbfs ", "pagesize=2M", "size=6291456"] {
        assert!(lines[0].contains(part), "{part} is not in {}", lines[0]);
    }
    let made = fs::metadata(&path).unwrap();
    assert_eq!((made.mode() & 0o7777, made.gid()), (0o2777, 77));
    tear_down(&root.pod).unwrap();
    assert!(root.mounts().is_empty() && !root.pod.path().exists());
}

/// A `mount.nfs` that does as the script says.
fn helper(root: &Root, script: &str) -> Helper {
    let source = root.directory.path().join("script");
    let path = root.directory.path().join("mount.nfs");
    fs::write(&source, format!("#!/bin/sh\n{script}\n")).unwrap();
    // Installed by another process: one that is forked here meanwhile cannot hold it open.
    let mut install = std::process::Command::new("install");
    let installed = install.args(["-m", "755"]).args([&source, &path]).status();
    assert!(installed.unwrap().success());
    Helper { path, patience: std::time::Duration::from_secs(20) }
}

#[test]
fn an_export_is_mounted_by_the_hosts_helper_and_goes_with_the_pod() {
    let root = Root::new();
    let volume = json!({"volumes":
        [{"name": "v", "nfs": {"server": "nas", "path": "/data", "readOnly": true}}]});
    let wanted = desired(volume, &[]);
    let Desired::Nfs(export) = &wanted["v"] else { panic!("{wanted:?}") };
    let place = root.pod.volume_path(VolumePlugin::Nfs, "v").unwrap();

    let refuses = helper(&root, "echo 'mount.nfs: access denied by server' >&2; exit 32");
    let error = refuses.set_up(&root.pod, &place, export).unwrap_err().to_string();
    assert!(error.contains("\"nas:/data\"") && error.contains("access denied"), "{error}");

    let pid = root.directory.path().join("pid");
    let mut hangs = helper(&root, &format!("echo $$ > {}; exec sleep 1000", pid.display()));
    hangs.patience = std::time::Duration::from_secs(1);
    let error = hangs.set_up(&root.pod, &place, export).unwrap_err().to_string();
    assert!(error.contains("did not end in 1 s"), "{error}");
    // Killed and reaped, by a thread of its own.
    while fs::read_to_string(&pid).is_ok_and(|pid| Path::new("/proc").join(pid.trim()).exists()) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }

    let calls = root.directory.path().join("calls");
    let script = format!("echo \"$@\" >> {}; mount -t tmpfs nas:/data \"$2\"", calls.display());
    let mounts = helper(&root, &script);
    for _ in 0..2 {
        mounts.set_up(&root.pod, &place, export).unwrap();
    }
    let expected = format!("nas:/data {} -o ro\n", place.display());
    assert_eq!(fs::read_to_string(&calls).unwrap(), expected, "mounted once");
    fs::write(place.join("on-the-server"), "x").unwrap();
    tear_down(&root.pod).unwrap();
    assert!(root.mounts().is_empty() && !root.pod.path().exists());
}
