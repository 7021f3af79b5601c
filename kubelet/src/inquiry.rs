//! Looks at places whose file system may never answer: a server may be gone (NFS), and whoever touches its
//! mount then waits in the kernel for as long as that lasts.
//!
//! A thread looks, others wait for it up to a deadline. What is being looked at is not looked at twice, so a
//! dead server costs one thread a mount, and all of them a bounded number. nfs(5).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The most threads of an [`Asker`] that wait.
const MOST: usize = 128;
/// A look at a place needs no more.
const STACK_BYTES: usize = 128 << 10;

/// Asks one thing of places.
#[derive(Debug)]
pub(crate) struct Asker<T> {
    look: fn(&Path) -> T,
    /// What was asked; an answered one goes with the next question.
    asked: Mutex<BTreeMap<PathBuf, Arc<Question<T>>>>,
}

/// What was asked of one place.
#[derive(Debug)]
pub(crate) struct Question<T> {
    since: Instant,
    answer: Mutex<Option<T>>,
    told: Condvar,
}

/// Whether somebody asked before and has no answer yet.
#[derive(Debug)]
pub(crate) enum Asked<T> {
    /// The thread has just begun.
    Now(Arc<Question<T>>),
    /// It waits already.
    Before(Arc<Question<T>>),
}

impl<T> Asked<T> {
    /// The question either way.
    pub(crate) fn question(self) -> Arc<Question<T>> {
        match self {
            Self::Now(question) | Self::Before(question) => question,
        }
    }
}

impl<T: Clone + Send + 'static> Asker<T> {
    /// Asks what `look` tells; that may block for ever.
    pub(crate) const fn new(look: fn(&Path) -> T) -> Self {
        Self { look, asked: Mutex::new(BTreeMap::new()) }
    }

    /// Asks of a place, or joins those who wait for its answer already. Does not block.
    ///
    /// # Errors
    /// When no thread can be had, or too many wait.
    pub(crate) fn ask(&self, place: &Path) -> io::Result<Asked<T>> {
        let mut asked = lock(&self.asked);
        asked.retain(|_, question| lock(&question.answer).is_none());
        if let Some(question) = asked.get(place) {
            return Ok(Asked::Before(Arc::clone(question)));
        }
        if asked.len() >= MOST {
            return Err(io::Error::other("too many file systems do not answer"));
        }
        let question = Arc::new(Question {
            since: Instant::now(),
            answer: Mutex::new(None),
            told: Condvar::new(),
        });
        let (look, of, put) = (self.look, place.to_owned(), Arc::clone(&question));
        let thread = thread::Builder::new().name("ask-mount".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || {
            let answer = look(&of);
            *lock(&put.answer) = Some(answer);
            put.told.notify_all();
        })?;
        asked.insert(place.to_owned(), Arc::clone(&question));
        Ok(Asked::Now(question))
    }
}

impl<T: Clone> Question<T> {
    /// The answer, if it comes within this time of the asking. Blocks for what is left of that.
    pub(crate) fn within(&self, patience: Duration) -> Option<T> {
        let end = self.since + patience;
        let mut answer = lock(&self.answer);
        while answer.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.told.wait_timeout(answer, left);
            answer = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        answer.clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A server that is gone: whoever asks waits until this is let go.
    static DEAD: Mutex<()> = Mutex::new(());
    static LOOKS: AtomicUsize = AtomicUsize::new(0);

    fn look(place: &Path) -> usize {
        if place.starts_with("/dead") {
            LOOKS.fetch_add(1, Ordering::SeqCst);
            drop(lock(&DEAD));
        }
        place.components().count()
    }

    #[test]
    fn a_server_that_is_gone_is_asked_once_and_heard_again() {
        let asker = Asker::new(look);
        let (dead, alive) = (Path::new("/dead"), Path::new("/alive"));
        let gone = lock(&DEAD);
        let first = asker.ask(dead).unwrap();
        assert!(matches!(first, Asked::Now(_)));
        assert_eq!(first.question().within(Duration::from_millis(20)), None);
        let second = asker.ask(dead).unwrap();
        assert!(matches!(second, Asked::Before(_)));
        let second = second.question();
        assert_eq!(second.within(Duration::ZERO), None);
        assert!(LOOKS.load(Ordering::SeqCst) <= 1);
        let other = asker.ask(alive).unwrap().question();
        assert_eq!(other.within(LONG), Some(2), "the other one is heard");
        // As many as can be wait, one more is refused.
        for number in 1..MOST {
            asker.ask(&dead.join(number.to_string())).unwrap();
        }
        asker.ask(alive).unwrap_err();
        drop(gone);
        assert_eq!(second.within(LONG), Some(2));
        assert!(matches!(asker.ask(dead).unwrap(), Asked::Now(_)), "it is asked again");
    }
}
