//! Files and directories beneath a directory, as Go's `http.FileServer` shows them: listings as links,
//! ranges, the time of the last change.
//!
//! Nothing is opened that is not a file or a directory, and no link is followed (openat2(2)): what lies
//! in a log directory may be a pod's.

use std::fs::File;
use std::io::{self, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{Refusal, plain};

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// The most entries of a listing.
const MAX_ENTRIES: usize = 1 << 16;

/// What is read of a file to tell text from other bytes.
const PROBED: usize = 512;

/// How a path is asked for.
pub(super) struct Asked<'a> {
    /// Whether only the head is.
    pub(super) head: bool,
    pub(super) headers: &'a HeaderMap,
}

/// What lies at a path.
enum Found {
    File { file: File, size: u64, changed: SystemTime, is_text: bool },
    Directory(Vec<String>),
}

/// A path out of its percent-escapes. `None` where it is no text, or has a NUL in it.
pub(super) fn decoded(path: &str) -> Option<String> {
    let mut plain = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(plain).ok().filter(|text| !text.contains('\0'))
}

/// What lies at `path`, which is beneath `directory` whatever it begins with.
pub(super) async fn serve(
    directory: &Path,
    path: &str,
    asked: &Asked<'_>,
) -> Result<Response, Refusal> {
    let (directory, below) = (directory.to_owned(), path.trim_start_matches('/').to_owned());
    let looking = tokio::task::spawn_blocking(move || look(&directory, &below));
    let found = looking.await.map_err(io::Error::other).flatten();
    match found {
        Ok(Found::Directory(names)) => Ok(listing(path, &names, asked)),
        Ok(found) => file(found, asked).await.map_err(|error| refusal(&error)),
        Err(error) => Err(refusal(&error)),
    }
}

/// A file to be copied as it is.
pub(super) async fn open(directory: &Path, path: &str) -> io::Result<tokio::fs::File> {
    let (directory, path) = (directory.to_owned(), path.to_owned());
    let looking = tokio::task::spawn_blocking(move || look(&directory, &path));
    match looking.await.map_err(io::Error::other).flatten()? {
        Found::File { file, .. } => Ok(tokio::fs::File::from_std(file)),
        Found::Directory(_) => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Links, pipes and what leads out are not there, as far as anybody is told.
fn refusal(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, "403 Forbidden\n".to_owned()),
        _ if is_nothing(error) => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
        _ => {
            tracing::warn!(%error, "log file not served");
            (StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n".to_owned())
        }
    }
}

/// Whether an error says that nothing is there that is served.
pub(super) fn is_nothing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let nothing = [Errno::LOOP, Errno::XDEV, Errno::NAMETOOLONG, Errno::NOTDIR, Errno::INVAL];
    error.kind() == io::ErrorKind::NotFound
        || nothing.iter().any(|one| error.raw_os_error() == Some(one.raw_os_error()))
}

/// Blocks.
fn look(directory: &Path, below: &str) -> io::Result<Found> {
    let root = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, directory, root, Mode::empty())?;
    let at = if below.is_empty() { "." } else { below };
    // What is neither file nor directory is not even opened: a device does things when it is.
    let place = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(&root, at, place, Mode::empty(), BENEATH)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
        FileType::Directory => Ok(Found::Directory(names(&found)?)),
        FileType::RegularFile => {
            let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
            let about = file.metadata()?;
            let is_text = is_text(&file)?;
            Ok(Found::File { is_text, size: about.len(), changed: about.modified()?, file })
        }
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn is_text(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut head = [0; PROBED];
    let count = file.read_at(&mut head, 0)?;
    let head = &head[..count];
    let whole = match std::str::from_utf8(head) {
        Ok(_) => true,
        // A character that the end cuts through.
        Err(error) => error.error_len().is_none(),
    };
    Ok(whole && !head.contains(&0))
}

