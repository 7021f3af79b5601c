//! Whether the node is about to go down, for whoever decides by it.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether the node is about to go down. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Standing(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    /// Whether it is.
    ending: watch::Sender<bool>,
    /// What the API server was told last.
    reported: watch::Sender<bool>,
}

impl Standing {
    /// Whether the node is about to go down.
    pub fn is_ending(&self) -> bool {
        *self.0.ending.borrow()
    }

    /// Changes whenever that does.
    pub(crate) fn changes(&self) -> watch::Receiver<bool> {
        self.0.ending.subscribe()
    }

    /// Notes it. Whether that is news.
    pub(crate) fn set(&self, is_ending: bool) -> bool {
        self.0.ending.send_if_modified(|known| std::mem::replace(known, is_ending) != is_ending)
    }

    /// Notes what the API server knows by now.
    pub(crate) fn note_reported(&self, is_ending: bool) {
        self.0.reported.send_replace(is_ending);
    }

    /// What the API server knows.
    #[cfg(test)]
    pub(crate) fn is_told(&self) -> bool {
        *self.0.reported.borrow()
    }

    /// Waits until the API server knows that the node is about to go down.
    pub(super) async fn told(&self) {
        // It cannot close: a sender of it is in here.
        let _ = self.0.reported.subscribe().wait_for(|reported| *reported).await;
    }
}
