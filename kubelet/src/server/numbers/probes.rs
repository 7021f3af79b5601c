//! `/metrics/probes`: how often probes were run, with what result and how fast. Pure.

use super::exposition::{Exposition, Kind, number};
use crate::probe;
use crate::probe::counts::{BOUNDS, Row};

/// Renders the page.
pub(super) fn render(rows: &[Row], started_at: f64) -> String {
    let mut text = Exposition::default();
    let mut family = text.family(
        "prober_probe_duration_seconds",
        Kind::Histogram,
        "Duration in seconds for a probe response.",
    );
    for row in rows.iter().filter(|row| row.tally.successful > 0) {
        let labels = [
            ("probe_type", title(row.kind)),
            ("container", &row.container),
            ("pod", &row.pod),
            ("namespace", &row.namespace),
        ];
        let tally = &row.tally;
        let buckets = BOUNDS.into_iter().zip(tally.buckets);
        family.histogram(&labels, buckets, (tally.successful, tally.seconds));
    }
    let mut family = text.family(
        "prober_probe_total",
        Kind::Counter,
        "Cumulative number of a liveness, readiness or startup probe for a container by result.",
    );
    for row in rows {
        let tally = &row.tally;
        let results = [("successful", tally.successful), ("failed", tally.failed)];
        for (result, count) in results.into_iter().filter(|(_, count)| *count > 0) {
            let labels = [
                ("probe_type", title(row.kind)),
                ("result", result),
                ("container", &row.container),
                ("pod", &row.pod),
                ("namespace", &row.namespace),
                ("pod_uid", &row.uid),
            ];
            family.sample(&labels, number(count));
        }
    }
    text.started(started_at);
    text.finish()
}

fn title(kind: probe::Kind) -> &'static str {
    kind.title()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probe::counts::Counts;

    #[test]
    fn probes_are_told_with_upstreams_names_and_labels() {
        let counts = Counts::default();
        let pod = counts.of_pod(("ns", "p", "u"));
        let probe = ("c", probe::Kind::Readiness);
        pod.note(probe, true, Duration::from_millis(250));
        pod.note(probe, true, Duration::from_millis(20));
        pod.note(probe, false, Duration::from_secs(1));
        let text = render(&counts.rows(), 7.5);
        let labels = r#"probe_type="Readiness",container="c",pod="p",namespace="ns""#;
        for line in [
            format!("prober_probe_duration_seconds_bucket{{{labels},le=\"0.01\"}} 0"),
            format!("prober_probe_duration_seconds_bucket{{{labels},le=\"0.025\"}} 1"),
            format!("prober_probe_duration_seconds_bucket{{{labels},le=\"1\"}} 2"),
            format!("prober_probe_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("prober_probe_duration_seconds_sum{{{labels}}} 0.27"),
            format!("prober_probe_duration_seconds_count{{{labels}}} 2"),
            "# TYPE prober_probe_duration_seconds histogram".to_owned(),
            "process_start_time_seconds 7.5".to_owned(),
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        let total = |result: &str, count: u64| {
            let line = format!(
                "prober_probe_total{{probe_type=\"Readiness\",result=\"{result}\",container=\"c\",\
                 pod=\"p\",namespace=\"ns\",pod_uid=\"u\"}} {count}"
            );
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        };
        total("successful", 2);
        total("failed", 1);
    }
}
