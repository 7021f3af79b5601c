//! Pods and their statuses on disk (`<root>/records/<uid>/{pod,status}.json`), so that an agent that
//! starts while the API server is away still looks after its pods.
//!
//! Apart from `<root>/pods/<uid>`, which goes with the volumes when a pod ends: a pod that ended keeps
//! its record until it is deleted.
//!
//! The API server has the truth: a file that cannot be read is put aside and forgotten. Only a pod's
//! worker writes its files, so none comes back after it was removed.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::replace::{Lasting, replace};

/// Longer names than UIDs have are not looked at.
const MAX_UID: usize = 128;

/// The files of all pods below one directory.
#[derive(Debug, Clone)]
pub struct Cache {
    records: PathBuf,
}

impl Cache {
    /// The cache below `root`.
    pub fn new(root: &Path) -> Self {
        Self { records: root.join("records") }
    }

    fn directory(&self, uid: &str) -> Option<PathBuf> {
        is_safe(uid).then(|| self.records.join(uid))
    }

    /// Keeps a pod. A failure is logged: the pod runs all the same.
    pub async fn save_pod(&self, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.save(&uid, ("pod.json", Lasting::Whole), pod).await;
    }

    /// Keeps a status. It is not synced, so that no status waits for a disk: one that a power cut
    /// takes is had again from the API server.
    pub async fn save_status(&self, uid: &str, status: &PodStatus) {
        self.save(uid, ("status.json", Lasting::Process), status).await;
    }

    async fn save<T: Serialize>(
        &self,
        uid: &str,
        (name, lasting): (&'static str, Lasting),
        value: &T,
    ) {
        let Some(directory) = self.directory(uid) else {
            return;
        };
        let Ok(bytes) = serde_json::to_vec(value) else {
            return;
        };
        let write = move || {
            std::fs::create_dir_all(&directory)?;
            replace(&directory.join(name), &bytes, 0o600, lasting)
        };
        let written = tokio::task::spawn_blocking(write).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(uid, name, %error, "pod not kept on disk"),
            Err(error) => tracing::warn!(uid, name, %error, "pod not kept on disk"),
        }
    }

    /// Forgets a pod.
    pub async fn remove(&self, uid: &str) -> std::io::Result<()> {
        let Some(directory) = self.directory(uid) else {
            return Ok(());
        };
        // Only files of our own are in it: no container reaches it, so there is no link to follow.
        match tokio::fs::remove_dir_all(&directory).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All pods that were kept, with the statuses that were kept with them.
    pub async fn load(&self) -> Vec<Pod> {
        let records = self.records.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&records)).await;
        loaded.unwrap_or_default()
    }

    /// The UIDs of all pods that have a record, readable or not. Blocks.
    ///
    /// # Errors
    /// When the records cannot be listed; that there are none is no error.
    pub fn uids(&self) -> std::io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.records) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
        let names = names.collect::<std::io::Result<Vec<_>>>()?;
        Ok(names.into_iter().filter(|name| is_safe(name)).collect())
    }
}

/// A UID names a directory: letters, digits, dashes and dots only, and no dot in front.
pub fn is_safe(uid: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !uid.is_empty() && uid.len() <= MAX_UID && !uid.starts_with('.') && uid.bytes().all(allowed)
}

fn load(records: &Path) -> Vec<Pod> {
    let Ok(entries) = std::fs::read_dir(records) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let directory = entry.path();
        let Some(mut pod) = read::<Pod>(&directory.join("pod.json")) else {
            continue;
        };
        if pod.metadata.uid.as_deref() != entry.file_name().to_str() {
            tracing::warn!(path = %directory.display(), "kept pod has another UID than its place");
            continue;
        }
        if let Some(status) = read::<PodStatus>(&directory.join("status.json")) {
            pod.status = Some(status);
        }
        found.push(pod);
    }
    found
}

/// Reads a file; puts one aside that makes no sense.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = std::fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "kept pod cannot be read, put aside");
            let aside = path.with_extension("json.bad");
            if let Err(error) = std::fs::rename(path, &aside) {
                tracing::warn!(path = %path.display(), %error, "not put aside");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": uid},
            "spec": {"containers": [{"name": "c"}]},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn what_was_saved_is_loaded_with_its_status() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path());
        cache.save_pod(&pod("u-1")).await;
        let status = PodStatus { phase: Some("Running".to_owned()), ..PodStatus::default() };
        cache.save_status("u-1", &status).await;
        let loaded = cache.load().await;
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].status.as_ref(), Some(&status));
    }

    #[tokio::test]
    async fn a_torn_file_is_put_aside_and_the_others_are_loaded() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path());
        cache.save_pod(&pod("u-1")).await;
        cache.save_pod(&pod("u-2")).await;
        let torn = root.path().join("records/u-1/pod.json");
        std::fs::write(&torn, b"{\"metadata\":").unwrap();
        assert_eq!(cache.load().await.len(), 1);
        assert!(!torn.exists());
        assert!(root.path().join("records/u-1/pod.json.bad").exists());
    }

    #[test]
    fn a_uid_that_leaves_its_directory_is_refused() {
        for uid in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b"] {
            assert!(!is_safe(uid), "{uid:?}");
        }
        assert!(is_safe("0f6f3c5e-9d1c-4d4e-8f8a-1f2e3d4c5b6a"));
    }
}
