//! A running VM.
//!
//! Owns the QEMU process and the host's side of the conversation. A [`Vm`] never outlives its
//! owner: dropping it kills QEMU, and QEMU dies with the thread that booted it even when that is
//! killed. All calls block.
//!
//! ```text
//! boot ──► Hello ──► run ──► run … ──► power_off
//!            ▲          │
//!            └─ reset ──┘
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::accel::Accel;
use crate::clock;
use crate::images::{self, Copy};
use crate::kernel::Kernel;
use crate::qemu::{CONSOLE_LOG, Forward, Machine, PORT_SOCKET, QMP_SOCKET, Variant};
use crate::qmp;
use crate::run_dir::RunDir;
use crate::store::Store;
use crate::wire::{Decoder, Frame, Item, Job, MAGIC};
use crate::writer::{Input, Writer};

/// What machine to boot.
#[derive(Debug, Clone)]
pub struct Config {
    /// The kernel.
    pub kernel: Kernel,
    /// What is PID 1.
    pub variant: Variant,
    /// The guest's memory.
    pub memory_mib: u32,
    /// The guest's processors.
    pub cpus: u32,
    /// Raw images of further disks, written to: `/dev/vdd` and on.
    pub disks: Vec<PathBuf>,
    /// Ports of the host that lead into the guest. Without any the guest has only loopback.
    pub forwards: Vec<Forward>,
    /// Files to have in the guest: a file is a link into a read-only file system, a directory a
    /// copy that can be written to.
    pub copies: Vec<Copy>,
    /// Added to the kernel's command line.
    pub kernel_options: Vec<String>,
    /// How long the guest may take until it is ready.
    pub boot_timeout: Duration,
    /// The accelerator; found out when it is `None`.
    pub accel: Option<Accel>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            kernel: Kernel::Oldest,
            variant: Variant::Light,
            memory_mib: 2048,
            cpus: 2,
            disks: Vec::new(),
            forwards: Vec::new(),
            copies: Vec::new(),
            kernel_options: Vec::new(),
            boot_timeout: Duration::from_secs(180),
            accel: None,
        }
    }
}

/// What a job printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit status, 128 + n for signal n.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// How a wait for the guest ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    TimedOut,
    Closed,
}

/// A machine that is up.
#[derive(Debug)]
pub struct Vm {
    qemu: Child,
    port: UnixStream,
    writer: Arc<Writer>,
    decoder: Decoder,
    qmp: qmp::Connection,
    console: File,
    boot_timeout: Duration,
    boot_time: Duration,
    release: String,
    arguments: Vec<OsString>,
    run_dir: RunDir,
}

impl Vm {
    /// Boots a machine and waits until the guest is ready for a job.
    ///
    /// # Errors
    /// What is missing to make the images; a guest that is not ready in time, with the end of its
    /// console.
    pub fn boot(store: &Store, config: &Config) -> Result<Vm> {
        let accel = match config.accel {
            Some(accel) => accel,
            None => Accel::probe(store)?,
        };
        let run_dir = RunDir::create()?;
        let arguments = prepare(store, config, accel, run_dir.path())?;
        let console = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(run_dir.path().join(CONSOLE_LOG))?;
        let started = Instant::now();
        let Started { qemu, port, qmp } = start(&arguments, run_dir.path())?;
        let mut vm = Vm {
            qemu,
            writer: Arc::new(Writer::new(port.try_clone()?)),
            port,
            decoder: Decoder::default(),
            qmp,
            console,
            boot_timeout: config.boot_timeout,
            boot_time: Duration::ZERO,
            release: String::new(),
            arguments,
            run_dir,
        };
        vm.wait_for_hello(started)?;
        Ok(vm)
    }

    /// From the start of QEMU, or the reset, until the guest was ready for a job.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The guest's `uname -r`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Feeds the standard input of the next job that is run, from another thread while
    /// [`Vm::run`] waits.
    pub fn input(&self) -> Input {
        let after = self.writer.lock().started;
        Input { writer: Arc::clone(&self.writer), after }
    }

    /// Runs a job as root and passes on what it prints as it comes. Returns its exit status.
    ///
    /// # Errors
    /// A job that is not done in time, a guest that restarted or ended. The machine is then of no
    /// more use, but for [`Vm::reset`].
    pub fn run(
        &mut self,
        job: &Job,
        timeout: Duration,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<i32> {
        self.writer.start(job)?;
        let result = self.attend(timeout, stdout, stderr);
        self.writer.end();
        result
    }

    fn attend(
        &mut self,
        timeout: Duration,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<i32> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.next_item(deadline)? {
                Ok(Item::Frame(Frame::Stdout(data))) => pass_on(stdout, &data)?,
                Ok(Item::Frame(Frame::Stderr(data))) => pass_on(stderr, &data)?,
                Ok(Item::Frame(Frame::Exited(status))) => return Ok(status),
                Ok(Item::Frame(other)) => bail!("the guest said {other:?} while a job ran"),
                Ok(Item::Magic) => {
                    bail!(
                        "the guest restarted by itself while the job ran\n{}",
                        self.console_tail()
                    )
                }
                Err(Silence::TimedOut) => return Err(TimedOut(timeout).into()),
                Err(Silence::Closed) => bail!("the guest powered off\n{}", self.console_tail()),
            }
        }
    }

