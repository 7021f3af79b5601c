//! Deletes pods' links in batches, away from the path of whoever removes a pod.
//!
//! One RTM_DELLINK of a pair waits for the kernel's grace period (about 20 ms); one for a whole
//! group waits once. So links are first moved to a group of doomed ones, then the group goes.
//! ```text
//! detach ──► queue ──► gather for a moment ──► group := doomed, each ──► delete the group
//!                                                               ──► forget tracked connections
//! ```
//! Until then the addresses are held ([`Reaper::holds`]), although they are free to be leased.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};
use tokio::sync::{mpsc, oneshot};

use super::bridge::Bridge;
use super::{absent_is_fine, failed};
use crate::Error;
use crate::firewall::Firewall;

/// How long the first link of a batch waits for others. The kernel changes no link at all during
/// its grace period, so many small batches would hold up every pod that starts.
const GATHER: Duration = Duration::from_millis(100);

enum Order {
    Delete(String, Vec<IpAddr>),
    Flush(oneshot::Sender<Result<(), Error>>),
}

/// The queue. Its task ends when the reaper is dropped, after what was queued.
#[derive(Debug)]
pub(crate) struct Reaper {
    orders: mpsc::UnboundedSender<Order>,
    held: Arc<Mutex<Held>>,
}

impl Reaper {
    pub(crate) fn start(handle: Handle, bridge: Bridge, firewall: Firewall) -> Self {
        let (orders, queue) = mpsc::unbounded_channel();
        let held = Arc::default();
        let work = Work { handle, bridge, firewall, held: Arc::clone(&held) };
        tokio::spawn(work.run(queue));
        Self { orders, held }
    }

    /// Has the link of this name deleted soon, and the connections of its addresses forgotten.
    pub(crate) fn delete(&self, name: String, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut held = lock(&self.held);
        held.addresses.extend(addresses);
        held.links.insert(name.clone());
        drop(held);
        self.orders.send(Order::Delete(name, addresses.to_vec())).map_err(|_| Error::Stopped)
    }

    /// Whether a link of this name, or one with one of the addresses, is still to be deleted.
    pub(crate) fn holds(&self, name: &str, addresses: &[IpAddr]) -> bool {
        let held = lock(&self.held);
        held.links.contains(name) || addresses.iter().any(|ip| held.addresses.contains(ip))
    }

    /// Waits until everything queued so far is gone.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        let (done, result) = oneshot::channel();
        self.orders.send(Order::Flush(done)).map_err(|_| Error::Stopped)?;
        result.await.map_err(|_| Error::Stopped)?
    }
}

/// What is queued or being worked on.
#[derive(Debug, Default)]
struct Held {
    links: HashSet<String>,
    addresses: HashSet<IpAddr>,
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the task works with.
struct Work {
    handle: Handle,
    bridge: Bridge,
    firewall: Firewall,
    held: Arc<Mutex<Held>>,
}

impl Work {
    async fn run(self, mut queue: mpsc::UnboundedReceiver<Order>) {
        while let Some(first) = queue.recv().await {
            let mut batch = Batch::default();
            batch.take(first);
            batch.gather(&mut queue).await;
            let result = self.reap(&batch).await;
            self.let_go(&batch);
            batch.answer(result);
        }
    }

    fn let_go(&self, batch: &Batch) {
        let mut held = lock(&self.held);
        held.addresses.retain(|ip| !batch.addresses.contains(ip));
        held.links.retain(|name| !batch.names.contains(name));
    }

    async fn reap(&self, batch: &Batch) -> Result<(), Error> {
        if batch.names.is_empty() {
            return Ok(());
        }
        let mut errors = Vec::new();
        let doomed = self.bridge.doomed();
        for name in &batch.names {
            let change = LinkUnspec::new_with_name(name).link_group(doomed).build();
            let moved = self.handle.link().set(change).execute().await;
            let moved = absent_is_fine(moved).map_err(failed(format!("move link {name} out")));
            errors.extend(moved.err());
        }
        errors.extend(delete_group(&self.handle, doomed).await.err());
        if !batch.addresses.is_empty() {
            errors.extend(self.firewall.forget(batch.addresses.clone()).await.err());
        }
        Error::collect(errors)
    }
}

#[derive(Default)]
struct Batch {
    names: Vec<String>,
    addresses: HashSet<IpAddr>,
    waiters: Vec<oneshot::Sender<Result<(), Error>>>,
}

impl Batch {
    fn take(&mut self, order: Order) {
        match order {
            Order::Delete(name, addresses) => {
                self.names.push(name);
                self.addresses.extend(addresses);
            }
            Order::Flush(waiter) => self.waiters.push(waiter),
        }
    }

    /// Takes what else comes, until somebody waits or the time is up.
    async fn gather(&mut self, queue: &mut mpsc::UnboundedReceiver<Order>) {
        let end = tokio::time::Instant::now() + GATHER;
        while self.waiters.is_empty() {
            match tokio::time::timeout_at(end, queue.recv()).await {
                Ok(Some(order)) => self.take(order),
                Ok(None) | Err(_) => return,
            }
        }
        while let Ok(order) = queue.try_recv() {
            self.take(order);
        }
    }

    /// Errors cannot be cloned: the first who waits gets it, or else the log.
    fn answer(self, result: Result<(), Error>) {
        let mut waiters = self.waiters.into_iter();
        match (waiters.next(), result) {
            (Some(waiter), result) => {
                let _ = waiter.send(result);
            }
            (None, Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "links not deleted");
            }
            (None, Ok(())) => {}
        }
        for waiter in waiters {
            let _ = waiter.send(Ok(()));
        }
    }
}

/// Deletes every link of a group with one grace period. No such link is fine.
pub(crate) async fn delete_group(handle: &Handle, group: u32) -> Result<(), Error> {
    let mut request = handle.link().del(0);
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    *request.message_mut() = message;
    let gone = request.execute().await;
    absent_is_fine(gone).map_err(failed("delete a group of links"))
}
