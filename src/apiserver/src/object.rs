//! Reading and writing API objects held as JSON values. Paths are JSON pointers; a missing or
//! mistyped value reads as empty, since every object here has passed its typed decoding.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// Field access on an API object.
pub(crate) trait ObjectExt {
    /// The string at a pointer, or "".
    fn text(&self, pointer: &str) -> &str;
    /// The integer at a pointer.
    fn int(&self, pointer: &str) -> Option<i64>;
    /// The boolean at a pointer, or false.
    fn flag(&self, pointer: &str) -> bool;
    /// The array at a pointer, or an empty one.
    fn list(&self, pointer: &str) -> &[Value];
    /// The object at a pointer, if it is there.
    fn map(&self, pointer: &str) -> Option<&Map<String, Value>>;
    /// Whether something other than null is at a pointer.
    fn has(&self, pointer: &str) -> bool;
    /// Sets a value, making the objects on the way to it.
    fn put(&mut self, pointer: &str, value: impl Into<Value>);
    /// Sets a value where there is none.
    fn default_to(&mut self, pointer: &str, value: impl Into<Value>);
    /// Takes a value out, if it is there.
    fn take_out(&mut self, pointer: &str) -> Option<Value>;
    /// The array at a pointer for change; empty when it is not there.
    fn list_mut(&mut self, pointer: &str) -> &mut [Value];

    /// `metadata.name`.
    fn name(&self) -> &str {
        self.text("/metadata/name")
    }
    /// `metadata.namespace`.
    fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }
    /// `metadata.uid`.
    fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }
    /// Whether `metadata.deletionTimestamp` is set.
    fn is_terminating(&self) -> bool {
        self.has("/metadata/deletionTimestamp")
    }
    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str> {
        self.map("/metadata/labels")?.get(key)?.as_str()
    }
    /// The value of an annotation.
    fn annotation(&self, key: &str) -> Option<&str> {
        self.map("/metadata/annotations")?.get(key)?.as_str()
    }
}

impl ObjectExt for Value {
    fn text(&self, pointer: &str) -> &str {
        self.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn int(&self, pointer: &str) -> Option<i64> {
        self.pointer(pointer).and_then(Value::as_i64)
    }

    fn flag(&self, pointer: &str) -> bool {
        self.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
    }

    fn list(&self, pointer: &str) -> &[Value] {
        self.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    fn map(&self, pointer: &str) -> Option<&Map<String, Value>> {
        self.pointer(pointer).and_then(Value::as_object)
    }

    fn has(&self, pointer: &str) -> bool {
        self.pointer(pointer).is_some_and(|value| !value.is_null())
    }

    fn put(&mut self, pointer: &str, value: impl Into<Value>) {
        let mut at = self;
        for step in pointer.split('/').skip(1) {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            // The line above makes it an object.
            let Value::Object(map) = at else { return };
            at = map.entry(step.to_owned()).or_insert(Value::Null);
        }
        *at = value.into();
    }

    fn default_to(&mut self, pointer: &str, value: impl Into<Value>) {
        if !self.has(pointer) {
            self.put(pointer, value);
        }
    }

    fn take_out(&mut self, pointer: &str) -> Option<Value> {
        let (parent, key) = pointer.rsplit_once('/')?;
        self.pointer_mut(parent)?.as_object_mut()?.remove(key)
    }

    fn list_mut(&mut self, pointer: &str) -> &mut [Value] {
        self.pointer_mut(pointer)
            .and_then(Value::as_array_mut)
            .map(Vec::as_mut_slice)
            .unwrap_or_default()
    }
}

/// A moment as `metav1.Time` writes it: UTC, whole seconds.
pub(crate) fn stamp(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Reads a time of either form.
pub(crate) fn parse_stamp(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// A random (version 4) UUID.
pub(crate) fn new_uid() -> String {
    let bits: u128 = rand::random();
    let bits = (bits & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The five random characters that follow a `generateName` (no vowels, no look-alikes).
pub(crate) fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).map(|_| LETTERS[rand::random_range(0..LETTERS.len())] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn put_makes_the_objects_on_its_way() {
        let mut object = json!({"a": 1});
        object.put("/b/c/d", 2);
        object.default_to("/b/c/d", 3);
        assert_eq!(object, json!({"a": 1, "b": {"c": {"d": 2}}}));
        assert_eq!(object.take_out("/b/c/d"), Some(json!(2)));
        assert!(!object.has("/b/c/d"));
    }

    #[test]
    fn a_uid_is_a_version_four_uuid() {
        let uid = new_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"));
    }

    #[test]
    fn times_are_written_in_whole_seconds() {
        let at = parse_stamp("2026-01-02T03:04:05.123456Z").unwrap();
        assert_eq!(stamp(at), "2026-01-02T03:04:05Z");
    }
}
