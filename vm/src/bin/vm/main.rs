//! `vm`: boots a Linux VM under QEMU and runs something in it as root.
//!
//! Owns the command line and what a person reads; the machine is the library's. The exit status
//! is the guest command's, 124 when it took too long, 125 when the VM itself failed.

mod shell;
mod suite;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use berth_vm::{Config, Copy, Forward, Job, Kernel, Stdin, Store, TimedOut, Variant, Vm};
use clap::{Args, Parser, Subcommand};

const TIMED_OUT: u8 = 124;
const VM_FAILED: u8 = 125;

/// Boots a Linux VM and runs something in it as root, on pure cgroup v2.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch the kernels and make the root image, so that later boots need no network.
    Build {
        /// Only this kernel; may be given several times.
        #[arg(long)]
        kernel: Vec<Kernel>,
        /// The variant that will be booted. One root image serves both.
        #[arg(long)]
        variant: Option<Variant>,
    },
    /// Run a command and return its exit status.
    Run(RunArgs),
    /// Open a root shell on this terminal.
    Shell(MachineArgs),
    /// Run test executables, one after the other, in one VM.
    Test(suite::TestArgs),
}

/// The machine.
#[derive(Args)]
struct MachineArgs {
    /// oldest (6.1), middle (6.12) or newest (7.x).
    #[arg(long, default_value = "oldest")]
    kernel: Kernel,
    /// light: a bare PID 1, up in seconds; systemd: all of Debian.
    #[arg(long, default_value = "light")]
    variant: Variant,
    /// Memory in MiB.
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Processors.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// A raw image to attach as a further disk, written to: /dev/vdd and on.
    #[arg(long)]
    disk: Vec<PathBuf>,
    /// HOST-PORT:GUEST-PORT, a TCP port of this machine's loopback that leads into the guest.
    #[arg(long)]
    forward: Vec<Forward>,
    /// HOST[:GUEST], a file or directory to have in the guest, by default at the same path.
    #[arg(long = "copy", alias = "with")]
    copy: Vec<Copy>,
    /// Added to the kernel's command line.
    #[arg(long)]
    append: Vec<String>,
    /// Print the end of the console when the command has ended.
    #[arg(long)]
    console: bool,
}

impl MachineArgs {
    fn config(self) -> Config {
        Config {
            kernel: self.kernel,
            variant: self.variant,
            memory_mib: self.memory,
            cpus: self.cpus,
            disks: self.disk,
            forwards: self.forward,
            copies: self.copy,
            kernel_options: self.append,
            ..Config::default()
        }
    }
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Seconds that the command may take.
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
    /// Cut the power after so many seconds, and run the command again after the reboot. Disks keep
    /// what was flushed. `VM_BOOT` tells the command which boot it sees, 1 or 2.
    #[arg(long)]
    reset_after: Option<u64>,
    /// NAME=VALUE for the command's environment.
    #[arg(long)]
    env: Vec<String>,
    /// The command's working directory in the guest.
    #[arg(long)]
    cwd: Option<String>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Build { kernel, variant: _ } => build(kernel),
        Command::Run(args) => run(args),
        Command::Shell(machine) => shell::open(machine.config()),
        Command::Test(args) => suite::run(args),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::from(if error.is::<TimedOut>() { TIMED_OUT } else { VM_FAILED })
        }
    }
}

fn build(kernels: Vec<Kernel>) -> Result<u8> {
    let store = Store::open()?;
    let kernels = if kernels.is_empty() { Kernel::ALL.to_vec() } else { kernels };
    for kernel in kernels {
        println!("vm: kernel {kernel}: {}", store.kernel(kernel)?.release);
    }
    println!("vm: root image: {}", store.root_image()?.display());
    Ok(0)
}

fn boot(config: &Config) -> Result<Vm> {
    let vm = Vm::boot(&Store::open()?, config)?;
    eprintln!(
        "vm: Linux {}, {}, ready after {:.1} s",
        vm.release(),
        config.variant,
        vm.boot_time().as_secs_f64()
    );
    Ok(vm)
}

fn run(args: RunArgs) -> Result<u8> {
    let print_console = args.machine.console;
    let timeout = Duration::from_secs(args.timeout);
    let job = Job {
        env: environment(&args.env)?,
        cwd: args.cwd,
        // What the first boot has read is gone for the second.
        stdin: if args.reset_after.is_some() { Stdin::Empty } else { Stdin::Fed },
        ..Job::new(args.command)
    };
    let mut vm = boot(&args.machine.config())?;
    let mut input = vm.input();
    // It ends with this process, at the latest: a read from a terminal cannot be called off.
    std::thread::spawn(move || input.feed(&mut io::stdin()));

    if let Some(seconds) = args.reset_after {
        let result = run_once(&mut vm, &job, "1", Duration::from_secs(seconds));
        if !matches!(&result, Err(error) if error.is::<TimedOut>()) {
            result?;
        }
        vm.reset()?;
        eprintln!("vm: power cut, ready again after {:.1} s", vm.boot_time().as_secs_f64());
    }
    let boot = if args.reset_after.is_some() { "2" } else { "1" };
    let status = run_once(&mut vm, &job, boot, timeout)?;
    if print_console {
        eprintln!("{}", vm.console_tail());
    }
    vm.power_off()?;
    Ok(exit_status(status))
}

fn run_once(vm: &mut Vm, job: &Job, boot: &str, timeout: Duration) -> Result<i32> {
    let mut job = job.clone();
    job.env.push(("VM_BOOT".to_owned(), boot.to_owned()));
    vm.run(&job, timeout, &mut io::stdout(), &mut io::stderr())
}

fn exit_status(status: i32) -> u8 {
    u8::try_from(status).unwrap_or(VM_FAILED)
}

fn environment(words: &[String]) -> Result<Vec<(String, String)>> {
    words
        .iter()
        .map(|word| {
            let (name, value) =
                word.split_once('=').with_context(|| format!("{word:?} is not NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}
