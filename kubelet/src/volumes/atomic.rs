//! Writing a volume's files so that a reader sees all of the old or all of the new.
//!
//! Upstream's layout, which tools rely on: files are in a directory of their own
//! (`..2026_01_02_15_04_05.123456789`), `..data` is a link to it that is replaced by rename, and each
//! top-level name is a link through `..data`. Everything goes by descriptors of directories; no link is
//! followed but `..data`, whose target is checked first.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::directory;
use super::payload::{Payload, PayloadFile};
use super::removal;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Whether a volume holds exactly these files.
pub(super) fn holds(volume: impl AsFd, payload: &Payload) -> io::Result<bool> {
    let Some(current) = current_directory(&volume)? else {
        return Ok(false);
    };
    let data = match directory::open_entry(&volume, &current) {
        Ok(data) => data,
        Err(_) => return Ok(false),
    };
    let mut present = BTreeSet::new();
    list_files(&data, "", &mut present)?;
    let wanted: BTreeSet<String> = payload.files().keys().cloned().collect();
    if present != wanted || top_links(&volume)? != top_names(payload) {
        return Ok(false);
    }
    for (path, file) in payload.files() {
        if !file_matches(&data, path, file, payload.gid()).unwrap_or(false) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The name of the directory that `..data` points to; none if there is no link or an odd one.
fn current_directory(volume: impl AsFd) -> io::Result<Option<String>> {
    let target = match rustix::fs::readlinkat(volume, DATA, Vec::new()) {
        Ok(target) => target,
        Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let name = target.to_string_lossy().into_owned();
    let plain = name.starts_with("..") && name.len() > 2 && !name.contains('/');
    Ok(plain.then_some(name))
}

fn entries(directory: impl AsFd) -> io::Result<Vec<(String, rustix::fs::FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push((name, entry.file_type()));
        }
    }
    Ok(names)
}

fn list_files(at: impl AsFd, prefix: &str, found: &mut BTreeSet<String>) -> io::Result<()> {
    for (name, kind) in entries(&at)? {
        let path = format!("{prefix}{name}");
        if kind == rustix::fs::FileType::Directory {
            let inner = directory::open_entry(&at, name.as_str())?;
            list_files(&inner, &format!("{path}/"), found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

fn top_names(payload: &Payload) -> BTreeSet<String> {
    let top = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    payload.files().keys().map(top).collect()
}

/// The names that users see; ours begin with two dots.
fn top_links(volume: impl AsFd) -> io::Result<BTreeSet<String>> {
    let names = entries(volume)?.into_iter().map(|(name, _)| name);
    Ok(names.filter(|name| !name.starts_with("..")).collect())
}

fn file_matches(
    data: &OwnedFd,
    path: &str,
    file: &PayloadFile,
    gid: Option<u32>,
) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(data, path, flags, Mode::empty(), directory::CONFINED)?;
    let status = rustix::fs::fstat(&opened)?;
    let same_owner = status.st_uid == file.uid.unwrap_or(0) && status.st_gid == gid.unwrap_or(0);
    let length = u64::try_from(file.content.len()).unwrap_or(u64::MAX);
    let same_length = u64::try_from(status.st_size).is_ok_and(|size| size == length);
    if !same_owner || !same_length || status.st_mode & 0o7777 != file.mode {
        return Ok(false);
    }
    let mut content = Vec::with_capacity(file.content.len());
    std::fs::File::from(opened).take(length + 1).read_to_end(&mut content)?;
    Ok(content == file.content)
}

/// Writes the files and switches over to them. A failure leaves the old files in place.
pub(super) fn write(volume: impl AsFd, payload: &Payload) -> io::Result<()> {
    set_directory_owner(&volume, payload.gid())?;
    let old = current_directory(&volume)?;
    let name = make_data_directory(&volume)?;
    let filled = fill(&volume, &name, payload).and_then(|()| switch(&volume, &name));
    if let Err(error) = filled {
        // The first failure is the one to tell.
        let _ = removal::remove_entry(&volume, name.as_str());
        return Err(error);
    }
    link_top_names(&volume, payload)?;
    remove_leftovers(&volume, &name, old.as_deref())
}

fn make_data_directory(volume: impl AsFd) -> io::Result<String> {
    let now = jiff::Timestamp::now();
    let date = now.strftime("..%Y_%m_%d_%H_%M_%S");
    let mut distinct = u64::from(now.subsec_nanosecond().unsigned_abs());
    loop {
        let name = format!("{date}.{distinct}");
        match rustix::fs::mkdirat(&volume, name.as_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST) => distinct += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

fn set_directory_owner(directory: impl AsFd, gid: Option<u32>) -> io::Result<()> {
    let group = Gid::from_raw(gid.unwrap_or(0));
    rustix::fs::fchown(&directory, Some(Uid::ROOT), Some(group))?;
    let mode = if gid.is_some() { 0o2755 } else { 0o755 };
    Ok(rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))?)
}

fn fill(volume: impl AsFd, name: &str, payload: &Payload) -> io::Result<()> {
    let data = directory::open_entry(&volume, name)?;
    set_directory_owner(&data, payload.gid())?;
    for (path, file) in payload.files() {
        let (parents, last) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = data.try_clone()?;
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            match rustix::fs::mkdirat(&at, parent, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = directory::open_entry(&at, parent)?;
            set_directory_owner(&at, payload.gid())?;
        }
        write_file(&at, last, file, payload.gid())?;
    }
    Ok(())
}

fn write_file(at: &OwnedFd, name: &str, file: &PayloadFile, gid: Option<u32>) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o600))?;
    let mut opened = std::fs::File::from(opened);
    opened.write_all(&file.content)?;
    let (uid, gid) = (file.uid.unwrap_or(0), gid.unwrap_or(0));
    rustix::fs::fchown(&opened, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(rustix::fs::fchmod(&opened, Mode::from_raw_mode(file.mode))?)
}

fn switch(volume: impl AsFd, name: &str) -> io::Result<()> {
    unlink_if_present(&volume, NEW_DATA)?;
    rustix::fs::symlinkat(name, &volume, NEW_DATA)?;
    Ok(rustix::fs::renameat(&volume, NEW_DATA, &volume, DATA)?)
}

fn unlink_if_present(volume: impl AsFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(volume, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn link_top_names(volume: impl AsFd, payload: &Payload) -> io::Result<()> {
    let wanted = top_names(payload);
    for name in &wanted {
        match rustix::fs::symlinkat(format!("{DATA}/{name}"), &volume, name.as_str()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for name in top_links(&volume)?.difference(&wanted) {
        unlink_if_present(&volume, name)?;
    }
    Ok(())
}

/// Removes the files before these, and those of writes that were cut short.
fn remove_leftovers(volume: impl AsFd, keep: &str, old: Option<&str>) -> io::Result<()> {
    for (name, _) in entries(&volume)? {
        let ours = name.starts_with("..") && name != DATA && name != keep;
        if ours || Some(name.as_str()) == old.filter(|old| *old != keep) {
            removal::remove_entry(&volume, name.as_str())?;
        }
    }
    Ok(())
}
