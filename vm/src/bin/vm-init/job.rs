//! A job that is running: the process and the pipes, or the terminal, that it has.
//!
//! Owns starting it and moving its bytes; its end is noticed by `agent`, which reaps.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use berth_vm::wire::{Frame, Job, Stdin};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags};
use nix::pty::{Winsize, openpty};
use nix::unistd::Pid;

use crate::agent::PATH;

/// A started job.
pub(crate) struct Running {
    pid: Pid,
    stdin: Option<File>,
    /// What the host sent and the job has not taken.
    unread: VecDeque<u8>,
    input_ended: bool,
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// A command that cannot be executed.
    pub(crate) fn start(job: &Job) -> Result<Running> {
        let program = job.argv.first().context("no command was given")?;
        let cwd = job.cwd.as_deref().unwrap_or("/root");
        fs::create_dir_all(cwd).with_context(|| format!("create {cwd}"))?;
        let mut command = match job.terminal {
            // It makes the terminal the controlling one and then becomes the program.
            Some(_) => {
                let mut setsid = Command::new("setsid");
                setsid.args(["--ctty", "--"]).args(&job.argv).env("TERM", "xterm-256color");
                setsid
            }
            None => {
                let mut plain = Command::new(program);
                plain.args(&job.argv[1..]);
                plain
            }
        };
        command
            .current_dir(cwd)
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("USER", "root")
            .envs(job.env.iter().map(|(name, value)| (name, value)));
        match job.terminal {
            Some(size) => Running::on_terminal(command, size),
            None => Running::on_pipes(command, job.stdin),
        }
        .with_context(|| format!("run {program}"))
    }

    fn on_pipes(mut command: Command, stdin: Stdin) -> Result<Running> {
        command.stdin(match stdin {
            Stdin::Empty => Stdio::null(),
            Stdin::Fed => Stdio::piped(),
        });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().map(|pipe| nonblocking(pipe.into())).transpose()?;
        let stdout = child.stdout.take().map(|pipe| nonblocking(pipe.into())).transpose()?;
        let stderr = child.stderr.take().map(|pipe| nonblocking(pipe.into())).transpose()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        Ok(Running { pid, stdin, unread: VecDeque::new(), input_ended: false, stdout, stderr })
    }

    fn on_terminal(mut command: Command, (rows, columns): (u16, u16)) -> Result<Running> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("open a terminal")?;
        command
            .stdin(Stdio::from(pty.slave.try_clone()?))
            .stdout(Stdio::from(pty.slave.try_clone()?))
            .stderr(Stdio::from(pty.slave));
        let child = command.spawn()?;
        let input = nonblocking(pty.master.try_clone()?)?;
        Ok(Running {
            pid: Pid::from_raw(child.id().cast_signed()),
            stdin: Some(input),
            unread: VecDeque::new(),
            input_ended: false,
            stdout: Some(nonblocking(pty.master)?),
            stderr: None,
        })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Adds what it waits for.
    pub(crate) fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        for output in [&self.stdout, &self.stderr].into_iter().flatten() {
            fds.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.unread.is_empty()) {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
    }

    /// Keeps input for it.
    pub(crate) fn feed(&mut self, data: &[u8]) {
        if self.stdin.is_some() {
            self.unread.extend(data);
            self.fill();
        }
    }

    /// Closes its input once all of it was taken.
    pub(crate) fn end_input(&mut self) {
        self.input_ended = true;
        self.fill();
    }

    /// Moves all bytes that can be moved without waiting.
    pub(crate) fn pump(&mut self, port: &mut dyn Write) -> Result<()> {
        self.fill();
        drain(&mut self.stdout, Frame::Stdout, port)?;
        drain(&mut self.stderr, Frame::Stderr, port)
    }

    /// Leaves the outputs to what the job left running, so that it does not die of writing.
    pub(crate) fn abandon(self, orphans: &mut Orphans) {
        orphans.0.extend([self.stdout, self.stderr].into_iter().flatten());
    }

    fn fill(&mut self) {
        while let Some(stdin) = &mut self.stdin {
            let (front, _) = self.unread.as_slices();
            if front.is_empty() {
                if self.input_ended {
                    self.stdin = None;
                }
                return;
            }
            match stdin.write(front) {
                Ok(count) => drop(self.unread.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It does not want it.
                Err(_) => {
                    self.stdin = None;
                    self.unread.clear();
                }
            }
        }
    }
}

/// Outputs of jobs that have ended, held open by what they left running.
#[derive(Default)]
pub(crate) struct Orphans(Vec<File>);

impl Orphans {
    /// Adds what it waits for.
    pub(crate) fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.extend(self.0.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)));
    }

    /// Throws away what came.
    pub(crate) fn discard(&mut self) {
        let mut buffer = [0; 16 << 10];
        self.0.retain_mut(|file| {
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
                }
            }
        });
    }
}

fn drain(
    source: &mut Option<File>,
    frame: fn(Vec<u8>) -> Frame,
    port: &mut dyn Write,
) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while let Some(file) = source {
        match file.read(&mut buffer) {
            Ok(count) if count > 0 => {
                let bytes = frame(buffer[..count].to_vec()).encode()?;
                port.write_all(&bytes).context("write to the host")?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal ends with EIO when its last user closes it.
            Err(error) if error.raw_os_error() != Some(libc::EIO) => {
                return Err(error).context("read the job's output");
            }
            _ => *source = None,
        }
    }
    Ok(())
}

fn nonblocking(fd: OwnedFd) -> Result<File> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("make a pipe non-blocking")?;
    Ok(File::from(fd))
}
