//! Serves the host: one job at a time over the virtio-serial port.
//!
//! Owns the port and the loop; a running job is `job`'s. Everything happens in one thread, woken
//! by the port, a child's end, or output.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_vm::wire::{Decoder, Frame, Item, MAGIC, PORT_NAME};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use crate::job::{Orphans, Running};

/// Where jobs find programs.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct Agent {
    port: File,
    decoder: Decoder,
    running: Option<Running>,
    orphans: Orphans,
    children: SignalFd,
}

/// Serves until the host powers the guest off.
pub(crate) fn serve() -> Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    // Programs that are started get an empty mask again.
    mask.thread_block().context("block SIGCHLD")?;
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("signalfd")?;
    let port = open_port()?;
    let mut agent = Agent {
        port,
        decoder: Decoder::default(),
        running: None,
        orphans: Orphans::default(),
        children,
    };
    agent.port.write_all(MAGIC).context("greet the host")?;
    loop {
        agent.wait()?;
        agent.reap()?;
    }
}

impl Agent {
    /// Waits for something to happen, and does what follows from it.
    fn wait(&mut self) -> Result<()> {
        let mut fds = vec![
            PollFd::new(self.port.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(running) = &self.running {
            running.watch(&mut fds);
        }
        self.orphans.watch(&mut fds);
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(error) => return Err(error).context("poll"),
        }
        let readable = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let from_host = fds.first().is_some_and(readable);
        drop(fds);

        while let Ok(Some(_)) = self.children.read_signal() {}
        if let Some(running) = &mut self.running {
            running.pump(&mut self.port)?;
        }
        self.orphans.discard();
        if from_host {
            self.read_host()?;
        }
        Ok(())
    }

    fn read_host(&mut self) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        let count = self.port.read(&mut buffer).context("read from the host")?;
        if count == 0 {
            // The host's end is closed: nobody is left to serve.
            bail!("the host has gone");
        }
        self.decoder.push(&buffer[..count]);
        while let Some(item) = self.decoder.next_item()? {
            match item {
                Item::Magic => {
                    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
                    self.say(&Frame::Hello(release.trim().to_owned()))?;
                }
                Item::Frame(frame) => self.obey(frame)?,
            }
        }
        Ok(())
    }

    fn obey(&mut self, frame: Frame) -> Result<()> {
        match frame {
            Frame::Start(job) => match Running::start(&job) {
                Ok(running) => {
                    if let Some(before) = self.running.replace(running) {
                        before.abandon(&mut self.orphans);
                    }
                    Ok(())
                }
                Err(error) => {
                    self.say(&Frame::Stderr(format!("vm: {error:#}\n").into_bytes()))?;
                    self.say(&Frame::Exited(127))
                }
            },
            Frame::Stdin(data) => {
                if let Some(running) = &mut self.running {
                    running.feed(&data);
                }
                Ok(())
            }
            Frame::StdinEnd => {
                if let Some(running) = &mut self.running {
                    running.end_input();
                }
                Ok(())
            }
            Frame::PowerOff => {
                sync();
                reboot(RebootMode::RB_POWER_OFF).context("power off").map(|never| match never {})
            }
            other => bail!("the host said {other:?}"),
        }
    }

    /// Collects ended children: the job's and, as PID 1, everybody's.
    fn reap(&mut self) -> Result<()> {
        loop {
            let (pid, status) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) => continue,
                Err(error) => return Err(error).context("wait for children"),
            };
            if self.running.as_ref().is_some_and(|running| running.pid() == pid)
                && let Some(mut running) = self.running.take()
            {
                running.pump(&mut self.port)?;
                running.abandon(&mut self.orphans);
                self.say(&Frame::Exited(status))?;
            }
        }
    }

    fn say(&mut self, frame: &Frame) -> Result<()> {
        self.port.write_all(&frame.encode()?).context("write to the host")
    }
}

/// The port is announced in its own time after the driver is loaded.
fn open_port() -> Result<File> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(device) = find_port()
            && let Ok(port) = File::options().read(true).write(true).open(&device)
        {
            return Ok(port);
        }
        if Instant::now() > deadline {
            bail!("the port {PORT_NAME} did not appear");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim() == PORT_NAME).then(|| PathBuf::from("/dev").join(entry.file_name()))
    })
}
