//! Where the process spends its processor time: stacks taken by SIGPROF.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How much processor time passes from one stack to the next.
pub(crate) const PERIOD: Duration = Duration::from_millis(10);

/// The innermost addresses that are kept of a stack.
const DEPTH: usize = 64;
/// What is kept of all stacks: each has its addresses and a word for their count.
const WORDS: usize = 1 << 20;

/// Whether there is a sampler.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);
/// Where handlers put what they see; nowhere when null.
static STACKS: AtomicPtr<Stacks> = AtomicPtr::new(ptr::null_mut());
/// Handlers that may hold a reference to it.
static HANDLERS: AtomicUsize = AtomicUsize::new(0);

/// The stacks that were taken.
pub(crate) struct Stacks {
    words: Box<[AtomicUsize]>,
    used: AtomicUsize,
    lost: AtomicUsize,
}

impl Stacks {
    fn new() -> Self {
        let words = std::iter::repeat_with(AtomicUsize::default).take(WORDS).collect();
        Self { words, used: AtomicUsize::new(0), lost: AtomicUsize::new(0) }
    }

    /// Each stack's addresses, the innermost first: of the instruction that was interrupted, then within
    /// the calls that led there.
    pub(crate) fn all(&self) -> Vec<Vec<usize>> {
        let mut words = self.words.iter().map(|word| word.load(Ordering::Relaxed));
        let mut all = Vec::new();
        while let Some(count) = words.next().filter(|count| *count > 0) {
            all.push(words.by_ref().take(count).collect());
        }
        all
    }

