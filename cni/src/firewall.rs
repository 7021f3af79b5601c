//! Puts the rules into the kernel: one thread, one netlink socket that stays open, one atomic
//! transaction a change.
//!
//! The thread lives in the node's namespace. Changes are elements; if the kernel no longer has
//! what a change builds on (somebody flushed the tables), everything is built anew.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::mpsc;

use berth_nft::conntrack::Flow;
use berth_nft::{Batch, Family, Socket, Table};
use ipnet::IpNet;
use nix::errno::Errno;
use tokio::sync::oneshot;

use crate::Error;
use crate::attachment::{AttachmentId, Protocol};
use crate::config::Layout;
use crate::guard::Guard;
use crate::ipam::Record;
use crate::masquerade::Rules;
use crate::netns::NetNs;

/// Transport protocols whose tracked connections are forgotten with a pod.
const TRACKED: [u8; 3] = [6, 17, 132];

type Job = Box<dyn FnOnce(&mut Kernel) + Send>;

/// Tells what should be in the kernel at the moment it is asked.
pub(crate) type Source = Box<dyn Fn() -> Desired + Send>;

/// A handle to the firewall's thread, which ends when the last one is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Firewall {
    jobs: mpsc::Sender<Job>,
}

/// What should be in the kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desired {
    pub(crate) records: Vec<Record>,
    /// Where pods keep their own address.
    pub(crate) cluster: Vec<IpNet>,
}

/// The thread's state.
struct Kernel {
    socket: Socket,
    rules: Vec<Rules>,
    guard: Option<Guard>,
    desired: Source,
}

impl Firewall {
    /// Opens the socket inside `node` and starts the thread. Nothing is changed yet.
    pub(crate) async fn open(
        node: &NetNs,
        layout: &Layout,
        desired: Source,
    ) -> Result<Self, Error> {
        let prepare = || -> Result<_, berth_nft::Error> {
            let rules = layout
                .families
                .iter()
                .map(|family| Rules::new(&layout.table, &layout.bridge, family.subnet))
                .collect::<Result<Vec<_>, _>>()?;
            Ok((rules, Guard::new(&layout.table, &layout.bridge, layout.bridge_mac())?))
        };
        let (rules, guard) = prepare().map_err(failed("name the nftables objects"))?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let socket = node.inside(Socket::open).await?.map_err(failed("open nftables"))?;
        std::thread::Builder::new()
            .name("berth-nft".into())
            .spawn(move || {
                let mut kernel = Kernel { socket, rules, guard: Some(guard), desired };
                while let Ok(job) = queue.recv() {
                    job(&mut kernel);
                }
            })
            .map_err(|_| Error::Stopped)?;
        Ok(Self { jobs })
    }

    /// Replaces everything in one transaction.
    pub(crate) async fn rebuild(&self) -> Result<(), Error> {
        self.run(move |kernel| {
            let desired = (kernel.desired)();
            kernel.rebuild(&desired)
        })
        .await?
    }

    /// Lets a pod's frames pass and its host ports lead to it.
    pub(crate) async fn add(&self, record: &Record) -> Result<(), Error> {
        let record = record.clone();
        let change = move |kernel: &mut Kernel, batch: &mut Batch| kernel.add(batch, &record);
        self.change(change, None).await
    }

    /// Cuts a pod off.
    pub(crate) async fn remove(&self, record: &Record) -> Result<(), Error> {
        let (record, gone) = (record.clone(), record.attachment.clone());
        let change = move |kernel: &mut Kernel, batch: &mut Batch| kernel.remove(batch, &record);
        self.change(change, Some(gone)).await
    }

    /// Replaces the destinations for which pods keep their address.
    pub(crate) async fn set_cluster(&self, cluster: Vec<IpNet>) -> Result<(), Error> {
        let change = move |kernel: &mut Kernel, batch: &mut Batch| {
            kernel.rules.iter().for_each(|rules| rules.set_cluster(batch, &cluster));
        };
        self.change(change, None).await
    }

    /// Forgets the tracked connections of addresses that no pod has any more: a reply would be
    /// translated to whoever gets the address next.
    pub(crate) async fn forget(&self, addresses: HashSet<IpAddr>) -> Result<(), Error> {
        self.run(move |kernel| {
            // The source of the answer is the pod that a connection was translated to.
            let of_pod = |flow: &Flow| {
                addresses.contains(&flow.original.source) || addresses.contains(&flow.reply.source)
            };
            for family in [Family::Ip, Family::Ip6] {
                if addresses.iter().any(|ip| ip.is_ipv6() == (family == Family::Ip6)) {
                    for protocol in TRACKED {
                        kernel.forget((family, protocol), of_pod)?;
                    }
                }
            }
            Ok(())
        })
        .await?
    }

    /// Forgets what clients sent to a pod's UDP host ports before it had them: as long as they go
    /// on, the kernel would go on as it began, and not ask the rules again.
    pub(crate) async fn forget_earlier_clients(&self, record: &Record) -> Result<(), Error> {
        let ports = record.host_ports.iter().filter(|port| port.protocol == Protocol::Udp);
        let ports: HashSet<u16> = ports.map(|port| port.host_port).collect();
        if ports.is_empty() {
            return Ok(());
        }
        let addresses = record.addresses.clone();
        self.run(move |kernel| {
            let earlier = |flow: &Flow| {
                ports.contains(&flow.original.destination_port)
                    && !addresses.contains(&flow.reply.source)
            };
            for ip in &addresses {
                let family = if ip.is_ipv6() { Family::Ip6 } else { Family::Ip };
                kernel.forget((family, Protocol::Udp.number()), earlier)?;
            }
            Ok(())
        })
        .await?
    }

