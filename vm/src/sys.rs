//! The one instruction that has no safe wrapper.
//!
//! Owns reading the processor's time stamp counter; what for is `clock`'s matter.

/// The time stamp counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}
