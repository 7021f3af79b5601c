//! The files of a volume, from ConfigMaps, Secrets, tokens and the downward API. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret};

use super::VolumeError;
use crate::downward::{self, Facts, Place};

const MAX_PATH_BYTES: usize = 4096;
const MAX_NAME_BYTES: usize = 255;

/// A file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub struct PayloadFile {
    /// What is in it.
    pub content: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
    /// Its owner; root where absent.
    pub uid: Option<u32>,
}

impl std::fmt::Debug for PayloadFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { content, mode, uid } = self;
        write!(f, "PayloadFile({} bytes, {mode:o}, {uid:?})", content.len())
    }
}

/// The files of a volume by relative path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload {
    files: BTreeMap<String, PayloadFile>,
    /// The group that reads the files (`fsGroup`).
    gid: Option<u32>,
}

impl Payload {
    /// No files, for a group.
    pub fn new(gid: Option<u32>) -> Self {
        Self { files: BTreeMap::new(), gid }
    }

    /// The files by relative path.
    pub fn files(&self) -> &BTreeMap<String, PayloadFile> {
        &self.files
    }

    /// The group that reads the files.
    pub fn gid(&self) -> Option<u32> {
        self.gid
    }

    /// Puts a file at a path; one that is there already is replaced.
    pub(super) fn put(&mut self, path: &str, file: PayloadFile) -> Result<(), VolumeError> {
        let path = checked_path(path)?;
        let fault = |why| Err(VolumeError::InvalidPath { path: path.clone(), why });
        let parents = path.match_indices('/').map(|(position, _)| &path[..position]);
        if parents.into_iter().any(|parent| self.files.contains_key(parent)) {
            return fault("a part of it is a file");
        }
        let below = format!("{path}/");
        let next = self.files.range(below.clone()..).next();
        if next.is_some_and(|(name, _)| name.starts_with(&below)) {
            return fault("it is a directory");
        }
        let mode = file.mode | if self.gid.is_some() { 0o440 } else { 0 };
        let file = PayloadFile { mode, ..file };
        match self.files.entry(path) {
            Entry::Occupied(mut present) => {
                present.insert(file);
            }
            Entry::Vacant(free) => {
                free.insert(file);
            }
        }
        Ok(())
    }
}

/// A relative path without surprises, in its shortest form.
fn checked_path(path: &str) -> Result<String, VolumeError> {
    let fault = |why| VolumeError::InvalidPath { path: path.to_owned(), why };
    if path.is_empty() {
        return Err(fault("must not be empty"));
    }
    if path.starts_with('/') {
        return Err(fault("must be relative path"));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(fault("must be less than or equal to 4096 characters"));
    }
    let parts: Vec<_> = path.split('/').filter(|p| !matches!(*p, "" | ".")).collect();
    for part in &parts {
        if *part == ".." {
            return Err(fault("must not contain '..'"));
        }
        if part.len() > MAX_NAME_BYTES {
            return Err(fault("filenames must be less than or equal to 255 characters"));
        }
        if part.contains('\0') {
            return Err(fault("must not contain NUL"));
        }
    }
    match parts.first() {
        None => Err(fault("must not be empty")),
        Some(first) if first.starts_with("..") => Err(fault("must not start with '..'")),
        Some(_) => Ok(parts.join("/")),
    }
}

/// How the files of one source are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selection<'a> {
    /// Which keys go where; all of them under their names when empty.
    pub(super) items: Option<&'a Vec<KeyToPath>>,
    /// The mode of files that have none of their own.
    pub(super) default_mode: u32,
    /// Whether keys may be missing.
    pub(super) optional: bool,
}

/// Reads a mode field.
pub(super) fn checked_mode(mode: Option<i32>, default: u32) -> Result<u32, VolumeError> {
    match mode {
        None => Ok(default),
        Some(mode) => match u32::try_from(mode) {
            Ok(mode) if mode <= 0o777 => Ok(mode),
            _ => Err(VolumeError::InvalidValue { field: "mode", value: mode.to_string() }),
        },
    }
}

impl Payload {
    /// Adds the keys of a ConfigMap.
    pub(super) fn add_config_map(
        &mut self,
        object: Option<&ConfigMap>,
        selection: Selection<'_>,
    ) -> Result<(), VolumeError> {
        let Some(object) = object else { return Ok(()) };
        let mut keys = BTreeMap::new();
        for (key, text) in object.data.iter().flatten() {
            keys.insert(key.as_str(), text.as_bytes());
        }
        for (key, bytes) in object.binary_data.iter().flatten() {
            keys.insert(key.as_str(), &bytes.0);
        }
        self.add_keys(&keys, selection, VolumeError::MissingConfigKey)
    }

