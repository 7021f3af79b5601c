//! The pod network of one node: the order of things, and what is undone when one of them fails.
//!
//! ```text
//! attach   lease ──► guard and host ports ┬─► addresses and routes in the pod ──► done
//!            │        veth pair, one message ┘
//!            └─► its files to disk, meanwhile
//! detach   guard and host ports off ──► lease free ──► done       links, connections: reaper
//! ```
//! An attachment's operations never overlap; different attachments' run side by side. Operations
//! run to their end even when the caller stops waiting.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::Handle;
use tokio::sync::OwnedMutexGuard;

use crate::attachment::{Attach, AttachmentId};
use crate::config::{Config, Layout};
use crate::firewall::{Desired, Firewall, Source};
use crate::ipam::{Lease, Origin, Record, Store, Unsynced};
use crate::link::bridge::{self, Bridge};
use crate::link::pod::Pod;
use crate::link::reaper::Reaper;
use crate::link::{self, veth};
use crate::loopback::Loopback;
use crate::netns::NetNs;
use crate::route::{self, Peer, Routes};
use crate::{Error, hostport, sysctl};

/// How long lease files wait for others on their way to the disk.
const SYNC_PAUSE: Duration = Duration::from_millis(200);

/// The pod network of one node. Dropping it changes nothing in the kernel.
#[derive(Debug)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    node: NetNs,
    handle: Handle,
    bridge: Bridge,
    store: Arc<Store>,
    firewall: Firewall,
    reaper: Reaper,
    syncing: Arc<AtomicBool>,
    locks: Mutex<HashMap<AttachmentId, Arc<tokio::sync::Mutex<()>>>>,
    routes: tokio::sync::Mutex<Routes>,
    loopback: Loopback,
    /// Where pods keep their address: the configured ranges and the peers'.
    cluster: Arc<Mutex<Vec<IpNet>>>,
}

