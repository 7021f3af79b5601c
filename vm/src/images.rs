//! Makes the images a VM boots from: root file system, modules, files to have in the guest,
//! initramfs.
//!
//! Owns the recipes, with `mmdebstrap`, `mke2fs -d` and `depmod` as tools; where the results are
//! kept is `store`'s matter.

use std::collections::BTreeSet;
use std::fs;
use std::io::BufWriter;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::cpio::Archive;
use crate::kernel::module_name;
use crate::store::{KernelFiles, run};

const ROOT_SUITE: &str = "bookworm";
/// Grows with what `make_root` does beyond the list of packages.
const ROOT_RECIPE: u32 = 1;
const ROOT_SIZE: u64 = 6 << 30;
const ROOT_PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,iproute2,nftables,conntrack,curl,jq,\
    socat,strace,keyutils,busybox-static,util-linux,procps,e2fsprogs,python3-minimal,libnftnl11,\
    libmnl0,docker-registry,ca-certificates,nfs-kernel-server";

/// What serves nobody in a test VM and costs time at boot, or would write to its console.
const MASKED_UNITS: [&str; 18] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "getty-static.service",
    "serial-getty@ttyS0.service",
    "docker-registry.service",
    "nfs-blkmap.service",
    "nfs-client.target",
    "nfs-server.service",
    "rpcbind.service",
    "rpcbind.socket",
    "systemd-networkd-wait-online.service",
    "systemd-pcrphase.service",
    "systemd-update-utmp.service",
];

/// Loaded before the root file system is there; all others load on demand from `/lib/modules`.
const BOOT_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "ext4"];

/// Names the root image: changes when the recipe does.
pub(crate) fn root_recipe_hash() -> String {
    let masked = MASKED_UNITS.join(",");
    let recipe = format!("{ROOT_RECIPE} {ROOT_SUITE} {ROOT_SIZE} {ROOT_PACKAGES} {masked}");
    let digest = Sha256::digest(recipe.as_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Makes `work/root.ext4`.
pub(crate) fn make_root(work: &Path, archive: &str, keyring: &str) -> Result<()> {
    let tree = work.join("tree");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--mode=root", "--variant=minbase", "--format=directory"])
        .args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Retries \"3\""])
        .args(
            ["doc", "man", "locale", "info"]
                .map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*")),
        )
        .arg(format!("--keyring={keyring}"))
        .arg(format!("--include={ROOT_PACKAGES}"))
        .arg(ROOT_SUITE)
        .arg(&tree)
        .arg(format!("deb [signed-by={keyring}] {archive} {ROOT_SUITE} main"))
        .stdin(Stdio::null());
    run(&mut mmdebstrap)?;
    settle_root(&tree).context("settle the root file system")?;
    ext4_image(&tree, &work.join("root.ext4"), ROOT_SIZE, Journal::With)
}

fn settle_root(tree: &Path) -> Result<()> {
    fs::write(tree.join("etc/hostname"), "berth-vm\n")?;
    fs::write(tree.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 berth-vm\n")?;
    fs::write(tree.join("etc/fstab"), "")?;
    fs::write(tree.join("etc/machine-id"), "")?;
    let resolv = tree.join("etc/resolv.conf");
    let _ = fs::remove_file(&resolv);
    fs::write(resolv, "")?;
    fs::create_dir_all(tree.join("usr/lib/modules"))?;
    let units = tree.join("etc/systemd/system");
    fs::create_dir_all(&units)?;
    for unit in MASKED_UNITS {
        let link = units.join(unit);
        let _ = fs::remove_file(&link);
        symlink("/dev/null", &link).with_context(|| format!("mask {unit}"))?;
    }
    let target = units.join("default.target");
    let _ = fs::remove_file(&target);
    symlink("/usr/lib/systemd/system/multi-user.target", target)?;
    Ok(())
}

/// Turns what the kernel's packages unpacked to into `vmlinuz`, `lib/modules` and `modules.ext4`.
pub(crate) fn arrange_kernel(dir: &Path) -> Result<()> {
    let lib = dir.join("lib");
    if !lib.join("modules").exists() {
        let _ = fs::remove_dir_all(&lib);
        fs::rename(dir.join("usr/lib"), &lib).context("find the kernel's modules")?;
    }
    let modules = lib.join("modules");
    let release =
        fs::read_dir(&modules)?.next().context("no modules in the kernel's packages")??;
    let release_name = release.file_name().to_string_lossy().into_owned();
    let places = [dir.join(format!("boot/vmlinuz-{release_name}")), release.path().join("vmlinuz")];
    let image = places.iter().find(|path| path.exists()).context("the packages hold no vmlinuz")?;
    fs::rename(image, dir.join("vmlinuz"))?;
    run(Command::new("depmod").arg("-b").arg(dir).arg(&release_name))?;
    ext4_image(&modules, &dir.join("modules.ext4"), tree_size(&modules)?, Journal::Without)
}

/// Whether an image is written to in the guest, and so needs a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journal {
    With,
    Without,
}

