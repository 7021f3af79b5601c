//! From the kernel's first program to a guest that is ready.
//!
//! Owns the module loading, the mounts from [`MOUNTS`], cgroup v2 and the hand-over to systemd.
//!
//! ```text
//! modules ─► /dev/vda on /root ─► mounts below it ─► move it to / ─► copies ─► network
//!                                       light: cgroup controllers on, serve the host as PID 1
//!                                     systemd: a unit that serves, exec /sbin/init
//! ```

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, chroot};

use crate::agent;

/// What every variant finds mounted: source, target below the root, type, data.
const MOUNTS: [(&str, &str, &str, &str); 7] = [
    ("proc", "proc", "proc", ""),
    ("sysfs", "sys", "sysfs", ""),
    ("dev", "dev", "devtmpfs", "mode=0755"),
    ("devpts", "dev/pts", "devpts", "ptmxmode=0666,mode=0620,gid=5"),
    ("shm", "dev/shm", "tmpfs", "mode=1777"),
    ("run", "run", "tmpfs", "mode=0755"),
    ("tmp", "tmp", "tmpfs", "mode=1777"),
];

/// What systemd would mount itself.
const LIGHT_MOUNTS: [(&str, &str, &str, &str); 6] = [
    ("cgroup2", "sys/fs/cgroup", "cgroup2", "nsdelegate,memory_recursiveprot"),
    ("bpf", "sys/fs/bpf", "bpf", "mode=0700"),
    ("securityfs", "sys/kernel/security", "securityfs", ""),
    ("debugfs", "sys/kernel/debug", "debugfs", ""),
    ("tracefs", "sys/kernel/tracing", "tracefs", ""),
    ("mqueue", "dev/mqueue", "mqueue", ""),
];

const NEW_ROOT: &str = "/root";
const PAYLOAD: &str = "/run/vm/payload";
const UNIT: &str = "\
[Unit]
Description=Runs commands for the host of this virtual machine
After=basic.target dbus.socket systemd-user-sessions.service

[Service]
Type=exec
ExecStart=/run/vm/lib/ld-linux-x86-64.so.2 --library-path /run/vm/lib /run/vm/vm-init
Environment=HOME=/root USER=root LOGNAME=root SHELL=/bin/bash
WorkingDirectory=/root
KillMode=process
OOMScoreAdjust=-1000
LimitNOFILE=1048576
LimitMEMLOCK=infinity
TasksMax=infinity
Delegate=yes
StandardOutput=journal+console
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Light,
    Systemd,
}

/// Brings the guest up and serves the host, or hands over to systemd. Returns only on failure.
pub(crate) fn boot() -> Result<()> {
    mount_at("/", ("proc", "proc", "proc", ""))?;
    mount_at("/", ("dev", "dev", "devtmpfs", "mode=0755"))?;
    load_modules().context("load the modules of the initramfs")?;
    let line = fs::read_to_string("/proc/cmdline").context("read the kernel's command line")?;
    let says = |word: &str| line.split_whitespace().any(|found| found == word);
    let variant = if says("vm.variant=systemd") { Variant::Systemd } else { Variant::Light };

    wait_for("/dev/vda")?;
    mount_disk("/dev/vda", NEW_ROOT, MsFlags::MS_NOATIME)?;
    for entry in MOUNTS {
        mount_at(NEW_ROOT, entry)?;
    }
    mount_disk("/dev/vdb", "/root/usr/lib/modules", MsFlags::MS_RDONLY)?;
    fs::create_dir_all(format!("{NEW_ROOT}{PAYLOAD}"))?;
    mount_disk("/dev/vdc", &format!("{NEW_ROOT}{PAYLOAD}"), MsFlags::MS_RDONLY)?;
    if variant == Variant::Systemd {
        carry_over_unit().context("prepare the systemd unit")?;
    }
    enter_root().context("enter the root file system")?;

    place_copies().context("place the files from the host")?;
    if says("vm.network=user") {
        network()?;
    }
    match variant {
        Variant::Light => light(),
        Variant::Systemd => {
            let error = Command::new("/sbin/init").env_clear().exec();
            Err(error).context("hand over to systemd")
        }
    }
}

fn light() -> Result<()> {
    for entry in LIGHT_MOUNTS {
        // A kernel may lack one that only some tests look at.
        if let Err(error) = mount_at("/", entry) {
            eprintln!("vm-init: {error:#}");
        }
    }
    let available = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .context("read the cgroup controllers")?;
    for controller in available.split_whitespace() {
        // One that cannot be enabled here is not in the tests' cgroups either; they say so.
        let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", format!("+{controller}"));
    }
    device_nodes().context("make the device nodes that load modules")?;
    fs::write("/proc/sys/kernel/hostname", "berth-vm").context("set the host name")?;
    run("ip", &["link", "set", "lo", "up"])?;
    agent::serve()
}

