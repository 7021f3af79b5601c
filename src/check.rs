//! `berth check`: what this host lacks, what will then not be enforced, and how to mend it.
//!
//! [`Facts`] are read from the kernel; [`assess`] turns them into findings and is pure. A host that
//! lacks something required cannot run a node; one that lacks something wanted runs it and says what
//! it does not enforce.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use berth_kubelet::qos::Driver;
use berth_runtime::cgroup::units;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::FsOpenFlags;
use rustix::process::{Pid, PidfdFlags};

use crate::cli::HostFlags;
use crate::settings::{Kubelet, Settings};

/// The oldest kernel that berth supports.
const KERNEL_FLOOR: (u32, u32) = (5, 15);

/// The cgroup controllers that a node's limits need.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// CAP_SYS_RESOURCE and CAP_SYS_ADMIN, as bits of `CapEff`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// What was read from the host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Facts {
    kernel: String,
    effective_capabilities: u64,
    openat2: bool,
    mount_api: bool,
    pidfd: bool,
    overlay: bool,
    /// The controllers of the cgroup v2 hierarchy; absent where none is mounted.
    controllers: Option<BTreeSet<String>>,
    nf_tables: bool,
    landlock: bool,
    run_on_tmpfs: bool,
    swap: bool,
    /// Whether the host has what the configured cgroup driver needs.
    cgroup_driver: bool,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// A node cannot run.
    Required,
    /// A node runs and does not enforce something.
    Wanted,
}

/// Something the host lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// What is missing.
    pub(crate) lacks: String,
    /// What follows.
    pub(crate) consequence: String,
    /// How to mend it.
    pub(crate) remedy: &'static str,
}

/// What upstream's kubelet sets the kernel to, and holds it against where that is demanded.
const KERNEL_DEFAULTS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Refuses a host that the configuration does not want a node on.
pub(crate) fn demands(kubelet: &Kubelet) -> Result<()> {
    if kubelet.fail_swap_on && has_swap() {
        bail!("failSwapOn: this host has swap (swapoff -a)");
    }
    if !can_make_cgroups(kubelet.cgroups.driver) {
        bail!("cgroupDriver: systemd does not run this host (cgroupDriver: cgroupfs)");
    }
    if !kubelet.protect_kernel_defaults {
        return Ok(());
    }
    let read = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name));
    let differs = |(name, wanted): &(&str, &str)| match read(name) {
        Ok(text) if text.trim() == *wanted => None,
        Ok(text) => Some(format!("{name} is {}, not {wanted}", text.trim())),
        Err(error) => Some(format!("{name}: {error}")),
    };
    let differing: Vec<_> = KERNEL_DEFAULTS.iter().filter_map(differs).collect();
    match differing.is_empty() {
        true => Ok(()),
        false => bail!("protectKernelDefaults: {}", differing.join("; ")),
    }
}

fn can_make_cgroups(driver: Driver) -> bool {
    driver != Driver::Systemd || units::is_booted()
}

fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// Prints every finding; an error when a node cannot run here.
pub(crate) fn run(flags: &HostFlags) -> Result<()> {
    let settings = Settings::of_host(flags)?;
    let facts = observe(&settings.places.run_dir, settings.kubelet.cgroups.driver)?;
    let findings = assess(&facts);
    println!("kernel {}", facts.kernel);
    for finding in &findings {
        let word = match finding.severity {
            Severity::Required => "missing",
            Severity::Wanted => "limited",
        };
        println!("{word}: {}", finding.lacks);
        println!("  then: {}", finding.consequence);
        println!("  mend: {}", finding.remedy);
    }
    let missing = findings.iter().filter(|f| f.severity == Severity::Required).count();
    match (missing, findings.len()) {
        (0, 0) => println!("this host can run a node, and enforces everything"),
        (0, limited) => println!("this host can run a node, with the {limited} limits above"),
        (missing, _) => bail!("this host cannot run a node: {missing} required things are missing"),
    }
    Ok(())
}

