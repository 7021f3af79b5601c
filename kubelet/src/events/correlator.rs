//! Decides what becomes of an event: a new object, one more count on an old one, or nothing.
//!
//! Pure but for the numbers in it: the time comes in. Follows client-go's EventCorrelator: the same
//! event again counts up; from the tenth on, those that differ only in their message and follow each
//! other within ten minutes are merged; one object may cause 25 events at once and then one in five
//! minutes, and what is held back is still counted; all together 100 at once and 50 a second.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tokio::time::Instant;

use super::{Occurrence, Severity, Source};
use crate::clock;

const SIMILAR_LIMIT: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
const OBJECT_BURST: f64 = 25.0;
const OBJECT_RATE: f64 = 1.0 / 300.0;
const TOTAL_BURST: f64 = 100.0;
const TOTAL_RATE: f64 = 50.0;
/// How many keys are remembered before the oldest are forgotten.
const REMEMBERED: usize = 4096;

/// What becomes of an event.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decision {
    /// It is created.
    Create(Event),
    /// The event of this name is counted up.
    Repeat(Event),
    /// It is one too many.
    Drop,
}

/// An object: kind, namespace, name, UID, API version.
type ObjectKey = [String; 5];
/// Events that are alike but for their message: of one object, severity and reason.
type KindKey = (ObjectKey, Severity, String);
/// One event: its kind, the part of the object it is about, its message; the latter two are empty
/// where it stands for many.
type EventKey = (KindKey, String, String);

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn full(burst: f64, now: Instant) -> Self {
        Self { tokens: burst, filled: now }
    }

    fn refill(&mut self, burst: f64, rate: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(burst);
        self.filled = now;
    }

    fn take(&mut self, burst: f64, rate: f64, now: Instant) -> bool {
        self.refill(burst, rate, now);
        let available = self.tokens >= 1.0;
        if available {
            self.tokens -= 1.0;
        }
        available
    }
}

struct Similar {
    messages: BTreeSet<String>,
    seen: Instant,
}

/// What is kept of an event that was created, to count it up.
struct Known {
    name: String,
    count: i32,
    first: Time,
    seen: Instant,
}

/// Remembers what was recorded.
pub(super) struct Correlator {
    source: Source,
    known: HashMap<EventKey, Known>,
    similar: HashMap<KindKey, Similar>,
    objects: HashMap<ObjectKey, Bucket>,
    total: Option<Bucket>,
    serial: u64,
}

