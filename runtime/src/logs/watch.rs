//! Tells when something in a directory changes (inotify(7)), so that followers need not poll.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// A wake-up in any case, for file systems that do not notify.
const FALLBACK: Duration = Duration::from_secs(1);

pub(super) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let events =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVE;
        let notifier = inotify::init(flags)?;
        inotify::add_watch(&notifier, dir, events)?;
        Ok(Self(crate::sys::watch(notifier, tokio::io::Interest::READABLE)?))
    }

    /// Returns after a change since the last call, or a little later.
    pub(super) async fn changed(&mut self) {
        let drained = async {
            let Ok(mut ready) = self.0.readable().await else {
                return;
            };
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(self.0.get_ref(), &mut buffer);
            while reader.next().is_ok() {}
            ready.clear_ready();
        };
        // An error of the notifier leaves the fallback.
        let _ = tokio::time::timeout(FALLBACK, drained).await;
    }
}