/// The files and directories in a directory by name, the latter with a slash at their end.
fn names(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(directory, ".", flags, Mode::empty())?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            let about = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW);
            kind = about.map_or(kind, |about| FileType::from_raw_mode(about.st_mode));
        }
        match kind {
            FileType::Directory if !matches!(name, "." | "..") => names.push(format!("{name}/")),
            FileType::RegularFile => names.push(name.to_owned()),
            _ => {}
        }
        if names.len() > MAX_ENTRIES {
            return Err(io::Error::other("too many entries"));
        }
    }
    names.sort();
    Ok(names)
}

/// A directory as links. Where its path has no slash at the end, links begin with its own name, as a
/// client resolves them against the path.
fn listing(path: &str, names: &[String], asked: &Asked<'_>) -> Response {
    let last = path.rsplit('/').next().filter(|last| !last.is_empty());
    let base = match last {
        Some(last) => format!("{}/", escaped(last)),
        None if path.is_empty() => "logs/".to_owned(),
        None => String::new(),
    };
    let mut text = String::from("<!doctype html>\n<pre>\n");
    for name in names {
        let shown = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let shown = shown.replace('"', "&#34;").replace('\'', "&#39;");
        text.push_str(&format!("<a href=\"{base}{}\">{shown}</a>\n", escaped(name)));
    }
    text.push_str("</pre>\n");
    let length = HeaderValue::from(text.len());
    let mut response = plain(if asked.head { Body::empty() } else { Body::from(text) });
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

/// A relative path with everything escaped that could mean something in a link.
fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    name.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

async fn file(found: Found, asked: &Asked<'_>) -> io::Result<Response> {
    let Found::File { file, size, changed, is_text } = found else {
        return Err(io::ErrorKind::NotFound.into());
    };
    // With a condition that is not looked at, a range must not be honoured either.
    let range = asked.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = range.filter(|_| !asked.headers.contains_key(header::IF_RANGE));
    let (status, from, length) = match range.map_or(Range::All, |text| Range::parse(text, size)) {
        Range::All => (StatusCode::OK, 0, size),
        Range::Part { from, length } => (StatusCode::PARTIAL_CONTENT, from, length),
        Range::Outside => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0),
    };
    let mut file = tokio::fs::File::from_std(file);
    file.seek(SeekFrom::Start(from)).await?;
    // A log grows while it is read; what was announced is sent.
    let body = match asked.head || length == 0 {
        true => Body::empty(),
        false => Body::from_stream(ReaderStream::with_capacity(file.take(length), 64 << 10)),
    };
    let mut response = plain(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if !is_text {
        let kind = HeaderValue::from_static("application/octet-stream");
        headers.insert(header::CONTENT_TYPE, kind);
    }
    let place = match status {
        StatusCode::PARTIAL_CONTENT => format!("bytes {from}-{}/{size}", from + length - 1),
        StatusCode::RANGE_NOT_SATISFIABLE => format!("bytes */{size}"),
        _ => String::new(),
    };
    for (name, text) in
        [(header::CONTENT_RANGE, place), (header::LAST_MODIFIED, http_date(changed))]
    {
        if let Some(value) = HeaderValue::from_str(&text).ok().filter(|_| !text.is_empty()) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// A time as HTTP writes it (RFC 9110).
fn http_date(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = i64::try_from(since.as_secs()).unwrap_or(0);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// What part of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Range {
    All,
    Part {
        from: u64,
        length: u64,
    },
    /// Beyond its end.
    Outside,
}

impl Range {
    /// Reads a `Range` header (RFC 9110). More than one range, and what is no range, is the whole file.
    pub(super) fn parse(text: &str, size: u64) -> Self {
        let Some((first, last)) =
            text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
        else {
            return Self::All;
        };
        let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<u64>().ok(),
            false => None,
        };
        let (from, end) = match (number(first), number(last)) {
            (Some(from), None) if last.is_empty() => (from, size),
            (Some(from), Some(last)) if from <= last => (from, size.min(last.saturating_add(1))),
            (None, Some(count)) if first.is_empty() => match count {
                0 => return Self::Outside,
                count => (size.saturating_sub(count), size),
            },
            _ => return Self::All,
        };
        match end.checked_sub(from).filter(|length| *length > 0) {
            Some(length) => Self::Part { from, length },
            None => Self::Outside,
        }
    }
}
