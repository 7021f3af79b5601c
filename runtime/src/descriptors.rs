//! How many descriptors this process may have open (`RLIMIT_NOFILE`, setrlimit(2)).

use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// The limits that this process was started with, once it has raised its own.
static INHERITED: OnceLock<Rlimit> = OnceLock::new();

/// Raises the process's soft limit to the hard one, as Go's programs do: who starts a node from a shell
/// has 1024, which is too few for one that is full. Containers do not see it, their shims begin with
/// what this process was started with. Does not block.
///
/// # Errors
/// When the kernel refuses; the limit is then as it was.
pub fn raise_limit() -> Result<(), Errno> {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum })?;
    INHERITED.get_or_init(|| before);
    Ok(())
}

/// How many descriptors the process may have open now.
#[must_use]
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Gives a child the limit that this process was started with.
pub(crate) fn give_back_limit(child: Pid) -> Result<(), Errno> {
    if let Some(before) = INHERITED.get() {
        prlimit(Some(child), Resource::Nofile, *before)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_has_what_this_process_was_started_with() {
        let started_with = getrlimit(Resource::Nofile);
        raise_limit().unwrap();
        assert_eq!(limit(), started_with.maximum.unwrap_or(u64::MAX));
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let of_child = |pid| prlimit(Some(pid), Resource::Nofile, started_with).unwrap();
        give_back_limit(pid).unwrap();
        // prlimit tells what was in force before.
        let found = of_child(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((found.current, found.maximum), (started_with.current, started_with.maximum));
    }
}
