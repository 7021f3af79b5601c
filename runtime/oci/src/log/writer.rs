//! The log writer: the process of a shim that touches the disk for it.
//!
//! It takes records from a socket and writes, rotates and prunes files; a process of its own compresses
//! old ones, one at a time. It may block on a slow disk for as long as that takes: the shim does not
//! wait for it ([`super::link`]). When the shim is gone it writes what it has been given, and ends.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{WaitId, WaitIdOptions};

use super::compress;
use super::file::LogFile;
use super::message::{self, MAX_PACKET, Message, Report};
use super::rotation;
use crate::sys;

/// Tell what was taken at least every so many packets.
const REPORT_EVERY: u32 = 64;

/// A log and its account.
#[derive(Debug)]
struct Entry {
    log: LogFile,
    taken: u64,
    syncs: u64,
    told_lost: u64,
    untold_packets: u32,
}

struct Writer {
    socket: OwnedFd,
    entries: BTreeMap<u64, Entry>,
    compressing: Option<(OwnedFd, PathBuf)>,
    /// Logs that have rotated and may have files to compress.
    rotated: Vec<(PathBuf, u64)>,
}

/// Runs the writer in a process that was cloned for it.
pub(super) fn run(socket: OwnedFd) -> ! {
    // Only a name: failing does no harm.
    let _ = rustix::thread::set_name(c"berth-log");
    // What else the shim holds must not live as long as this process.
    if sys::close_all_from(3, &[socket.as_fd()]).is_err() {
        sys::exit_now(1);
    }
    let mut writer =
        Writer { socket, entries: BTreeMap::new(), compressing: None, rotated: Vec::new() };
    let mut packet = vec![0; MAX_PACKET];
    while writer.turn(&mut packet) {}
    sys::exit_now(0)
}

impl Writer {
    /// Waits for something and does it. `false` at the end.
    fn turn(&mut self, packet: &mut [u8]) -> bool {
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
        fds.extend(self.compressing.iter().map(|(pidfd, _)| PollFd::new(pidfd, PollFlags::IN)));
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return false,
        }
        let ended = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if ended && let Some((pidfd, log)) = self.compressing.take() {
            // It is our child and has ended: the call only takes its status.
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            if let Some(entry) = self.entries.values().find(|entry| entry.log.path() == log) {
                // Pruned while it was compressed, it must not stay.
                entry.log.prune();
            }
        }
        let goes_on = self.receive(packet);
        self.compress_next();
        goes_on
    }

    fn receive(&mut self, packet: &mut [u8]) -> bool {
        for _ in 0..REPORT_EVERY {
            match rustix::net::recv(&self.socket, &mut *packet, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((count, _)) => {
                    if let Some(message) = packet.get(..count).and_then(message::decode) {
                        self.take(message);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn take(&mut self, message: Message<'_>) {
        match message {
            Message::Open { key, max_bytes, max_files, path } => {
                let entry = self.entries.entry(key).or_insert_with(|| Entry {
                    log: LogFile::new(path, max_bytes, max_files),
                    taken: 0,
                    syncs: 0,
                    told_lost: 0,
                    untold_packets: 0,
                });
                entry.log.limit(max_bytes, max_files);
            }
            Message::Records { key, count, bytes } => {
                let Some(entry) = self.entries.get_mut(&key) else { return };
                entry.log.write(bytes);
                entry.taken += count;
                entry.untold_packets += 1;
                if entry.log.take_rotated() {
                    let log = entry.log.path().to_owned();
                    if !self.rotated.iter().any(|(known, _)| *known == log) {
                        self.rotated.push((log, key));
                    }
                }
                if entry.untold_packets >= REPORT_EVERY || entry.log.lost() > entry.told_lost {
                    self.report(key);
                }
            }
            Message::Reopen { key } => {
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.log.reopen();
                }
            }
            Message::Sync { key } => {
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.syncs += 1;
                    self.report(key);
                }
            }
            Message::Close { key } => drop(self.entries.remove(&key)),
        }
    }

    fn report(&mut self, key: u64) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.told_lost = entry.log.lost();
        entry.untold_packets = 0;
        let report = Report { key, taken: entry.taken, lost: entry.told_lost, syncs: entry.syncs };
        // The shim always reads; should it be gone, the next receive says so.
        let _ = rustix::net::send(&self.socket, &report.encode(), SendFlags::NOSIGNAL);
    }

    fn compress_next(&mut self) {
        while self.compressing.is_none()
            && let Some((log, key)) = self.rotated.first().cloned()
        {
            match rotation::next_to_compress(&log) {
                Some(rotated) => match compress::start(&rotated) {
                    Ok(pidfd) => self.compressing = Some((pidfd, log)),
                    // A host without processes to spare: with the next rotation.
                    Err(_) => drop(self.rotated.remove(0)),
                },
                None => {
                    self.rotated.retain(|(_, other)| *other != key);
                }
            }
        }
    }
}
