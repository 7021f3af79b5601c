//! `berth pods`: what runs on this node, from the runtime's own records.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use berth_runtime::interface::{ContainerState, SandboxState, SandboxStatus};

use crate::cli::PodsFlags;
use crate::control;
use crate::settings::Places;

/// Prints the pods.
pub(crate) async fn run(flags: PodsFlags) -> Result<()> {
    let places = Places::resolve(&flags.host)?;
    let pods = control::pods(&places).await?;
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&pods)?);
        return Ok(());
    }
    let head = ["NAMESPACE", "POD", "CONTAINER", "STATE", "ATTEMPT", "AGE", "IP"];
    let mut rows = vec![head.map(str::to_owned)];
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    for pod in &pods {
        rows.extend(lines(pod, now));
    }
    print!("{}", table(&rows));
    Ok(())
}

/// One line a container; one for a pod without any.
fn lines(pod: &SandboxStatus, now: Duration) -> Vec<[String; 7]> {
    let identity = &pod.config.pod;
    let address = pod.ips.first().map_or("-".to_owned(), ToString::to_string);
    let line = |container: &str, state: String, attempt: u32, created_at: i64| {
        let created = Duration::from_nanos(u64::try_from(created_at).unwrap_or(0));
        [
            identity.namespace.clone(),
            identity.name.clone(),
            container.to_owned(),
            state,
            attempt.to_string(),
            age(now.saturating_sub(created)),
            address.clone(),
        ]
    };
    if pod.containers.is_empty() {
        let state = match pod.state {
            SandboxState::Ready => "Ready",
            SandboxState::NotReady => "NotReady",
        };
        return vec![line("-", state.to_owned(), pod.config.attempt, pod.created_at)];
    }
    let containers = pod.containers.iter();
    containers
        .map(|c| line(&c.config.name, state(&c.state), c.config.attempt, c.created_at))
        .collect()
}

fn state(state: &ContainerState) -> String {
    match state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running { .. } => "Running".to_owned(),
        ContainerState::Exited { oom_killed: true, .. } => "OOMKilled".to_owned(),
        ContainerState::Exited { exit_code, .. } => format!("Exited({exit_code})"),
    }
}

/// A duration as kubectl writes ages, in its largest unit.
pub(crate) fn age(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Columns as wide as their widest cell, three spaces apart.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_in_no_space() {
        let rows = [["A".to_owned(), "B".to_owned()], ["long".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), "A      B\nlong   x\n");
    }

    #[test]
    fn ages_are_in_the_largest_unit() {
        let text = |seconds| age(Duration::from_secs(seconds));
        assert_eq!([text(5), text(300), text(90_000), text(200_000)], ["5s", "5m", "25h", "2d"]);
    }
}
