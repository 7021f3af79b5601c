//! The signals that `lifecycle.stopSignal` may name (KEP-4960), by their numbers on Linux.
//!
//! The numbers are those of x86-64 and arm64, which agree.

use berth_runtime::interface::StopSignal;
use k8s_openapi::api::core::v1::Pod;

use super::members;

/// The lowest real-time signal as C libraries number them.
const REAL_TIME: i32 = 34;

const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// The number of a signal as the API names it: `SIGTERM`, `SIGRTMIN+3`, `SIGRTMAX-1`.
pub fn number(name: &str) -> Option<i32> {
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(index + 1).ok();
    }
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<i32>().ok().filter(|n| (1..=15).contains(n)),
    };
    match (name, name.strip_prefix("SIGRTMIN"), name.strip_prefix("SIGRTMAX")) {
        ("SIGIOT", ..) => Some(6),
        ("SIGCLD", ..) => Some(17),
        ("SIGPOLL", ..) => Some(29),
        (_, Some(rest), _) => Some(REAL_TIME + offset(rest, '+')?),
        (_, _, Some(rest)) => Some(64 - offset(rest, '-')?),
        _ => None,
    }
}

/// The signal that asks the container `name` to end.
pub fn of(pod: &Pod, name: &str) -> StopSignal {
    let found = members::find(pod, name);
    let lifecycle = found.as_ref().and_then(|(_, c)| c.lifecycle.as_ref());
    let signal = lifecycle.and_then(|l| l.stop_signal.as_deref());
    match signal.and_then(number) {
        Some(signal) => StopSignal::Signal(signal),
        None => StopSignal::ImageDefault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_numbers_of_the_kernel() {
        for (name, expected) in [
            ("SIGHUP", Some(1)),
            ("SIGKILL", Some(9)),
            ("SIGTERM", Some(15)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+15", Some(49)),
            ("SIGRTMIN+16", None),
            ("SIGRTMAX-14", Some(50)),
            ("SIGRTMAX", Some(64)),
            ("SIGNOTHING", None),
            ("15", None),
        ] {
            assert_eq!(number(name), expected, "{name}");
        }
    }
}
