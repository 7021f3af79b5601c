//! Which AppArmor profile a container's command executes under: one of the host's, or this runtime's
//! default, which is loaded when it is first needed. What is asked for and cannot be had is refused. Who
//! asks for nothing gets the default where AppArmor is enabled and has its parser, as containerd does it.
//!
//! Serves `appArmorProfile` of the Kubernetes API as CRI runtimes do, and apparmor.d(5).

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::interface::{AppArmor, Security};

/// The name of the default profile.
const DEFAULT: &str = "berth-default";

/// What a container may do is said by its namespaces, capabilities, mounts and seccomp filter. The
/// profile keeps root without a user namespace from mounting, from tracing what is not of a container,
/// and from the kernel's switches, wherever a procfs or sysfs may be seen.
const DEFAULT_TEXT: &str = "\
profile berth-default flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,
  umount,
  unix,
  deny mount,
  signal (receive) peer=unconfined,
  signal (send, receive) peer=berth-default,
  ptrace (trace, read, tracedby, readby) peer=berth-default,
  deny /proc/{kcore,kmem,mem,kallsyms,sysrq-trigger} rwklx,
  deny /proc/sys/{abi,debug,dev,vm}/** wklx,
  deny /proc/sys/kernel/{core,kexec,mod,panic,perf,printk,random,sysrq,unprivileged,yama}** wklx,
  deny /sys/{block,bus,class,dev,devices,hypervisor,kernel,module,power}/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
";

/// Held while the default is looked for and loaded, so that containers made at once load it once.
static LOADING: Mutex<()> = Mutex::new(());

/// Where the kernel tells of AppArmor, and what loads profiles.
#[derive(Debug)]
pub(super) struct Host {
    is_enabled: bool,
    profiles: PathBuf,
    parsers: Vec<PathBuf>,
    options: Vec<String>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            is_enabled: berth_oci::apparmor_is_enabled(),
            profiles: "/sys/kernel/security/apparmor/profiles".into(),
            parsers: ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"].map(Into::into).into(),
            options: ["--replace", "--quiet", "--skip-cache"].map(Into::into).into(),
        }
    }
}

impl Host {
    /// The profile for a container, which is loaded. Blocks.
    ///
    /// # Errors
    /// Why the host does not have what is asked for.
    pub(super) fn profile(&self, security: &Security) -> Result<Option<String>, String> {
        match &security.app_armor {
            AppArmor::Unconfined => return Ok(None),
            // The API's rule: a privileged container has none.
            _ if security.privileged => return Ok(None),
            AppArmor::Unspecified if !self.can_confine() => return Ok(None),
            _ => {}
        }
        if !self.is_enabled {
            return Err("apparmor is not enabled on the host".to_owned());
        }
        if let AppArmor::Localhost(name) = &security.app_armor {
            return match self.has(name)? {
                true => Ok(Some(name.clone())),
                false => Err(format!("apparmor profile not found {name}")),
            };
        }
        let _alone = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.has(DEFAULT)? {
            self.load_default()?;
        }
        Ok(Some(DEFAULT.to_owned()))
    }

    /// Whether profiles can be loaded: not within a container, whose securityfs shows none.
    fn can_confine(&self) -> bool {
        self.is_enabled && self.profiles.exists() && self.parser().is_some()
    }

    fn parser(&self) -> Option<&PathBuf> {
        self.parsers.iter().find(|path| path.is_file())
    }

    /// Whether the kernel has the profile: a line is a name and a mode in brackets.
    fn has(&self, name: &str) -> Result<bool, String> {
        let list = std::fs::read_to_string(&self.profiles)
            .map_err(|error| format!("list the loaded apparmor profiles: {error}"))?;
        let names = list.lines().filter_map(|line| line.rsplit_once(" (").map(|(name, _)| name));
        Ok(names.into_iter().any(|loaded| loaded == name))
    }

    fn load_default(&self) -> Result<(), String> {
        let Some(parser) = self.parser() else {
            return Err(format!(
                "apparmor profile {DEFAULT} is not loaded, and the host has no apparmor_parser"
            ));
        };
        let mut command = Command::new(parser);
        command.args(&self.options);
        load(command, DEFAULT_TEXT).map_err(|why| format!("load apparmor profile {DEFAULT}: {why}"))
    }

    fn unload(&self, processes: &Path) -> Result<(), String> {
        if !self.is_enabled || !self.profiles.exists() || !self.has(DEFAULT)? {
            return Ok(());
        }
        let failed = |error: io::Error| format!("unload apparmor profile {DEFAULT}: {error}");
        for process in std::fs::read_dir(processes).map_err(failed)?.flatten() {
            let label = std::fs::read_to_string(process.path().join("attr/current"));
            if label.is_ok_and(|label| label.split(' ').next() == Some(DEFAULT)) {
                return Ok(());
            }
        }
        std::fs::write(self.profiles.with_file_name(".remove"), DEFAULT).map_err(failed)
    }
}

/// Takes the default profile out of the kernel, where it is there and nothing is confined by it: what is
/// would go on unconfined. Blocks.
///
/// # Errors
/// A sentence of what failed.
pub fn unload_default() -> Result<(), String> {
    Host::default().unload(Path::new("/proc"))
}

/// Lets a command read a profile and load it.
fn load(mut command: Command, text: &str) -> Result<(), String> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let spawned = command.spawn();
    let mut child = spawned.map_err(|error| error.to_string())?;
    // One that ends early says why itself.
    let written = child.stdin.take().map(|mut input| input.write_all(text.as_bytes()));
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    match (output.status.success(), written) {
        (true, Some(Ok(()))) => Ok(()),
        (true, _) => Err("it did not read the profile".to_owned()),
        (false, _) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(dir: &Path, is_enabled: bool) -> Host {
        let host = Host {
            is_enabled,
            profiles: dir.join("profiles"),
            parsers: vec![dir.join("parser")],
            options: Vec::new(),
        };
        std::fs::write(&host.profiles, "/usr/bin/man (enforce)\nours (v2) (complain)\n").unwrap();
        host
    }

    fn security(app_armor: AppArmor) -> Security {
        Security { app_armor, ..Security::default() }
    }

    #[test]
    fn a_profile_of_the_host_must_be_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), true);
        let local = |name: &str| host.profile(&security(AppArmor::Localhost(name.to_owned())));
        assert_eq!(local("ours (v2)"), Ok(Some("ours (v2)".to_owned())));
        assert_eq!(local("ours"), Err("apparmor profile not found ours".to_owned()));
        assert_eq!(host.profile(&security(AppArmor::Unconfined)), Ok(None));
        let default = host.profile(&security(AppArmor::RuntimeDefault)).unwrap_err();
        assert!(default.ends_with("the host has no apparmor_parser"), "{default}");
        assert_eq!(host.profile(&security(AppArmor::Unspecified)), Ok(None));
    }

    #[test]
    fn the_default_profile_is_loaded_when_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = host(dir.path(), true);
        host.parsers = vec!["/bin/sh".into()];
        let mut with = |script: String| {
            host.options = vec!["-c".to_owned(), script];
            let [asked, unasked] = [AppArmor::RuntimeDefault, AppArmor::Unspecified]
                .map(|wanted| host.profile(&security(wanted)));
            assert_eq!(asked, unasked);
            asked
        };
        let refused = with("cat > /dev/null; echo 'no such rule' >&2; exit 1".to_owned());
        assert_eq!(refused, Err("load apparmor profile berth-default: no such rule".to_owned()));
        let loaded = with(format!("cat > {}/read", dir.path().display()));
        assert_eq!(loaded, Ok(Some("berth-default".to_owned())));
        assert_eq!(std::fs::read_to_string(dir.path().join("read")).unwrap(), DEFAULT_TEXT);
        std::fs::write(dir.path().join("profiles"), "berth-default (enforce)\n").unwrap();
        assert_eq!(with("exit 1".to_owned()), Ok(Some("berth-default".to_owned())));
        let unasked = Security { privileged: true, ..security(AppArmor::Unspecified) };
        assert_eq!(host.profile(&unasked), Ok(None));
        std::fs::remove_file(dir.path().join("profiles")).unwrap();
        assert_eq!(host.profile(&security(AppArmor::Unspecified)), Ok(None));
    }

    #[test]
    fn the_default_is_unloaded_where_nothing_is_confined_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let (removed, processes) = (dir.path().join(".remove"), dir.path().join("proc"));
        let labels = processes.join("7/attr");
        std::fs::create_dir_all(&labels).unwrap();
        let unload = |host: &Host, profiles: &str, label: &str| {
            std::fs::write(&host.profiles, profiles).unwrap();
            std::fs::write(labels.join("current"), label).unwrap();
            host.unload(&processes).unwrap();
            let said = std::fs::read_to_string(&removed).ok();
            let _ = std::fs::remove_file(&removed);
            said
        };
        let loaded = "berth-default (enforce)\n";
        let host = host(dir.path(), true);
        assert_eq!(unload(&host, loaded, "unconfined\n"), Some("berth-default".to_owned()));
        assert_eq!(unload(&host, loaded, loaded), None, "somebody's container runs under it");
        assert_eq!(unload(&host, "other (enforce)\n", "unconfined\n"), None);
        let without = Host { is_enabled: false, ..host };
        assert_eq!(unload(&without, loaded, "unconfined\n"), None);
    }

    #[test]
    fn without_apparmor_nothing_but_unconfined_is_had() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = host(dir.path(), false);
        host.parsers = vec!["/bin/sh".into()];
        assert_eq!(host.profile(&security(AppArmor::Unspecified)), Ok(None));
        for wanted in [AppArmor::RuntimeDefault, AppArmor::Localhost("ours (v2)".to_owned())] {
            let refused = Err("apparmor is not enabled on the host".to_owned());
            assert_eq!(host.profile(&security(wanted.clone())), refused);
            let privileged = Security { privileged: true, ..security(wanted) };
            assert_eq!(host.profile(&privileged), Ok(None));
        }
    }
}