    /// Adds the keys of a Secret.
    pub(super) fn add_secret(
        &mut self,
        object: Option<&Secret>,
        selection: Selection<'_>,
    ) -> Result<(), VolumeError> {
        let Some(object) = object else { return Ok(()) };
        let data = object.data.iter().flatten();
        let keys = data.map(|(key, ByteString(bytes))| (key.as_str(), bytes.as_slice())).collect();
        self.add_keys(&keys, selection, VolumeError::MissingSecretKey)
    }

    fn add_keys(
        &mut self,
        keys: &BTreeMap<&str, &[u8]>,
        selection: Selection<'_>,
        missing: fn(String) -> VolumeError,
    ) -> Result<(), VolumeError> {
        let file =
            |content: &[u8], mode| PayloadFile { content: content.to_vec(), mode, uid: None };
        let Some(items) = selection.items.filter(|items| !items.is_empty()) else {
            for (key, content) in keys {
                self.put(key, file(content, selection.default_mode))?;
            }
            return Ok(());
        };
        for item in items {
            match keys.get(item.key.as_str()) {
                Some(content) => {
                    let mode = checked_mode(item.mode, selection.default_mode)?;
                    self.put(&item.path, file(content, mode))?;
                }
                None if selection.optional => {}
                None => return Err(missing(item.key.clone())),
            }
        }
        Ok(())
    }

    /// Adds files of the downward API.
    pub(super) fn add_downward(
        &mut self,
        items: Option<&Vec<DownwardAPIVolumeFile>>,
        facts: &Facts<'_>,
        default_mode: u32,
    ) -> Result<(), VolumeError> {
        for item in items.into_iter().flatten() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(selector), _) => downward::field(facts, selector, Place::Volume)?,
                (None, Some(selector)) => downward::resource_field(facts, selector, "")?,
                (None, None) => continue,
            };
            let file = PayloadFile {
                content: text.into_bytes(),
                mode: checked_mode(item.mode, default_mode)?,
                uid: None,
            };
            self.put(&item.path, file)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(content: &str) -> PayloadFile {
        PayloadFile { content: content.into(), mode: 0o644, uid: None }
    }

    #[test]
    fn paths_that_leave_or_shadow_the_volume_are_refused() {
        for (path, why) in [
            ("", "must not be empty"),
            (".", "must not be empty"),
            ("/a", "must be relative path"),
            ("../a", "must not contain '..'"),
            ("a/../b", "must not contain '..'"),
            ("..data", "must not start with '..'"),
            ("..data/a", "must not start with '..'"),
            ("a\0b", "must not contain NUL"),
        ] {
            let error = Payload::default().put(path, file("")).unwrap_err();
            assert_eq!(error.to_string(), format!("invalid path {path:?}: {why}"));
        }
        let long = "a".repeat(256);
        assert!(Payload::default().put(&long, file("")).is_err());
        let mut payload = Payload::default();
        for path in ["a/./b", "c//d", "e..f", "g/..h"] {
            payload.put(path, file("")).unwrap();
        }
        let names: Vec<_> = payload.files().keys().collect();
        assert_eq!(names, ["a/b", "c/d", "e..f", "g/..h"]);
    }

    #[test]
    fn a_path_is_a_file_or_a_directory() {
        let mut payload = Payload::default();
        payload.put("a/b", file("1")).unwrap();
        assert!(payload.put("a", file("")).is_err());
        assert!(payload.put("a/b/c", file("")).is_err());
        payload.put("a-b", file("")).unwrap();
        payload.put("a/b", file("2")).unwrap();
        assert_eq!(payload.files()["a/b"].content, b"2");
    }

    #[test]
    fn a_group_can_read_everything() {
        let mut payload = Payload::new(Some(5));
        let secret = PayloadFile { mode: 0o400, ..file("") };
        payload.put("a", secret).unwrap();
        assert_eq!(payload.files()["a"].mode, 0o440);
    }

    proptest! {
        #[test]
        fn accepted_paths_stay_inside(path in "[a-b./]{0,12}") {
            if let Ok(path) = checked_path(&path) {
                prop_assert!(!path.starts_with(['/', '.']) || path.starts_with('.') && !path.starts_with(".."));
                prop_assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
        }
    }
}
