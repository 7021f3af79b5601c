//! `berth-oci unpack`: one image layer from standard input into a directory.
//!
//! The bytes are an attacker's. The process confines itself before it reads the first one
//! ([`confinement`]), counts everything against budgets ([`budget`]), and writes only through
//! descriptors below its root ([`tree`], [`apply`]). Whiteouts become those of overlayfs. Prints
//! `{"diff_id":…,"bytes":…,"entries":…}`; on failure one line and exit code 1, and the caller deletes
//! the directory. OCI image spec, `layer.md`.

mod apply;
mod budget;
mod confinement;
mod name;
mod source;
mod tree;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use budget::Budget;
use source::Compression;

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line.
    #[error("invalid argument {0:?}")]
    Argument(String),
    /// The process could not confine itself.
    #[error("confine the unpacker: {operation}")]
    Confine { operation: &'static str, source: io::Error },
    /// The stream is not a layer.
    #[error("read the layer")]
    Read(#[source] io::Error),
    /// An entry asks for what no layer may.
    #[error("invalid layer: entry {path:?}: {reason}")]
    Invalid { path: String, reason: &'static str },
    /// More than the caller allows.
    #[error("{what} limit of {limit} exceeded")]
    Budget { what: &'static str, limit: u64 },
    /// The entry could not be written.
    #[error("write entry {path:?}")]
    Write { path: String, source: io::Error },
}

/// What the caller asked for.
#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    root: PathBuf,
    compression: Compression,
    budget: Budget,
}

fn parse(arguments: &[OsString]) -> Result<Arguments, Error> {
    let mut parsed = Arguments {
        root: PathBuf::new(),
        compression: Compression::Detect,
        budget: Budget::default(),
    };
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let flag = flag.to_string_lossy().into_owned();
        let refuse = || Error::Argument(flag.clone());
        let value = rest.next().ok_or_else(refuse)?;
        let number = || value.to_str().and_then(|text| text.parse().ok()).ok_or_else(refuse);
        match flag.as_str() {
            "--root" => parsed.root = PathBuf::from(value),
            "--root-fd" => {
                let fd: u64 = number()?;
                parsed.root = PathBuf::from(format!("/proc/self/fd/{fd}"));
            }
            "--max-bytes" => parsed.budget.bytes = number()?,
            "--max-entries" => parsed.budget.entries = number()?,
            "--max-depth" => parsed.budget.depth = number()?,
            "--max-path-length" => parsed.budget.path_length = number()?,
            "--compression" => {
                parsed.compression = match value.to_str() {
                    Some("auto") => Compression::Detect,
                    Some("none") => Compression::None,
                    Some("gzip") => Compression::Gzip,
                    Some("zstd") => Compression::Zstd,
                    _ => return Err(refuse()),
                }
            }
            _ => return Err(refuse()),
        }
    }
    if parsed.root.as_os_str().is_empty() {
        return Err(Error::Argument("--root".to_owned()));
    }
    Ok(parsed)
}

/// Runs the unpacker.
pub(crate) fn run(arguments: &[OsString]) -> Result<(), Error> {
    let arguments = parse(arguments)?;
    let root = confinement::enter(&arguments.root)?;
    let input = source::standard_input();
    let stream = source::Stream::new(input, arguments.compression, arguments.budget.bytes)
        .map_err(Error::Read)?;
    let mut archive = tar::Archive::new(stream);
    let mut unpacker = apply::Unpacker::new(tree::Tree::new(root), arguments.budget);
    let result = archive.entries().map_err(Error::Read).and_then(|entries| {
        for entry in entries {
            unpacker.apply(&mut entry.map_err(Error::Read)?)?;
        }
        unpacker.finish()
    });
    let mut stream = archive.into_inner();
    // The reader reports a spent budget as a broken stream: say what it was.
    stream.check()?;
    let entries = result?;
    let (diff_id, bytes) = stream.finish()?;
    println!("{{\"diff_id\":\"sha256:{diff_id}\",\"bytes\":{bytes},\"entries\":{entries}}}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Arguments, Error> {
        let arguments: Vec<OsString> = text.split_whitespace().map(OsString::from).collect();
        parse(&arguments)
    }

    #[test]
    fn budgets_come_from_flags() {
        let arguments =
            parse_text("--root /x --max-bytes 7 --max-entries 8 --max-depth 9 --compression zstd")
                .unwrap();
        assert_eq!(arguments.root, PathBuf::from("/x"));
        assert_eq!(arguments.compression, Compression::Zstd);
        let budget = arguments.budget;
        assert_eq!((budget.bytes, budget.entries, budget.depth), (7, 8, 9));
    }

    #[test]
    fn unknown_or_incomplete_arguments_are_refused() {
        for text in
            ["", "--root", "--root /x --max-bytes -1", "--root /x --colour red", "--max-bytes 1"]
        {
            assert!(parse_text(text).is_err(), "{text}");
        }
    }
}
