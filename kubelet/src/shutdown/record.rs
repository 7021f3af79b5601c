//! When the node went down last (`<root>/graceful_node_shutdown_state`, upstream's name and form), for
//! who asks after the reboot.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::meters::{self, Meters};
use crate::replace::{Lasting, replace};

/// The file's name.
const FILE: &str = "graceful_node_shutdown_state";

/// A shutdown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Record {
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) start_time: Option<Timestamp>,
    /// When all that was to end had ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end_time: Option<Timestamp>,
}

impl Record {
    /// What is kept below `root`; nothing where that cannot be read. Blocks.
    pub(super) fn read(root: &Path) -> Self {
        let path = root.join(FILE);
        match std::fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(record)) => record,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "last shutdown is not known");
                Self::default()
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "last shutdown is not known");
                Self::default()
            }
        }
    }

    /// Keeps it below `root`, also through a power cut, and tells it. A failure is logged.
    pub(super) async fn keep(self, root: &Path, meters: &Meters) {
        self.tell(meters);
        let root = root.to_owned();
        let written = tokio::task::spawn_blocking(move || self.write(&root)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "time of the shutdown not kept on disk"),
            Err(error) => tracing::warn!(%error, "time of the shutdown not kept on disk"),
        }
    }

    fn write(self, root: &Path) -> std::io::Result<()> {
        replace(&root.join(FILE), &serde_json::to_vec(&self)?, 0o644, Lasting::PowerCut)
    }

    /// Tells it in `/metrics`, in whole seconds; 0 is not yet.
    pub(super) fn tell(self, meters: &Meters) {
        // Go writes a time that there was not as the year 1.
        let seconds = |time: Option<Timestamp>| time.map_or(0, Timestamp::as_second).max(0);
        let number = |time| f64::from(u32::try_from(seconds(time)).unwrap_or(u32::MAX));
        meters.at(&meters::SHUTDOWN_START, number(self.start_time));
        meters.at(&meters::SHUTDOWN_END, number(self.end_time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_kept_is_read_again_and_upstreams_form_is_known() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(root.path()), Record::default());
        let start_time = Some(Timestamp::from_second(1_700_000_000).unwrap());
        let record = Record { start_time, end_time: None };
        record.keep(root.path(), &Meters::default()).await;
        assert_eq!(Record::read(root.path()), record);
        let path = root.path().join(FILE);
        let upstream = r#"{"startTime":"2023-11-14T22:13:20Z","endTime":"0001-01-01T00:00:00Z"}"#;
        std::fs::write(&path, upstream).unwrap();
        let read = Record::read(root.path());
        assert_eq!(read.start_time, start_time);
        let meters = Meters::default();
        read.tell(&meters);
        let told: Vec<f64> = meters.all().iter().map(|(_, series)| series[0].1.seconds).collect();
        assert_eq!(told, [0.0, 1_700_000_000.0], "the end, then the start");
        std::fs::write(&path, "torn").unwrap();
        assert_eq!(Record::read(root.path()), Record::default());
    }
}
