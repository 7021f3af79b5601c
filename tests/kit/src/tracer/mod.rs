//! Follows all threads of a process and kills it after the n-th of the calls by which it changes
//! something outside of itself.
//!
//! The processes that it makes are not followed: they live on as they do when whoever made them dies.
//! Nothing but the kill disturbs it: it is slower, and its calls are interrupted once, at the start.
//! Needs root.

mod effect;
#[allow(unsafe_code)]
mod sys;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use libc::pid_t;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use effect::Observed;
use sys::{Side, Stop};

/// A process that is followed, until this is ended or the process is.
pub struct Tracer {
    process: pid_t,
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<()>>,
}

/// What came of following a process.
#[derive(Debug)]
pub struct Followed {
    /// The calls that changed something, in order.
    pub effects: Vec<String>,
    /// It is dead and waited for: who started it need not, and cannot, do that.
    pub is_dead: bool,
}

#[derive(Default)]
struct Shared {
    effects: Mutex<Vec<String>>,
    /// It is to be followed no more.
    enough: AtomicBool,
    /// It is dead and waited for.
    dead: AtomicBool,
}

impl Tracer {
    /// Follows a process from now on, and kills it when `fatal` of its effects have happened. Blocks
    /// until all its threads are followed.
    ///
    /// # Errors
    /// It is gone, or may not be traced.
    ///
    /// # Panics
    /// No thread can be started.
    pub fn attach(process: u32, fatal: Option<usize>) -> io::Result<Self> {
        let process = pid_t::try_from(process).map_err(io::Error::other)?;
        let shared = Arc::new(Shared::default());
        let (sender, attached) = channel();
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || Following::new(process, fatal, shared).run(&sender)
        });
        match attached.recv() {
            Ok(()) => Ok(Self { process, shared, thread }),
            Err(_) => Err(join(thread).err().unwrap_or_else(|| io::Error::other("it is gone"))),
        }
    }

    /// Whether the process is dead.
    pub fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::Acquire)
    }

    /// Leaves the process alone, or waits for its end where it has been killed.
    ///
    /// # Errors
    /// It could not be followed to the end.
    pub fn end(self) -> io::Result<Followed> {
        self.shared.enough.store(true, Ordering::Release);
        // What nobody handles does no harm, and is told to whoever traces first. It may be dead.
        let _ = kill(Pid::from_raw(self.process), Signal::SIGURG);
        join(self.thread)?;
        let effects = std::mem::take(&mut *self.shared.effects());
        Ok(Followed { effects, is_dead: self.shared.dead.load(Ordering::Acquire) })
    }
}

fn join(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the tracer panicked")))
}

impl Shared {
    fn effects(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.effects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread that traces knows. Tracees belong to a thread, and are let go when it ends.
struct Following {
    process: pid_t,
    fatal: Option<usize>,
    shared: Arc<Shared>,
    observed: Observed,
    /// The threads that have stopped at least once.
    known: HashSet<pid_t>,
    /// What the calls in progress will have changed, by thread.
    begun: HashMap<pid_t, String>,
    killed: bool,
}

impl Following {
    fn new(process: pid_t, fatal: Option<usize>, shared: Arc<Shared>) -> Self {
        let observed = Observed::new(process);
        let (known, begun) = (HashSet::new(), HashMap::new());
        Self { process, fatal, shared, observed, known, begun, killed: false }
    }

    fn run(mut self, attached: &Sender<()>) -> io::Result<()> {
        seize_all(self.process)?;
        let _ = attached.send(());
        while self.killed || !self.shared.enough.load(Ordering::Acquire) {
            let (thread, stop) = sys::wait()?;
            if matches!(stop, Stop::End) && thread == self.process {
                self.shared.dead.store(true, Ordering::Release);
                break;
            }
            match self.stopped(thread, &stop) {
                // It was killed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn stopped(&mut self, thread: pid_t, stop: &Stop) -> io::Result<()> {
        if !self.known.contains(&thread) {
            // What clone(2) makes is traced unless it ends with SIGCHLD, whether a thread or not.
            if !is_thread_of(self.process, thread) {
                return sys::detach(thread);
            }
            self.known.insert(thread);
        }
        match stop {
            Stop::End => return Ok(()),
            Stop::Signal(signal) => return sys::resume(thread, *signal),
            Stop::Other => {}
            Stop::Call => match sys::call(thread)? {
                Side::Entry(number, args) => {
                    if let Some(effect) = self.observed.effect(number, &args) {
                        self.begun.insert(thread, effect);
                    }
                }
                Side::Exit { well } => {
                    let effect = self.begun.remove(&thread).filter(|_| well);
                    if effect.is_some_and(|effect| self.count(effect)) {
                        self.killed = true;
                        return Ok(kill(Pid::from_raw(self.process), Signal::SIGKILL)?);
                    }
                }
                Side::None => {}
            },
        }
        sys::resume(thread, 0)
    }

    /// Counts an effect. Returns whether it is the fatal one.
    fn count(&self, effect: String) -> bool {
        let mut effects = self.shared.effects();
        if self.fatal.is_some_and(|fatal| effects.len() >= fatal) {
            return false;
        }
        effects.push(effect);
        self.fatal == Some(effects.len())
    }
}

fn is_thread_of(process: pid_t, thread: pid_t) -> bool {
    fs::exists(format!("/proc/{process}/task/{thread}")).unwrap_or(false)
}

/// Follows all threads, also those that are made while one looks for them.
fn seize_all(process: pid_t) -> io::Result<()> {
    let mut seized = HashSet::new();
    loop {
        let mut more = false;
        for entry in fs::read_dir(format!("/proc/{process}/task"))? {
            let name = entry?.file_name();
            let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            if !seized.insert(thread) {
                continue;
            }
            more = true;
            match sys::seize(thread) {
                // It has ended, or is traced as the child of one that is.
                Err(error)
                    if [Some(libc::ESRCH), Some(libc::EPERM)].contains(&error.raw_os_error()) => {}
                result => result?,
            }
        }
        if !more {
            return Ok(());
        }
    }
}
