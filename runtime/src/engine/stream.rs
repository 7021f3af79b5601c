//! Ends of pipes and terminals as asynchronous streams.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use berth_oci::terminal;
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::interface::{Terminal, TerminalSize};
use crate::sys;

/// A non-blocking end of a pipe, or the master side of a terminal.
#[derive(Debug)]
pub(super) struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// An end that bytes come from.
    pub(super) fn reading(descriptor: OwnedFd) -> io::Result<Self> {
        sys::watch(descriptor, Interest::READABLE).map(Self)
    }

    /// An end that bytes go to.
    pub(super) fn writing(descriptor: OwnedFd) -> io::Result<Self> {
        sys::watch(descriptor, Interest::WRITABLE).map(Self)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            let read = guard.try_io(|fd| Ok(terminal::read(fd.get_ref(), unfilled)?));
            return Poll::Ready(match read {
                Err(_would_block) => continue,
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    Ok(())
                }
                // The other side of a terminal is closed: its end.
                Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::IO) => Ok(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(error)) => Err(error),
            });
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Err(_would_block) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(outcome) => return Poll::Ready(outcome),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end is told by closing, which is dropping.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The master side of a terminal, kept to resize it.
#[derive(Debug)]
pub(super) struct Master(pub(super) OwnedFd);

impl Terminal for Master {
    fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.0, size)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_pass_and_the_end_of_a_pipe_is_seen() {
        let (read, write) = std::io::pipe().unwrap();
        let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
        for fd in [&read, &write] {
            rustix::io::ioctl_fionbio(fd, true).unwrap();
        }
        let mut writer = Stream::writing(write).unwrap();
        let mut reader = Stream::reading(read).unwrap();
        let sent = vec![b'x'; 300 << 10];
        let writing = tokio::spawn(async move { writer.write_all(&sent).await });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(received.len(), 300 << 10);
    }
}
