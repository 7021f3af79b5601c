//! Plants one of each thing that the census must find, and takes it away again.
//!
//! Each test runs in private namespaces and looks for its own mark, so that other programs on the
//! machine do no harm. Needs root.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_testkit::{Census, Netns, Private, Scope, wait_until};

/// A plant is found under its kind by a mark, and not before or after.
struct Plant {
    scope: Scope,
    before: Census,
    _private: Private,
}

impl Plant {
    fn prepare(scope: Scope) -> Plant {
        let private = Private::enter();
        Plant { before: Census::take(&scope).expect("census"), scope, _private: private }
    }

    fn bare() -> Plant {
        Plant::prepare(Scope::default())
    }

    fn entries(&self, kind: &str, mark: &str) -> Vec<String> {
        let after = Census::take(&self.scope).expect("census");
        let left = self.before.difference(&after).left;
        let ours = left.into_iter().filter(|(of, entry)| of == kind && entry.contains(mark));
        ours.map(|(_, entry)| entry).collect()
    }

    fn assert_found(&self, kind: &str, mark: &str) {
        let found = self.entries(kind, mark);
        assert!(!found.is_empty(), "the census did not find {mark} among {kind}");
    }

    fn assert_clean(&self, kind: &str, mark: &str) {
        wait_until(Duration::from_secs(10), "the plant to be gone", || {
            self.entries(kind, mark).is_empty().then_some(())
        });
    }
}

