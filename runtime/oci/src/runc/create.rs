//! `create` and `run`.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;

use lexopt::Parser;

use super::arguments::{self, number, path, switch};
use super::creation::{self, Command, Created, Wish};
use super::error::During;
use super::foreground::{self, Foreground};
use super::journal::Level;
use super::readiness::{Manager, Proxy};
use super::start::executed;
use super::{Context, Result, delete, sealed};
use crate::container::launch::{Keyring, RootChange};

pub(super) const USAGE: &str = "create [options] ID
  --bundle, -b DIR       the bundle (the current directory)
  --console-socket PATH  send the terminal there
  --pidfd-socket PATH    send a pidfd of the first process there
  --pid-file FILE        write the first process' id there
  --no-pivot             change the root where pivot_root(2) cannot be used
  --no-new-keyring       keep the caller's session keyring
  --preserve-fds N       pass N descriptors from 3 on";

pub(super) const RUN_USAGE: &str = "run [options] ID
  --detach, -d           return once it runs
  --keep                 keep the container when it has ended
  --no-subreaper         leave orphans to others
  and the options of create";

/// What `run` has besides.
#[derive(Default)]
struct RunOptions {
    detach: bool,
    keep: bool,
    leave_orphans: bool,
}

fn parse(parser: &mut Parser, mut run: Option<&mut RunOptions>) -> Result<Wish> {
    let mut bundle = PathBuf::from(".");
    let (mut console_socket, mut pidfd_socket, mut pid_file) = (None, None, None);
    let mut preserved = 0;
    let (mut keyring, mut root) = (Keyring::New, RootChange::Pivot);
    let values: Vec<OsString> = arguments::collect(parser, |flag, parser| {
        match (flag, run.as_deref_mut()) {
            ("b" | "bundle", _) => bundle = path(parser)?,
            ("console-socket", _) => console_socket = Some(path(parser)?),
            ("pidfd-socket", _) => pidfd_socket = Some(path(parser)?),
            ("pid-file", _) => pid_file = Some(path(parser)?),
            ("preserve-fds", _) => preserved = number(parser, flag)?,
            ("no-pivot", _) if switch(parser)? => root = RootChange::Chroot,
            ("no-new-keyring", _) if switch(parser)? => keyring = Keyring::Kept,
            ("no-pivot" | "no-new-keyring", _) => {}
            ("d" | "detach", Some(run)) => run.detach = switch(parser)?,
            ("keep", Some(run)) => run.keep = switch(parser)?,
            ("no-subreaper", Some(run)) => run.leave_orphans = switch(parser)?,
            _ => return Err(arguments::unknown(flag)),
        }
        Ok(())
    })?;
    let command = match run {
        None => Command::Create,
        Some(run) if run.detach => Command::RunDetached,
        Some(_) => Command::RunForeground,
    };
    let id = arguments::only_id(&values)?;
    Ok(Wish {
        id,
        bundle,
        console_socket,
        pidfd_socket,
        pid_file,
        preserved,
        keyring,
        root,
        manager: Manager::named()?,
        command,
    })
}

/// Makes a container whose first process waits for `start`.
pub(super) fn create(context: &Context, parser: &mut Parser) -> Result<u8> {
    sealed::ensure()?;
    let wish = parse(parser, None)?;
    let created = creation::make(context, &wish)?;
    match creation::announce(&wish, &created.process) {
        Ok(()) => Ok(0),
        Err(error) => {
            creation::undo(context, created.held, &created.record);
            Err(error)
        }
    }
}

/// Makes and starts a container, and waits for its end unless it is detached.
pub(super) fn run(context: &Context, parser: &mut Parser) -> Result<u8> {
    let mut options = RunOptions::default();
    sealed::ensure()?;
    let wish = parse(parser, Some(&mut options))?;
    let foreground = match wish.command {
        Command::RunForeground => {
            if !options.leave_orphans {
                rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
                    .during(|| "become a subreaper")?;
            }
            Some(Foreground::prepare()?)
        }
        Command::Create | Command::RunDetached => None,
    };
    let mut created = creation::make(context, &wish)?;
    let proxy = match let_go(&wish, &mut created) {
        Ok(proxy) => proxy,
        Err(error) => {
            creation::undo(context, created.held, &created.record);
            return Err(error);
        }
    };
    context.journal.trace(|| "the first process executes its command".to_owned());
    // Others may look at it and delete it while it runs.
    let entry = created.held.entry().clone();
    drop(created.held);
    let (pid, pidfd) = (created.process.pid, &created.process.pidfd);
    let Some(foreground) = foreground else {
        // It runs, whether or not the service manager can be told.
        if let Some(Err(error)) =
            proxy.map(|proxy| proxy.attend(pid, pidfd.as_fd(), &context.journal))
        {
            context.journal.say(Level::Warning, &error.chain());
        }
        return Ok(0);
    };
    let process = foreground::Process {
        pid,
        pidfd,
        terminal: created.terminal.take(),
        proxy: proxy.as_ref().map(|proxy| (proxy, &context.journal)),
    };
    let code = foreground.attend(process)?;
    context.journal.trace(|| format!("the first process has ended with {code}"));
    if !options.keep {
        match entry.hold() {
            Ok(held) => {
                delete::destroy(held, &created.record)?;
                created.record.run_poststop(&context.journal);
            }
            // Deleted by somebody else.
            Err(super::Error::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(code)
}

/// Starts what was just created and waits until its command is executed.
fn let_go(wish: &Wish, created: &mut Created) -> Result<Option<Proxy>> {
    let listen = |manager| Proxy::make(manager, created.held.entry());
    let proxy = wish.manager.clone().map(listen).transpose()?;
    if let Some(gate) = created.process.gate.take() {
        rustix::io::write(&gate, b"s").during(|| "start the container's process")?;
    }
    executed(&created.process.channel.as_fd())?;
    created.record.run_poststart()?;
    creation::announce(wish, &created.process)?;
    Ok(proxy)
}
