//! The shim's end of its log writer: accounts, and what happens when the writer is slower than the
//! containers.
//!
//! The writer is a process that is started with the first record and holds the only descriptors of log
//! files. Records go to it over a socket that keeps about [`BUFFER_BYTES`]. Policy when that is full:
//!
//! ```text
//! Flowing ─full─► Holding ─room within [`PATIENCE_MS`]─► Flowing
//!    ▲               └─none─► Shedding: whole records are dropped and counted
//!    └──────────────── room ──────┘
//! ```
//! While holding, the containers' outputs are not read: a disk that stalls stops them for at most that
//! long, and not again before it has taken something. What is lost, by shedding, by a disk that is full or by the writer's end, is counted for
//! each log.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::message::{MAX_BATCH, Message, REPORT_BYTES, Report};
use super::writer;
use crate::sys::{self, CloneFlags, Cloned};

/// What the socket keeps between shim and writer.
pub(crate) const BUFFER_BYTES: usize = 512 << 10;
/// How long a full buffer may hold containers back.
pub(crate) const PATIENCE_MS: u64 = 1_000;

/// Names a log towards the writer.
pub(crate) type Key = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Flowing,
    Holding { since_ms: u64 },
    Shedding,
}

/// What is known of a log.
#[derive(Debug)]
struct Account {
    path: PathBuf,
    max_bytes: u64,
    max_files: u32,
    is_open: bool,
    sent: u64,
    taken: u64,
    lost: u64,
    /// Told by the present writer; earlier ones' are in `lost`.
    lost_to_disk: u64,
    syncs_asked: u64,
    syncs_answered: u64,
}

#[derive(Debug)]
struct Packet {
    key: Key,
    /// Records in it; 0 for anything else, which is never dropped.
    count: u64,
    bytes: Vec<u8>,
}

/// The PID namespaces between which the writer is born: the host's, and the one to return to.
#[derive(Debug)]
pub(crate) struct Birthplace {
    pub(crate) host: OwnedFd,
    pub(crate) own: OwnedFd,
}

/// The link to the writer.
#[derive(Debug)]
pub(crate) struct Link {
    birthplace: Option<Birthplace>,
    socket: Option<OwnedFd>,
    writer: Option<(i32, OwnedFd)>,
    accounts: BTreeMap<Key, Account>,
    backlog: VecDeque<Packet>,
    flow: Flow,
    next_key: Key,
}

impl Link {
    /// A link whose writer is not started yet.
    pub(crate) fn new(birthplace: Option<Birthplace>) -> Self {
        Self {
            birthplace,
            socket: None,
            writer: None,
            accounts: BTreeMap::new(),
            backlog: VecDeque::new(),
            flow: Flow::Flowing,
            next_key: 0,
        }
    }

    /// Announces a log.
    pub(crate) fn register(&mut self, path: &Path, max_bytes: u64, max_files: u32) -> Key {
        self.next_key += 1;
        let account = Account {
            path: path.to_owned(),
            max_bytes,
            max_files,
            is_open: false,
            sent: 0,
            taken: 0,
            lost: 0,
            lost_to_disk: 0,
            syncs_asked: 0,
            syncs_answered: 0,
        };
        self.accounts.insert(self.next_key, account);
        self.next_key
    }

    /// The writer's socket and what it is polled for.
    pub(crate) fn polled(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.socket.as_ref().map(|socket| (socket.as_fd(), !self.backlog.is_empty()))
    }

    /// Whether outputs are not to be read for now.
    pub(crate) fn is_holding(&self) -> bool {
        matches!(self.flow, Flow::Holding { .. })
    }

