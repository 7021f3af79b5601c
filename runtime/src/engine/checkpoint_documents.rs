//! What an archive of a checkpoint says of its container: the documents that containerd writes and
//! checkpointctl reads. Pure.

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::record;
use crate::disk;
use crate::interface::PodIdentity;

/// What Go has for no time.
const NEVER: &str = "0001-01-01T00:00:00Z";
/// CRI's number for a container that runs.
const RUNNING: u32 = 1;

/// A container that was checkpointed.
pub(super) struct About {
    pub(super) record: record::Container,
    pub(super) pod: PodIdentity,
    /// Its sandbox.
    pub(super) sandbox: String,
    /// Its log.
    pub(super) log: PathBuf,
    /// Its first process.
    pub(super) pid: i32,
    /// Nanoseconds since the epoch.
    pub(super) started_at: i64,
}

impl About {
    /// The documents by name, from the specification that it was made by.
    ///
    /// # Errors
    /// When that is no JSON object.
    pub(super) fn documents(&self, spec: &[u8]) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
        let all = [
            ("config.dump", self.config()),
            ("spec.dump", self.spec(serde_json::from_slice(spec)?)?),
            ("status", self.short_status()),
            ("status.dump", self.status()),
        ];
        all.into_iter().map(|(name, value)| Ok((name, serde_json::to_vec(&value)?))).collect()
    }

    fn config(&self) -> Value {
        let config = &self.record.config;
        json!({
            "id": self.record.id,
            "name": config.name,
            "rootfsImage": config.image_reference,
            "rootfsImageRef": config.image,
            "rootfsImageName": config.image_reference,
            "runtime": "berth-oci",
            "createdTime": time(self.record.created_at),
            "checkpointedTime": time(disk::now_nanoseconds()),
            "restoredTime": NEVER,
            "restored": false,
        })
    }

    /// The specification, whose annotations say whose it is: by them readers tell container and pod.
    fn spec(&self, mut spec: Value) -> io::Result<Value> {
        let annotations = [
            ("container-type", "container"),
            ("container-name", &self.record.config.name),
            ("image-name", &self.record.config.image_reference),
            ("sandbox-id", &self.sandbox),
            ("sandbox-name", &self.pod.name),
            ("sandbox-namespace", &self.pod.namespace),
            ("sandbox-uid", &self.pod.uid),
        ];
        let whole = spec.as_object_mut().ok_or(io::ErrorKind::InvalidData)?;
        let known = whole.entry("annotations").or_insert_with(|| json!({}));
        let known = known.as_object_mut().ok_or(io::ErrorKind::InvalidData)?;
        for (name, value) in annotations {
            known.insert(format!("io.kubernetes.cri.{name}"), value.into());
        }
        Ok(spec)
    }

    /// containerd's own record.
    fn short_status(&self) -> Value {
        json!({
            "Version": "v1",
            "Pid": self.pid,
            "CreatedAt": self.record.created_at,
            "StartedAt": self.started_at,
            "FinishedAt": 0,
            "ExitCode": 0,
            "Reason": "",
            "Message": "",
        })
    }

    /// The CRI's status.
    fn status(&self) -> Value {
        let config = &self.record.config;
        json!({
            "id": self.record.id,
            "metadata": {"name": config.name, "attempt": config.attempt},
            "state": RUNNING,
            "created_at": self.record.created_at,
            "started_at": self.started_at,
            "image": {"image": config.image_reference},
            "image_ref": config.image,
            "labels": config.labels,
            "log_path": self.log,
        })
    }
}

/// Nanoseconds since the epoch in RFC 3339.
fn time(nanoseconds: i64) -> String {
    let time = Timestamp::from_nanosecond(nanoseconds.into());
    time.map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}
