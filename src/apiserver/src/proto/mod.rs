//! Request bodies in the API's protobuf encoding, which typed Go clients (`kubectl create …`)
//! send: decoded to the JSON form that everything else here works on. Answers are always JSON,
//! which such clients accept as well.
//!
//! The encoding is an envelope (`k8s\0`, then `runtime.Unknown`) around a proto2 message; the
//! table of field numbers is data beside this file.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::resource::{Review, api_version};

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// How deep messages may nest; schemas that contain themselves do not go deeper in practice.
const MAX_DEPTH: usize = 32;

/// Bytes that are no message of the API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The envelope is not there.
    #[error("the body is not a protobuf-encoded object")]
    Envelope,
    /// The kind is not one that this server reads.
    #[error("no kind {0:?} is read in protobuf form")]
    UnknownKind(String),
    /// A message ends too early or has a field of the wrong wire type.
    #[error("the protobuf message is malformed in field {0:?}")]
    Malformed(String),
    /// Messages are nested too deeply.
    #[error("the protobuf message is nested too deeply")]
    TooDeep,
}

/// How one field is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    name: String,
    count: Count,
    kind: FieldKind,
    /// Whether a zero value differs from an absent one.
    optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    One,
    List,
    Map,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum FieldKind {
    Text,
    Integer,
    Boolean,
    Bytes,
    Message(String),
}

type Messages = HashMap<String, HashMap<u64, Field>>;

fn messages() -> &'static Messages {
    static MESSAGES: OnceLock<Messages> = OnceLock::new();
    MESSAGES.get_or_init(|| parse_table(include_str!("messages.txt")))
}

fn parse_table(text: &str) -> Messages {
    let mut messages = Messages::new();
    let mut current = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        if !line.starts_with(' ')
            && let Some(name) = words.next()
        {
            current = name.to_owned();
        }
        let fields = messages.entry(current.clone()).or_default();
        fields.extend(words.filter_map(parse_field));
    }
    messages
}

fn parse_field(word: &str) -> Option<(u64, Field)> {
    let (name, rest) = word.split_once('=')?;
    let (number, kind) = rest.split_once(':')?;
    let (kind, optional) = match kind.strip_suffix('?') {
        Some(kind) => (kind, true),
        None => (kind, false),
    };
    let (count, kind) = match kind.chars().next()? {
        '*' => (Count::List, &kind[1..]),
        '%' => (Count::Map, &kind[1..]),
        _ => (Count::One, kind),
    };
    let kind = match kind {
        "s" => FieldKind::Text,
        "i" => FieldKind::Integer,
        "b" => FieldKind::Boolean,
        "y" => FieldKind::Bytes,
        message => FieldKind::Message(message.to_owned()),
    };
    Some((number.parse().ok()?, Field { name: name.to_owned(), count, kind, optional }))
}

/// Decodes an enveloped object to its JSON form.
///
/// # Errors
/// When the bytes are no object of a kind that is read here.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or(Error::Envelope)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for part in Wire(envelope) {
        match part.map_err(|()| Error::Envelope)? {
            (1, Part::Bytes(meta)) => {
                for part in Wire(meta) {
                    match part.map_err(|()| Error::Envelope)? {
                        (1, Part::Bytes(text)) => version = lossy(text),
                        (2, Part::Bytes(text)) => kind = lossy(text),
                        _ => {}
                    }
                }
            }
            (2, Part::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name = match (version.as_str(), kind.as_str()) {
        ("events.k8s.io/v1", "Event") => "NewEvent",
        (_, kind) => kind,
    };
    let known =
        matches!(name, "Binding" | "Eviction" | "DeleteOptions" | "NewEvent" | "TokenRequest")
            || Review::ALL.iter().any(|review| review.kind_name() == name)
            || crate::resource::RESOURCES
                .iter()
                .any(|r| r.kind_name == name && api_version(r.group, r.version) == version);
    if !known {
        return Err(Error::UnknownKind(format!("{version}/{kind}")));
    }
    let mut object = message(name, raw, 0)?;
    if let Value::Object(map) = &mut object {
        map.insert("apiVersion".into(), version.into());
        map.insert("kind".into(), kind.into());
    }
    Ok(object)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One field on the wire.
enum Part<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in order.
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn varint(&mut self) -> Result<u64, ()> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(())?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], ()> {
        let length = usize::try_from(length).map_err(|_| ())?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(())?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Part<'a>), ()> {
        let tag = self.varint()?;
        let part = match tag & 7 {
            0 => Part::Number(self.varint()?),
            1 => Part::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Part::Bytes(self.take(length)?)
            }
            5 => Part::Bytes(self.take(4)?),
            _ => return Err(()),
        };
        Ok((tag >> 3, part))
    }
}

