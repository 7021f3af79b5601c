//! The command line that runc's callers know: Podman's conmon, containerd's and CRI-O's shims, Docker,
//! and people. One file a command or small group.
//!
//! Each command is a short-lived process. What outlives it is a directory a container in the state
//! directory ([`store`]), the container's processes and its cgroup; [`state`] is computed from those
//! each time. Options, messages and exit codes follow runc 1.3 where callers rely on them. OCI runtime
//! spec, `runtime.md` and `runtime-command-line-interface.md`.

mod arguments;
mod bundle;
mod console;
mod create;
mod creation;
mod delete;
mod error;
mod events;
mod exec;
mod features;
mod foreground;
mod id;
mod inherited;
mod journal;
mod kill;
mod list;
mod pause;
mod ps;
pub(crate) mod record;
mod sealed;
mod signal;
mod spec;
mod start;
mod state;
mod store;
mod update;

use std::ffi::OsString;
use std::process::ExitCode;

use lexopt::Parser;

use self::arguments::Global;
pub(crate) use self::error::{Error, Result};
use self::journal::{Journal, Level};
use self::store::Store;
use crate::cgroup::place::Driver;

/// What every command works with.
struct Context {
    store: Store,
    journal: Journal,
    driver: Driver,
}

/// A command: its name and what it does with the rest of the arguments. Returns the exit code.
type Run = fn(&Context, &mut Parser) -> Result<u8>;

const COMMANDS: [(&str, &str, Run); 15] = [
    ("create", create::USAGE, create::create),
    ("delete", delete::USAGE, delete::delete),
    ("events", events::USAGE, events::events),
    ("exec", exec::USAGE, exec::exec),
    ("features", features::USAGE, features::features),
    ("kill", kill::USAGE, kill::kill),
    ("list", list::USAGE, list::list),
    ("pause", pause::USAGE, pause::pause),
    ("ps", ps::USAGE, ps::ps),
    ("resume", pause::RESUME_USAGE, pause::resume),
    ("run", create::RUN_USAGE, create::run),
    ("spec", spec::USAGE, spec::spec),
    ("start", start::USAGE, start::start),
    ("state", state::USAGE, state::state),
    ("update", update::USAGE, update::update),
];

/// Runs the command line, without the program's name.
pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    let mut parser = Parser::from_args(arguments);
    match Global::parse(&mut parser) {
        Ok(Global::Help) => {
            print_help();
            ExitCode::SUCCESS
        }
        Ok(Global::Version) => {
            print_version();
            ExitCode::SUCCESS
        }
        Ok(Global::Command { name, options }) => {
            options.with_context(|context| perform(context, &name, &mut parser))
        }
        Err(error) => {
            eprintln!("berth-oci: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perform(context: &Context, name: &str, parser: &mut Parser) -> ExitCode {
    let Some((_, usage, run)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        context.journal.fail(&format!("no such command: {name:?}"));
        return ExitCode::FAILURE;
    };
    match run(context, parser) {
        Ok(code) => ExitCode::from(code),
        Err(Error::Help) => {
            println!("usage: berth-oci [global options] {usage}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            if let Error::Usage(_) = error {
                eprintln!("usage: berth-oci [global options] {usage}");
            }
            let message = match name {
                "create" | "run" | "exec" => format!("berth-oci {name} failed: {}", error.chain()),
                _ => error.chain(),
            };
            context.journal.fail(&message);
            // What `exec` returns must not be mistaken for the command's own.
            ExitCode::from(if name == "exec" { 255 } else { 1 })
        }
    }
}

fn print_version() {
    println!("berth-oci version {}", env!("CARGO_PKG_VERSION"));
    println!("spec: {}", features::SPEC_VERSION);
}

fn print_help() {
    println!("usage: berth-oci [global options] command [options] [arguments]\n");
    println!("{}\ncommands:", arguments::GLOBAL_HELP);
    for (_, usage, _) in &COMMANDS {
        println!("  {}", usage.lines().next().unwrap_or_default());
    }
}
