//! What was recorded last, kept in memory for whoever asks on the node itself: also what never reached
//! the API server. Bounded: the oldest goes for the newest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Occurrence;

/// How many different events are kept.
const KEPT: usize = 1000;

/// The longest message, as the API has it.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Something that happened, perhaps more than once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// When it happened last.
    pub last: Timestamp,
    /// When it happened first.
    pub first: Timestamp,
    /// How often.
    pub count: u32,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub severity: String,
    /// The reason, in CamelCase.
    pub reason: String,
    /// The kind of what it happened to.
    pub kind: String,
    /// Its namespace; empty for a node.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The part of it, such as `spec.containers{web}`; empty for the whole.
    pub field: String,
    /// The message.
    pub message: String,
}

/// What was recorded last. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Recorded>>>);

impl Recent {
    /// Everything that is kept, the oldest first.
    pub fn list(&self) -> Vec<Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Keeps an occurrence; one that is the same as before is counted.
    pub(super) fn note(&self, occurrence: &Occurrence, now: Timestamp) {
        let object = &occurrence.object;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let mut message = occurrence.message.clone();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        let mut new = Recorded {
            last: now,
            first: now,
            count: 1,
            severity: occurrence.severity.as_str().to_owned(),
            reason: occurrence.reason.clone(),
            kind: text(&object.kind),
            namespace: text(&object.namespace),
            name: text(&object.name),
            field: text(&object.field_path),
            message,
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = kept.iter().rposition(|old| old.says_the_same(&new))
            && let Some(old) = kept.remove(before)
        {
            (new.first, new.count) = (old.first, old.count.saturating_add(1));
        }
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(new);
    }
}

impl Recorded {
    fn says_the_same(&self, other: &Self) -> bool {
        let key = |one: &Self| {
            let Self { severity, reason, kind, namespace, name, field, message, .. } = one.clone();
            (severity, reason, kind, namespace, name, field, message)
        };
        self.message == other.message && key(self) == key(other)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;
    use crate::events::Severity;

    fn occurrence(name: &str, message: &str) -> Occurrence {
        Occurrence {
            object: ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() },
            severity: Severity::Warning,
            reason: "BackOff".to_owned(),
            message: message.to_owned(),
            annotations: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn the_same_again_is_counted_and_comes_last() {
        let recent = Recent::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        recent.note(&occurrence("a", "m"), at(1));
        recent.note(&occurrence("b", "m"), at(2));
        recent.note(&occurrence("a", "m"), at(3));
        recent.note(&occurrence("a", "other"), at(4));
        let told: Vec<_> =
            recent.list().into_iter().map(|r| (r.name, r.message, r.count, r.first)).collect();
        let row = |name: &str, message: &str, count, second| {
            (name.to_owned(), message.to_owned(), count, at(second))
        };
        assert_eq!(told, [row("b", "m", 1, 2), row("a", "m", 2, 1), row("a", "other", 1, 4)]);
    }

    #[test]
    fn the_oldest_goes_and_messages_are_bounded() {
        let recent = Recent::default();
        for count in 0..KEPT + 3 {
            recent.note(&occurrence("a", &count.to_string()), Timestamp::UNIX_EPOCH);
        }
        let kept = recent.list();
        assert_eq!((kept.len(), kept[0].message.as_str()), (KEPT, "3"));
        recent.note(&occurrence("a", &"é".repeat(4000)), Timestamp::UNIX_EPOCH);
        assert!(recent.list().pop().unwrap().message.len() <= MAX_MESSAGE_BYTES);
    }
}