/// Nodes whose opening loads their module: loop-control, net/tun, fuse (modules.devname(5)).
fn device_nodes() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let names = fs::read_to_string(format!("/lib/modules/{}/modules.devname", release.trim()))?;
    for line in names.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_module, node, device] = words[..] else { continue };
        let Some((major, minor)) = device.get(1..).and_then(|numbers| numbers.split_once(':'))
        else {
            continue;
        };
        let node = Path::new("/dev").join(node);
        if !device.starts_with('c') || node.exists() {
            continue;
        }
        if let Some(above) = node.parent() {
            fs::create_dir_all(above)?;
        }
        let number = makedev(major.parse()?, minor.parse()?);
        mknod(&node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), number)
            .with_context(|| format!("create {}", node.display()))?;
    }
    Ok(())
}

fn load_modules() -> Result<()> {
    let mut files: Vec<PathBuf> =
        fs::read_dir("/vm/modules")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    files.sort();
    for path in files {
        let file = File::open(&path)?;
        finit_module(&file, &CString::default(), ModuleInitFlags::empty())
            .with_context(|| format!("load {}", path.display()))?;
    }
    Ok(())
}

/// Drivers announce devices in their own time.
fn wait_for(device: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !Path::new(device).exists() {
        if Instant::now() > deadline {
            bail!("{device} did not appear");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn mount_at(root: &str, (source, target, kind, data): (&str, &str, &str, &str)) -> Result<()> {
    let target = Path::new(root).join(target);
    if !target.exists() {
        fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    }
    let flags = match kind {
        "proc" | "sysfs" | "cgroup2" => MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        "devtmpfs" | "devpts" => MsFlags::MS_NOSUID,
        _ => MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
    };
    mount(Some(source), &target, Some(kind), flags, Some(data))
        .with_context(|| format!("mount {kind} on {}", target.display()))
}

fn mount_disk(device: &str, target: &str, flags: MsFlags) -> Result<()> {
    wait_for(device)?;
    mount(Some(device), target, Some("ext4"), flags, None::<&str>)
        .with_context(|| format!("mount {device} on {target}"))
}

/// Makes the mounted root the root of everything. The initramfs stays below it, unreachable; it
/// is a few megabytes.
fn enter_root() -> Result<()> {
    chdir(NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)?;
    Ok(())
}

/// Makes what the host asked for appear at its guest paths: a file as a link into the read-only
/// payload, a directory as a copy. After a reset it is done anew.
fn place_copies() -> Result<()> {
    let list = fs::read(Path::new(PAYLOAD).join("copies"))?;
    let paths = list.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    for (number, guest) in paths.enumerate() {
        let source = Path::new(PAYLOAD).join(number.to_string());
        let target = Path::new(std::ffi::OsStr::from_bytes(guest));
        if let Some(above) = target.parent() {
            fs::create_dir_all(above)?;
        }
        if source.is_dir() {
            fs::create_dir_all(target)?;
            let source = source.join(".");
            run("cp", &["-a", &source.to_string_lossy(), &target.to_string_lossy()])?;
        } else {
            let _ = fs::remove_file(target);
            symlink(&source, target).with_context(|| format!("link {}", target.display()))?;
        }
    }
    Ok(())
}

fn network() -> Result<()> {
    wait_for("/sys/class/net/eth0")?;
    run("ip", &["link", "set", "eth0", "up"])?;
    run("ip", &["address", "add", "10.0.2.15/24", "dev", "eth0"])
}

/// Puts this program, its libraries and its unit where systemd, in the root to come, finds them.
fn carry_over_unit() -> Result<()> {
    let vm = format!("{NEW_ROOT}/run/vm");
    fs::create_dir_all(format!("{vm}/lib"))?;
    fs::copy("/init", format!("{vm}/vm-init"))?;
    fs::set_permissions(format!("{vm}/vm-init"), fs::Permissions::from_mode(0o755))?;
    for dir in ["/lib64", "/lib/x86_64-linux-gnu"] {
        for entry in fs::read_dir(dir).with_context(|| format!("list {dir}"))? {
            let entry = entry?;
            fs::copy(entry.path(), Path::new(&vm).join("lib").join(entry.file_name()))?;
        }
    }
    let units = format!("{NEW_ROOT}/run/systemd/system");
    fs::create_dir_all(format!("{units}/multi-user.target.wants"))?;
    fs::write(format!("{units}/berth-vm.service"), UNIT)?;
    symlink("../berth-vm.service", format!("{units}/multi-user.target.wants/berth-vm.service"))?;
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .env("PATH", agent::PATH)
        .status()
        .with_context(|| format!("run {program}"))?;
    if !status.success() {
        bail!("{program} {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}