/// What this host does not enforce, each as one sentence; an error when a node cannot run.
pub(crate) fn limits(run_dir: &Path, driver: Driver) -> Result<Vec<String>> {
    let findings = assess(&observe(run_dir, driver)?);
    let sentence = |finding: &Finding| format!("{}: {}", finding.lacks, finding.consequence);
    let (required, wanted): (Vec<_>, Vec<_>) =
        findings.iter().partition(|finding| finding.severity == Severity::Required);
    if let Some(finding) = required.first() {
        bail!("this host cannot run a node: {} (`berth check` says more)", sentence(finding));
    }
    Ok(wanted.into_iter().map(sentence).collect())
}

fn observe(run_dir: &Path, driver: Driver) -> Result<Facts> {
    let status = fs::read_to_string("/proc/self/status")?;
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let beneath = ResolveFlags::BENEATH;
    let root = rustix::fs::openat(CWD, "/proc", OFlags::PATH, Mode::empty())?;
    Ok(Facts {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        effective_capabilities: capabilities
            .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
            .unwrap_or(0),
        openat2: rustix::fs::openat2(
            &root,
            "self",
            OFlags::PATH | OFlags::NOFOLLOW,
            Mode::empty(),
            beneath,
        )
        .is_ok(),
        mount_api: rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).is_ok(),
        pidfd: Pid::from_raw(std::process::id().cast_signed())
            .is_some_and(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).is_ok()),
        // Asking for it loads its module; /proc/filesystems lists only what is loaded by now.
        overlay: rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).err()
            != Some(Errno::NODEV),
        controllers: controllers(),
        nf_tables: berth_proxy::supported(),
        landlock: fs::read_to_string("/sys/kernel/security/lsm")
            .is_ok_and(|modules| modules.split(',').any(|module| module.trim() == "landlock")),
        run_on_tmpfs: on_tmpfs(run_dir),
        swap: has_swap(),
        cgroup_driver: can_make_cgroups(driver),
    })
}

fn controllers() -> Option<BTreeSet<String>> {
    let text = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .find_map(|root| fs::read_to_string(Path::new(root).join("cgroup.controllers")).ok())?;
    Some(text.split_whitespace().map(str::to_owned).collect())
}

/// Whether a directory, or the nearest one above it that exists, is on a tmpfs.
fn on_tmpfs(directory: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    directory
        .ancestors()
        .find_map(|ancestor| rustix::fs::statfs(ancestor).ok())
        .is_some_and(|file_system| file_system.f_type == TMPFS_MAGIC)
}

/// What the facts mean. Pure.
pub(crate) fn assess(facts: &Facts) -> Vec<Finding> {
    let mut findings = required(facts);
    findings.extend(wanted(facts));
    findings
}

fn required(facts: &Facts) -> Vec<Finding> {
    let holds = |capability: u32| facts.effective_capabilities >> capability & 1 == 1;
    let checks = [
        (
            version(&facts.kernel) >= Some(KERNEL_FLOOR),
            format!("Linux 5.15 (this is {})", facts.kernel),
            "the system calls that containers are started with are incomplete",
            "boot a newer kernel",
        ),
        (
            holds(CAP_SYS_ADMIN),
            "CAP_SYS_ADMIN".to_owned(),
            "no namespace can be made",
            "run as root",
        ),
        (
            facts.openat2 && facts.mount_api && facts.pidfd,
            format!(
                "openat2 ({}), fsopen ({}) or pidfd_open ({})",
                facts.openat2, facts.mount_api, facts.pidfd
            ),
            "a container's file system cannot be set up safely",
            "take away the seccomp filter that this process runs under, or boot a newer kernel",
        ),
        (
            facts.overlay,
            "the overlay file system".to_owned(),
            "no image can be run",
            "modprobe overlay",
        ),
        (
            facts.controllers.is_some(),
            "cgroup v2".to_owned(),
            "containers can be neither tracked nor killed as a whole",
            "mount cgroup2 on /sys/fs/cgroup (systemd.unified_cgroup_hierarchy=1)",
        ),
        (
            facts.cgroup_driver,
            "systemd, which cgroupDriver names".to_owned(),
            "nobody makes pods' slices",
            "write cgroupDriver: cgroupfs, or boot with systemd",
        ),
        (
            facts.nf_tables,
            "nf_tables".to_owned(),
            "pods reach neither Services nor the outside",
            "modprobe nf_tables",
        ),
    ];
    let failed = checks.into_iter().filter(|(present, ..)| !present);
    failed
        .map(|(_, lacks, consequence, remedy)| Finding {
            severity: Severity::Required,
            lacks,
            consequence: consequence.to_owned(),
            remedy,
        })
        .collect()
}

