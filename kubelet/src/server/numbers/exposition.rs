//! The text format that Prometheus reads (exposition format 0.0.4). Pure.

use std::fmt::Write as _;

/// What a family's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many were at most how large.
    Histogram,
}

/// A text being written, family by family.
#[derive(Debug, Default)]
pub(in crate::server) struct Exposition(String);

/// A family being written. A family without samples leaves no trace.
pub(in crate::server) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    help: &'static str,
    kind: Kind,
    begun: bool,
}

impl Exposition {
    /// Begins a family.
    pub(in crate::server) fn family(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
    ) -> Family<'_> {
        Family { text: &mut self.0, name, help, kind, begun: false }
    }

    /// When the process started, in seconds since the epoch.
    pub(in crate::server) fn started(&mut self, seconds: f64) {
        let help = "Start time of the process since unix epoch in seconds.";
        self.family("process_start_time_seconds", Kind::Gauge, help).sample(&[], seconds);
    }

    /// The text.
    pub(in crate::server) fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Writes a sample of now.
    pub(in crate::server) fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.at(labels, value, None);
    }

    /// Writes a sample of a time in milliseconds since the epoch.
    pub(in crate::server) fn at(
        &mut self,
        labels: &[(&str, &str)],
        value: f64,
        at_ms: Option<i64>,
    ) {
        self.write(("", labels, None), value, at_ms);
    }

    /// Writes a histogram: how many were within each bound and beyond the one before, then their number
    /// and sum.
    pub(in crate::server) fn histogram(
        &mut self,
        labels: &[(&str, &str)],
        buckets: impl IntoIterator<Item = (f64, u64)>,
        (count, sum): (u64, f64),
    ) {
        let mut within = 0;
        for (bound, more) in buckets {
            within += more;
            self.write(("_bucket", labels, Some(&bound.to_string())), number(within), None);
        }
        self.write(("_bucket", labels, Some("+Inf")), number(count), None);
        self.write(("_sum", labels, None), sum, None);
        self.write(("_count", labels, None), number(count), None);
    }

    fn write(
        &mut self,
        (suffix, labels, bound): (&str, &[(&str, &str)], Option<&str>),
        value: f64,
        at_ms: Option<i64>,
    ) {
        let Self { text, name, help, kind, .. } = self;
        if !std::mem::replace(&mut self.begun, true) {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        let _ = write!(text, "{name}{suffix}");
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut opened = false;
        for (label, value) in labels {
            text.push(if opened { ',' } else { '{' });
            let _ = write!(text, "{label}=\"{}\"", escaped(value));
            opened = true;
        }
        if opened {
            text.push('}');
        }
        let _ = write!(text, " {value}");
        if let Some(at_ms) = at_ms {
            let _ = write!(text, " {at_ms}");
        }
        text.push('\n');
    }
}

fn escaped(value: &str) -> std::borrow::Cow<'_, str> {
    match value.contains(['\\', '"', '\n']) {
        true => value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into(),
        false => value.into(),
    }
}

/// Microseconds in seconds.
#[allow(clippy::cast_precision_loss, reason = "a counter beyond 2^53 µs is 285 years")]
pub(in crate::server) fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

/// A number as samples have it.
#[allow(clippy::cast_precision_loss, reason = "the format has no other numbers")]
pub(in crate::server) fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_once_and_values_are_escaped() {
        let mut text = Exposition::default();
        let mut family = text.family("f_total", Kind::Counter, "Help.");
        family.at(&[("a", "x\"y\\z\n"), ("b", "")], 1.5, Some(7));
        family.sample(&[], 2.0);
        text.family("empty", Kind::Gauge, "Nothing.");
        assert_eq!(
            text.finish(),
            "# HELP f_total Help.\n# TYPE f_total counter\n\
             f_total{a=\"x\\\"y\\\\z\\n\",b=\"\"} 1.5 7\nf_total 2\n"
        );
    }
}