    /// How many there was no room for, or could not be followed.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    /// Adds a stack. It allocates nothing and takes no lock.
    fn add(&self, stack: &[usize]) {
        let need = stack.len() + 1;
        // A count of nought is the end.
        let fits = |used: usize| {
            let end = used.checked_add(need).filter(|end| *end < self.words.len());
            end.filter(|_| !stack.is_empty())
        };
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(at) => {
                let words = self.words.iter().skip(at);
                for (word, value) in words.zip([stack.len()].iter().chain(stack)) {
                    word.store(*value, Ordering::Relaxed);
                }
            }
            Err(_) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Takes stacks while it lives; a process has one at most.
pub(crate) struct Sampler(());

impl Sampler {
    /// Begins; `None` when there is one already.
    ///
    /// The handler stays when the sampler ends, for a signal that comes late would end the process.
    /// Before glibc 2.35 the unwinder takes a lock of the dynamic loader in the handler.
    ///
    /// # Errors
    /// When the kernel sets no handler or no timer.
    pub(crate) fn start() -> io::Result<Option<Self>> {
        if IS_TAKEN.swap(true, Ordering::AcqRel) {
            return Ok(None);
        }
        // Ends what follows when it fails.
        let sampler = Self(());
        // The unwinder's first look may allocate.
        let _ = Stack::taken();
        handle()?;
        STACKS.store(Box::into_raw(Box::new(Stacks::new())), Ordering::SeqCst);
        set_timer(PERIOD)?;
        Ok(Some(sampler))
    }

    /// Ends, with what was taken.
    pub(crate) fn stop(self) -> Stacks {
        end().unwrap_or_else(Stacks::new)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        drop(end());
        IS_TAKEN.store(false, Ordering::Release);
    }
}

fn end() -> Option<Stacks> {
    // Disarming a timer cannot fail; a signal that is under way finds nowhere to write.
    let _ = set_timer(Duration::ZERO);
    let stacks = STACKS.swap(ptr::null_mut(), Ordering::SeqCst);
    while HANDLERS.load(Ordering::SeqCst) > 0 {
        thread::yield_now();
    }
    if stacks.is_null() {
        return None;
    }
    // SAFETY: it came from a box, has left the only place where it stood, and no handler holds it.
    let stacks = unsafe { Box::from_raw(stacks) };
    Some(*stacks)
}

fn handle() -> io::Result<()> {
    let action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: zeros are a valid action, with an empty mask.
    let mut action = unsafe { action.assume_init() };
    action.sa_sigaction = on_signal as extern "C" fn(c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the action is whole, and its handler does only what a handler may.
    match unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets SIGPROF come each time the process has used so much processor time; zero is never.
fn set_timer(period: Duration) -> io::Result<()> {
    let microseconds = libc::suseconds_t::from(period.subsec_micros());
    let every = libc::timeval { tv_sec: 0, tv_usec: microseconds };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: both pointers are valid for the call, the second says that nothing is asked for.
    match unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_signal(_: c_int) {
    HANDLERS.fetch_add(1, Ordering::SeqCst);
    // SAFETY: whoever takes it away waits for the handlers that are counted.
    if let Some(stacks) = unsafe { STACKS.load(Ordering::SeqCst).as_ref() } {
        stacks.add(Stack::taken().addresses());
    }
    HANDLERS.fetch_sub(1, Ordering::SeqCst);
}

/// The calls that led to where it was taken, or, in a handler, to where the signal interrupted.
struct Stack {
    addresses: [usize; DEPTH],
    count: usize,
}

impl Stack {
    fn taken() -> Self {
        let mut stack = Self { addresses: [0; DEPTH], count: 0 };
        let argument = (&raw mut stack).cast::<c_void>();
        // SAFETY: the callback has the type that is asked for, and the stack outlives the call.
        unsafe { _Unwind_Backtrace(on_frame, argument) };
        stack
    }

    fn addresses(&self) -> &[usize] {
        &self.addresses[..self.count]
    }

    fn add(&mut self, address: usize, is_interrupted: bool) {
        if is_interrupted {
            // What is further in is the handler.
            self.count = 0;
        }
        if let Some(place) = self.addresses.get_mut(self.count) {
            // A call returns behind its instruction, which may be another function's.
            *place = if is_interrupted { address } else { address.saturating_sub(1) };
            self.count += 1;
        }
    }
}

/// The unwinder's place in a stack.
#[repr(C)]
struct Context {
    _opaque: [u8; 0],
}

// Of libgcc, which the standard library unwinds with.
unsafe extern "C" {
    fn _Unwind_Backtrace(
        each: extern "C" fn(*mut Context, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut Context, is_before: *mut c_int) -> usize;
}

extern "C" fn on_frame(context: *mut Context, argument: *mut c_void) -> c_int {
    let mut is_before = 0;
    // SAFETY: the unwinder calls with a context of its own.
    let address = unsafe { _Unwind_GetIPInfo(context, &raw mut is_before) };
    // SAFETY: the argument is the stack that `taken` passes on, which nothing else uses meanwhile.
    let Some(stack) = (unsafe { argument.cast::<Stack>().as_mut() }) else {
        return 0;
    };
    stack.add(address, is_before != 0);
    // Zero goes on.
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_that_do_not_fit_or_are_empty_are_counted_and_leave_the_others_whole() {
        let words = std::iter::repeat_with(AtomicUsize::default).take(8).collect();
        let stacks = Stacks { words, used: AtomicUsize::new(0), lost: AtomicUsize::new(0) };
        stacks.add(&[1, 2, 3]);
        stacks.add(&[]);
        stacks.add(&[4, 5, 6]);
        stacks.add(&[7]);
        stacks.add(&[8]);
        assert_eq!((stacks.all(), stacks.lost()), (vec![vec![1, 2, 3], vec![7]], 3));
    }

    #[test]
    fn what_is_further_in_than_the_interrupted_function_is_left_out() {
        let mut stack = Stack { addresses: [0; DEPTH], count: 0 };
        for (address, is_interrupted) in [(10, false), (20, false), (30, true), (40, false)] {
            stack.add(address, is_interrupted);
        }
        assert_eq!(stack.addresses(), [30, 39]);
        for _ in 0..DEPTH {
            stack.add(50, false);
        }
        assert_eq!(stack.addresses().len(), DEPTH);
    }
}
