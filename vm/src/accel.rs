//! How the machine's instructions are run: KVM where it truly works, else TCG.
//!
//! Owns the probe and its remembered verdict. `/dev/kvm` alone proves little: nested in another
//! virtual machine it can exist and never get a kernel to its first program, so the probe boots
//! one.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::machine::{Config, Vm};
use crate::store::Store;
use crate::wire::Job;

/// A QEMU accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor's own virtualization.
    Kvm,
    /// Translation in software: works everywhere, about ten times slower.
    Tcg,
}

/// A machine that KVM runs is there in two seconds.
const PROBE_PATIENCE: Duration = Duration::from_secs(15);

impl Accel {
    /// Its QEMU options.
    pub(crate) fn arguments(self) -> &'static str {
        match self {
            Accel::Kvm => "-accel kvm -cpu host",
            // Without cmpxchg16b: Debian 12's QEMU now and then leaves rubbish in the flags after
            // it, which crashed one boot in twelve inside the kernel's allocator. One thread for all
            // processors: with several, one may run a stale breakpoint of code that the kernel has
            // just patched ("Oops: int3").
            Accel::Tcg => "-accel tcg,thread=single,tb-size=256 -cpu max,-cx16",
        }
    }

    /// The best one here. The first call on a machine boots a VM to find out; the verdict is kept
    /// in the cache for this host kernel and processor.
    pub fn probe(store: &Store) -> Result<Accel> {
        if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Accel::Tcg);
        }
        let verdict = store.dir().join("kvm");
        let host = host_name();
        if let Ok(known) = fs::read_to_string(&verdict)
            && let Some((word, of)) = known.split_once(' ')
            && of == host
        {
            return Ok(if word == "works" { Accel::Kvm } else { Accel::Tcg });
        }
        eprintln!("vm: trying whether KVM boots a kernel here");
        let works = boots(store);
        let word = if works { "works" } else { "broken" };
        fs::write(verdict, format!("{word} {host}"))?;
        eprintln!("vm: KVM {}", if works { "works" } else { "does not: using TCG" });
        Ok(if works { Accel::Kvm } else { Accel::Tcg })
    }
}

fn boots(store: &Store) -> bool {
    let config =
        Config { accel: Some(Accel::Kvm), boot_timeout: PROBE_PATIENCE, ..Config::default() };
    let status = Vm::boot(store, &config)
        .and_then(|mut vm| vm.output(&Job::new(["true"]), PROBE_PATIENCE))
        .map(|output| output.status);
    matches!(status, Ok(0))
}

/// What the verdict depends on.
fn host_name() -> String {
    let release = fs::read_to_string(PathBuf::from("/proc/sys/kernel/osrelease"));
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    format!("{} {model}", release.unwrap_or_default().trim())
}
