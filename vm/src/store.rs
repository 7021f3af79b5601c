//! The cache: kernels and root images, made when they are first asked for.
//!
//! Owns what lies under `.cache/vm` and the lock on it; how an image is made is in `images`.
//! Everything is made under a temporary name and renamed, and named after a hash of what it was
//! made from, so that a changed recipe is a new file. Kernels stay until they are removed by hand:
//! the newest suite moves, a test run should not.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::images;
use crate::kernel::{Kernel, Modules};

/// The cache of one work tree.
#[derive(Debug, Clone)]
pub struct Store {
    scripts: PathBuf,
    dir: PathBuf,
}

/// One kernel, ready to boot.
#[derive(Debug, Clone)]
pub struct KernelFiles {
    /// What `uname -r` says.
    pub release: String,
    /// The kernel's image.
    pub image: PathBuf,
    /// An ext4 image of `/lib/modules`.
    pub modules_image: PathBuf,
    /// The directory `/lib/modules/RELEASE`.
    pub modules_dir: PathBuf,
}

impl KernelFiles {
    /// What depmod knows of this kernel.
    pub fn modules(&self) -> Result<Modules> {
        let read = |name: &str| {
            let path = self.modules_dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        Modules::parse(&read("modules.dep")?, &read("modules.builtin")?)
    }
}

impl Store {
    /// The cache of the work tree that this program was built from.
    pub fn open() -> Result<Self> {
        let repo =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository's root")?;
        let store = Store { scripts: repo.join("tests/setup"), dir: repo.join(".cache/vm") };
        fs::create_dir_all(&store.dir)
            .with_context(|| format!("create {}", store.dir.display()))?;
        Ok(store)
    }

    /// Where the cache lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The kernel's files. Fetches them from Debian when they are not there: blocks for some
    /// seconds and needs the package archive.
    pub fn kernel(&self, kernel: Kernel) -> Result<KernelFiles> {
        let _lock = self.lock()?;
        let dir = self.dir.join(format!("kernel-{kernel}"));
        if !dir.join("modules.ext4").exists() {
            self.fetch_kernel(kernel, &dir)?;
        }
        let base = dir.join("lib/modules");
        let mut releases =
            fs::read_dir(&base).with_context(|| format!("list {}", base.display()))?;
        let release = releases.next().context("the kernel's package holds no modules")??;
        let release = release.file_name().to_string_lossy().into_owned();
        let modules_dir = base.join(&release);
        Ok(KernelFiles {
            image: dir.join("vmlinuz"),
            modules_image: dir.join("modules.ext4"),
            modules_dir,
            release,
        })
    }

    /// The root image, an ext4 file system of a small Debian 12 with systemd that serves both
    /// variants. Made from Debian's packages when it is not there, which takes half a minute.
    pub fn root_image(&self) -> Result<PathBuf> {
        let _lock = self.lock()?;
        let image = self.dir.join(format!("root-{}.ext4", images::root_recipe_hash()));
        if !image.exists() {
            self.make_root(&image)?;
        }
        Ok(image)
    }

    fn fetch_kernel(&self, kernel: Kernel, dir: &Path) -> Result<()> {
        let unpacked = self.dir.join(format!("kernel-{kernel}.new"));
        let mut debs = self.script("debs.sh");
        debs.args(["--only", "linux-*", kernel.suite()]).arg(&unpacked);
        run(debs.arg("linux-image-cloud-amd64"))?;
        images::arrange_kernel(&unpacked)?;
        remove_tree(dir)?;
        fs::rename(&unpacked, dir).with_context(|| format!("move the kernel to {}", dir.display()))
    }

    fn make_root(&self, image: &Path) -> Result<()> {
        let archive = self.script("debs.sh").stdout(Stdio::piped()).arg("--archive").output()?;
        let archive = String::from_utf8(archive.stdout).context("the archive's address")?;
        let (address, keyring) =
            archive.trim().split_once(' ').context("no package archive is configured")?;
        let work = tempfile::Builder::new().prefix("root-").tempdir_in(&self.dir)?;
        eprintln!("vm: making the root image from Debian's packages");
        images::make_root(work.path(), address, keyring)?;
        for old in fs::read_dir(&self.dir)? {
            let old = old?;
            if old.file_name().to_string_lossy().starts_with("root-")
                && old.path().extension().is_some_and(|ext| ext == "ext4")
            {
                fs::remove_file(old.path())?;
            }
        }
        fs::rename(work.path().join("root.ext4"), image)
            .with_context(|| format!("move the root image to {}", image.display()))
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.scripts.join(name));
        // Their remarks must not mix with the output of the guest's command.
        command.stdin(Stdio::null()).stdout(Stdio::from(io::stderr()));
        command
    }

    fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        file.lock().with_context(|| format!("lock {}", path.display()))?;
        Ok(file)
    }
}

/// Runs a command to its end, and says which one failed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("run {name} (tests/setup/packages.sh installs what is needed)"))?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