impl Correlator {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            known: HashMap::new(),
            similar: HashMap::new(),
            objects: HashMap::new(),
            total: None,
            serial: 0,
        }
    }

    /// How long the next delivery has to wait for the rate of all together.
    pub(super) fn throttle(&mut self, now: Instant) -> Option<Duration> {
        let bucket = self.total.get_or_insert_with(|| Bucket::full(TOTAL_BURST, now));
        bucket.refill(TOTAL_BURST, TOTAL_RATE, now);
        bucket.tokens -= 1.0;
        (bucket.tokens < 0.0).then(|| Duration::from_secs_f64(-bucket.tokens / TOTAL_RATE))
    }

    pub(super) fn correlate(
        &mut self,
        occurrence: Occurrence,
        now: Instant,
        wall: Timestamp,
    ) -> Decision {
        self.forget(now);
        let object = object_key(&occurrence);
        let kind = (object.clone(), occurrence.severity, occurrence.reason.clone());
        let message = self.merged_message(&kind, &occurrence, now);
        let key = match message.merged {
            true => (kind, String::new(), String::new()),
            false => {
                let part = occurrence.object.field_path.clone().unwrap_or_default();
                (kind, part, message.text.clone())
            }
        };
        let mut event = self.event(occurrence, message.text, wall);
        let decision = match self.known.get_mut(&key) {
            Some(known) => {
                known.seen = now;
                known.count = known.count.saturating_add(1);
                event.metadata.name = Some(known.name.clone());
                event.count = Some(known.count);
                event.first_timestamp = Some(known.first.clone());
                Decision::Repeat(event)
            }
            None => {
                let name = event.metadata.name.clone().unwrap_or_default();
                let first = Time(clock::whole_seconds(wall));
                self.known.insert(key, Known { name, count: 1, first, seen: now });
                Decision::Create(event)
            }
        };
        let bucket = self.objects.entry(object).or_insert_with(|| Bucket::full(OBJECT_BURST, now));
        match bucket.take(OBJECT_BURST, OBJECT_RATE, now) {
            true => decision,
            false => Decision::Drop,
        }
    }

    fn merged_message(&mut self, kind: &KindKey, occurrence: &Occurrence, now: Instant) -> Message {
        let fresh = || Similar { messages: BTreeSet::new(), seen: now };
        let similar = self.similar.entry(kind.clone()).or_insert_with(fresh);
        if now.saturating_duration_since(similar.seen) > SIMILAR_WINDOW {
            similar.messages.clear();
        }
        similar.seen = now;
        let is_known = similar.messages.contains(&occurrence.message);
        // The limit is that of the messages that stand for themselves, so the last one does not.
        let merged = !is_known && similar.messages.len() + 1 >= SIMILAR_LIMIT;
        if !merged && !is_known {
            similar.messages.insert(occurrence.message.clone());
        }
        let text = match merged {
            true => format!("(combined from similar events): {}", occurrence.message),
            false => occurrence.message.clone(),
        };
        Message { merged, text }
    }

    fn event(&mut self, occurrence: Occurrence, message: String, wall: Timestamp) -> Event {
        self.serial = self.serial.wrapping_add(1);
        let name = occurrence.object.name.clone().unwrap_or_default();
        let namespace = occurrence.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let unique = wall.as_nanosecond().wrapping_add(i128::from(self.serial));
        let time = Time(clock::whole_seconds(wall));
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{unique:x}")),
                namespace: Some(namespace),
                annotations: (!occurrence.annotations.is_empty()).then_some(occurrence.annotations),
                ..ObjectMeta::default()
            },
            involved_object: occurrence.object,
            reason: Some(occurrence.reason),
            message: Some(message),
            type_: Some(occurrence.severity.as_str().to_owned()),
            count: Some(1),
            first_timestamp: Some(time.clone()),
            last_timestamp: Some(time),
            source: Some(EventSource {
                component: Some(self.source.component.clone()),
                host: Some(self.source.host.clone()),
            }),
            reporting_component: Some(self.source.component.clone()),
            reporting_instance: Some(self.source.host.clone()),
            ..Event::default()
        }
    }

    /// Keeps memory bounded: what was quiet for a window goes once there is much.
    fn forget(&mut self, now: Instant) {
        let quiet = |since: Instant| now.saturating_duration_since(since) > SIMILAR_WINDOW;
        if self.known.len() > REMEMBERED {
            self.known.retain(|_, known| !quiet(known.seen));
            if self.known.len() > REMEMBERED {
                self.known.clear();
            }
        }
        if self.similar.len() > REMEMBERED {
            self.similar.clear();
        }
        if self.objects.len() > REMEMBERED {
            self.objects.retain(|_, bucket| !quiet(bucket.filled));
            if self.objects.len() > REMEMBERED {
                self.objects.clear();
            }
        }
    }
}

struct Message {
    merged: bool,
    text: String,
}

