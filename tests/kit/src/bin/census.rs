//! `census`: counts what berth could have left on this host, and compares.
//!
//! Owns the command line; what is counted is the library's.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use berth_testkit::{Census, Scope};
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

/// Counts what berth could have left on this host, and compares.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a census as JSON.
    Take(ScopeArgs),
    /// Compare with an earlier census: print what is left or gone and exit with 1 if anything is.
    Diff {
        /// The earlier census.
        before: PathBuf,
        /// A kind not to look at, as it is printed ("links", "shared memory").
        #[arg(long)]
        ignore: Vec<String>,
        #[command(flatten)]
        scope: ScopeArgs,
    },
}

#[derive(Args)]
struct ScopeArgs {
    /// A state directory, in place of the usual ones.
    #[arg(long)]
    root: Vec<PathBuf>,
    /// How the names of our cgroups begin, in place of the usual.
    #[arg(long)]
    cgroup: Vec<String>,
    /// The pods' addresses, to look for their tracked connections.
    #[arg(long)]
    pods: Vec<IpNet>,
}

impl ScopeArgs {
    fn scope(self) -> Scope {
        let usual = Scope::default();
        Scope {
            roots: if self.root.is_empty() { usual.roots } else { self.root },
            cgroups: if self.cgroup.is_empty() { usual.cgroups } else { self.cgroup },
            programs: usual.programs,
            pod_networks: self.pods,
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("census: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Take(scope) => {
            println!("{}", serde_json::to_string_pretty(&Census::take(&scope.scope())?)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Diff { before, ignore, scope } => {
            let text = fs::read_to_string(&before)
                .with_context(|| format!("read {}", before.display()))?;
            let earlier: Census = serde_json::from_str(&text)
                .with_context(|| format!("{} is no census", before.display()))?;
            let difference = earlier.difference(&Census::take(&scope.scope())?).without(&ignore);
            print!("{difference}");
            Ok(if difference.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
