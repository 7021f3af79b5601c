//! A bundle: the directory with `config.json`. OCI runtime spec, `bundle.md`.
//!
//! The parser of JSON says where it stopped; which field that is, is found by reading up to there.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};

use super::error::During;
use super::{Error, Result};
use crate::spec;

/// Longer than any specification; larger ones are not read.
const MAX_BYTES: u64 = 16 << 20;

/// A bundle that has been read.
pub(super) struct Bundle {
    /// Absolute, without links.
    pub(super) directory: PathBuf,
    pub(super) text: Vec<u8>,
    /// Absolute.
    pub(super) rootfs: PathBuf,
    /// Named in the specification, and none.
    pub(super) unknown_capabilities: Vec<String>,
}

impl Bundle {
    /// Reads a bundle and its specification.
    pub(super) fn open(directory: &Path) -> Result<(Self, Spec)> {
        let directory = std::fs::canonicalize(directory)
            .during(|| format!("open bundle {}", directory.display()))?;
        let path = directory.join("config.json");
        let text = read(&path)?;
        let (mut spec, unknown_capabilities) = parse(&path, &text)?;
        anchor_sources(&mut spec, &directory);
        let invalid = |reason: String| Err(Error::File { path: path.clone(), reason });
        if !spec.version().is_empty() && !spec.version().starts_with("1.") {
            return invalid(format!("ociVersion: {:?} is not supported", spec.version()));
        }
        let Some(root) = spec.root() else {
            return invalid("root: is missing".to_owned());
        };
        let rootfs = directory.join(root.path());
        match std::fs::metadata(&rootfs) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return invalid(format!("root.path: {} is no directory", rootfs.display())),
            Err(error) => return invalid(format!("root.path: {}: {error}", rootfs.display())),
        }
        let rootfs = std::fs::canonicalize(&rootfs)
            .during(|| format!("open root file system {}", rootfs.display()))?;
        Ok((Self { directory, text, rootfs, unknown_capabilities }, spec))
    }
}

/// Relative sources of binds are relative to the bundle.
fn anchor_sources(spec: &mut Spec, directory: &Path) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let options = mount.options().as_deref().unwrap_or_default();
        let binds = options.iter().any(|option| option == "bind" || option == "rbind")
            || mount.typ().as_deref() == Some("bind");
        if let (true, Some(source)) = (binds, mount.source()) {
            let source = directory.join(source);
            mount.set_source(Some(source));
        }
    }
}

/// Reads a file of JSON that the caller names.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let operation = || format!("read {}", path.display());
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = "JSON specification file not found".to_owned();
            return Err(Error::File { path: path.to_owned(), reason });
        }
        file => file.during(operation)?,
    };
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES + 1), &mut text).during(operation)?;
    if text.len() as u64 > MAX_BYTES {
        let reason = format!("is longer than {MAX_BYTES} bytes");
        return Err(Error::File { path: path.to_owned(), reason });
    }
    Ok(text)
}

/// Parses a specification; `path` names it in errors. Returns the names of unknown capabilities, too.
pub(super) fn parse(path: &Path, text: &[u8]) -> Result<(Spec, Vec<String>)> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let spec = spec::read_leniently(&mut parser).and_then(|spec| parser.end().map(|()| spec));
    spec.map_err(|error| malformed(path, text, &error))
}

/// Parses the description of a further process. Returns the names of unknown capabilities, too.
pub(super) fn parse_process(path: &Path, text: &[u8]) -> Result<(Process, Vec<String>)> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let process = spec::read_process(&mut parser).and_then(|one| parser.end().map(|()| one));
    process.map_err(|error| malformed(path, text, &error))
}

/// The error for JSON that is not what it should be, naming the field.
pub(super) fn malformed(path: &Path, text: &[u8], error: &serde_json::Error) -> Error {
    let field = field_at(text, error.line(), error.column());
    let reason = if field.is_empty() { error.to_string() } else { format!("{field}: {error}") };
    Error::File { path: path.to_owned(), reason }
}

/// One level of what is open at a place in JSON.
enum Level {
    Object { key: String },
    Array { index: usize },
}

