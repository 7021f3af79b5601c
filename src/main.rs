//! The `berth` executable: reads the command line and hands over.
//!
//! `cli` is what the user typed, `settings` what it resolves to; `up` and `node` wire the crates
//! together; the rest are the commands that look at a node from outside.

mod audit;
mod check;
mod cli;
mod control;
mod cri;
mod demo;
mod embedded;
mod events;
mod exec;
mod host;
mod images;
mod join;
mod kubelet;
mod logind;
mod logs;
mod network;
mod node;
mod notify;
mod pods;
mod reset;
mod session;
mod settings;
mod signals;
mod stats;
mod terminal;
mod unit;
mod up;
mod verbosity;

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match kubelet::is_meant(std::env::args_os().next().as_deref()) {
        false => Cli::parse(),
        true => match kubelet::Flags::parse().resolve() {
            Ok(kubelet::Asked::Agent(cli)) => *cli,
            Ok(kubelet::Asked::Version(text)) => {
                println!("{text}");
                return ExitCode::SUCCESS;
            }
            Err(faults) => {
                eprintln!("kubelet: {}", faults.join("; "));
                return ExitCode::FAILURE;
            }
        },
    };
    match start(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("berth: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    let usual = match cli.command {
        Command::Up(_) | Command::Agent(_) => "info",
        // A host is opened for each call while no agent runs: what it says of itself is the agent's.
        Command::Cri(_) => "info,berth_runtime=error",
        _ => "error",
    };
    verbosity::begin(cli.log.log.as_deref(), usual)?;
    if matches!(cli.command, Command::Up(_) | Command::Agent(_))
        && let Err(error) = berth_runtime::descriptors::raise_limit()
    {
        tracing::warn!(%error, "the limit of descriptors stays what it was");
    }
    // More than one crate brings a provider, so the choice must be said once.
    let provider = rustls::crypto::ring::default_provider();
    if provider.install_default().is_err() {
        anyhow::bail!("a TLS provider is installed already");
    }
    // What reads standard input waits for it, which nobody has to do once the command has ended.
    let patience = match &cli.command {
        Command::Exec(_) | Command::Attach(_) => std::time::Duration::ZERO,
        _ => std::time::Duration::from_secs(5),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(cli.command));
    runtime.shutdown_timeout(patience);
    outcome
}

async fn run(command: Command) -> Result<ExitCode> {
    let done = match command {
        Command::Exec(flags) => return exec::run(flags).await,
        Command::Attach(flags) => return exec::run(flags.into()).await,
        Command::Audit(flags) => return audit::run(&flags),
        Command::PortForward(flags) => exec::forward(flags).await,
        Command::Stats(flags) => stats::run(flags).await,
        Command::Events(flags) => events::run(flags).await,
        Command::Up(flags) => up::run(flags).await,
        Command::Agent(flags) => node::agent(flags).await,
        Command::Join(flags) => join::run(flags).await,
        Command::InstallKubelet => unit::install_kubelet(),
        Command::Cri(flags) => cri::run(flags).await,
        Command::Check(flags) => check::run(&flags),
        Command::Reset(flags) => reset::run(flags).await,
        Command::Pods(flags) => pods::run(flags).await,
        Command::Logs(flags) => logs::run(flags).await,
        Command::Images(flags) => images::images(flags).await,
        Command::Pull(flags) => images::pull(flags).await,
        Command::OciRuntime(flags) => embedded::install(&flags.file),
        Command::DemoImage(flags) => demo_image(&flags.file),
        Command::DemoServer(flags) => demo::serve(flags.port).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn demo_image(file: &Path) -> Result<()> {
    if file == Path::new("-") {
        return demo::write_image(io::stdout().lock());
    }
    let name = || format!("writing {}", file.display());
    demo::write_image(File::create(file).with_context(name)?).with_context(name)
}