    /// When the wait is over.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        match self.flow {
            Flow::Holding { since_ms } => Some(since_ms + PATIENCE_MS),
            _ => None,
        }
    }

    /// Records that a log has lost so far.
    pub(crate) fn lost(&self, key: Key) -> u64 {
        self.accounts.get(&key).map_or(0, |account| account.lost + account.lost_to_disk)
    }

    /// Begins a batch of records of a log.
    pub(crate) fn batch(&mut self, key: Key, now_ms: u64) -> Batch<'_> {
        Batch { link: self, key, now_ms, bytes: Vec::new(), count: 0 }
    }

    /// Asks to be told when everything so far is written; [`Link::is_synced`] says so.
    pub(crate) fn sync(&mut self, key: Key, now_ms: u64) {
        let Some(account) = self.accounts.get_mut(&key) else { return };
        if account.is_open {
            account.syncs_asked += 1;
            let bytes = Message::Sync { key }.encode();
            self.submit(Packet { key, count: 0, bytes }, now_ms);
        }
    }

    /// Whether everything before the last [`Link::sync`] is written or given up.
    pub(crate) fn is_synced(&self, key: Key) -> bool {
        self.accounts.get(&key).is_none_or(|account| account.syncs_answered >= account.syncs_asked)
    }

    /// Opens a log's path anew, and asks as [`Link::sync`] does.
    pub(crate) fn reopen(&mut self, key: Key, now_ms: u64) {
        self.open(key, now_ms);
        self.submit(Packet { key, count: 0, bytes: Message::Reopen { key }.encode() }, now_ms);
        self.sync(key, now_ms);
    }

    /// Changes a log's limits from the next record on.
    pub(crate) fn limit(&mut self, key: Key, max_bytes: u64, max_files: u32, now_ms: u64) {
        let Some(account) = self.accounts.get_mut(&key) else { return };
        (account.max_bytes, account.max_files) = (max_bytes, max_files);
        if std::mem::replace(&mut account.is_open, false) {
            self.open(key, now_ms);
        }
    }

    /// Nothing more comes for a log.
    pub(crate) fn close(&mut self, key: Key, now_ms: u64) {
        if self.accounts.remove(&key).is_some_and(|account| account.is_open) {
            let bytes = Message::Close { key }.encode();
            self.submit(Packet { key, count: 0, bytes }, now_ms);
        }
    }

    fn open(&mut self, key: Key, now_ms: u64) {
        let Some(account) = self.accounts.get_mut(&key) else { return };
        if !std::mem::replace(&mut account.is_open, true) {
            let Account { max_bytes, max_files, path, .. } = account;
            let (max_bytes, max_files) = (*max_bytes, *max_files);
            let bytes = Message::Open { key, max_bytes, max_files, path }.encode();
            self.submit(Packet { key, count: 0, bytes }, now_ms);
        }
    }

    fn send_records(&mut self, key: Key, records: &[u8], count: u64, now_ms: u64) {
        self.open(key, now_ms);
        let bytes = Message::Records { key, count, bytes: records }.encode();
        self.submit(Packet { key, count, bytes }, now_ms);
    }

    fn submit(&mut self, packet: Packet, now_ms: u64) {
        if self.backlog.is_empty() && self.give(&packet) {
            self.flow = Flow::Flowing;
            return;
        }
        match self.flow {
            Flow::Shedding if packet.count > 0 => self.shed(&packet),
            Flow::Flowing => {
                self.flow = Flow::Holding { since_ms: now_ms };
                self.backlog.push_back(packet);
            }
            Flow::Holding { .. } | Flow::Shedding => self.backlog.push_back(packet),
        }
    }

    fn shed(&mut self, packet: &Packet) {
        if let Some(account) = self.accounts.get_mut(&packet.key) {
            account.lost += packet.count;
        }
    }

    /// Sends a packet now, if the writer has room for it.
    fn give(&mut self, packet: &Packet) -> bool {
        if self.socket.is_none() {
            self.start();
        }
        let Some(socket) = &self.socket else { return false };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::send(socket, &packet.bytes, flags).is_ok();
        if sent && let Some(account) = self.accounts.get_mut(&packet.key) {
            account.sent += packet.count;
        }
        sent
    }

    /// Goes on with what waits, or gives up on it when its time is over; takes the writer's reports.
    pub(crate) fn advance(&mut self, now_ms: u64) {
        self.hear();
        while let Some(packet) = self.backlog.pop_front() {
            if !self.give(&packet) {
                self.backlog.push_front(packet);
                break;
            }
        }
        match self.flow {
            Flow::Holding { .. } if self.backlog.is_empty() => self.flow = Flow::Flowing,
            Flow::Holding { since_ms } if now_ms.saturating_sub(since_ms) >= PATIENCE_MS => {
                self.flow = Flow::Shedding;
                for packet in std::mem::take(&mut self.backlog) {
                    match packet.count {
                        0 => self.backlog.push_back(packet),
                        _ => self.shed(&packet),
                    }
                }
            }
            _ => {}
        }
    }

    fn hear(&mut self) {
        let Some(socket) = &self.socket else { return };
        let mut packet = [0; REPORT_BYTES];
        while let Ok((count, _)) = rustix::net::recv(socket, &mut packet[..], RecvFlags::DONTWAIT) {
            let Some(report) = packet.get(..count).and_then(Report::decode) else { return };
            if let Some(account) = self.accounts.get_mut(&report.key) {
                account.taken = report.taken;
                account.lost_to_disk = report.lost;
                account.syncs_answered = report.syncs;
            }
        }
    }

    /// Starts the writer. A host that has no process to spare is asked again with the next packet.
    fn start(&mut self) {
        if self.writer.is_some() {
            return; // It has ended and is about to be reaped.
        }
        let kind = SocketType::SEQPACKET;
        let flags = SocketFlags::CLOEXEC;
        let Ok((ours, theirs)) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)
        else {
            return;
        };
        // Without the privilege for more, the system's default is what it keeps.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&ours, BUFFER_BYTES);
        let pid_namespace = Some(LinkNameSpaceType::ProcessID);
        if let Some(birthplace) = &self.birthplace
            && move_into_link_name_space(birthplace.host.as_fd(), pid_namespace).is_err()
        {
            return;
        }
        let cloned = sys::clone3(&CloneFlags { namespaces: 0, cgroup: None });
        if let Ok(Cloned::Child) = cloned {
            writer::run(theirs);
        }
        if let Some(birthplace) = &self.birthplace {
            // The way back was taken before: a namespace that is held open can be entered.
            let _ = move_into_link_name_space(birthplace.own.as_fd(), pid_namespace);
        }
        if let Ok(Cloned::Parent { pid, pidfd }) = cloned {
            self.writer = Some((pid, pidfd));
            self.socket = Some(ours);
        }
    }

    /// Takes note that a child has ended. Whether it was the writer: what it had not confirmed is
    /// counted as lost, and another one is started with the next record.
    pub(crate) fn reaped(&mut self, pid: i32) -> bool {
        if self.writer.as_ref().is_none_or(|(writer, _)| *writer != pid) {
            return false;
        }
        self.hear();
        (self.writer, self.socket) = (None, None);
        for account in self.accounts.values_mut() {
            account.lost += account.lost_to_disk + account.sent.saturating_sub(account.taken);
            (account.lost_to_disk, account.sent, account.taken) = (0, 0, 0);
            (account.syncs_asked, account.syncs_answered) = (0, 0);
            account.is_open = false;
        }
        // What waits would reach the next writer without its log being opened.
        for packet in std::mem::take(&mut self.backlog) {
            self.shed(&packet);
        }
        self.flow = Flow::Flowing;
        true
    }

    /// Lets the writer end and waits for that at most a moment: the shim is about to exit.
    pub(crate) fn finish(mut self) {
        self.socket = None;
        if let Some((_, pidfd)) = &self.writer {
            let limit = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            let flags = rustix::event::PollFlags::IN;
            // A writer that is blocked by its disk ends when that lets it.
            let _ =
                rustix::event::poll(&mut [rustix::event::PollFd::new(pidfd, flags)], Some(&limit));
        }
    }
}

/// Records on their way to the writer; sent when it is dropped at the latest.
pub(crate) struct Batch<'a> {
    link: &'a mut Link,
    key: Key,
    now_ms: u64,
    bytes: Vec<u8>,
    count: u64,
}

impl Batch<'_> {
    /// Adds one whole record.
    pub(crate) fn add(&mut self, record: &[u8]) {
        self.bytes.extend_from_slice(record);
        self.count += 1;
        if self.bytes.len() >= MAX_BATCH {
            self.send();
        }
    }

    fn send(&mut self) {
        if self.count > 0 {
            self.link.send_records(self.key, &self.bytes, self.count, self.now_ms);
            self.bytes.clear();
            self.count = 0;
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.send();
    }
}
