//! A process that is waited for: its signals, its terminal, its end.
//!
//! Signals are blocked before the process is cloned, so that none is lost; each that can be forwarded is.
//! One loop serves signals, both directions of the terminal and the process' pidfd.

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use rustix::termios::{OptionalActions, Termios};

use super::Result;
use super::error::During;
use super::journal::Journal;
use super::readiness::Proxy;
use crate::{sys, terminal};

/// Ready to wait for a process.
pub(super) struct Foreground {
    signals: OwnedFd,
}

/// A child to be waited for.
pub(super) struct Process<'a> {
    pub(super) pid: i32,
    pub(super) pidfd: &'a OwnedFd,
    /// The master side of its terminal.
    pub(super) terminal: Option<OwnedFd>,
    /// Where it tells that it is ready, and who hears of failures to pass that on.
    pub(super) proxy: Option<(&'a Proxy, &'a Journal)>,
}

/// Bytes on their way from one side to the other.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    ended: bool,
}

/// Little enough to be written to a pipe that is ready without blocking: PIPE_BUF.
const CHUNK: usize = 4096;

impl Foreground {
    /// Blocks signals and collects them from now on.
    pub(super) fn prepare() -> Result<Self> {
        let all: Vec<i32> = (1..=64).collect();
        let signals = sys::signal_descriptor(&all).during(|| "watch for signals")?;
        sys::block_signals().during(|| "block signals")?;
        Ok(Self { signals })
    }

    /// Waits for the process' end, forwarding signals and relaying its terminal. Returns its exit code.
    pub(super) fn attend(self, process: Process<'_>) -> Result<u8> {
        match &process.terminal {
            None => self.serve(&process, None),
            Some(master) => {
                rustix::io::ioctl_fionbio(master, true).during(|| "prepare the terminal")?;
                resize(master);
                let raw = RawMode::enter();
                let result = self.serve(&process, Some(master));
                drop(raw);
                result
            }
        }
    }

    fn serve(&self, process: &Process<'_>, master: Option<&OwnedFd>) -> Result<u8> {
        let (mut input, mut output) = (Pending::default(), Pending::default());
        let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
        let mut status = None;
        let mut told = false;
        loop {
            let ready = self.poll(process, [&input, &output])?;
            self.forward(process, &mut status);
            if let (true, Some((proxy, journal))) = (ready.proxy, process.proxy)
                && proxy.hear()
                && !std::mem::replace(&mut told, true)
            {
                proxy.tell_for_good(journal);
            }
            if let Some(master) = master {
                if ready.stdin {
                    input.read(stdin);
                }
                input.write(master.as_fd());
                if output.wants_input() {
                    output.read(master.as_fd());
                }
                if ready.stdout {
                    output.write(stdout);
                }
            }
            if ready.ended {
                if let Some(master) = master {
                    output.drain(master, stdout);
                }
                return status.map_or_else(|| reap(process.pid), Ok);
            }
        }
    }

    /// Waits until there is something to do. `pending` is what goes to the terminal and what comes.
    fn poll(&self, process: &Process<'_>, [input, output]: [&Pending; 2]) -> Result<Ready> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(process.pidfd.as_fd(), PollFlags::IN),
        ];
        // A descriptor that nothing is asked of is left out: it would tell of its hangup for ever.
        let mut watch = |fd, condition: bool, flags| {
            let index = condition.then_some(fds.len());
            if condition {
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
            index
        };
        let proxy = process.proxy.map(|(proxy, _)| proxy.as_fd());
        let proxy = proxy.and_then(|proxy| watch(proxy, true, PollFlags::IN));
        let (mut from, mut to) = (None, None);
        if let Some(master) = process.terminal.as_ref().map(AsFd::as_fd) {
            watch(master, output.wants_input(), PollFlags::IN);
            watch(master, !input.bytes.is_empty(), PollFlags::OUT);
            from = watch(rustix::stdio::stdin(), input.wants_input(), PollFlags::IN);
            to = watch(rustix::stdio::stdout(), !output.bytes.is_empty(), PollFlags::OUT);
        }
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))
            .during(|| "wait for the container's process")?;
        let told = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            ended: told(1),
            stdin: from.is_some_and(told),
            stdout: to.is_some_and(told),
            proxy: proxy.is_some_and(told),
        })
    }

    /// Passes on the signals that have arrived, and reaps orphans that came to us. The status of the
    /// process itself is kept.
    fn forward(&self, process: &Process<'_>, status: &mut Option<u8>) {
        let mut information = [0; SIGNAL_BYTES];
        while rustix::io::read(&self.signals, &mut information).is_ok_and(|n| n == SIGNAL_BYTES) {
            let [a, b, c, d, ..] = information;
            match i32::from_ne_bytes([a, b, c, d]) {
                libc::SIGCHLD => {
                    while let Ok(Some((pid, found))) = rustix::process::wait(WaitOptions::NOHANG) {
                        if pid.as_raw_pid() == process.pid {
                            *status = Some(exit_code(found));
                        }
                    }
                }
                libc::SIGWINCH if process.terminal.is_some() => {
                    process.terminal.iter().for_each(resize);
                }
                libc::SIGURG | libc::SIGPIPE => {}
                signal => {
                    // It may have ended meanwhile.
                    let _ = sys::signal_process(process.pidfd.as_fd(), signal);
                }
            }
        }
    }
}

/// What there is to do.
struct Ready {
    ended: bool,
    stdin: bool,
    stdout: bool,
    proxy: bool,
}

/// The size of signalfd_siginfo, whose first field is the signal's number: signalfd(2).
const SIGNAL_BYTES: usize = 128;

impl Pending {
    fn wants_input(&self) -> bool {
        self.bytes.is_empty() && !self.ended
    }

    fn read(&mut self, from: BorrowedFd<'_>) {
        let mut chunk = [0; CHUNK];
        match terminal::read(from, &mut chunk) {
            Ok(count) if count > 0 => self.bytes.extend_from_slice(&chunk[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO: nobody has the other side of the terminal open.
            Ok(_) | Err(_) => self.ended = true,
        }
    }

    fn write(&mut self, to: BorrowedFd<'_>) {
        if self.bytes.is_empty() {
            return;
        }
        match rustix::io::write(to, &self.bytes) {
            Ok(count) => drop(self.bytes.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Nobody is there to read it.
            Err(_) => {
                self.bytes.clear();
                self.ended = true;
            }
        }
    }

    /// Passes on what is left in a terminal whose process has ended.
    fn drain(&mut self, from: &OwnedFd, to: BorrowedFd<'_>) {
        loop {
            while !self.bytes.is_empty() {
                self.write(to);
            }
            if self.ended {
                return;
            }
            self.read(from.as_fd());
            if self.bytes.is_empty() {
                return;
            }
        }
    }
}

/// Gives the terminal the size of our own.
fn resize(master: &OwnedFd) {
    if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin())
        && size.ws_row != 0
    {
        // Only a size: the terminal works with another one, too.
        let _ = rustix::termios::tcsetwinsize(master, size);
    }
}

/// Our own terminal passes every key on while this lives.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> Option<Self> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        let stdin = rustix::stdio::stdin();
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// The exit code of a child that has ended: its own, or 128 and the signal that killed it.
fn reap(pid: i32) -> Result<u8> {
    let status = rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty())
    });
    let status = status.during(|| "take the exit status of the container's process")?;
    Ok(status.map_or(255, |(_, status)| exit_code(status)))
}

fn exit_code(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    u8::try_from(code).unwrap_or(255)
}