fn run(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().expect("run sh");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A program of that name which only sleeps; killed when dropped.
struct Sleeper {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Sleeper {
    fn start(name: &str, wrap: &str) -> Sleeper {
        let dir = tempfile::tempdir().expect("directory");
        let program = copy_of_sleep(dir.path(), name);
        let line = format!("{wrap} exec {} 300", program.display());
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-ec", &line])
            .stdin(Stdio::null())
            .spawn()
            .expect("start a sleeper");
        let exe = PathBuf::from(format!("/proc/{}/exe", child.id()));
        wait_until(Duration::from_secs(10), "the sleeper to sleep", || {
            (fs::read_link(&exe).ok()? == program).then_some(())
        });
        Sleeper { child, _dir: dir }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn copy_of_sleep(dir: &Path, name: &str) -> PathBuf {
    let program = dir.join(name);
    // By another process: one that another test forks meanwhile would hold the file open to write.
    run(&format!("cp /bin/sleep {}", program.display()));
    program
}

#[test]
fn a_mount_is_found() {
    let plant = Plant::bare();
    run("mount -t tmpfs planted /mnt");
    plant.assert_found("mounts", "planted");
    run("umount /mnt");
    plant.assert_clean("mounts", "planted");
}

#[test]
fn a_mount_that_only_a_shim_holds_is_found() {
    let plant = Plant::bare();
    let shim = Sleeper::start("berth-oci", "mount -t tmpfs planted-by-shim /mnt;");
    plant.assert_found("mounts of shims", "planted-by-shim");
    drop(shim);
    plant.assert_clean("mounts of shims", "planted-by-shim");
}

#[test]
fn a_network_namespace_pinned_by_a_mount_is_found() {
    let plant = Plant::bare();
    Netns::create("planted");
    plant.assert_found("namespaces", "mounted on /run/netns/planted");
    run("ip netns del planted");
    plant.assert_clean("namespaces", "/run/netns/planted");
}

#[test]
fn a_network_namespace_that_only_an_open_file_holds_is_found() {
    let plant = Plant::bare();
    Netns::create("planted");
    let inode = fs::metadata("/run/netns/planted").expect("inode").ino();
    let mark = format!(":[{inode}]");
    let held = File::open("/run/netns/planted").expect("open the namespace");
    run("ip netns del planted");
    plant.assert_found("namespaces", &mark);
    drop(held);
    plant.assert_clean("namespaces", &mark);
}

#[test]
fn a_network_namespace_that_only_a_process_holds_is_found() {
    let plant = Plant::bare();
    let mut child = Command::new("unshare").args(["--net", "sleep", "300"]).spawn().expect("start");
    let namespace = PathBuf::from(format!("/proc/{}/ns/net", child.id()));
    let own = fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
    let mark = wait_until(Duration::from_secs(10), "the child's namespace", || {
        fs::read_link(&namespace).ok().filter(|found| *found != own)
    });
    let mark = mark.display().to_string();
    plant.assert_found("namespaces", &mark);
    child.kill().expect("kill the child");
    child.wait().expect("reap the child");
    plant.assert_clean("namespaces", &mark);
}

#[test]
fn links_and_bridge_ports_and_forwarding_entries_are_found() {
    let plant = Plant::bare();
    run("ip link add plant0 type bridge; ip link add plant1 type veth peer name plant2");
    run("ip link set plant1 master plant0; ip link set plant0 up");
    run("ip link add plant3 type vxlan id 7 dstport 4789; ip link set plant3 up");
    run("bridge fdb append 02:00:00:00:00:01 dev plant3 dst 192.0.2.1");
    plant.assert_found("links", "plant0 bridge");
    plant.assert_found("links", "plant1 veth master plant0");
    plant.assert_found("links", "to 192.0.2.1 on plant3");
    run("ip link del plant1; ip link del plant0; ip link del plant3");
    plant.assert_clean("links", "plant");
}

#[test]
fn addresses_routes_rules_and_neighbours_are_found() {
    let plant = Plant::bare();
    run("ip link add plant0 type bridge; ip link set plant0 up");
    run("ip address add 10.77.0.1/24 dev plant0; ip address add fd77::1/64 dev plant0 nodad");
    run("ip route add 10.78.0.0/24 via 10.77.0.2; ip route add fd78::/64 via fd77::2 table 77");
    run("ip rule add from 10.77.0.9 table 77");
    run("ip neigh add 10.77.0.5 lladdr 02:00:00:00:00:05 nud permanent dev plant0");
    run("ip neigh add proxy 10.77.0.6 dev plant0");
    for (kind, mark) in [
        ("addresses", "10.77.0.1/24"),
        ("addresses", "fd77::1/64"),
        ("routes", "10.78.0.0/24"),
        ("routes", "fd78::/64"),
        ("rules", "10.77.0.9"),
        ("neighbours", "10.77.0.5"),
        ("neighbours", "proxy 10.77.0.6"),
    ] {
        plant.assert_found(kind, mark);
    }
    run("ip rule del from 10.77.0.9 table 77; ip link del plant0");
    for kind in ["addresses", "routes", "rules", "neighbours"] {
        plant.assert_clean(kind, "");
    }
}

#[test]
fn every_kind_of_nft_object_is_found() {
    let plant = Plant::bare();
    run("nft add table inet plant");
    run("nft add chain inet plant entry '{ type filter hook input priority 0; }'");
    run("nft add set inet plant fixed '{ type ipv4_addr; }'");
    run("nft add map inet plant verdicts '{ type ipv4_addr . inet_service : verdict; }'");
    run("nft add element inet plant verdicts '{ 10.77.0.3 . 80 : accept }'");
    run("nft add rule inet plant entry ip saddr @fixed counter drop");
    plant.assert_found("nft", "table inet plant");
    plant.assert_found("nft", "chain inet plant entry");
    plant.assert_found("nft", "rule inet plant entry");
    plant.assert_found("nft", "map inet plant verdicts");
    plant.assert_found("nft", "10.77.0.3");
    run("nft delete table inet plant");
    plant.assert_clean("nft", "plant");
}

#[test]
fn an_element_left_in_a_table_that_stays_is_found() {
    let private = Private::enter();
    run("nft add table ip plant; nft add set ip plant pods '{ type ipv4_addr; }'");
    let before = Census::take(&Scope::default()).expect("census");
    run("nft add element ip plant pods '{ 10.77.0.4 }'");
    let after = Census::take(&Scope::default()).expect("census");
    let plant = Plant { scope: Scope::default(), before, _private: private };
    plant.assert_found("nft", "element of set ip plant pods");
    let again = after.difference(&Census::take(&Scope::default()).expect("census"));
    let moved = again.left.iter().chain(&again.gone).find(|(kind, _)| kind == "nft");
    assert_eq!(moved, None, "a census is repeatable");
}

#[test]
fn a_tracked_connection_of_a_pod_is_found() {
    let pods = vec!["10.77.0.0/24".parse().expect("network")];
    let plant = Plant::prepare(Scope { pod_networks: pods, ..Scope::default() });
    let tuple = "-p tcp -s 10.77.0.8 -d 192.0.2.9 --sport 1234 --dport 80";
    run(&format!("conntrack -I {tuple} --state ESTABLISHED -t 600"));
    run("conntrack -I -p udp -s 192.0.2.7 -d 192.0.2.9 --sport 1 --dport 2 -t 600");
    plant.assert_found("conntrack", "src=10.77.0.8");
    assert_eq!(plant.entries("conntrack", "192.0.2.7"), Vec::<String>::new());
    run(&format!("conntrack -D {tuple}"));
    plant.assert_clean("conntrack", "10.77.0.8");
}

#[test]
fn a_cgroup_is_found_with_all_below_it() {
    let plant = Plant::bare();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    let unified = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2");
    let unified = unified.split(' ').nth(4).expect("mount point");
    let cgroup = Path::new(unified).join("kubepods-planted.slice");
    fs::create_dir_all(cgroup.join("inner")).expect("create cgroups");
    plant.assert_found("cgroups", "kubepods-planted.slice/inner");
    fs::remove_dir(cgroup.join("inner")).expect("remove");
    fs::remove_dir(&cgroup).expect("remove");
    plant.assert_clean("cgroups", "kubepods-planted");
}

#[test]
fn every_kind_of_file_in_the_state_directories_is_found() {
    let dir = tempfile::tempdir().expect("directory");
    let plant = Plant::prepare(Scope { roots: vec![dir.path().to_owned()], ..Scope::default() });
    let ipam = dir.path().join("ipam/node");
    fs::create_dir_all(&ipam).expect("create");
    fs::write(ipam.join("10.77.0.2"), "pod").expect("write a lease");
    let _socket = UnixListener::bind(dir.path().join("shim.sock")).expect("bind");
    std::os::unix::fs::symlink("/proc", dir.path().join("link")).expect("link");
    for mark in ["ipam/node directory", "ipam/node/10.77.0.2 file", "shim.sock socket", "link link"]
    {
        plant.assert_found("files", mark);
    }
    assert_eq!(plant.entries("files", "link/"), Vec::<String>::new(), "links are not followed");
}

#[test]
fn a_process_is_found_by_its_program() {
    let plant = Plant::bare();
    let shim = Sleeper::start("berth-planted", "");
    plant.assert_found("processes", "berth-planted");
    drop(shim);
    plant.assert_clean("processes", "berth-planted");
}

#[test]
fn a_process_is_found_by_its_cgroup() {
    let plant = Plant::bare();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    let unified = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2");
    let cgroup =
        Path::new(unified.split(' ').nth(4).expect("mount point")).join("berth-census-test");
    fs::create_dir(&cgroup).expect("create a cgroup");
    let mut child = Command::new("sleep").arg("4242").spawn().expect("start");
    fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).expect("move the child");
    plant.assert_found("processes", "sleep 4242");
    child.kill().expect("kill");
    child.wait().expect("reap");
    wait_until(Duration::from_secs(10), "the cgroup to empty", || fs::remove_dir(&cgroup).ok());
    plant.assert_clean("processes", "sleep 4242");
}

#[test]
fn a_process_that_runs_from_a_memory_file_is_found() {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsRawFd;
    let plant = Plant::bare();
    // Inherited on purpose: the child executes it by its number.
    let memory = memfd_create("berth-in-memory", MFdFlags::empty()).expect("memory file");
    let mut file = File::from(memory);
    file.write_all(&fs::read("/bin/sleep").expect("read sleep")).expect("fill it");
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    // A writer must be gone before it can be executed.
    let reader = File::open(&path).expect("open for reading");
    let path = format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd());
    drop(file);
    let mut child = Command::new(path).arg("4343").spawn().expect("start");
    plant.assert_found("processes", "4343");
    child.kill().expect("kill");
    child.wait().expect("reap");
    plant.assert_clean("processes", "4343");
}

#[test]
fn a_zombie_is_found() {
    let plant = Plant::bare();
    let dir = tempfile::tempdir().expect("directory");
    let program = copy_of_sleep(dir.path(), "berth-zombie");
    let mut child = Command::new(program).arg("0").spawn().expect("start");
    wait_until(Duration::from_secs(10), "the zombie", || {
        plant.entries("processes", "berth-zombie (zombie)").pop()
    });
    child.wait().expect("reap");
    plant.assert_clean("processes", "berth-zombie");
}

#[test]
fn a_loop_device_is_found() {
    let plant = Plant::bare();
    let dir = tempfile::tempdir().expect("directory");
    let image = dir.path().join("planted.img");
    File::create(&image).and_then(|file| file.set_len(1 << 20)).expect("image");
    let output =
        Command::new("losetup").args(["--find", "--show"]).arg(&image).output().expect("losetup");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let device = String::from_utf8(output.stdout).expect("name");
    plant.assert_found("loop devices", "planted.img");
    run(&format!("losetup --detach {}", device.trim()));
    plant.assert_clean("loop devices", "planted.img");
}

#[test]
fn shared_memory_of_both_kinds_and_a_message_queue_are_found() {
    let plant = Plant::bare();
    fs::write("/dev/shm/berth-planted", "x").expect("POSIX shared memory");
    let output = Command::new("ipcmk").args(["-M", "4096"]).output().expect("ipcmk");
    let text = String::from_utf8(output.stdout).expect("text");
    let id = text.trim().rsplit(' ').next().expect("id").to_owned();
    plant.assert_found("shared memory", "/dev/shm/berth-planted");
    plant.assert_found("shared memory", &format!("System V shm {id} "));
    fs::remove_file("/dev/shm/berth-planted").expect("remove");
    run(&format!("ipcrm -m {id}"));
    plant.assert_clean("shared memory", "/dev/shm/berth-planted");
    plant.assert_clean("shared memory", &format!("System V shm {id} "));

    run("mkdir -p /dev/mqueue; mountpoint -q /dev/mqueue || mount -t mqueue mqueue /dev/mqueue");
    run("touch /dev/mqueue/berth-planted");
    plant.assert_found("message queues", "berth-planted");
    run("rm /dev/mqueue/berth-planted");
    plant.assert_clean("message queues", "berth-planted");
}

#[test]
fn a_key_is_found() {
    let plant = Plant::bare();
    run("keyctl add user berth-planted-key secret @u > /dev/null");
    plant.assert_found("keyrings", "berth-planted-key");
    run("keyctl unlink %user:berth-planted-key @u");
    plant.assert_clean("keyrings", "berth-planted-key");
}

#[test]
fn the_program_says_what_is_left_and_exits_with_one() {
    let _private = Private::enter();
    let dir = tempfile::tempdir().expect("directory");
    let root = dir.path().join("state");
    let before = dir.path().join("before.json");
    let census = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_census"))
            .args(words)
            .args(["--root", root.to_str().expect("path"), "--cgroup", "no-such-cgroup"])
            .output();
        output.expect("run census")
    };
    let ignore: Vec<&str> = [
        "namespaces",
        "processes",
        "mounts of shims",
        "keyrings",
        "shared memory",
        "message queues",
        "loop devices",
    ]
    .iter()
    .flat_map(|kind| ["--ignore", kind])
    .collect();
    let diff: Vec<&str> =
        ["diff", before.to_str().expect("path")].into_iter().chain(ignore).collect();

    fs::write(&before, census(&["take"]).stdout).expect("write");
    let same = census(&diff);
    assert_eq!(same.status.code(), Some(0), "{same:?}");
    fs::create_dir(&root).expect("create");
    let other = census(&diff);
    assert_eq!(other.status.code(), Some(1));
    let text = String::from_utf8(other.stdout).expect("text");
    assert_eq!(text, format!("left: files: {} directory\n", root.display()));
    fs::write(&before, "{").expect("write");
    assert_eq!(census(&diff).status.code(), Some(2), "a broken file is no difference");
}