/// The field that a place (line and column, from 1) is in: `process.rlimits[2].type`.
fn field_at(text: &[u8], line: usize, column: usize) -> String {
    let before: usize = text
        .split_inclusive(|byte| *byte == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let end = text.len().min(before + column);
    let mut levels: Vec<Level> = Vec::new();
    let mut string: Option<Vec<u8>> = None;
    let mut escaped = false;
    let mut last = String::new();
    for (position, &byte) in text[..end].iter().enumerate() {
        if let Some(bytes) = &mut string {
            if escaped || byte != b'"' {
                escaped = !escaped && byte == b'\\';
                bytes.push(byte);
            } else {
                last = String::from_utf8_lossy(bytes).into_owned();
                string = None;
            }
            continue;
        }
        match byte {
            b'"' => string = Some(Vec::new()),
            b'{' => levels.push(Level::Object { key: String::new() }),
            b'[' => levels.push(Level::Array { index: 0 }),
            // Where an object's end is the last thing read, it is the object that lacks something.
            b'}' | b']' if position + 1 == end => {
                if let Some(Level::Object { key }) = levels.last_mut() {
                    key.clear();
                }
            }
            b'}' | b']' => drop(levels.pop()),
            b':' => {
                if let Some(Level::Object { key }) = levels.last_mut() {
                    *key = std::mem::take(&mut last);
                }
            }
            b',' => match levels.last_mut() {
                Some(Level::Object { key }) => key.clear(),
                Some(Level::Array { index }) => *index += 1,
                None => {}
            },
            _ => {}
        }
    }
    let mut field = String::new();
    for level in &levels {
        match level {
            Level::Object { key } if key.is_empty() => {}
            Level::Object { key } => {
                if !field.is_empty() {
                    field.push('.');
                }
                field.push_str(key);
            }
            Level::Array { index } => field.push_str(&format!("[{index}]")),
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        parse(Path::new("config.json"), text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_field_of_a_malformed_specification_is_named() {
        for (text, field) in [
            (r#"{"process": {"user": {"uid": "x"}}}"#, "process.user.uid: "),
            (r#"{"process": {"user": {"uid": -1}}}"#, "process.user.uid: "),
            (r#"{"process": {"args": ["a", 5]}}"#, "process.args[1]: "),
            (r#"{"process": {"user": {"uid": 1}}}"#, "process: missing field"),
            (
                "{\"linux\":\n {\"namespaces\": [{\"type\": \"pid\"},\n {\"type\": \"x\"}]}}",
                "linux.namespaces[1].type: ",
            ),
            (r#"{"root": 5}"#, "root: "),
            (r#"{"mounts": {"a\"}": [1, {"b": 2}]}}"#, "mounts: "),
        ] {
            let reason = reason(text);
            assert!(reason.contains(&format!("config.json: {field}")), "{text}: {reason}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused_whatever_it_is() {
        for text in [
            "",
            "{",
            "[]",
            "5",
            "{} x",
            "{\"a\": }",
            "\u{feff}{}",
            "{\"process\": {\"args\": [",
            "\"\\",
        ] {
            assert!(!reason(text).is_empty());
        }
    }

    #[test]
    fn any_place_in_any_text_has_a_field() {
        let text = br#"}]{"a": [1, {"b\\": "c"}], "d": ]}"#;
        for column in 0..text.len() + 5 {
            for line in 0..3 {
                let _ = field_at(text, line, column);
            }
        }
    }

    #[test]
    fn a_bundle_without_a_root_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let write =
            |text: &str| std::fs::write(directory.path().join("config.json"), text).unwrap();
        let open = || Bundle::open(directory.path()).map(drop).unwrap_err().chain();
        assert!(open().contains("not found"));
        for (text, expected) in [
            (r#"{"ociVersion": "2.0.0", "root": {"path": "."}}"#, "ociVersion"),
            (r#"{"ociVersion": "1.0.0"}"#, "root: is missing"),
            (r#"{"ociVersion": "1.0.0", "root": {"path": "none"}}"#, "root.path"),
            (r#"{"ociVersion": "1.0.0", "root": {"path": "config.json"}}"#, "no directory"),
        ] {
            write(text);
            assert!(open().contains(expected), "{text}: {}", open());
        }
    }
}