    /// Runs a job and keeps what it prints.
    pub fn output(&mut self, job: &Job, timeout: Duration) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.run(job, timeout, &mut stdout, &mut stderr)?;
        Ok(Output { status, stdout, stderr })
    }

    /// A power cut: the guest starts again at once, with its disks as they were flushed. The files
    /// copied in are there again; an [`Input`] from before leads to no job. Returns when the guest
    /// is ready for a job.
    pub fn reset(&mut self) -> Result<()> {
        // A new QEMU, not its reset line: translating a kernel that unpacks itself over its own
        // old translation takes ten seconds and more.
        end(&mut self.qemu);
        let started = Instant::now();
        let Started { qemu, port, qmp } = start(&self.arguments, self.run_dir.path())?;
        self.qemu = qemu;
        self.writer.replace(port.try_clone()?);
        self.port = port;
        self.qmp = qmp;
        self.decoder = Decoder::default();
        self.wait_for_hello(started)
    }

    /// Flushes the disks and ends the machine.
    pub fn power_off(mut self) -> Result<()> {
        self.writer.send(&Frame::PowerOff)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Ok(_ignored) = self.next_item(deadline)? {}
        // Ended by itself, or too slow to: its disks are flushed by now either way.
        if self.qemu.try_wait()?.is_none() {
            let _ = self.qmp.quit();
        }
        Ok(())
    }

    /// The end of what the kernel and PID 1 wrote to the console.
    pub fn console_tail(&mut self) -> String {
        let mut tail = Vec::new();
        let _ = self.console.seek(SeekFrom::Start(0));
        let _ = self.console.read_to_end(&mut tail);
        let text = String::from_utf8_lossy(&tail[tail.len().saturating_sub(6000)..]).into_owned();
        format!("--- end of the console ---\n{}\n---", text.trim())
    }

    fn wait_for_hello(&mut self, started: Instant) -> Result<()> {
        let deadline = started + self.boot_timeout;
        loop {
            match self.next_item(deadline)? {
                // Both sides begin with it; the guest waits for ours.
                Ok(Item::Magic) => self.writer.greet(MAGIC)?,
                Ok(Item::Frame(Frame::Hello(release))) => {
                    self.release = release;
                    self.boot_time = started.elapsed();
                    return Ok(());
                }
                Ok(Item::Frame(_)) => {}
                Err(Silence::TimedOut) => {
                    let patience = self.boot_timeout;
                    bail!("the guest was not ready after {patience:?}\n{}", self.console_tail())
                }
                Err(Silence::Closed) => bail!("QEMU ended\n{}", self.console_tail()),
            }
        }
    }

    fn next_item(&mut self, deadline: Instant) -> Result<Result<Item, Silence>> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(item) = self.decoder.next_item()? {
                return Ok(Ok(item));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Err(Silence::TimedOut));
            }
            self.port.set_read_timeout(Some(left))?;
            match self.port.read(&mut buffer) {
                Ok(0) => return Ok(Err(Silence::Closed)),
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(Err(Silence::Closed));
                }
                Err(error) => return Err(error).context("read from the guest"),
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        end(&mut self.qemu);
    }
}

/// A job was not done in time; it is still running in the guest.
#[derive(Debug)]
pub struct TimedOut(pub Duration);

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the command was not done after {:?}", self.0)
    }
}

impl std::error::Error for TimedOut {}

/// Makes the images that this boot needs and says how to start QEMU with them.
fn prepare(store: &Store, config: &Config, accel: Accel, run_dir: &Path) -> Result<Vec<OsString>> {
    let kernel = store.kernel(config.kernel)?;
    let root = images::root_overlay(run_dir, &store.root_image()?)?;
    let network: &[&str] = if config.forwards.is_empty() { &[] } else { &["virtio_net"] };
    let initramfs = images::initramfs(run_dir, &find_init()?, &kernel, network)?;
    let payload = images::payload_image(run_dir, &config.copies)?;
    for disk in &config.disks {
        File::open(disk).with_context(|| format!("open the disk {}", disk.display()))?;
    }
    let machine = Machine {
        accel,
        counter_khz: clock::counter_khz(),
        variant: config.variant,
        memory_mib: config.memory_mib,
        cpus: config.cpus,
        kernel: &kernel.image,
        initramfs: &initramfs,
        root: &root,
        modules: &kernel.modules_image,
        payload: &payload,
        disks: &config.disks,
        forwards: &config.forwards,
        kernel_options: &config.kernel_options,
        run_dir,
    };
    Ok(machine.arguments())
}

/// QEMU and the two ways to talk with it.
struct Started {
    qemu: Child,
    port: UnixStream,
    qmp: qmp::Connection,
}

fn start(arguments: &[OsString], run_dir: &Path) -> Result<Started> {
    let port = listen(run_dir, PORT_SOCKET)?;
    let qmp = listen(run_dir, QMP_SOCKET)?;
    let mut qemu = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .spawn()
        .context("start QEMU (tests/setup/packages.sh installs it)")?;
    let connected = accept(&port, &mut qemu)
        .and_then(|port| Ok((port, qmp::Connection::open(accept(&qmp, &mut qemu)?)?)));
    match connected {
        Ok((port, qmp)) => Ok(Started { qemu, port, qmp }),
        Err(error) => {
            end(&mut qemu);
            Err(error)
        }
    }
}

/// `vm-init` lies beside `vm`, or one directory above a test.
fn find_init() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("vm-init"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("no vm-init beside {}: `cargo build -p berth-vm` builds it", own.display())
        })
}

fn listen(dir: &Path, name: &str) -> Result<UnixListener> {
    let path = dir.join(name);
    // There from before a reset.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(path).context("listen for QEMU")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// QEMU connects to its sockets as it starts, or ends with a complaint.
fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("accept QEMU's connection"),
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("QEMU did not start: {status}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pass_on(to: &mut dyn Write, data: &[u8]) -> Result<()> {
    to.write_all(data).and_then(|()| to.flush()).context("pass on the command's output")
}

fn end(qemu: &mut Child) {
    // An error means that it has ended already.
    let _ = qemu.kill();
    let _ = qemu.wait();
}
