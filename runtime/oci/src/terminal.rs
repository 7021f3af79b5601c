//! Reading the master side of a terminal to its very end.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// Reads once from the master side of a terminal, or from a pipe. Blocks if the descriptor does.
///
/// # Errors
/// Those of read(2). EIO means that nobody has the other side open and that all it was given has been
/// read.
///
/// The kernel looks for bytes first and for the other side's end afterwards. What is written and closed
/// between the two is there still when it says EIO (about once in 20,000 ends on a busy machine), so one
/// more read decides: what was written before the close is handed over before that looks. tty_read in
/// drivers/tty/n_tty.c.
pub fn read(terminal: impl AsFd, bytes: &mut [u8]) -> Result<usize, Errno> {
    twice_at_the_end(|| rustix::io::read(terminal.as_fd(), &mut *bytes))
}

fn twice_at_the_end(mut read: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    match read() {
        Err(Errno::IO) => read(),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_come_with_the_end_are_read() {
        let mut outcomes = [Err(Errno::IO), Ok(7), Err(Errno::IO), Err(Errno::IO)].into_iter();
        let mut next = || twice_at_the_end(|| outcomes.next().unwrap());
        assert_eq!(next(), Ok(7));
        assert_eq!(next(), Err(Errno::IO));
        assert_eq!(outcomes.next(), None);
    }

    #[test]
    fn what_else_is_read_is_read_once() {
        for outcome in [Ok(3), Ok(0), Err(Errno::AGAIN), Err(Errno::INTR)] {
            let mut outcomes = [outcome].into_iter();
            assert_eq!(twice_at_the_end(|| outcomes.next().unwrap()), outcome);
        }
    }
}
