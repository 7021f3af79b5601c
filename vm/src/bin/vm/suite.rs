//! `vm test`: runs test executables in one VM and prints a verdict for each.
//!
//! Owns the order and the verdicts. The executables, and what they need, lie in the guest at the
//! paths they have on the host, since cargo's tests know other files by such paths.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_vm::{Copy, Job, TimedOut};
use clap::Args;

use super::MachineArgs;

#[derive(Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Seconds that one executable may take.
    #[arg(long, default_value_t = 1200)]
    timeout: u64,
    /// NAME=VALUE for the tests' environment.
    #[arg(long)]
    env: Vec<String>,
    /// Their working directory in the guest.
    #[arg(long)]
    cwd: Option<String>,
    /// The test executables.
    #[arg(required = true)]
    executables: Vec<PathBuf>,
    /// Arguments for each of them.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs them all, past failures, and returns 1 if one failed.
pub(crate) fn run(args: TestArgs) -> Result<u8> {
    let env = super::environment(&args.env)?;
    let timeout = Duration::from_secs(args.timeout);
    let mut config = args.machine.config();
    let mut paths = Vec::new();
    for executable in &args.executables {
        let path = std::path::absolute(executable)?;
        if !path.is_file() {
            bail!("no test executable {}", path.display());
        }
        config.copies.push(Copy { host: path.clone(), guest: path.clone() });
        paths.push(path);
    }
    let mut vm = super::boot(&config)?;
    let mut failed = 0;
    for path in &paths {
        let name = path.file_name().context("name of the executable")?.to_string_lossy();
        println!("vm: running {name}");
        let argv = std::iter::once(path.to_string_lossy().into_owned());
        let job = Job {
            env: env.clone(),
            cwd: args.cwd.clone(),
            ..Job::new(argv.chain(args.arguments.iter().cloned()))
        };
        let started = Instant::now();
        let status = vm.run(&job, timeout, &mut io::stdout(), &mut io::stderr());
        let seconds = started.elapsed().as_secs_f64();
        match status {
            Ok(0) => println!("vm: PASS {name} ({seconds:.1} s)"),
            Ok(status) => {
                failed += 1;
                println!("vm: FAIL {name} ({seconds:.1} s): exit status {status}");
            }
            Err(error) if error.is::<TimedOut>() => {
                // What hangs must not disturb the others.
                failed += 1;
                println!("vm: FAIL {name} ({seconds:.1} s): {error}");
                vm.reset()?;
            }
            Err(error) => return Err(error),
        }
    }
    println!("vm: {} passed, {failed} failed", paths.len() - failed);
    vm.power_off()?;
    Ok(u8::from(failed > 0))
}