    /// Whether the tables are there.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        self.run(Kernel::check).await?
    }

    /// Removes the tables.
    pub(crate) async fn erase(&self) -> Result<(), Error> {
        self.run(|kernel| {
            let tables: Vec<_> = kernel.tables().into_iter().cloned().collect();
            erase(&mut kernel.socket, &tables)
        })
        .await?
    }

    /// Commits a change. Where it builds on what is no longer there, everything is built anew,
    /// without the pod that is `gone`.
    async fn change<F>(&self, change: F, gone: Option<AttachmentId>) -> Result<(), Error>
    where
        F: FnOnce(&mut Kernel, &mut Batch) + Send + 'static,
    {
        self.run(move |kernel| {
            let mut batch = Batch::new();
            change(kernel, &mut batch);
            match kernel.socket.commit(batch) {
                Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EEXIST)) => {
                    tracing::warn!(%error, "nftables rules were changed from outside; rebuilding");
                    let mut desired = (kernel.desired)();
                    desired.records.retain(|record| Some(&record.attachment) != gone.as_ref());
                    kernel.rebuild(&desired)
                }
                other => other.map_err(failed("change the nftables rules")),
            }
        })
        .await?
    }

    async fn run<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Kernel) -> T + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |kernel| {
            let _ = done.send(work(kernel));
        });
        self.jobs.send(job).map_err(|_| Error::Stopped)?;
        result.await.map_err(|_| Error::Stopped)
    }
}

impl Kernel {
    fn rebuild(&mut self, desired: &Desired) -> Result<(), Error> {
        match self.replace(desired) {
            Err(error) if self.guard.is_some() && is_unsupported(&error) => {
                tracing::warn!(
                    %error,
                    "the kernel has no nftables for bridges: pods can forge source addresses"
                );
                self.guard = None;
                self.replace(desired)
            }
            other => other,
        }
        .map_err(failed("load the nftables rules"))
    }

    fn replace(&mut self, desired: &Desired) -> Result<(), berth_nft::Error> {
        let mut batch = Batch::new();
        for table in self.tables() {
            // Deleting needs the table to be there; adding first makes sure of it.
            batch.add_table(table);
            batch.delete_table(table);
        }
        for rules in &self.rules {
            rules.build(&mut batch, &desired.records, &desired.cluster)?;
        }
        if let Some(guard) = &self.guard {
            guard.build(&mut batch, &desired.records);
        }
        self.socket.commit(batch)
    }

    fn add(&self, batch: &mut Batch, record: &Record) {
        self.rules.iter().for_each(|rules| rules.add_ports(batch, std::iter::once(record)));
        self.guard.iter().for_each(|guard| guard.add(batch, record));
    }

    fn remove(&self, batch: &mut Batch, record: &Record) {
        self.rules.iter().for_each(|rules| rules.remove_ports(batch, record));
        self.guard.iter().for_each(|guard| guard.remove(batch, record));
    }

    fn tables(&self) -> Vec<&Table> {
        let rules = self.rules.iter().map(|rules| &rules.table);
        rules.chain(self.guard.iter().map(|guard| &guard.table)).collect()
    }

    fn forget(
        &mut self,
        (family, protocol): (Family, u8),
        is_stale: impl Fn(&Flow) -> bool,
    ) -> Result<(), Error> {
        let flows = self.socket.flows(family, protocol);
        for flow in flows.map_err(failed("list tracked connections"))? {
            if is_stale(&flow) {
                let gone = self.socket.delete_flow(&flow);
                gone.map_err(failed("delete a tracked connection"))?;
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), Error> {
        let wanted: Vec<_> = self.tables().into_iter().cloned().collect();
        for table in wanted {
            let present = self.socket.tables(table.family()).map_err(failed("list nftables"))?;
            let (family, name) = (table.family().as_str(), table.name());
            if !present.iter().any(|found| found.name == name) {
                return Err(Error::NotReady(format!("nftables table {family} {name} is gone")));
            }
        }
        Ok(())
    }
}

/// Removes the tables of a name in all families, whoever made them. For a node without a running
/// network.
pub(crate) async fn erase_all(node: &NetNs, table: &str) -> Result<(), Error> {
    let families = [Family::Ip, Family::Ip6, Family::Bridge];
    let tables =
        families.map(|family| Table::new(family, table)).into_iter().collect::<Result<Vec<_>, _>>();
    let tables = tables.map_err(failed("name the nftables objects"))?;
    node.inside(move || {
        let mut socket = Socket::open().map_err(failed("open nftables"))?;
        erase(&mut socket, &tables)
    })
    .await?
}

fn erase(socket: &mut Socket, tables: &[Table]) -> Result<(), Error> {
    let mut batch = Batch::new();
    for table in tables {
        let present = match socket.tables(table.family()) {
            Err(error) if is_unsupported(&error) => continue,
            other => other.map_err(failed("list nftables"))?,
        };
        if present.iter().any(|found| found.name == table.name()) {
            batch.delete_table(table);
        }
    }
    if batch.is_empty() {
        return Ok(());
    }
    socket.commit(batch).map_err(failed("remove the nftables tables"))
}

fn is_unsupported(error: &berth_nft::Error) -> bool {
    matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT))
}

fn failed(action: &'static str) -> impl Fn(berth_nft::Error) -> Error {
    move |source| Error::Firewall { action, source: Box::new(source) }
}