fn wanted(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut limited = |lacks: String, consequence: String, remedy| {
        findings.push(Finding { severity: Severity::Wanted, lacks, consequence, remedy });
    };
    if let Some(present) = &facts.controllers {
        let absent: Vec<_> = CONTROLLERS.into_iter().filter(|c| !present.contains(*c)).collect();
        if !absent.is_empty() {
            limited(
                format!("the cgroup v2 controllers {}", absent.join(", ")),
                format!("limits and requests for {} are not enforced", absent.join(", ")),
                "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
            );
        }
    }
    if facts.effective_capabilities >> CAP_SYS_RESOURCE & 1 == 0 {
        limited(
            "CAP_SYS_RESOURCE".to_owned(),
            "oom_score_adj is not lowered and hard rlimits are not raised".to_owned(),
            "run as full root, outside a container",
        );
    }
    if !facts.landlock {
        limited(
            "Landlock".to_owned(),
            "the layer unpacker is confined by its mount namespace and limits alone".to_owned(),
            "boot with lsm=landlock,…",
        );
    }
    if !facts.run_on_tmpfs {
        limited(
            "a tmpfs for the run directory".to_owned(),
            "records of running pods are written to disk, and are stale after a reboot".to_owned(),
            "mount a tmpfs on /run",
        );
    }
    if facts.swap {
        limited(
            "a host without swap".to_owned(),
            "pods do not swap (NoSwap), but the host's own memory may".to_owned(),
            "swapoff -a",
        );
    }
    findings
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Facts {
        Facts {
            kernel: "6.12.9-cloud-amd64".to_owned(),
            effective_capabilities: u64::MAX,
            openat2: true,
            mount_api: true,
            pidfd: true,
            overlay: true,
            controllers: Some(CONTROLLERS.map(str::to_owned).into()),
            nf_tables: true,
            landlock: true,
            run_on_tmpfs: true,
            swap: false,
            cgroup_driver: true,
        }
    }

    #[test]
    fn a_complete_host_has_no_finding() {
        assert_eq!(assess(&complete()), []);
    }

    #[test]
    fn a_hybrid_host_runs_and_says_which_limits_it_does_not_enforce() {
        let facts = Facts { controllers: Some(BTreeSet::new()), ..complete() };
        let findings = assess(&facts);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].severity, Severity::Wanted);
        assert!(findings[0].consequence.contains("cpu, io, memory, pids"));
    }

    #[test]
    fn an_old_kernel_is_refused() {
        let facts = Facts { kernel: "5.10.0-28".to_owned(), ..complete() };
        assert_eq!(assess(&facts)[0].severity, Severity::Required);
    }

    #[test]
    fn a_cgroup_driver_that_the_host_has_not_is_refused() {
        let findings = assess(&Facts { cgroup_driver: false, ..complete() });
        assert!(findings.len() == 1 && findings[0].severity == Severity::Required);
        assert!(findings[0].lacks.contains("cgroupDriver"));
        assert!(can_make_cgroups(Driver::Cgroupfs));
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(version("5.9.1") < Some(KERNEL_FLOOR));
        assert!(version("6.18.44-fc") > Some(KERNEL_FLOOR));
        assert_eq!(version("unknown"), None);
    }
}
