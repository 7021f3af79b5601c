//! The command line of QEMU.
//!
//! Owns which devices a machine has and in which order the guest finds them; starts nothing.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::accel::Accel;
use crate::wire::PORT_NAME;

/// What is PID 1 in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `vm-init` itself: mounts, cgroup v2 with all controllers on, nothing else running.
    Light,
    /// Debian's systemd, with D-Bus; commands run from a unit once the system is up.
    Systemd,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Variant::Light => "light",
            Variant::Systemd => "systemd",
        })
    }
}

impl FromStr for Variant {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "light" => Ok(Variant::Light),
            "systemd" => Ok(Variant::Systemd),
            _ => bail!("no variant is called {text:?}: light, systemd"),
        }
    }
}

/// A TCP port on the host's loopback that leads into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The port on 127.0.0.1.
    pub host: u16,
    /// The port in the guest, on its address 10.0.2.15.
    pub guest: u16,
}

impl FromStr for Forward {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (host, guest) = text.split_once(':').context("a forward is HOST-PORT:GUEST-PORT")?;
        let port = |text: &str| text.parse().with_context(|| format!("{text:?} is no port"));
        Ok(Forward { host: port(host)?, guest: port(guest)? })
    }
}

/// All that the command line is made of.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) accel: Accel,
    /// The rate of the host's time stamp counter, for a guest that would measure it badly.
    pub(crate) counter_khz: u64,
    pub(crate) variant: Variant,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// A qcow2 image over the cached root image, which is never written.
    pub(crate) root: &'a Path,
    pub(crate) modules: &'a Path,
    pub(crate) payload: &'a Path,
    pub(crate) disks: &'a [PathBuf],
    pub(crate) forwards: &'a [Forward],
    pub(crate) kernel_options: &'a [String],
    /// Holds the sockets and the console's log.
    pub(crate) run_dir: &'a Path,
}

/// Names below the run directory.
pub(crate) const PORT_SOCKET: &str = "port";
pub(crate) const QMP_SOCKET: &str = "qmp";
pub(crate) const CONSOLE_LOG: &str = "console.log";

impl Machine<'_> {
    /// The arguments of `qemu-system-x86_64`.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        args.words("-nodefaults -no-user-config -display none -machine q35,vmport=off,hpet=off");
        args.words(self.accel.arguments());
        args.words("-boot strict=on -vga none");
        args.pair("-smp", self.cpus.to_string());
        args.pair("-m", format!("{}M", self.memory_mib));
        args.pair("-kernel", self.kernel);
        args.pair("-initrd", self.initramfs);
        args.pair("-append", self.kernel_line());
        args.pair("-serial", self.file_option("file:", CONSOLE_LOG));
        args.pair("-chardev", self.file_option("socket,id=port,path=", PORT_SOCKET));
        args.words("-device virtio-serial-pci -device");
        args.word(format!("virtserialport,chardev=port,name={PORT_NAME}"));
        args.pair("-chardev", self.file_option("socket,id=qmp,path=", QMP_SOCKET));
        args.words("-mon chardev=qmp,mode=control");
        // In the order in which the guest names them: vda, vdb, …
        args.disk("root", self.root, "format=qcow2,cache=writeback");
        args.disk("modules", self.modules, "format=raw,readonly=on");
        args.disk("payload", self.payload, "format=raw,readonly=on");
        for (number, disk) in self.disks.iter().enumerate() {
            args.disk(&format!("disk{number}"), disk, "format=raw,cache=writeback");
        }
        if !self.forwards.is_empty() {
            let mut network = String::from("user,id=net,restrict=on");
            for Forward { host, guest } in self.forwards {
                network.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
            }
            args.pair("-netdev", network);
            args.words("-device virtio-net-pci,netdev=net,romfile=");
        }
        args.0
    }

    fn kernel_line(&self) -> String {
        let clock = match self.accel {
            Accel::Kvm => String::new(),
            Accel::Tcg => format!("tsc=reliable tsc_early_khz={}", self.counter_khz),
        };
        let network = if self.forwards.is_empty() { "none" } else { "user" };
        format!(
            "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check {clock} nokaslr mitigations=off audit=0 \
             systemd.show_status=no systemd.unified_cgroup_hierarchy=1 \
             vm.variant={} vm.network={network} {}",
            self.variant,
            self.kernel_options.join(" ")
        )
    }

    fn file_option(&self, option: &str, name: &str) -> OsString {
        let mut text = OsString::from(option);
        text.push(self.run_dir.join(name));
        text
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn words(&mut self, words: &str) {
        self.0.extend(words.split_whitespace().map(OsString::from));
    }

    fn word(&mut self, word: impl Into<OsString>) {
        self.0.push(word.into());
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.word(option);
        self.word(value);
    }

    fn disk(&mut self, id: &str, image: &Path, options: &str) {
        let mut drive = OsString::from(format!("if=none,id={id},{options},file="));
        drive.push(escape_commas(image));
        self.pair("-drive", drive);
        self.pair("-device", format!("virtio-blk-pci,drive={id},serial={id}"));
    }
}

/// QEMU takes a doubled comma for a comma.
fn escape_commas(path: &Path) -> OsString {
    path.to_string_lossy().replace(',', ",,").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(forwards: &[Forward], disks: &[PathBuf]) -> String {
        let path = Path::new("/x,y");
        let machine = Machine {
            accel: Accel::Tcg,
            counter_khz: 2_600_000,
            variant: Variant::Light,
            memory_mib: 512,
            cpus: 2,
            kernel: path,
            initramfs: path,
            root: path,
            modules: path,
            payload: path,
            disks,
            forwards,
            kernel_options: &[],
            run_dir: Path::new("/run/vm"),
        };
        let words: Vec<_> =
            machine.arguments().into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn a_machine_has_no_network_unless_a_port_is_forwarded() {
        assert!(!line(&[], &[]).contains("netdev"));
        let with = line(&[Forward { host: 8080, guest: 80 }], &[]);
        assert!(with.contains("restrict=on,hostfwd=tcp:127.0.0.1:8080-:80"), "{with}");
    }

    #[test]
    fn further_disks_come_after_the_three_that_every_machine_has() {
        let line = line(&[], &[PathBuf::from("/second.img")]);
        let at = |id: &str| line.find(&format!("virtio-blk-pci,drive={id}")).unwrap();
        assert!(at("root") < at("modules") && at("modules") < at("payload"));
        assert!(at("payload") < at("disk0"));
    }

    #[test]
    fn a_comma_in_a_path_is_no_option() {
        assert!(line(&[], &[]).contains("file=/x,,y"));
    }

    #[test]
    fn a_forward_is_two_ports() {
        assert_eq!("1:2".parse::<Forward>().unwrap(), Forward { host: 1, guest: 2 });
        assert!("1".parse::<Forward>().is_err());
        assert!("1:99999".parse::<Forward>().is_err());
    }
}
