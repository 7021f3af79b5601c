//! Events end: those last seen longer ago than the configured time are removed.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::api::Api;
use crate::object::{ObjectExt, parse_stamp};
use crate::resource::{Kind, prefix};

/// How many events one transaction removes.
const GROUP: usize = 500;

pub(super) async fn expire(api: Arc<Api>) {
    let ttl = api.settings.event_ttl;
    let period = (ttl / 10).clamp(Duration::from_millis(100), Duration::from_secs(60));
    loop {
        tokio::select! {
            () = api.stop.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
        let oldest =
            Timestamp::now().as_second() - i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let expired: Vec<String> = api
            .store
            .list(&prefix(Kind::Event, ""))
            .items
            .into_iter()
            .filter(|(_, event)| last_seen(event) < oldest)
            .map(|(key, _)| key)
            .collect();
        for group in expired.chunks(GROUP) {
            let group = group.to_vec();
            let removal = api.store.write(move |tx| {
                for key in &group {
                    // It may have been seen again meanwhile.
                    if tx.get(key).is_some_and(|event| last_seen(&event) < oldest) {
                        tx.remove(key);
                    }
                }
                Ok(())
            });
            if let Err(failure) = removal.await {
                tracing::warn!(%failure, "remove expired events");
            }
        }
    }
}

/// When an event was last written, in seconds since 1970.
fn last_seen(event: &Value) -> i64 {
    ["/lastTimestamp", "/series/lastObservedTime", "/eventTime", "/metadata/creationTimestamp"]
        .iter()
        .filter_map(|pointer| parse_stamp(event.text(pointer)))
        .map(Timestamp::as_second)
        .max()
        .unwrap_or(0)
}