impl Network {
    /// Makes or adopts bridge, gateway addresses, kernel settings and rules, and reads the
    /// leases. Repeating it is harmless; running pods do not notice. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// When the configuration cannot work, clashes with what is on the node, another process uses
    /// the state directory, or the kernel refuses something.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let layout = Layout::resolve(&config)?;
        let node = node_of(&config)?;
        let store = open_store(&layout).await?;
        let handle = link::connect(&node, || Ok(())).await?;
        bridge::check_foreign(&handle, &layout).await?;
        let bridge = bridge::ensure(&handle, &layout).await?;
        apply_settings(&node, &layout).await?;
        let routes = known_routes(&handle, &layout).await?;
        bridge::address(&handle, &layout, &bridge).await?;
        link::reaper::delete_group(&handle, bridge.doomed()).await?;
        adopt(&handle, &bridge, &store).await?;
        let cluster = Arc::new(Mutex::new(cluster(&layout, &routes)));
        let firewall = Firewall::open(&node, &layout, desired(&store, &cluster)).await?;
        firewall.rebuild().await?;
        let reaper = Reaper::start(handle.clone(), bridge.clone(), firewall.clone());
        tracing::info!(bridge = bridge.name, mtu = bridge.mtu, "pod network is up");
        let loopback = listen(&node, &store).await;
        let inner = Inner {
            layout,
            node,
            handle,
            bridge,
            store,
            firewall,
            reaper,
            syncing: Arc::default(),
            locks: Mutex::default(),
            routes: tokio::sync::Mutex::new(routes),
            loopback,
            cluster,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Gives the pod its interface, addresses and host ports; returns the addresses, primary
    /// family first. Attaching twice returns the same addresses and mends what is missing.
    ///
    /// # Errors
    /// When no address is left, a host port is taken, or the namespace cannot be wired. Nothing
    /// of a new attachment is left then.
    pub async fn attach(&self, request: Attach) -> Result<Vec<IpAddr>, Error> {
        let inner = self.inner.clone();
        run(async move { inner.attach(request).await }).await
    }

    /// Takes addresses and host ports back and cuts the pod off. Its links are deleted shortly
    /// after. Succeeds when there is nothing to take.
    ///
    /// # Errors
    /// When the kernel or the disk refuses; the attachment is then kept, and may be detached
    /// again.
    pub async fn detach(&self, id: &AttachmentId) -> Result<(), Error> {
        let (inner, id) = (self.inner.clone(), id.clone());
        run(async move { inner.detach(&id).await }).await
    }

    /// Frees everything that is not held by one of `live`, and waits until it is gone. Attach
    /// nothing while the list is being made and this runs.
    ///
    /// # Errors
    /// All failures; everything is tried.
    pub async fn collect(&self, live: &[AttachmentId]) -> Result<(), Error> {
        let (inner, live) = (self.inner.clone(), live.iter().cloned().collect());
        run(async move { inner.collect(&live).await }).await
    }

    /// Makes the routes to other nodes' pods exactly these.
    ///
    /// # Errors
    /// Names each claim that was refused and each route the kernel refused; the others are made.
    pub async fn set_peers(&self, peers: Vec<Peer>) -> Result<(), Error> {
        let inner = self.inner.clone();
        run(async move { inner.set_peers(&peers).await }).await
    }

    /// Whether pods can be attached and reached.
    ///
    /// # Errors
    /// Names the first thing that is missing or was changed.
    pub async fn status(&self) -> Result<(), Error> {
        let inner = &self.inner;
        bridge::check(&inner.handle, &inner.layout, &inner.bridge).await?;
        inner.firewall.check().await?;
        let settings = sysctl::forwarding(inner.layout.uses_v4(), inner.layout.uses_v6());
        let changed = inner.node.inside(move || settings.into_iter().find(|s| !s.holds())).await?;
        match changed {
            None => Ok(()),
            Some(s) => Err(Error::NotReady(format!("{} is not {}", s.name, s.value))),
        }
    }

    /// Waits until the links and connections of detached pods are gone.
    ///
    /// # Errors
    /// When the kernel refuses to delete something.
    pub async fn flush(&self) -> Result<(), Error> {
        self.inner.reaper.flush().await
    }

    /// Removes all of it: pods' links, bridge, rules, routes and leases. Kernel settings stay.
    ///
    /// # Errors
    /// All failures; everything is tried.
    pub async fn teardown(self) -> Result<(), Error> {
        let inner = self.inner;
        let mut errors = Vec::new();
        errors.extend(inner.reaper.flush().await.err());
        errors.extend(inner.firewall.erase().await.err());
        errors.extend(erase_links(&inner.handle, &inner.bridge.name).await.err());
        errors.extend(inner.store.erase().map_err(Error::from).err());
        Error::collect(errors)
    }

    /// What [`Network::teardown`] does, on a node where no network is open. Only names and paths
    /// of `config` are used.
    ///
    /// # Errors
    /// All failures; everything is tried. A state directory in use stops it first.
    pub async fn remove_all(config: Config) -> Result<(), Error> {
        let node = node_of(&config)?;
        let store = if config.state_dir.exists() {
            Some(Store::open(&config.state_dir, Vec::new())?)
        } else {
            None
        };
        let mut errors = Vec::new();
        errors.extend(crate::firewall::erase_all(&node, &config.table).await.err());
        let handle = link::connect(&node, || Ok(())).await?;
        errors.extend(erase_links(&handle, &config.bridge).await.err());
        errors.extend(store.and_then(|store| store.erase().err()).map(Error::from));
        Error::collect(errors)
    }
}

impl Inner {
    async fn attach(&self, request: Attach) -> Result<Vec<IpAddr>, Error> {
        hostport::check(&request.host_ports, &self.layout)?;
        let _lock = self.lock(&request.id).await;
        let pod = NetNs::open(&request.netns)?;
        if pod.is(&self.node)? {
            let path = request.netns.display();
            return Err(Error::Request(format!("{path} is the node's own network namespace")));
        }
        let lease = self.lease(request).await?;
        let fresh = lease.origin == Origin::Fresh;
        let record = lease.record.clone();
        match self.wire(&lease, &pod).await {
            Ok(()) => Ok(record.addresses),
            Err(error) if fresh => {
                if let Err(left) = self.free(&record).await {
                    tracing::error!(
                        attachment = %record.attachment,
                        error = &left as &dyn std::error::Error,
                        "a failed attachment could not be undone"
                    );
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn lease(&self, request: Attach) -> Result<Lease, Error> {
        let store = self.store.clone();
        let lease = blocking(move || Ok(store.acquire(&request.id, &request.host_ports)?)).await?;
        if lease.origin == Origin::Fresh {
            self.sync_soon();
        }
        Ok(lease)
    }

    /// Has the lease files flushed, those of many pods at once. Nobody waits for it: a power cut
    /// that could lose the files ends the pods as well, and an agent's crash loses none.
    fn sync_soon(&self) {
        if self.syncing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (store, syncing) = (Arc::downgrade(&self.store), self.syncing.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SYNC_PAUSE).await;
            syncing.store(false, Ordering::Release);
            // Without holding the store, whose directory may be opened anew meanwhile.
            let files = store.upgrade().map(|store| store.unsynced()).unwrap_or_default();
            if let Err(error) = blocking(move || Ok(Unsynced::sync(files)?)).await {
                tracing::error!(error = &error as &dyn std::error::Error, "leases not on disk");
            }
        });
    }

    async fn wire(&self, lease: &Lease, ns: &NetNs) -> Result<(), Error> {
        let name = veth::name(&self.bridge.name, &lease.record.attachment);
        // Of a pod that was just detached, link and connections must go first.
        if self.reaper.holds(&name, &lease.record.addresses)
            && let Err(error) = self.reaper.flush().await
        {
            // Told to whoever waits first; what is in this pod's way shows below.
            tracing::warn!(error = &error as &dyn std::error::Error, "links not deleted");
        }
        let record = &lease.record;
        let pair = async {
            let pod = Pod::open(ns, &self.layout).await?;
            let inner = pod.interface().await?;
            veth::ensure(&self.handle, &self.bridge, record, ns, inner.as_ref()).await?;
            Ok::<_, Error>(pod)
        };
        // Both to their end, so that nothing is made after a failure was undone.
        let (guarded, pod) = tokio::join!(self.firewall.add(record), pair);
        guarded?;
        let pod = pod?;
        pod.configure(&self.layout, &record.addresses).await?;
        self.loopback.open(record).await?;
        self.firewall.forget_earlier_clients(record).await?;
        veth::settled(&self.handle, &self.bridge, &name).await
    }

    async fn detach(&self, id: &AttachmentId) -> Result<(), Error> {
        let _lock = self.lock(id).await;
        match self.store.get(id) {
            Some(record) => self.free(&record).await,
            // The lease is gone; a link may have been left by a crash.
            None => self.reaper.delete(veth::name(&self.bridge.name, id), &[]),
        }
    }

    /// Cuts off, frees, and leaves the rest to the reaper. Every step can be repeated.
    async fn free(&self, record: &Record) -> Result<(), Error> {
        self.loopback.close(&record.attachment);
        self.firewall.remove(record).await?;
        veth::forget(&self.handle, &self.bridge, record).await?;
        let name = veth::name(&self.bridge.name, &record.attachment);
        self.reaper.delete(name, &record.addresses)?;
        let (store, id) = (self.store.clone(), record.attachment.clone());
        blocking(move || Ok(store.release(&id)?)).await
    }

    async fn collect(&self, live: &HashSet<AttachmentId>) -> Result<(), Error> {
        let mut errors = Vec::new();
        for record in self.store.records() {
            if !live.contains(&record.attachment) {
                errors.extend(self.detach(&record.attachment).await.err());
            }
        }
        let bridge = &self.bridge.name;
        let kept: HashSet<String> =
            self.store.records().iter().map(|r| veth::name(bridge, &r.attachment)).collect();
        for link in link::list(&self.handle).await? {
            if self.bridge.owns(&link) && !kept.contains(&link.name) {
                errors.extend(self.reaper.delete(link.name, &[]).err());
            }
        }
        errors.extend(self.reaper.flush().await.err());
        Error::collect(errors)
    }

    async fn set_peers(&self, peers: &[Peer]) -> Result<(), Error> {
        let mut known = self.routes.lock().await;
        let mut own: Vec<IpNet> = self.layout.families.iter().map(|f| f.subnet).collect();
        own.extend(bridge::own_addresses(&self.handle).await?);
        let (routes, mut errors) = route::accept(peers, &own);
        let wider = cluster(&self.layout, &routes);
        if *known != routes {
            *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = wider.clone();
            // Rules first: a route without its rule would masquerade.
            self.firewall.set_cluster(wider).await?;
        }
        let present = route::present(&self.handle).await?;
        let failures = route::apply(&self.handle, &route::plan(&routes, &present)).await;
        errors.extend(failures);
        *known = routes;
        Error::collect(errors)
    }

    /// Waits for this attachment's other operations.
    async fn lock(&self, id: &AttachmentId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(id.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

/// Runs to the end even if the caller's future is dropped.
async fn run<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    tokio::spawn(work).await.map_err(|_| Error::Stopped)?
}

async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopped)?
}

fn node_of(config: &Config) -> Result<NetNs, Error> {
    match &config.netns {
        Some(path) => NetNs::open(path),
        None => NetNs::current(),
    }
}

async fn open_store(layout: &Layout) -> Result<Arc<Store>, Error> {
    let dir = layout.state_dir.clone();
    let ranges = layout.families.iter().map(|family| family.range).collect();
    blocking(move || Ok(Arc::new(Store::open(&dir, ranges)?))).await
}

/// Takes the ports on loopback again that attached pods have.
async fn listen(node: &NetNs, store: &Store) -> Loopback {
    let loopback = Loopback::new(node.clone());
    for record in store.records() {
        if let Err(error) = loopback.open(&record).await {
            let attachment = &record.attachment;
            tracing::error!(%attachment, error = &error as &dyn std::error::Error, "port not open");
        }
    }
    loopback
}

async fn apply_settings(node: &NetNs, layout: &Layout) -> Result<(), Error> {
    let settings = sysctl::node(&layout.bridge, layout.uses_v4(), layout.uses_v6());
    let (bridge, v6) = (layout.bridge.clone(), layout.has_v6());
    node.inside(move || {
        if v6 {
            sysctl::keep_router_advertisements(&bridge)?;
        }
        settings.iter().try_for_each(sysctl::Setting::apply)
    })
    .await?
}

/// Restores leases that were lost on disk from the links that are there, and puts back on the
/// bridge what was taken off, or hung on an earlier one.
async fn adopt(handle: &Handle, bridge: &Bridge, store: &Arc<Store>) -> Result<(), Error> {
    for link in link::list(handle).await? {
        let alias = link.alias.as_deref().filter(|_| bridge.owns(&link));
        let Some(record) = alias.and_then(veth::parse_alias) else {
            continue;
        };
        let id = record.attachment.clone();
        if store.get(&id).is_none() {
            let (store, id) = (store.clone(), id.clone());
            if blocking(move || Ok(store.adopt(record)?)).await? {
                tracing::warn!(attachment = %id, link = link.name, "lost lease restored");
            }
        }
        let Some(record) = store.get(&id).filter(|_| link.bridge != Some(bridge.index)) else {
            continue;
        };
        veth::finish(handle, bridge, &link, &record).await?;
        tracing::warn!(attachment = %id, link = link.name, "link put back on the bridge");
    }
    Ok(())
}

/// The routes that an earlier start left, so that their pods are not masqueraded until the peers
/// are known again. One to what is this node's range now goes: it would win over the bridge.
async fn known_routes(handle: &Handle, layout: &Layout) -> Result<Routes, Error> {
    let present = route::present(handle).await?;
    let own: Vec<IpNet> = layout.families.iter().map(|family| family.subnet).collect();
    let known = route::apart_from(&present, &own);
    Error::collect(route::apply(handle, &route::plan(&known, &present)).await)?;
    Ok(known)
}

/// What the rules should hold. Does not keep the store open.
fn desired(store: &Arc<Store>, cluster: &Arc<Mutex<Vec<IpNet>>>) -> Source {
    let (store, cluster) = (Arc::downgrade(store), cluster.clone());
    Box::new(move || Desired {
        records: store.upgrade().map(|store| store.records()).unwrap_or_default(),
        cluster: cluster.lock().unwrap_or_else(PoisonError::into_inner).clone(),
    })
}

fn cluster(layout: &Layout, routes: &Routes) -> Vec<IpNet> {
    layout.cluster.iter().chain(routes.keys()).copied().collect()
}

async fn erase_links(handle: &Handle, bridge: &str) -> Result<(), Error> {
    let mut errors = Vec::new();
    for group in [bridge::group(bridge), bridge::doomed(bridge)] {
        errors.extend(link::reaper::delete_group(handle, group).await.err());
    }
    match link::find(handle, bridge).await {
        Ok(Some(link)) if link.is_bridge => {
            errors.extend(veth::delete(handle, link.index).await.err());
        }
        Ok(_) => {}
        Err(error) => errors.push(error),
    }
    let present = route::present(handle).await?;
    errors.extend(route::apply(handle, &route::plan(&Routes::new(), &present)).await);
    Error::collect(errors)
}
