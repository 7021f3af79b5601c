//! Whether what serves a mount answers, asked before anything else touches it: a server may be gone, and
//! whoever looks at its mount then waits in the kernel for as long as that lasts.
//!
//! A thread asks, others wait for it up to a deadline. A question that has no answer yet is not asked again,
//! so a dead server costs one thread a mount. nfs(5).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// A look at a place needs no more.
const STACK_BYTES: usize = 128 << 10;

/// Questions without an answer yet.
static OPEN: Mutex<BTreeMap<PathBuf, Arc<Question>>> = Mutex::new(BTreeMap::new());

#[derive(Debug)]
struct Question {
    since: Instant,
    is_answered: Mutex<bool>,
    told: Condvar,
}

/// Asks a mount's server of the mount's root; false when it did not answer in time. An error is an answer:
/// whoever uses the mount will be told the same.
///
/// # Errors
/// When no thread can be had.
pub(super) fn comes(place: &Path, patience: Duration) -> io::Result<bool> {
    comes_to(place, patience, |place| {
        let _ = statx(CWD, place, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
    })
}

fn comes_to(place: &Path, patience: Duration, look: fn(&Path)) -> io::Result<bool> {
    let question = put(place, look)?;
    let end = question.since + patience;
    let mut is_answered = lock(&question.is_answered);
    while !*is_answered {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let waited = question.told.wait_timeout(is_answered, left);
        is_answered = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    Ok(true)
}

/// Puts a question, or joins those who wait for its answer already.
fn put(place: &Path, look: fn(&Path)) -> io::Result<Arc<Question>> {
    let mut open = lock(&OPEN);
    if let Some(question) = open.get(place) {
        return Ok(Arc::clone(question));
    }
    let question = Arc::new(Question {
        since: Instant::now(),
        is_answered: Mutex::new(false),
        told: Condvar::new(),
    });
    let (asked, of) = (Arc::clone(&question), place.to_owned());
    let thread = thread::Builder::new().name("ask-mount".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || {
        look(&of);
        lock(&OPEN).remove(&of);
        *lock(&asked.is_answered) = true;
        asked.told.notify_all();
    })?;
    open.insert(place.to_owned(), Arc::clone(&question));
    Ok(question)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static DEAD: Mutex<()> = Mutex::new(());
    static LOOKS: AtomicUsize = AtomicUsize::new(0);

    fn look(_: &Path) {
        LOOKS.fetch_add(1, Ordering::SeqCst);
        drop(lock(&DEAD));
    }

    #[test]
    fn a_server_that_is_gone_is_asked_once_and_heard_again() {
        let place = Path::new("/dead");
        let gone = lock(&DEAD);
        for patience in [Duration::from_millis(20), Duration::ZERO] {
            assert!(!comes_to(place, patience, look).unwrap());
        }
        assert!(LOOKS.load(Ordering::SeqCst) <= 1);
        drop(gone);
        assert!(comes_to(place, Duration::from_secs(60), look).unwrap());
        assert!(comes(Path::new("/proc"), Duration::from_secs(60)).unwrap());
        assert!(comes(Path::new("/nowhere"), Duration::from_secs(60)).unwrap());
    }
}
