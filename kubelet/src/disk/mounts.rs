//! How full mounts are, asked of file systems that may never answer: a server may be gone (NFS).
//!
//! Each mount is asked by a thread of its own, with one deadline for all; one that has not answered is not
//! asked again until it has. So a dead server costs a thread, once.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::FileSystem;

/// How long all mounts of a pass have to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most threads that wait.
const MOST: usize = 128;
/// statvfs(3) needs no more.
const STACK_BYTES: usize = 128 << 10;

type Answer = io::Result<FileSystem>;

/// Asks mounts how full they are.
#[derive(Debug)]
pub(super) struct Mounts {
    /// Those that were asked and have not answered yet.
    asked: HashMap<PathBuf, Receiver<Answer>>,
    ask: fn(&Path) -> Answer,
    patience: Duration,
}

impl Default for Mounts {
    fn default() -> Self {
        Self { asked: HashMap::new(), ask: FileSystem::of, patience: PATIENCE }
    }
}

impl Mounts {
    /// How full the mounts are that answer in time. Blocks that long at most.
    pub(super) fn ask(&mut self, places: &[PathBuf]) -> HashMap<PathBuf, FileSystem> {
        // What was answered too late is old.
        self.asked.retain(|_, answer| matches!(answer.try_recv(), Err(TryRecvError::Empty)));
        let mut fresh = Vec::new();
        for place in places {
            if self.asked.contains_key(place) || self.asked.len() >= MOST {
                continue;
            }
            match self.begin(place) {
                Ok(answer) => {
                    self.asked.insert(place.clone(), answer);
                    fresh.push(place);
                }
                Err(error) => {
                    tracing::warn!(?place, %error, "a mount cannot be asked how full it is")
                }
            }
        }
        let end = Instant::now() + self.patience;
        let mut answers = HashMap::new();
        for place in fresh {
            let Some(answer) = self.asked.get(place) else { continue };
            match answer.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Ok(found)) => drop(answers.insert(place.clone(), found)),
                // It went meanwhile, or says what is wrong with it to whoever uses it.
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {}
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!(?place, "a mount does not tell how full it is");
                    continue;
                }
            }
            self.asked.remove(place);
        }
        answers
    }

    fn begin(&self, place: &Path) -> io::Result<Receiver<Answer>> {
        let (sender, answer) = channel();
        let (ask, place) = (self.ask, place.to_owned());
        let thread = thread::Builder::new().name("statfs".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || {
            // Nobody may be waiting any more.
            let _ = sender.send(ask(&place));
        })?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// A server that is gone: whoever asks waits until this is let go.
    static DEAD: Mutex<()> = Mutex::new(());

    fn ask(place: &Path) -> Answer {
        if place.ends_with("dead") {
            drop(DEAD.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(FileSystem { id: 7, ..FileSystem::default() })
    }

    #[test]
    fn a_mount_that_does_not_answer_holds_nothing_up_and_is_asked_once() {
        let places = ["/dead", "/alive"].map(PathBuf::from);
        let mut mounts = Mounts { ask, patience: Duration::from_millis(50), ..Mounts::default() };
        let gone = DEAD.lock().unwrap();
        for _ in 0..3 {
            let answers = mounts.ask(&places[..1]);
            assert!(answers.is_empty() && mounts.asked.len() == 1, "{answers:?}");
        }
        mounts.patience = PATIENCE;
        let answers = mounts.ask(&places[1..]);
        assert_eq!((answers.len(), mounts.asked.len()), (1, 1), "the other one is heard");
        drop(gone);
        // It is asked again once it has answered.
        while mounts.ask(&places).len() < 2 {
            thread::yield_now();
        }
    }
}