impl<'a> Iterator for Wire<'a> {
    type Item = Result<(u64, Part<'a>), ()>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::TooDeep);
    }
    if let Some(special) = special(name, bytes) {
        return special.map_err(|()| Error::Malformed(name.to_owned()));
    }
    let fields = messages().get(name).ok_or_else(|| Error::UnknownKind(name.to_owned()))?;
    let mut object = Map::new();
    for part in Wire(bytes) {
        let (number, part) = part.map_err(|()| Error::Malformed(name.to_owned()))?;
        // Fields that the table does not know are newer than this server.
        if let Some(field) = fields.get(&number) {
            add(&mut object, field, (part, depth))?;
        }
    }
    Ok(Value::Object(object))
}

fn add(
    object: &mut Map<String, Value>,
    field: &Field,
    (part, depth): (Part<'_>, usize),
) -> Result<(), Error> {
    if field.count == Count::Map {
        let (key, value) = map_entry(field, (part, depth))?;
        let map = object.entry(field.name.clone()).or_insert_with(|| Value::Object(Map::new()));
        if let Some(map) = map.as_object_mut() {
            map.insert(key, value);
        }
        return Ok(());
    }
    let value = scalar(field, (part, depth))?;
    match field.count {
        Count::List => {
            let list = object.entry(field.name.clone()).or_insert_with(|| Value::Array(Vec::new()));
            if let Some(list) = list.as_array_mut() {
                list.push(value);
            }
        }
        _ if field.name == "." => {
            if let Value::Object(inlined) = value {
                object.extend(inlined);
            }
        }
        _ if field.optional || !is_zero(&value) => {
            object.insert(field.name.clone(), value);
        }
        _ => {}
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn map_entry(field: &Field, (part, depth): (Part<'_>, usize)) -> Result<(String, Value), Error> {
    let malformed = || Error::Malformed(field.name.clone());
    let Part::Bytes(entry) = part else { return Err(malformed()) };
    let (mut key, mut value) = (String::new(), None);
    for part in Wire(entry) {
        match part.map_err(|()| malformed())? {
            (1, Part::Bytes(text)) => key = lossy(text),
            (2, part) => value = Some(scalar(field, (part, depth))?),
            _ => {}
        }
    }
    Ok((key, value.unwrap_or_else(|| Value::String(String::new()))))
}

fn scalar(field: &Field, (part, depth): (Part<'_>, usize)) -> Result<Value, Error> {
    match (&field.kind, part) {
        (FieldKind::Text, Part::Bytes(text)) => Ok(lossy(text).into()),
        (FieldKind::Bytes, Part::Bytes(bytes)) => Ok(STANDARD.encode(bytes).into()),
        // Integers are two's complement in 64 bits, whatever their width.
        (FieldKind::Integer, Part::Number(number)) => Ok(number.cast_signed().into()),
        (FieldKind::Boolean, Part::Number(number)) => Ok((number != 0).into()),
        (FieldKind::Message(name), Part::Bytes(bytes)) => message(name, bytes, depth + 1),
        _ => Err(Error::Malformed(field.name.clone())),
    }
}

/// Messages whose JSON form is not an object.
fn special(name: &str, bytes: &[u8]) -> Option<Result<Value, ()>> {
    let numbered = || -> Result<HashMap<u64, Value>, ()> {
        Wire(bytes)
            .map(|part| {
                let (number, part) = part?;
                Ok((
                    number,
                    match part {
                        Part::Number(number) => number.cast_signed().into(),
                        Part::Bytes(bytes) => lossy(bytes).into(),
                    },
                ))
            })
            .collect()
    };
    let read = |make: &dyn Fn(&HashMap<u64, Value>) -> Option<Value>| {
        numbered().and_then(|fields| make(&fields).ok_or(()))
    };
    let number = |fields: &HashMap<u64, Value>, at: u64| {
        fields.get(&at).and_then(Value::as_i64).unwrap_or(0)
    };
    match name {
        "Quantity" => Some(read(&|fields| fields.get(&1).cloned().or(Some("0".into())))),
        "IntOrString" => Some(read(&|fields| match number(fields, 1) {
            0 => Some(number(fields, 2).into()),
            _ => Some(fields.get(&3).cloned().unwrap_or_else(|| "".into())),
        })),
        "Time" | "MicroTime" if bytes.is_empty() => Some(Ok(Value::Null)),
        "Time" | "MicroTime" => Some(read(&|fields| {
            let nanos = i32::try_from(number(fields, 2)).ok()?;
            let at = Timestamp::new(number(fields, 1), nanos).ok()?;
            Some(at.to_string().into())
        })),
        "Duration" => Some(read(&|fields| Some(number(fields, 1).into()))),
        // Managed fields and extensions are not kept here.
        "FieldsV1" | "RawExtension" => Some(Ok(Value::Null)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut wire = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        wire.extend(bytes);
        wire
    }

    fn enveloped(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_config_map_is_decoded() {
        let entry = [field(1, b"k"), field(2, b"v")].concat();
        let raw = [field(1, &field(1, b"name")), field(2, &entry), vec![4 << 3, 0]].concat();
        assert_eq!(
            decode(&enveloped("v1", "ConfigMap", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "name"},
                "data": {"k": "v"}, "immutable": false})
        );
    }

    #[test]
    fn inlined_messages_and_special_forms_are_json_like_upstreams() {
        let volume = [field(1, b"v"), field(2, &field(2, &[]))].concat();
        let spec = field(1, &volume);
        let pod = decode(&enveloped("v1", "Pod", &field(2, &spec))).unwrap();
        assert_eq!(pod["spec"], json!({"volumes": [{"name": "v", "emptyDir": {}}]}));
        let port = [vec![3 << 3, 80], field(4, &[1 << 3, 0, 2 << 3, 81])].concat();
        let service = decode(&enveloped("v1", "Service", &field(2, &field(1, &port)))).unwrap();
        assert_eq!(service["spec"], json!({"ports": [{"port": 80, "targetPort": 81}]}));
    }

    #[test]
    fn the_amounts_of_a_runtime_class_are_read_by_name() {
        let cpu = [field(1, b"cpu"), field(2, &field(1, b"10m"))].concat();
        let label = [field(1, b"kind"), field(2, b"vm")].concat();
        let scheduling = [field(1, &label), field(2, &field(1, b"vm"))].concat();
        let parts = [field(2, b"kata"), field(3, &field(1, &cpu)), field(4, &scheduling)];
        assert_eq!(
            decode(&enveloped("node.k8s.io/v1", "RuntimeClass", &parts.concat())).unwrap(),
            json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "kata",
                "overhead": {"podFixed": {"cpu": "10m"}},
                "scheduling": {"nodeSelector": {"kind": "vm"}, "tolerations": [{"key": "vm"}]}})
        );
    }

    #[test]
    fn every_message_that_is_named_is_in_the_table() {
        for fields in messages().values() {
            for one in fields.values() {
                if let FieldKind::Message(name) = &one.kind {
                    assert!(
                        messages().contains_key(name) || special(name, &[]).is_some(),
                        "{name}"
                    );
                }
            }
        }
    }

    #[test]
    fn other_bytes_and_kinds_are_refused() {
        assert_eq!(decode(b"{}"), Err(Error::Envelope));
        assert!(decode(&enveloped("apps/v1", "Deployment", &[])).is_err());
        assert!(decode(&enveloped("v1", "Pod", &[0x0a, 0x7f])).is_err(), "truncated");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(raw in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&enveloped("v1", "Pod", &raw));
            let _ = decode(&raw);
        }
    }
}
