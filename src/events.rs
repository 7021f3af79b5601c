//! `berth events`: what the agent recorded of pods and the node lately, from its own memory: also what
//! the API server has never been told.

use anyhow::Result;
use berth_kubelet::events::recent::Recorded;
use std::time::{Duration, SystemTime};

use crate::cli::EventsFlags;
use crate::control;
use crate::pods::{age, table};
use crate::settings::Places;

/// Prints the events, the oldest first.
pub(crate) async fn run(flags: EventsFlags) -> Result<()> {
    let places = Places::resolve(&flags.host)?;
    let mut events = control::events(&places).await?;
    if let Some(pod) = &flags.pod {
        events.retain(|event| is_of(event, pod));
    }
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&events)?);
        return Ok(());
    }
    let head = ["LAST SEEN", "TYPE", "REASON", "OBJECT", "COUNT", "MESSAGE"];
    let mut rows = vec![head.map(str::to_owned)];
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    rows.extend(events.iter().map(|event| row(event, now)));
    print!("{}", table(&rows));
    Ok(())
}

/// Whether an event is about the pod called so, with its namespace or without.
fn is_of(event: &Recorded, pod: &str) -> bool {
    let named = match pod.split_once('/') {
        Some(both) => both == (event.namespace.as_str(), event.name.as_str()),
        None => pod == event.name,
    };
    event.kind == "Pod" && named
}

fn row(event: &Recorded, now: Duration) -> [String; 6] {
    let last = u64::try_from(event.last.as_second()).unwrap_or(0);
    let object = match event.namespace.as_str() {
        "" => format!("{}/{}", event.kind.to_lowercase(), event.name),
        namespace => format!("{}/{namespace}/{}", event.kind.to_lowercase(), event.name),
    };
    // What a container prints can be in a message: nothing of it must steer a terminal.
    let clean = |letter: char| if letter.is_control() { ' ' } else { letter };
    [
        age(now.saturating_sub(Duration::from_secs(last))),
        event.severity.clone(),
        event.reason.clone(),
        object,
        event.count.to_string(),
        event.message.chars().map(clean).collect(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_that_steers_no_terminal() {
        let event: Recorded = serde_json::from_str(
            r#"{"last": "1970-01-01T00:01:00Z", "first": "1970-01-01T00:00:00Z", "count": 3,
                "type": "Warning", "reason": "BackOff", "kind": "Pod", "namespace": "ns",
                "name": "p", "field": "", "message": "a\n\u001b[2Jb"}"#,
        )
        .unwrap();
        let row = row(&event, Duration::from_secs(65));
        assert_eq!(row, ["5s", "Warning", "BackOff", "pod/ns/p", "3", "a  [2Jb"]);
        assert!(is_of(&event, "p") && is_of(&event, "ns/p"));
        assert!(!is_of(&event, "other/p") && !is_of(&event, "ns"));
    }
}
