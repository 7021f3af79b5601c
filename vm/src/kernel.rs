//! Which kernels there are, and in which order a kernel's modules are loaded.
//!
//! Owns names and the reading of `modules.dep` (depmod(8), modules.dep(5)); fetches nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// A kernel of Debian's "cloud" flavour, by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kernel {
    /// Debian 12's, 6.1.
    Oldest,
    /// Debian 13's, 6.12.
    Middle,
    /// Whatever Debian's unstable suite has.
    Newest,
}

impl Kernel {
    /// All of them, oldest first.
    pub const ALL: [Kernel; 3] = [Kernel::Oldest, Kernel::Middle, Kernel::Newest];

    /// The suite it is fetched from.
    pub fn suite(self) -> &'static str {
        match self {
            Kernel::Oldest => "bookworm",
            Kernel::Middle => "trixie",
            Kernel::Newest => "sid",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kernel::Oldest => "oldest",
            Kernel::Middle => "middle",
            Kernel::Newest => "newest",
        })
    }
}

impl FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "oldest" | "6.1" => Kernel::Oldest,
            "middle" | "6.12" => Kernel::Middle,
            "newest" => Kernel::Newest,
            _ if text.starts_with("7.") => Kernel::Newest,
            _ => bail!("no kernel is called {text:?}: oldest (6.1), middle (6.12), newest (7.x)"),
        })
    }
}

/// What `modules.dep` and `modules.builtin` of one kernel say.
#[derive(Debug, Default)]
pub struct Modules {
    /// Module name to its file, relative to the release's directory, and what it needs.
    loadable: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// Reads the text of the two files.
    pub fn parse(dep: &str, builtin: &str) -> Result<Self> {
        let mut modules = Modules::default();
        for line in dep.lines().filter(|line| !line.trim().is_empty()) {
            let (file, needs) = line
                .split_once(':')
                .with_context(|| format!("modules.dep: no colon in {line:?}"))?;
            let needs = needs.split_whitespace().map(module_name).collect();
            modules.loadable.insert(module_name(file), (file.to_owned(), needs));
        }
        modules.builtin = builtin.lines().map(module_name).collect();
        Ok(modules)
    }

    /// The files to load, in order, so that `wanted` and all they need are there. What is built
    /// into the kernel needs no file.
    ///
    /// # Errors
    /// A name that this kernel does not have.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<&str>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.visit(name, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit<'a>(
        &'a self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<&'a str>,
    ) -> Result<()> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        match self.loadable.get(name) {
            Some((file, needs)) => {
                for need in needs {
                    self.visit(need, seen, order)?;
                }
                order.push(file);
                Ok(())
            }
            None if self.builtin.contains(name) => Ok(()),
            None => bail!("the kernel has no module {name}"),
        }
    }
}

/// `kernel/net/foo-bar.ko.xz` is the module `foo_bar`.
pub fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci_modern_dev.ko.xz:
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio_pci_modern_dev.ko.xz
kernel/net/bridge/br-netfilter.ko:
";

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let modules = Modules::parse(DEP, "kernel/fs/ext4/ext4.ko\n").unwrap();
        let order = modules.load_order(&["virtio_pci", "ext4", "virtio_ring"]).unwrap();
        let names: Vec<String> = order.into_iter().map(module_name).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci"]);
    }

    #[test]
    fn a_module_that_the_kernel_lacks_is_named() {
        let modules = Modules::parse(DEP, "").unwrap();
        let error = modules.load_order(&["ext4"]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module ext4");
    }

    #[test]
    fn dashes_in_file_names_are_underscores_in_module_names() {
        let modules = Modules::parse(DEP, "").unwrap();
        assert_eq!(
            modules.load_order(&["br_netfilter"]).unwrap(),
            ["kernel/net/bridge/br-netfilter.ko"]
        );
    }

    #[test]
    fn kernels_are_called_by_age_or_by_version() {
        for (text, kernel) in
            [("6.1", Kernel::Oldest), ("middle", Kernel::Middle), ("7.2", Kernel::Newest)]
        {
            assert_eq!(text.parse::<Kernel>().unwrap(), kernel);
        }
        assert!("5.15".parse::<Kernel>().is_err());
    }
}