fn object_key(occurrence: &Occurrence) -> ObjectKey {
    let object = &occurrence.object;
    let fields = [&object.kind, &object.namespace, &object.name, &object.uid, &object.api_version];
    fields.map(|field| field.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;
    use std::collections::BTreeMap;

    fn occurrence(reason: &str, message: &str) -> Occurrence {
        Occurrence {
            object: ObjectReference {
                uid: Some("u".to_owned()),
                name: Some("p".to_owned()),
                namespace: Some("ns".to_owned()),
                ..ObjectReference::default()
            },
            severity: Severity::Warning,
            reason: reason.to_owned(),
            message: message.to_owned(),
            annotations: BTreeMap::new(),
        }
    }

    fn correlator() -> Correlator {
        Correlator::new(Source { component: "kubelet".to_owned(), host: "n".to_owned() })
    }

    #[test]
    fn the_same_event_again_counts_up_under_its_first_name() {
        let (mut correlator, now) = (correlator(), Instant::now());
        let wall = Timestamp::UNIX_EPOCH;
        let first = correlator.correlate(occurrence("BackOff", "m"), now, wall);
        let second = correlator.correlate(occurrence("BackOff", "m"), now, wall);
        let (Decision::Create(first), Decision::Repeat(second)) = (first, second) else {
            panic!("expected a creation and a repetition");
        };
        assert_eq!(first.metadata.name, second.metadata.name);
        assert_eq!(second.count, Some(2));
    }

    #[test]
    fn from_the_tenth_on_similar_events_are_merged() {
        let (mut correlator, now) = (correlator(), Instant::now());
        let mut created = 0;
        let mut last = None;
        for n in 0..20 {
            let decision = correlator.correlate(
                occurrence("FailedMount", &format!("m{n}")),
                now,
                Timestamp::UNIX_EPOCH,
            );
            created += usize::from(matches!(decision, Decision::Create(_)));
            last = Some(decision);
        }
        assert_eq!(created, 10, "nine for themselves, one for the rest");
        let Some(Decision::Repeat(event)) = last else {
            panic!("expected a repetition");
        };
        assert_eq!(event.count, Some(11));
        let message = event.message.unwrap();
        assert_eq!(message, "(combined from similar events): m19");
    }

    #[test]
    fn one_object_is_held_to_a_burst_and_then_to_one_in_five_minutes() {
        let (mut correlator, now) = (correlator(), Instant::now());
        let mut passed = |at: Instant| {
            let decision =
                correlator.correlate(occurrence("BackOff", "m"), at, Timestamp::UNIX_EPOCH);
            decision != Decision::Drop
        };
        assert_eq!((0..40).filter(|_| passed(now)).count(), 25);
        assert!(passed(now + Duration::from_secs(301)));
        assert!(!passed(now + Duration::from_secs(302)));
    }

    #[test]
    fn an_object_is_one_source_whatever_part_or_reason_and_others_go_on() {
        let (mut correlator, now) = (correlator(), Instant::now());
        let mut passed = |name: &str, part: &str, severity, reason: &str| {
            let mut occurrence = occurrence(reason, "m");
            occurrence.severity = severity;
            occurrence.object.name = Some(name.to_owned());
            occurrence.object.uid = Some(name.to_owned());
            occurrence.object.field_path = Some(part.to_owned());
            correlator.correlate(occurrence, now, Timestamp::UNIX_EPOCH) != Decision::Drop
        };
        let all = (0..30).filter(|n| {
            let severity = if n % 2 == 0 { Severity::Normal } else { Severity::Warning };
            passed("p", &format!("spec.containers{{c{n}}}"), severity, &format!("R{n}"))
        });
        assert_eq!(all.count(), 25);
        assert!(!passed("p", "", Severity::Normal, "Started"));
        assert!(passed("q", "", Severity::Normal, "Started"));
    }

    #[test]
    fn what_is_held_back_is_still_counted() {
        let (mut correlator, now) = (correlator(), Instant::now());
        let wall = Timestamp::UNIX_EPOCH;
        for _ in 0..40 {
            correlator.correlate(occurrence("BackOff", "m"), now, wall);
        }
        let later = now + Duration::from_secs(301);
        let Decision::Repeat(event) = correlator.correlate(occurrence("BackOff", "m"), later, wall)
        else {
            panic!("expected a repetition");
        };
        assert_eq!(event.count, Some(41));
    }

    #[test]
    fn all_together_are_held_to_fifty_a_second_after_a_burst() {
        let (mut correlator, now) = (correlator(), Instant::now());
        let waits: Vec<_> = (0..150).map(|_| correlator.throttle(now)).collect();
        assert_eq!(waits.iter().filter(|w| w.is_none()).count(), 100);
        assert_eq!(waits[149], Some(Duration::from_secs(1)));
    }
}
