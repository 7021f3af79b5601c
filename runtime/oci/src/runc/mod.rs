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
mod readiness;
pub(crate) mod record;
mod sealed;
mod signal;
mod spec;
mod start;
mod state;
mod store;
mod update;

use std::ffi::OsString;

use lexopt::Parser;

use self::arguments::Global;
pub(crate) use self::error::{Error, Result};
use self::journal::{Journal, Level};
use self::store::Store;
use crate::cgroup::place::Driver;
use crate::protocol::{Failure, FailureKind};
use crate::{FAILURE, SUCCESS};

/// What every command works with.
struct Context {
    store: Store,
    journal: Journal,
    driver: Driver,
}

/// What a command does with the rest of the arguments. Returns the exit code.
type Run = fn(&Context, &mut Parser) -> Result<u8>;

struct Command {
    name: &'static str,
    about: &'static str,
    /// Its arguments, then a line for each option.
    usage: &'static str,
    run: Run,
}

const fn command(
    name: &'static str,
    about: &'static str,
    usage: &'static str,
    run: Run,
) -> Command {
    Command { name, about, usage, run }
}

const COMMANDS: [Command; 15] = [
    command("create", "make a container, to be started", create::USAGE, create::create),
    command("delete", "remove what is left of a container", delete::USAGE, delete::delete),
    command("events", "print a container's counters and events", events::USAGE, events::events),
    command("exec", "run a further process in a container", exec::USAGE, exec::exec),
    command("features", "print what is offered", features::USAGE, features::features),
    command("kill", "send a signal to a container", kill::USAGE, kill::kill),
    command("list", "list the containers of the root", list::USAGE, list::list),
    command("pause", "stop a container's processes for a while", pause::USAGE, pause::pause),
    command("ps", "list the processes of a container", ps::USAGE, ps::ps),
    command("resume", "let paused processes go on", pause::RESUME_USAGE, pause::resume),
    command("run", "make a container and start it", create::RUN_USAGE, create::run),
    command("spec", "write a specification to begin with", spec::USAGE, spec::spec),
    command("start", "start a container that was made", start::USAGE, start::start),
    command("state", "print the state of a container", state::USAGE, state::state),
    command("update", "change the limits of a container", update::USAGE, update::update),
];

/// Runs the command line, without the program's name.
pub(crate) fn run(arguments: Vec<OsString>) -> u8 {
    let mut parser = Parser::from_args(arguments);
    match Global::parse(&mut parser) {
        Ok(Global::Help) => {
            print_help();
            SUCCESS
        }
        Ok(Global::Version) => {
            print_version();
            SUCCESS
        }
        Ok(Global::Command { name, options }) => {
            options.with_context(|context| perform(context, &name, &mut parser))
        }
        Err(error) => {
            eprintln!("berth-oci: {error}");
            FAILURE
        }
    }
}

/// Whether execve(2) itself failed, after the command had been found.
fn is_of_execve(failure: &Failure) -> bool {
    failure.kind == FailureKind::Start && !failure.message.starts_with("exec: ")
}

/// The exit code where there is no such command, as with runc.
const NO_COMMAND: u8 = 3;

fn perform(context: &Context, name: &str, parser: &mut Parser) -> u8 {
    let Some(command) = COMMANDS.iter().find(|known| known.name == name) else {
        context.journal.fail(&format!("No help topic for '{name}': there is no such command"));
        return NO_COMMAND;
    };
    match (command.run)(context, parser) {
        Ok(code) => code,
        Err(Error::Help) => {
            print_command_help(command);
            SUCCESS
        }
        Err(Error::Process(failure)) if is_of_execve(&failure) => {
            // The message of the process itself, which has been started already.
            context.journal.fail_plainly(&failure.message);
            if name == "exec" { 255 } else { FAILURE }
        }
        Err(error) => {
            if let Error::Usage(_) = error {
                eprintln!("usage: berth-oci [global options] {}", command.usage);
            }
            let message = match name {
                "create" | "run" | "exec" => format!("berth-oci {name} failed: {}", error.chain()),
                _ => error.chain(),
            };
            context.journal.fail(&message);
            // What `exec` returns must not be mistaken for the command's own.
            if name == "exec" { 255 } else { FAILURE }
        }
    }
}

fn print_version() {
    println!("berth-oci version {}", env!("CARGO_PKG_VERSION"));
    println!("spec: {}", features::SPEC_VERSION);
}

fn print_help() {
    println!("NAME:\n   berth-oci - Open Container Initiative runtime\n");
    println!("USAGE:\n   berth-oci [global options] command [options] [arguments]\n");
    println!("COMMANDS:");
    for command in &COMMANDS {
        println!("   {:<10} {}", command.name, command.about);
    }
    println!("\nGLOBAL OPTIONS:\n{}", arguments::GLOBAL_OPTIONS);
}

fn print_command_help(command: &Command) {
    println!("NAME:\n   berth-oci {} - {}\n", command.name, command.about);
    let (arguments, options) = command.usage.split_once('\n').unwrap_or((command.usage, ""));
    println!("USAGE:\n   berth-oci [global options] {arguments}");
    if !options.is_empty() {
        println!("\nOPTIONS:\n{options}");
    }
}