/// Makes `image`, an ext4 file system of `content` bytes and what the format needs, holding `tree`.
pub(crate) fn ext4_image(tree: &Path, image: &Path, content: u64, journal: Journal) -> Result<()> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,root_owner=0:0"]);
    let kib = match journal {
        Journal::With => content / 1024,
        Journal::Without => {
            mke2fs.args(["-O", "^has_journal"]);
            (content + content / 4) / 1024 + 8192
        }
    };
    mke2fs.arg("-d").arg(tree).arg(image).arg(format!("{kib}k"));
    run(mke2fs.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// Bytes that the files of `tree` take, rounded up to blocks.
fn tree_size(tree: &Path) -> Result<u64> {
    let mut total = 4096;
    for entry in fs::read_dir(tree).with_context(|| format!("list {}", tree.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        total += if meta.is_dir() {
            tree_size(&entry.path())?
        } else {
            meta.len().next_multiple_of(4096) + 512
        };
    }
    Ok(total)
}

/// Makes an image that reads as `root` and takes all writes.
pub(crate) fn root_overlay(work: &Path, root: &Path) -> Result<PathBuf> {
    let overlay = work.join("root.qcow2");
    let mut qemu_img = Command::new("qemu-img");
    qemu_img.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(root).arg(&overlay);
    run(qemu_img.stdin(Stdio::null()))?;
    Ok(overlay)
}

/// A file or directory of the host to have in the guest. As text: `HOST[:GUEST]`, at the same path
/// without the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Where it is.
    pub host: PathBuf,
    /// Its absolute path in the guest.
    pub guest: PathBuf,
}

impl FromStr for Copy {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (host, guest) = match text.split_once(':') {
            Some((host, guest)) => (PathBuf::from(host), PathBuf::from(guest)),
            None => {
                let host = std::path::absolute(text).context("make the path absolute")?;
                (host.clone(), host)
            }
        };
        Ok(Copy { host, guest })
    }
}

/// Makes the image of what is to be in the guest. `copies` lists the guest paths, NUL-separated,
/// beside a numbered entry for each.
pub(crate) fn payload_image(work: &Path, copies: &[Copy]) -> Result<PathBuf> {
    let tree = work.join("payload");
    fs::create_dir(&tree)?;
    let mut list = Vec::new();
    for (number, copy) in copies.iter().enumerate() {
        if !copy.guest.is_absolute() {
            bail!("{} is no absolute path for the guest", copy.guest.display());
        }
        let source = fs::canonicalize(&copy.host)
            .with_context(|| format!("find {} to copy it into the VM", copy.host.display()))?;
        place(&source, &tree.join(number.to_string()))?;
        list.extend(copy.guest.as_os_str().as_encoded_bytes());
        list.push(0);
    }
    fs::write(tree.join("copies"), list)?;
    let image = work.join("payload.ext4");
    ext4_image(&tree, &image, tree_size(&tree)?, Journal::Without)?;
    fs::remove_dir_all(&tree)?;
    Ok(image)
}

/// A link where the file systems allow it, else a copy.
fn place(source: &Path, target: &Path) -> Result<()> {
    if source.is_dir() {
        return run(Command::new("cp").arg("-a").arg("--").arg(source).arg(target));
    }
    let by = |what: &str| format!("{what} {} for the VM", source.display());
    if fs::hard_link(source, target).is_err() {
        fs::copy(source, target).with_context(|| by("copy"))?;
    }
    Ok(())
}

/// Makes the initramfs: `vm-init`, the libraries it was linked with, and the modules it loads.
pub(crate) fn initramfs(
    work: &Path,
    init: &Path,
    kernel: &KernelFiles,
    more: &[&str],
) -> Result<PathBuf> {
    let path = work.join("initramfs");
    let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for dir in ["dev", "proc", "sys", "root", "vm", "vm/modules"] {
        archive.directory(dir)?;
    }
    let program = fs::read(init).with_context(|| format!("read {}", init.display()))?;
    archive.executable("init", &program)?;
    let mut made = BTreeSet::new();
    for library in libraries(init)? {
        let data = fs::read(&library).with_context(|| format!("read {}", library.display()))?;
        let above: Vec<&Path> = library.ancestors().skip(1).collect();
        for dir in above.into_iter().rev().filter(|dir| dir.parent().is_some()) {
            if made.insert(dir.to_owned()) {
                archive.directory(&dir.to_string_lossy())?;
            }
        }
        archive.executable(&library.to_string_lossy(), &data)?;
    }
    let modules = kernel.modules()?;
    let wanted: Vec<&str> = BOOT_MODULES.iter().chain(more).copied().collect();
    for (number, file) in modules.load_order(&wanted)?.into_iter().enumerate() {
        let data = module_bytes(&kernel.modules_dir.join(file))?;
        archive.file(&format!("vm/modules/{number:02}-{}", module_name(file)), &data)?;
    }
    archive.finish().context("write the initramfs")?;
    Ok(path)
}

/// The loader and the shared libraries of a program; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output =
        Command::new("ldd").arg(program).stdin(Stdio::null()).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}

fn module_bytes(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|ext| ext.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("read {}", path.display())),
    };
    let output = Command::new(tool)
        .arg("-dc")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {tool}"))?;
    if !output.status.success() {
        bail!("{tool} could not decompress {}", path.display());
    }
    Ok(output.stdout)
}
