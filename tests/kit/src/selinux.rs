//! A small SELinux policy for a VM whose kernel has SELinux: containers are confined by type and
//! category, all else is free. It is compiled by `secilc`, loaded once a boot, and enforced; a file below
//! `/etc/selinux` names its labels as those of distributions do (selabel_lxc(5)).

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

const FILES: &str = "/sys/fs/selinux";
const POLICY: &str = include_str!("policy.cil");
const CONTEXTS: &str = "\
process = \"system_u:system_r:container_t:s0\"
file = \"system_u:object_r:container_file_t:s0\"
ro_file = \"system_u:object_r:container_file_t:s0\"
";

/// Loads the policy and enforces it, if that is not done yet.
///
/// # Panics
/// Where the kernel was not booted with SELinux, or without `secilc`.
pub fn enforce() {
    if let Err(error) = try_enforce() {
        panic!("enforce an SELinux policy: {error} (is the kernel booted with security=selinux?)");
    }
}

fn try_enforce() -> io::Result<()> {
    let file = |name: &str| Path::new(FILES).join(name);
    if !file("load").exists() {
        succeed(Command::new("mount").args(["-t", "selinuxfs", "selinuxfs", FILES]))?;
    }
    if fs::read_to_string(file("enforce"))? == "1" {
        return Ok(());
    }
    let work = tempfile::tempdir()?;
    let (text, policy) = (work.path().join("policy.cil"), work.path().join("policy"));
    fs::write(&text, POLICY.replace("CATEGORIES", &categories()))?;
    let mut compiler = Command::new("secilc");
    compiler.args(["-f", "/dev/null", "-o"]).arg(&policy).arg(&text);
    succeed(&mut compiler)?;
    // All of it at once, as the kernel wants it.
    fs::write(file("load"), fs::read(&policy)?)?;
    let contexts = Path::new("/etc/selinux/berth-test/contexts");
    fs::create_dir_all(contexts)?;
    fs::write(contexts.join("lxc_contexts"), CONTEXTS)?;
    fs::write("/etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=berth-test\n")?;
    fs::write(file("enforce"), "1")
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    let failed = || io::Error::other(format!("{command:?}: {status}"));
    status.success().then_some(()).ok_or_else(failed)
}

/// The 1024 categories that container labels are made from.
fn categories() -> String {
    let names: Vec<String> = (0..1024).map(|number| format!("c{number}")).collect();
    let declared: String = names.iter().map(|name| format!("(category {name})\n")).collect();
    format!("{declared}(categoryorder ({}))", names.join(" "))
}
